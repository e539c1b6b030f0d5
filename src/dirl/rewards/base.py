"""What a reward is: a weighted, named function of one response."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class RewardSample:
    """One response with all that a reward may look at. (prompt_id, sample_index) is its identity.

    `response` is the decoded text up to, without, the stop token; `response_length` (L) counts the tokens
    up to and including it, `denoising_steps` the forwards that committed tokens. `max_response_tokens` (M)
    is the limit that the response was made with, `block_size` is B. `info` holds the other columns of the prompt's row.
    """

    prompt_id: str
    sample_index: int
    question: str
    response: str
    ground_truth: str
    response_length: int
    denoising_steps: int
    max_response_tokens: int
    block_size: int
    info: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt_id, self.sample_index

    @property
    def cut(self) -> bool:
        """Whether the response ran into the length limit, L >= M."""
        return self.response_length >= self.max_response_tokens


class Incomparable(float):
    """A reward whose answer could not be compared with the truth: the value of a wrong one, and it is counted."""


class Reward(ABC):
    """A number for one response; subclass it and name the class by `class_path` in a config.

    An instance is sent to worker processes, so it must be picklable and its class must live in an
    importable module. Whatever `__call__` raises is an error of the run (or a lost group), never a 0; an answer
    that cannot be compared is no error but an `Incomparable` value.

    Args:
        weight: factor of this reward in the total.
        name: key of this reward in logs and trajectories; default: the class name in snake_case.
    """

    in_process: ClassVar[bool] = False
    """True only for cheap pure functions: they run inline, without a time limit, others in a worker process."""
    judges: ClassVar[bool | None] = None
    """True: it is above 0 exactly for correct responses, and accuracies and dynamic sampling look at it. False: it says
    nothing about that. None: it does so only if no other reward judges."""
    votes: ClassVar[Literal["value", "text"] | None] = None
    """Whether responses have an answer, which a majority can vote on (maj@k): `value`, all right ones are the same
    answer; `text`, answers that are written differently are different ones. None: it knows of no answer."""
    cpu_limit_s: ClassVar[float | None] = None
    """Seconds of processor time in a worker, after which its answer counts as incomparable; None: no such limit."""

    takes_s: float = 0.0
    """Seconds of the clock after which it ends by itself, if it says so; the time limit of a sample must be longer."""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        if not math.isfinite(weight):
            raise ValueError(f"weight={weight} of {type(self).__name__} is not finite; give it a number")
        self.weight = weight
        self.name = snake_case(type(self).__name__) if name is None else name

    def prepare(self) -> None:
        """Import or load what is slow; runs once in each process, before and outside the time limit."""
        return

    def answer(self, response: str) -> str | None:
        """The answer in a response, written as equal answers are; None: it has none. Asked where `votes` is set."""
        return None

    def if_incomparable(self, sample: RewardSample) -> float | None:
        """The value if `__call__` comes to no end or ends its process twice; None: then that is an error."""
        return None

    @abstractmethod
    def __call__(self, sample: RewardSample) -> float:
        """The unweighted reward of `sample`, a finite number."""


def snake_case(name: str) -> str:
    """The name of a class as configs and logs write it: `SoftOverlong` becomes `soft_overlong`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
