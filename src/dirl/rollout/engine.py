"""The engine protocol: set up once, take new weights at any time, turn requests into trajectories."""

import dataclasses
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.errors import ForUserError
from dirl.finite import NotFiniteError
from dirl.models.shape import ModelShape
from dirl.rollout.memory import NO_ENGINE, EngineMemory, RolloutSize
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

T = TypeVar("T")

PATIENCE_S = 0.25
"""How often one who waits for an engine asks whether the wait is still wanted."""


class RolloutEngine(ABC):
    """Makes trajectories with the decoding semantics of `DecodingParams`; `TorchEngine` is the reference.

    Life: `setup`, then any number of `update_weights`, `generate` and `sleep`, then `close`.
    """

    policy_version: int = -1
    """Version of the weights that sample now; every trajectory carries it. -1: none yet."""

    stale: bool = False
    """Whether it may hand out trajectories of other weights than those that it was given last."""

    heartbeat: int = 0
    """It grows while `generate` works, by which those who wait for an engine tell a slow one from a dead one."""

    concurrent: bool = False
    """Whether several threads may call `generate` at once, their requests sharing the engine's batch."""

    sleeps: bool = False
    """Whether `sleep` gives its memory to the trainer, which then cannot work beside it."""

    room: int | None = None
    """Positions that a prompt and its response may have, where the options say so; None: known later, or no limit."""

    dtype: torch.dtype | None = None
    """Its weights' dtype, from `setup` on: who pushes casts before it gathers or sends. None: they come as they are."""

    libraries: tuple[str, ...] = ()
    """Distributions beside torch and transformers that decide on its samples: results hold their versions."""

    still_wanted: Callable[[], None] = staticmethod(lambda: None)
    """Called between two forwards of `generate`, or a few times a second; it raises what ends the generation."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rest" in vars(cls):
            raise TypeError(f"{cls.__name__}.rest: the method that ends a rollout is `sleep` now; rename it")

    @abstractmethod
    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        """Make room for a model of this config; its weights come by `update_weights`."""

    @abstractmethod
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Take the backbone's full weights as `ModelFamily.weights` gives them, one tensor at a time.

        Raises ValueError if a name is unknown, missing, or of another shape, or a number is not finite
        (`dirl.rollout.weights.checked`). An update that fails leaves `policy_version` at -1.
        """

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        """Yield one trajectory per request, in the order in which they finish.

        Raises NotFiniteError (`broken_logits`) where the logits at a masked position are not finite.
        """

    @classmethod
    def memory(cls, options: Mapping[str, Any], shape: ModelShape, rollout: RolloutSize) -> EngineMemory:
        """What it will take of the trainer's device, for a plan; nothing is made for it.

        Args:
            options: all that the constructor takes, by name.
        """
        return dataclasses.replace(NO_ENGINE, note=f"{cls.__name__} says nothing of its memory: it is not counted")

    def sleep(self) -> None:  # noqa: B027 - most engines hold nothing between rollouts
        """Give the trainer, which works now, the memory that the engine is configured to give between rollouts.

        There is no call that wakes the engine: `update_weights` and `generate` take back what they need.
        """

    def close(self) -> None:  # noqa: B027 - engines without resources need not override it
        """Give back what the engine holds."""


def broken_logits(request: GenerationRequest, policy_version: int) -> NotFiniteError:
    """The error for logits at a masked position of this request; no token of that denoising step is handed out."""
    return NotFiniteError(
        f"request {request.prompt_id}#{request.sample_index}: the model's logits are not finite, with the weights of "
        f"policy version {policy_version}: look for weights that are not, or that the engine's dtype cannot hold"
    )


def next_result(results: "queue.SimpleQueue[T]", still_wanted: Callable[[], None]) -> T:
    """The next item of a queue, as soon as there is one, unless `still_wanted` raises first."""
    while True:
        try:
            return results.get(timeout=PATIENCE_S)
        except queue.Empty:
            still_wanted()


class EnginesLostError(ForUserError, RuntimeError):
    """No engine is left that could make the trajectories; the message says which, why, and what to do."""
