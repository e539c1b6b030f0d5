"""Splitting: what a noised token attends to and what it is scored on stay the same, in as few parts as can be."""

from collections import Counter

import numpy as np
import pytest
from tests.packed import group_pieces
from tests.reference import Token, visible

from dirl.batches import IGNORE, PackedBatch
from dirl.diffusion.noise import NoiseConfig
from dirl.packing.pieces import Encoded, Piece, alone, conversation
from dirl.packing.rows import pack
from dirl.packing.splitting import split_piece
from dirl.types import ModelSpec, Trajectory

M, E = 90, 91
SPEC = ModelSpec(block_size=2, mask_token_id=M, stop_token_ids=(E,), pad_token_id=E, vocab_size=96)


def trajectory(number: int, prompt_tokens: int, steps: tuple[int, ...]) -> Trajectory:
    """Every token of the response, every log-prob and the advantage differ from those of other numbers."""
    return Trajectory(
        prompt_id="p",
        sample_index=number,
        prompt_ids=tuple(range(prompt_tokens)),
        response_ids=tuple(range(10 * number, 10 * number + len(steps))),
        response_length=len(steps),
        step_map=steps,
        behaviour_logprobs=tuple(-number - i / 100 for i in range(len(steps))),
        finish_reason="length",
        policy_version=0,
        advantage=float(number),
    )


def random_group(seed: int) -> list[Trajectory]:
    """Three responses of up to ten blocks behind a prompt of up to two, some with a token in the response's block."""
    rng = np.random.default_rng(seed)
    prompt = int(rng.integers(1, 5))
    group = []
    for number in (1, 2, 3):
        steps = [1] if prompt % 2 else []
        for _ in range(rng.integers(1, 10)):
            steps += [(1, 1), (1, 2), (2, 1)][rng.integers(3)]
        group.append(trajectory(number, prompt, tuple(steps)))
    return group


def scored_tokens(rows: list[PackedBatch]) -> Counter:
    """Each scored token with all its values, and with the tokens that it attends to, by `tests.reference.visible`."""
    found: Counter = Counter()
    for row in rows:
        places = list(
            map(Token, *(getattr(row, f"{name}_ids").tolist() for name in ("group", "branch", "block", "view")))
        )
        ids, positions = row.input_ids.tolist(), row.position_ids.tolist()
        for i in np.flatnonzero(row.target_ids != IGNORE):
            seen = sorted((ids[k], positions[k]) for k in range(len(row)) if visible(places[i], places[k]))
            of_it = row.tensors()
            values = [float(of_it[name][i]) for name in ("loss_weights", "trajectory_ids", *row.columns)]
            found[(ids[i], positions[i], int(row.target_ids[i]), *values, tuple(seen))] += 1
    return found


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_every_target_attends_to_the_same_tokens_whatever_the_budget(seed: int, share_prompt: bool) -> None:
    segments = group_pieces(random_group(seed), SPEC, [0.5, 1.0, 2.0], share_prompt)
    wanted = scored_tokens(pack(segments, 10_000))
    assert set(wanted.values()) == {1}
    needed = max(len(t.prompt_ids) + len(t.response_ids) for t in random_group(seed))  # by the last view
    for budget in (*range(1, needed, 4), *range(needed, 60, 3)):
        rows = pack(segments, budget)
        assert scored_tokens(rows) == wanted
        assert max(map(len, rows)) <= (budget if needed <= budget else 1.25 * needed)


@pytest.mark.parametrize("seed", range(20))
def test_conversations_are_split_likewise(seed: int) -> None:
    """Several turns with stretches without views between and after them; whole ones and cut ones."""
    rng, mask = np.random.default_rng(seed), []
    for _ in range(rng.integers(1, 4)):
        mask += [False] * int(rng.integers(0, 24)) + [True] * int(rng.integers(1, 9))
    mask += [False] * int(rng.integers(0, 2) * rng.integers(0, 24))
    encoded = Encoded(list(range(len(mask))), mask, complete=bool(seed % 2))
    segment, _ = conversation(encoded, SPEC, NoiseConfig(views_per_block=3), rng)
    wanted = scored_tokens(pack([alone(segment)], 1000))
    assert wanted
    needed = int(segment.position_ids[segment.view_ids > 0].max()) + 1  # by the last view
    for budget in (1, needed - 1, needed, needed + 3, needed + 9):
        rows = pack([alone(segment)], budget)
        assert scored_tokens(rows) == wanted
        assert max(map(len, rows)) <= (budget if needed <= budget else 1.25 * needed)


def long_response() -> Piece:
    """Four blocks of two tokens, two steps each: six clean tokens, then eight views of two."""
    ((_, (piece,)),) = group_pieces([trajectory(1, 0, (1, 2) * 4)], SPEC)
    assert len(piece) == 6 + 16
    return piece


@pytest.mark.parametrize(
    ("room", "lengths"),
    [
        (22, [22]),  # as it is
        (21, [6 + 14, 6 + 2]),  # all views but one
        (16, [4 + 12, 6 + 4]),  # six views; a seventh shows block 3 and would make 6 + 14
        (15, [4 + 10, 6 + 6]),  # five views, of which one shows block 2
        (12, [2 + 8, 6 + 6, 6 + 2]),  # a fifth view shows block 2 and would make 4 + 10
        (8, [2 + 6, 4 + 4, 4 + 2, 6 + 2, 6 + 2]),
    ],
)
def test_parts_by_hand(room: int, lengths: list[int]) -> None:
    parts = split_piece(long_response(), room)
    assert [len(part) for part in parts] == lengths
    views = [list(zip(part.block_ids, part.view_ids, strict=True)) for part in parts]
    noised = [pair for part in views for pair in dict.fromkeys(part) if pair[1]]
    assert noised == [(block, view) for block in range(4) for view in (1, 2)]
    for part in views:
        assert [block for block, view in part if not view] == [b for b in range(max(part)[0]) for _ in "ab"]


@pytest.mark.parametrize(("budget", "prompt"), [(1, 0), (7, 0), (3, 4), (11, 4)])
def test_where_a_view_and_its_context_exceed_the_budget_parts_fill_a_quarter_more_than_these(
    budget: int, prompt: int
) -> None:
    """The last view needs 6 + 2 tokens, 12 with the prompt: parts of 10, or 11 beside the prompt."""
    parts = split_piece(long_response(), budget, prompt)
    assert [len(part) for part in parts] == [2 + 8, 4 + 4, 6 + 4]


def test_a_prompt_over_the_budget_is_not_repeated_for_parts_that_save_little() -> None:
    """Behind 60 tokens the last view of a response needs 68, and all its views 82: fewer than a quarter more."""
    group = [trajectory(n, 60, (1, 2) * 4) for n in (1, 2)]
    assert [len(row) for row in pack(group_pieces(group, SPEC, [1.0, 1.0], share_prompt=True), 10)] == [82, 82]


def test_each_part_of_a_response_is_a_branch_of_its_own() -> None:
    """Else two parts in one row would see each other's copies of the clean blocks."""
    group = [trajectory(1, 4, (1, 2) * 4), trajectory(2, 4, (1, 1))]
    rows = pack(group_pieces(group, SPEC, [1.0, 1.0], share_prompt=True), 20)
    found = sorted(
        (branch, int((row.branch_ids == branch).sum())) for row in rows for branch in {*row.branch_ids.tolist()}
    )
    assert found == [(0, 4), (0, 4), (1, 16), (2, 10), (3, 2)]
