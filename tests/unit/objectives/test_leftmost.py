"""Leftmost: DiPO's loss with the exact likelihood of decoding from the left; other decodings are refused."""

from functools import cache

import numpy as np
import pytest
from tests.policies import DIVIDED, WHOLE, Policies, State
from tests.reference import naive_dipo_loss
from tests.unit.diffusion.test_views import trajectory

from dirl.objectives import Leftmost
from dirl.types import DecodingParams, ModelSpec, Trajectory

PARAMS = DecodingParams(strategy="sequential", max_response_tokens=9)
SPEC = ModelSpec(block_size=4, mask_token_id=99, stop_token_ids=(98,), pad_token_id=97, vocab_size=100)


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def from_the_left(t: Trajectory, block_size: int) -> list[State]:
    """Each token with itself and all that follows in its block masked; of no step map."""
    positions = range(len(t.prompt_ids), len(t.prompt_ids) + len(t.response_ids))
    return [(tuple(range(i, (i // block_size + 1) * block_size)), (i,)) for i in positions]


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "not moved"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_low": 0.05, "clip_high": 0.08, "kl_coef": 0.3, "importance_cap": 1.02, "normalization": "sequence"},
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_the_factors_from_left_to_right(options: dict, moved: bool, budget: int) -> None:
    this, objective = policies(), Leftmost(**options)
    wanted = naive_dipo_loss(
        [this.scored(t, from_the_left(t, 4), moved) for t in this.trajectories],
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        normalisation=objective.normalization,
        max_response_tokens=PARAMS.max_response_tokens,
        kl_coef=objective.kl_coef,
        tis_cap=objective.importance_cap,
    )
    this.assert_close(this.by_module(objective, moved, budget), wanted)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({}, r"model\.decoding\.strategy=low_confidence_dynamic \(with model\.decoding\.threshold=0\.9\).*Leftmost"),
        ({"strategy": "low_confidence_static"}, r"model\.decoding\.strategy=low_confidence_static .*Leftmost"),
        ({"strategy": "sequential", "denoising_steps": 2}, r"model\.decoding\.denoising_steps=2 .*Leftmost.*use null"),
    ],
)
def test_a_decoding_that_is_not_from_the_left_token_by_token_is_refused(decoding: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Leftmost().check(DecodingParams(**decoding))


def test_decoding_from_the_left_is_taken() -> None:
    Leftmost().check(PARAMS)


@pytest.mark.parametrize("steps", [(1, 1, 2), (2, 1, 3), (1, 3, 2)])
def test_a_trajectory_of_another_decoding_is_refused_by_its_name(steps: tuple[int, ...]) -> None:
    views = Leftmost().views(trajectory((1, 2, 3, 4, 5), (10, 11, 12), (1, 2, 3)), SPEC, np.random.default_rng(0))
    assert views.inputs.tolist() == [[5, 99, 99, 99], [5, 10, 99, 99], [5, 10, 11, 99]]
    with pytest.raises(ValueError, match=r"trajectory p#3: was not decoded from left to right.*strategy=sequential"):
        Leftmost().views(trajectory((1, 2, 3, 4, 5), (10, 11, 12), steps), SPEC, np.random.default_rng(0))


def test_plans_have_a_view_for_each_denoising_step() -> None:
    assert Leftmost().planned_views(4.0) == 4.0
