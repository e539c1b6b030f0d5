"""Synthetic trajectories are such as an engine could have returned."""

import numpy as np
import pytest
from benchmarks.shapes import TOYS, model_spec
from benchmarks.workload import Load, draw_step_map, make_groups

from dirl.diffusion.views import step_views


@pytest.mark.parametrize("steps", ["drawn", "equal"])
@pytest.mark.parametrize("block_size, tokens", [(4, 1), (4, 2), (4, 4), (16, 4), (32, 2)])
def test_trajectories_are_valid_and_every_step_commits(steps: str, block_size: int, tokens: int) -> None:
    spec = model_spec(TOYS["small"], block_size)
    load = Load(block_size, tokens, 2, 3, prompt_tokens=11, shortest=5, longest=90, steps=steps)
    for group in make_groups(load, spec):
        assert sum(t.advantage for t in group) == pytest.approx(0, abs=1e-9)
        for trajectory in group:
            trajectory.check(spec)
            step_views(trajectory, block_size, spec.mask_token_id)
            assert 5 <= trajectory.response_length <= 90


def test_tokens_per_step_are_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    for steps in ("drawn", "equal"):
        step_map = np.array(draw_step_map(Load(16, 4, steps=steps), rng, 16, 16 * 2000)).reshape(-1, 16)
        assert step_map.max(1).mean() == pytest.approx(4, rel=0.03)
        spread = {int(count) for block in step_map for count in np.bincount(block)[1:]}
        assert spread == {4} if steps == "equal" else len(spread) > 4


def test_the_same_seed_gives_the_same_trajectories() -> None:
    spec = model_spec(TOYS["small"], 4)
    load = Load(group_size=2, shortest=20, longest=40)
    assert make_groups(load, spec) == make_groups(load, spec)
    assert make_groups(load, spec) != make_groups(Load(group_size=2, shortest=20, longest=40, seed=1), spec)


def test_impossible_loads_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_step=5"):
        Load(4, 5)
    with pytest.raises(ValueError, match="shortest=9"):
        Load(shortest=9, longest=8)
