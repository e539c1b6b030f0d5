"""GAE along the trace: worked by hand, and against the equations as loops."""

import numpy as np
import pytest
from tests.reference import naive_gae

from dirl.advantages.gae import GAE, Credit, credit


def shuffled_tokens(seed: int) -> tuple[list[dict[tuple[int, int], list[float]]], list[float], np.ndarray, np.ndarray]:
    """Values of the tokens of five trajectories by (block, view), their outcomes, and the tokens in random order.

    Returns:
        the trajectories; outcomes; [N, 3] trajectory, block and view of each token; [N] values.
    """
    rng = np.random.default_rng(seed)
    trajectories, rows, values = [], [], []
    for number in range(5):
        steps = {(block, view): [] for block in range(2, 3 + number) for view in range(1, int(rng.integers(1, 4)) + 1)}
        for (block, view), tokens in steps.items():
            for _ in range(int(rng.integers(1, 4))):
                tokens.append(float(rng.normal()))
                rows.append((7 * number, block, view))  # numbers of trajectories have gaps where some are left out
                values.append(tokens[-1])
        trajectories.append(steps)
    order = rng.permutation(len(rows))
    return trajectories, rng.normal(size=5).tolist(), np.array(rows)[order], np.array(values)[order]


def found(rows: np.ndarray, values: np.ndarray, outcomes: list[float], gamma: float, lam: float) -> Credit:
    return credit(rows[:, 0], rows[:, 1:], values, np.array(outcomes)[rows[:, 0] // 7], gamma, lam)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.9, 0.8), (0.0, 1.0)])
@pytest.mark.parametrize("seed", range(3))
def test_credit_is_that_of_the_equations(gamma: float, lam: float, seed: int) -> None:
    trajectories, outcomes, rows, values = shuffled_tokens(seed)
    result = found(rows, values, outcomes, gamma, lam)
    for number, (steps, outcome) in enumerate(zip(trajectories, outcomes, strict=True)):
        own = rows[:, 0] == 7 * number
        wanted = naive_gae([steps[key] for key in sorted(steps)], outcome, gamma, lam)
        by_value = {v: pair for tokens, pairs in zip((steps[k] for k in sorted(steps)), wanted, strict=True)
                    for v, pair in zip(tokens, pairs, strict=True)}  # fmt: skip
        pairs = [by_value[v] for v in values[own]]
        assert result.advantages[own] == pytest.approx([a for a, _ in pairs], abs=1e-12)
        assert result.returns[own] == pytest.approx([r for _, r in pairs], abs=1e-12)


def test_two_steps_by_hand() -> None:
    """Step one commits tokens of values 1 and 3, step two one of value 4; the outcome is 10."""
    rows = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 2]])
    result = credit(rows[:, 0], rows[:, 1:], np.array([1.0, 3.0, 4.0]), np.full(3, 10.0), gamma=0.5, lam=0.5)
    assert result.returns.tolist() == [5.0, 5.0, 10.0]
    assert result.advantages.tolist() == [-1 + 2 + 0.25 * 6, -3 + 2 + 0.25 * 6, 6.0]


def test_undiscounted_the_advantage_is_the_outcome_less_the_tokens_own_value() -> None:
    _, outcomes, rows, values = shuffled_tokens(1)
    result, outcome = found(rows, values, outcomes, 1.0, 1.0), np.array(outcomes)[rows[:, 0] // 7]
    assert result.returns == pytest.approx(outcome, abs=1e-12)
    assert result.advantages == pytest.approx(outcome - values, abs=1e-12)


def test_of_no_tokens_there_is_no_credit() -> None:
    none = np.zeros(0)
    assert len(credit(none, np.zeros((0, 2)), none, none, 1.0, 1.0).returns) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"gamma": 1.1}, r"objective\.gamma=1\.1: use a number in \[0, 1\]"),
        ({"lam": -0.1}, r"objective\.lam=-0\.1"),
        ({"lam": float("nan")}, r"objective\.lam=nan"),
        ({"value_clip": 0.0}, r"objective\.value_clip=0\.0: use a positive number, or null"),
        ({"outcome": "length"}, r"objective\.outcome='length': use advantage or reward"),
    ],
)
def test_options_out_of_range_are_named(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GAE(**option)
