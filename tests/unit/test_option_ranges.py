"""Each number that a user may set has a range, and what is out of it is an error with its name."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dirl.callbacks import Rollout

from dirl import callbacks, rewards, rollout
from dirl.cli import commands
from dirl.data.rl import RLDataModule
from dirl.data.sft import SFTDataModule
from dirl.diffusion.noise import NoiseConfig
from dirl.models import NewModel, PretrainedModel
from dirl.modules import RLModule, SFTModule
from dirl.modules.optimization import OptimizerConfig
from dirl.objectives import DiPO
from dirl.rewards import Scorer
from dirl.strategy import FSDP2Strategy
from dirl.types import DecodingParams

GIVEN: dict[type, dict[str, Any]] = {
    RLDataModule: {"train": "x"},
    SFTDataModule: {"train": "x"},
    Rollout: {"engine": rollout.TorchEngine(), "rewards": [rewards.ExactAnswer()]},
    callbacks.Evaluate: {"decoding": {"greedy": DecodingParams(temperature=0)}},
    RLModule: {"source": NewModel()},
    SFTModule: {"source": NewModel()},
    PretrainedModel: {"path": "x"},
    Scorer: {"rewards": [rewards.ExactAnswer()]},
    rollout.ServerEngine: {"urls": ["http://127.0.0.1:1"]},
    rollout.ReplayEngine: {"path": "x"},
    commands.PromptData: {"path": "x"},
}


def is_reward(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, rewards.Reward) and not inspect.isabstract(kind)


CLASSES = [
    *(RLDataModule, SFTDataModule, Rollout, callbacks.Evaluate, callbacks.Export, callbacks.Throughput),
    *(RLModule, SFTModule, NewModel, PretrainedModel, Scorer, OptimizerConfig, DiPO, NoiseConfig),
    *(DecodingParams, FSDP2Strategy, commands.PromptData),
    *(getattr(rollout, name) for name in rollout.__all__ if name.endswith("Engine") and name != "RolloutEngine"),
    *(kind for name in rewards.__all__ if is_reward(kind := getattr(rewards, name))),
]
ANY_INT = {"mask_token", "stop_tokens"}
"""Token ids and names, checked against the tokenizer."""


def numbers(kind: type) -> Iterator[tuple[str, type]]:
    """Names of the options that take a number, with its type."""
    hints = typing.get_type_hints(kind.__init__)
    for name in list(inspect.signature(kind).parameters):
        allowed = hints.get(name)
        parts = typing.get_args(allowed) if isinstance(allowed, types.UnionType) else (allowed,)
        for part in (int, float):
            if part in parts and name not in ANY_INT:
                yield name, part


def cases() -> Iterator[Any]:
    for kind in CLASSES:
        for name, part in numbers(kind):
            bad = [-1] if part is int else [math.nan, math.inf, -math.inf]
            for value in bad:
                yield pytest.param(kind, name, value, id=f"{kind.__name__}.{name}={value}")


@pytest.mark.parametrize(("kind", "name", "value"), list(cases()))
def test_a_number_out_of_range_is_an_error_that_names_it(kind: Callable, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        kind(**GIVEN.get(kind, {}) | {name: value})
