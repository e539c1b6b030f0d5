"""A warm-up that the run does not live to see the end of is told of."""

import math

import pytest
from torch import nn

from dirl.modules.optimization import OptimizerConfig, build_optimizer


@pytest.mark.parametrize(("steps", "said"), [(5, True), (3, True), (6, False), (math.inf, False)])
def test_a_warm_up_longer_than_the_run_is_told_of(steps: float, said: bool, recwarn: pytest.WarningsRecorder) -> None:
    build_optimizer(list(nn.Linear(1, 1).parameters()), OptimizerConfig(lr=0.1, warmup_steps=5), steps)
    told = [str(w.message) for w in recwarn if "warmup_steps=5: the run has" in str(w.message)]
    assert len(told) == said
    assert all(f"has {steps} optimizer steps and ends before the learning rate is at lr=0.1" in text for text in told)
