"""Packing: a conversation and a group of trajectories worked by hand, budgets, and what order must not change."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.packed import group_pieces, one_row
from tests.scripted_noise import ScriptedNoise

from dirl.batches import IGNORE, PackedBatch
from dirl.diffusion.noise import NoiseConfig
from dirl.packing.pieces import Encoded, Piece, PieceGroup, alone, conversation, whole_blocks
from dirl.packing.rows import Branch, empty_batch, fill_rate, join, pack
from dirl.types import ModelSpec, Trajectory

M, E, PAD, X = 50, 60, 61, IGNORE
SPEC = ModelSpec(block_size=2, mask_token_id=M, stop_token_ids=(E, PAD), pad_token_id=PAD, vocab_size=64)


def columns(piece: Piece | PackedBatch, *names: str) -> list[list]:
    found = {**vars(piece), **piece.columns}
    return [found[name].tolist() for name in names]


# ------------------------------------------------------------------------------------------ conversations


def test_a_conversation_by_hand() -> None:
    """Prompt 1 2 3, answer 4 5 6 and the end token; B = 2, so the answer begins in the middle of block 1."""
    encoded = Encoded([1, 2, 3, 4, 5, 6, E], [False] * 3 + [True] * 4)
    segment, count = conversation(encoded, SPEC, NoiseConfig(), ScriptedNoise([0.5, 0.25, 1.0], ["##", ".#", "##"]))
    assert count == 5  # 4 5 6, the end token, and one more end token that fills block 3
    ids, positions, blocks, views = columns(segment, "input_ids", "position_ids", "block_ids", "view_ids")
    targets, weights = columns(segment, "target_ids", "loss_weights")
    #          clean blocks 0, 1, 2  | noised 1, 2, 3; the clean copy of block 3 would be seen by nobody
    assert ids == [1, 2, 3, 4, 5, 6, 3, M, 5, M, M, M]
    assert positions == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]
    assert blocks == [0, 0, 1, 1, 2, 2, 1, 1, 2, 2, 3, 3]
    assert views == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert targets == [X, X, X, X, X, X, X, 4, X, 6, E, E]
    assert weights == [0, 0, 0, 0, 0, 0, 0, 2, 0, 4, 1, 1]
    assert set(segment.trajectory_ids.tolist()) == {0}


def test_views_of_a_block_are_numbered_and_those_that_mask_nothing_are_left_out() -> None:
    encoded = Encoded([1, 2, 3, 4, 5, E], [False] * 2 + [True] * 4)
    config = NoiseConfig(views_per_block=2)
    rng = ScriptedNoise([0.5, 0.5, 0.5, 0.5], ["..", "##", "#.", ".#"])  # views 1 and 2, blocks 1 and 2 of each
    segment, count = conversation(encoded, SPEC, config, rng)
    assert count == 4
    ids, blocks, views, weights = columns(segment, "input_ids", "block_ids", "view_ids", "loss_weights")
    assert ids == [1, 2, 3, 4, M, 4, M, M, 5, M]
    assert blocks == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert views == [0, 0, 0, 0, 2, 2, 1, 1, 2, 2]
    assert weights == [0, 0, 0, 0, 1, 0, 1, 1, 0, 1]  # 1 / (0.5 * 2 views)


def test_turns_of_the_user_between_trained_answers_get_no_view() -> None:
    encoded = Encoded([1, E, 2, 3, 4, 5, 6, E], [True, True, False, False, False, False, True, True])
    segment, count = conversation(encoded, SPEC, NoiseConfig(), ScriptedNoise([0.5, 0.5], ["#.", "#."]))
    assert count == 4
    ids, blocks = columns(segment, "input_ids", "block_ids")
    assert ids == [1, E, 2, 3, 4, 5, M, E, M, E]
    assert blocks == [0, 0, 1, 1, 2, 2, 0, 0, 3, 3]


def test_the_fill_of_the_last_block_is_trained_on_like_the_token_before_it() -> None:
    ids, trained = whole_blocks(Encoded([1, 2, 3, 4, E], [False, False, True, True, True]), 4, E)
    assert ids.tolist() == [[1, 2, 3, 4], [E, E, E, E]]
    assert trained.tolist() == [[False, False, True, True], [True] * 4]
    _, trained = whole_blocks(Encoded([1, 2, 3], [True, True, False]), 4, E)
    assert trained.tolist() == [[True, True, False, False]]


def test_a_full_last_block_is_not_filled() -> None:
    ids, _ = whole_blocks(Encoded([1, 2, 3, E], [True] * 4), 4, E)
    assert ids.tolist() == [[1, 2, 3, E]]


def test_a_cut_conversation_loses_its_partial_block_and_learns_no_end() -> None:
    encoded = Encoded([1, 2, 3, 4, 5], [False, False, True, True, True], complete=False)
    segment, count = conversation(encoded, SPEC, NoiseConfig(), ScriptedNoise([0.5], ["##"]))
    assert count == 2
    assert segment.input_ids.tolist() == [1, 2, M, M]
    assert segment.target_ids.tolist() == [X, X, 3, 4]


def test_a_cut_conversation_shorter_than_a_block_is_empty() -> None:
    segment, count = conversation(Encoded([1], [True], complete=False), SPEC, NoiseConfig(), ScriptedNoise([], []))
    assert (len(segment), count) == (0, 0)


def test_empty_segments_make_no_row() -> None:
    """A row of no tokens cannot go through a model: all noise of a one-block answer may have missed."""
    encoded = Encoded([1, E], [True, True])
    nothing, count = conversation(encoded, SPEC, NoiseConfig(), ScriptedNoise([0.1], [".."]))
    assert (len(nothing), count) == (0, 2)
    assert pack([alone(nothing), alone(nothing)], 8) == []
    something, _ = conversation(encoded, SPEC, NoiseConfig(), ScriptedNoise([0.1], ["#."]))
    assert [len(row) for row in pack([alone(nothing), alone(something)], 8)] == [2]


# ----------------------------------------------------------------------------------------------- groups


def trajectory(number: int, prompt: tuple[int, ...], response: tuple[int, ...], steps: tuple[int, ...]) -> Trajectory:
    """Log-probs are -(place in the response + 1) / 10 - the number of the trajectory, advantages its number."""
    return Trajectory(
        prompt_id="p",
        sample_index=number,
        prompt_ids=prompt,
        response_ids=response,
        response_length=len(response),
        step_map=steps,
        behaviour_logprobs=tuple(-(i + 1) / 10 - number for i in range(len(response))),
        finish_reason="length",
        policy_version=0,
        advantage=float(number),
    )


GROUP = [
    trajectory(1, (1, 2, 3), (10, 11, 12), (1, 2, 1)),  # block 1: 3 10; block 2: 11 12
    trajectory(2, (1, 2, 3), (20,), (1,)),
]


def test_a_group_by_hand() -> None:
    """The prompt's whole block once; then, of each response, its clean blocks but the last, and a view per step."""
    (group,) = group_pieces(GROUP, SPEC, [1.0, 0.5], share_prompt=True, first=4)
    segment = one_row(group)
    ids, positions, branches = columns(segment, "input_ids", "position_ids", "branch_ids")
    #       prompt| response 1: clean 1, block 1 step 1, block 2 steps 1 and 2 | response 2: block 1 step 1
    assert ids == [1, 2, 3, 10, 3, M, M, M, M, 12, 3, M]
    assert positions == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 2, 3]
    assert branches == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]
    assert segment.trajectory_ids.tolist() == [-1, -1, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5]
    blocks, views, targets = columns(segment, "block_ids", "view_ids", "target_ids")
    assert blocks == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1]
    assert views == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 1, 1]
    assert targets == [X, X, X, X, X, 10, X, 12, 11, X, X, 20]
    weights, advantages, logprobs = columns(segment, "loss_weights", "advantages", "behaviour_logprobs")
    assert weights == [0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0.5]
    assert advantages == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2]
    assert logprobs == pytest.approx([0, 0, 0, 0, 0, -1.1, 0, -1.3, -1.2, 0, 0, -2.1])


def test_without_sharing_each_trajectory_has_its_own_prompt() -> None:
    first, second = map(one_row, group_pieces(GROUP, SPEC, [1.0, 1.0], share_prompt=False))
    assert first.input_ids.tolist() == [1, 2, 3, 10, 3, M, M, M, M, 12]
    assert second.input_ids.tolist() == [1, 2, 3, M]
    assert set(second.branch_ids.tolist()) == {0, 1}


def test_a_prompt_shorter_than_a_block_is_part_of_each_response_alone() -> None:
    group = [trajectory(n, (1,), (10,), (1,)) for n in (1, 2)]
    (segment,) = map(one_row, group_pieces(group, SPEC, [1.0, 1.0], share_prompt=True))
    assert segment.input_ids.tolist() == [1, M, 1, M]
    assert segment.branch_ids.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("budget", "lengths"),
    [(20, [20]), (19, [14, 8]), (14, [14, 8]), (13, [8, 8, 8]), (8, [8, 8, 8])],
)
def test_a_group_is_split_where_the_budget_ends_and_each_row_has_the_prompt(budget: int, lengths: list[int]) -> None:
    """A prompt of 2 tokens and three responses of one clean and two noised blocks, 6 tokens each."""
    group = [trajectory(n, (1, 2), (10, 11, 12, 13), (1, 1, 1, 1)) for n in (1, 2, 3)]
    rows = pack(group_pieces(group, SPEC, [1.0] * 3, share_prompt=True), budget)
    assert [len(row) for row in rows] == lengths
    assert all(row.input_ids[:2].tolist() == [1, 2] and not row.branch_ids[:2].any() for row in rows)
    assert all((row.branch_ids[2:] > 0).all() and row.group_ids.max() == 0 for row in rows)
    assert sorted(a for row in rows for a in row.columns["advantages"][row.target_ids != X][::4].tolist()) == [1, 2, 3]


def test_responses_without_a_common_block_of_the_prompt_are_split_too() -> None:
    group = [trajectory(n, (1,), (10,), (1,)) for n in (1, 2, 3)]
    rows = pack(group_pieces(group, SPEC, [1.0] * 3, share_prompt=True), 4)
    assert [row.input_ids.tolist() for row in rows] == [[1, M, 1, M], [1, M]]
    assert all(len(set(row.branch_ids.tolist())) == len(row) // 2 for row in rows), "two responses in one branch"


def responses_of(rows: list[PackedBatch]) -> list[str]:
    """Every response of every row with all its values, behind its prompt, whatever row, group and branch it is in."""
    found = []
    for row in rows:
        for group, branch in {(g, b) for g, b in zip(*columns(row, "group_ids", "branch_ids"), strict=True) if b}:
            of_it = (row.group_ids == group) & ((row.branch_ids == branch) | (row.branch_ids == 0))
            apart = ("group_ids", "branch_ids", "trajectory_ids")
            values = {k: v[of_it].tolist() for k, v in row.tensors().items() if k not in apart}
            found.append(repr(values))
    return sorted(found)


@pytest.mark.parametrize("share_prompt", [True, False])
def test_every_response_that_fits_is_in_one_row_behind_its_prompt_whatever_the_budget(share_prompt: bool) -> None:
    groups = [[trajectory(10 * g + n, (g,) * 4, (10,) * 2 * n, (1, 2) * n) for n in (1, 2, 3, 4)] for g in range(5)]
    wanted = responses_of(pack([s for g in groups for s in group_pieces(g, SPEC, [0.5] * 4, False)], 10_000))
    assert len(wanted) == 20
    segments = [s for g in groups for s in group_pieces(g, SPEC, [0.5] * 4, share_prompt)]
    for budget in (26, 40, 60, 100, 10_000):
        rows = pack(segments, budget)
        assert responses_of(rows) == wanted
        assert all(len(row) <= budget for row in rows)


# -------------------------------------------------------------------------------------------------- rows


def piece(length: int, mark: int = 0) -> PieceGroup:
    """One that shares no prompt, of so many tokens, all of one id."""
    ints = {name: np.full(length, 1) for name in ("position_ids", "trajectory_ids", "block_ids", "view_ids")}
    floats = {name: np.full(length, mark, np.float32) for name in ("advantages", "behaviour_logprobs")}
    marks = {name: np.full(length, mark) for name in ("input_ids", "target_ids")}
    return alone(Piece(**marks, loss_weights=np.full(length, mark, np.float32), **ints, columns=floats))


def marks(rows: list[PackedBatch]) -> list[list[int]]:
    """The segments in each row, by their ids, in order."""
    return [list(dict.fromkeys(row.input_ids.tolist())) for row in rows]


def test_rows_are_filled_by_the_pieces_that_fit_best() -> None:
    """Budget 10: 3 fills up 7, and 4 fits only beside 6."""
    rows = pack([piece(3, mark=3), piece(7, mark=7), piece(4, mark=4), piece(6, mark=6)], 10)
    assert sorted(map(sorted, marks(rows))) == [[3, 7], [4, 6]]
    assert sorted(map(sorted, marks(pack([piece(n, mark=n) for n in (6, 5, 4)], 10)))) == [[4, 6], [5]]


def test_a_row_exceeds_the_budget_only_for_a_segment_that_exceeds_it_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        lengths = rng.integers(1, 40, rng.integers(1, 20)).tolist()
        rows = pack([piece(n) for n in lengths], 30)
        assert sum(len(row) for row in rows) == sum(lengths)
        assert all(len(row) <= 30 or row.group_ids.max() == 0 for row in rows)
        assert len(rows) <= len(lengths)


def test_no_two_rows_could_have_been_one() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        rows = pack([piece(n) for n in rng.integers(1, 30, 15).tolist()], 30)
        lengths = sorted(len(row) for row in rows)
        assert len(rows) < 2 or lengths[0] + lengths[1] > 30


def contents(rows: list[PackedBatch]) -> list[Any]:
    """All segments of all rows with all their values, whatever their order and group numbers."""
    found = []
    for row in rows:
        for group in row.group_ids.unique().tolist():
            of_group = row.group_ids == group
            values = {k: v[of_group].tolist() for k, v in row.tensors().items() if k != "group_ids"}
            found.append(repr(sorted(values.items())))
    return sorted(found)


def test_what_is_packed_does_not_depend_on_order_or_budget() -> None:
    segments = [*group_pieces(GROUP, SPEC, [1.0, 0.5], True), *(piece(n, mark=n) for n in range(1, 9))]
    wanted = contents(pack(segments, 30))
    assert len(wanted) == 9
    assert contents(pack(segments[::-1], 30)) == wanted
    assert contents(pack(segments, 12)) == wanted
    assert contents(pack(segments, 10_000)) == wanted


def test_each_segment_of_a_row_is_a_group_of_its_own() -> None:
    row = join([[Branch(1, piece(n, mark=5).responses[0])] for n in (2, 3, 1)])
    assert row.group_ids.tolist() == [0, 0, 1, 1, 1, 2]


def test_a_packed_row_has_one_value_of_the_right_type_per_token_and_none_for_what_is_not_known() -> None:
    (row,) = pack(group_pieces(GROUP, SPEC, [1.0, 1.0], True), 100)
    names = ("input", "position", "group", "branch", "block", "view", "target", "trajectory")
    integers = {f"{name}_ids" for name in names}
    for name, value in row.tensors().items():
        assert value.shape == (12,)
        assert value.dtype == (torch.int64 if name in integers else torch.float32), name
    assert set(row.columns) == {"advantages", "behaviour_logprobs"}


def test_the_fill_rate_is_tokens_over_room_and_a_row_over_the_budget_is_full() -> None:
    rows = [one_row(piece(n)) for n in (10, 8, 3)]
    assert fill_rate(rows, 10) == pytest.approx(21 / 30)
    assert fill_rate([*rows, one_row(piece(40))], 10) == pytest.approx(61 / 70)
    assert fill_rate([], 10) == 0


def test_an_empty_batch_is_one_block_without_targets() -> None:
    row = empty_batch(SPEC)
    assert row.input_ids.tolist() == [PAD, PAD]
    assert row.target_ids.tolist() == [X, X]
