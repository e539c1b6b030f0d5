"""Bin packing of rows: every response once, within the budget, near the fewest rows, and few copies of the prompts."""

import itertools
import math

import numpy as np
import pytest

from dirl.packing.bin_packing import Lengths, Row, _best_subset, _part, bin_pack, fewest_rows


def tokens(groups: list[Lengths], row: Row) -> int:
    return sum(groups[number][0] + sum(groups[number][1][i] for i in chosen) for number, chosen in row)


def random_groups(seed: int, most: int = 40) -> list[Lengths]:
    rng = np.random.default_rng(seed)
    return [
        (int(rng.integers(0, 10)), rng.integers(1, most, rng.integers(0, 7)).tolist())
        for _ in range(rng.integers(1, 6))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_every_response_is_in_one_row_and_no_row_exceeds_the_budget_but_for_one_response(seed: int) -> None:
    groups = random_groups(seed)
    rows = bin_pack(groups, 40)
    found = sorted((number, i) for row in rows for number, chosen in row for i in chosen)
    assert found == [(number, i) for number, (_, lengths) in enumerate(groups) for i in range(len(lengths))]
    assert all(tokens(groups, row) <= 40 or [len(chosen) for _, chosen in row] == [1] for row in rows)
    assert all(chosen for row in rows for _, chosen in row), "a prompt without responses"


@pytest.mark.parametrize("seed", range(40))
def test_a_group_has_one_copy_of_its_prompt_in_a_row(seed: int) -> None:
    for row in bin_pack(random_groups(seed, most=12), 40):
        numbers = [number for number, _ in row]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("seed", range(40))
def test_the_best_subset_is_that_of_a_search_through_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = sorted(rng.integers(1, 60, 9).tolist(), reverse=True)
    room = int(rng.integers(0, 200))
    subsets = (c for n in range(10) for c in itertools.combinations(range(9), n))
    wanted = max(total for c in subsets if (total := sum(lengths[i] for i in c)) <= room)
    chosen = _best_subset(lengths, range(9), room)
    assert len(set(chosen)) == len(chosen)
    assert sum(lengths[i] for i in chosen) == wanted


def dealt(groups: list[Lengths], deal: tuple[int, ...], count: int) -> list[int]:
    """Tokens of each of `count` rows, when the responses, in the order of the groups, go to these rows."""
    owners = [(number, n) for number, (_, lengths) in enumerate(groups) for n in lengths]
    rows = [[owner for owner, row in zip(owners, deal, strict=True) if row == r] for r in range(count)]
    return [sum(n for _, n in row) + sum(groups[g][0] for g in {g for g, _ in row}) for row in rows]


def fewest_by_trying(groups: list[Lengths], budget: int) -> int:
    """By trying all ways to deal the responses out."""
    total = sum(len(lengths) for _, lengths in groups)
    for count in itertools.count(1):
        for deal in itertools.product(range(count), repeat=total):
            if max(dealt(groups, deal, count)) <= budget:
                return count
    raise AssertionError


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_small_loads_are_the_fewest(seed: int) -> None:
    """Filling row by row does not promise it; on these it does."""
    groups: list[Lengths] = [(0, np.random.default_rng(seed).integers(5, 30, 7).tolist())]
    assert len(bin_pack(groups, 40)) == fewest_by_trying(groups, 40)


@pytest.mark.parametrize("seed", range(40))
def test_no_way_to_deal_has_fewer_rows_than_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.multinomial(6, [0.5, 0.3, 0.2])
    groups: list[Lengths] = [(int(rng.integers(0, 12)), rng.integers(4, 26, n).tolist()) for n in sizes]
    found = fewest_by_trying(groups, 40)
    assert fewest_rows(groups, 40) <= found <= len(bin_pack(groups, 40))


@pytest.mark.parametrize(
    ("groups", "rows"),
    [
        ([(0, [10] * 9)], 3),  # 90 of 120 tokens, four a row
        ([(0, [11] * 9)], 3),  # 99 of 120 tokens, three a row
        ([(0, [21] * 5)], 5),  # 105 of 200 tokens, one a row
        ([(10, [10] * 9)], 3),  # three a row beside the prompt
        ([(10, [20]), (10, [20])], 2),  # 60 tokens
        ([(10, [10] * 6), (8, [2])], 3),  # 78 tokens as a whole, 88 as the first group needs two rows
        ([(0, [100])], 1),  # over the budget: a row of its own
        ([(50, [1, 1])], 2),  # so with the prompt
        ([(5, [])], 0),
        ([], 0),
    ],
)
def test_the_bound_counts_tokens_prompts_and_pieces(groups: list[Lengths], rows: int) -> None:
    assert fewest_rows(groups, 40) == rows


def test_random_plans_take_rows_away_and_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    responses = [[6, 6, 16, 11], [13, 13, 15, 4], [11, 6, 10, 18], [12, 5, 12, 6], [16, 19, 19, 13]]
    groups: list[Lengths] = [(4, lengths) for lengths in responses]
    searched = bin_pack(groups, 40)
    assert len(searched) == 7
    assert bin_pack(groups, 40) == searched
    monkeypatch.setattr("dirl.packing.bin_packing.RANDOM_PLANS", 0)
    assert len(bin_pack(groups, 40)) == 8


def test_one_group_alone_is_not_searched_for_its_plans_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    group: Lengths = (0, [27, 14, 14, 14, 11])
    assert fewest_rows([group], 40) < len(bin_pack([group], 40)) == 3
    monkeypatch.setattr("dirl.packing.bin_packing.random.Random.sample", lambda *args: pytest.fail("a random plan"))
    bin_pack([group, (0, [])], 40)


def test_a_group_is_not_split_where_that_saves_no_row() -> None:
    """Two groups of 14 tokens, budget 20: two rows in any case, so the second prompt is not repeated in the first."""
    groups: list[Lengths] = [(2, [4, 4, 4]), (2, [4, 4, 4])]
    assert bin_pack(groups, 20) == [[(0, [0, 1, 2])], [(1, [0, 1, 2])]]


def test_a_group_is_split_where_that_saves_a_row() -> None:
    """Three of 14 tokens: a response beside each of two whole groups takes the third group's row away."""
    groups: list[Lengths] = [(2, [4, 4, 4]), (2, [4, 4, 4]), (2, [4, 4])]
    rows = bin_pack(groups, 20)
    assert len(rows) == 2
    assert sorted(tokens(groups, row) for row in rows) == [20, 20]


@pytest.mark.parametrize(("room", "part"), [(10, None), (11, (1, [1])), (13, (1, [1])), (14, (1, [0]))])
def test_a_part_must_be_longer_than_the_prompt_that_it_repeats(room: int, part: tuple | None) -> None:
    groups: list[Lengths] = [(0, [12]), (5, [9, 6, 5])]
    assert _part(groups, {1: [0, 1, 2]}, room) == part


def realistic(group_size: int, prompt: int, tokens_per_step: int, seed: int) -> list[Lengths]:
    """256 responses of 256 to 2048 tokens in blocks of 4: clean tokens, and a view of 4 for each denoising step."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(64, 513, (256 // group_size, group_size))
    steps = 1 + rng.binomial(3 * blocks, (4 / tokens_per_step - 1) / 3) / blocks
    return [(prompt // 4 * 4, row) for row in (4 * (blocks + (steps * blocks).astype(int))).tolist()]


@pytest.mark.parametrize("token_budget", [16384, 32768])
@pytest.mark.parametrize("tokens_per_step", [1, 2, 4])
@pytest.mark.parametrize("prompt", [150, 1024])
@pytest.mark.parametrize("group_size", [8, 32])
def test_rows_of_realistic_loads_are_nearly_the_fewest(
    group_size: int, prompt: int, tokens_per_step: int, token_budget: int
) -> None:
    groups = realistic(group_size, prompt, tokens_per_step, seed=0)
    rows = bin_pack(groups, token_budget)
    assert len(rows) <= fewest_rows(groups, token_budget) / 0.95
    filled = sum(tokens(groups, row) for row in rows)
    assert filled / len(rows) / token_budget >= 0.94
    # Each row must repeat a prompt or finish a group; beside these, few prompts are repeated.
    needed = sum(math.ceil(sum(lengths) / (token_budget - shared)) for shared, lengths in groups)
    copies = sum(len(row) for row in rows)
    assert (copies - needed) * prompt <= 0.03 * filled
