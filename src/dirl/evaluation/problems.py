"""What an evaluation brought, problem by problem: each response with its text, verdict and counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dirl.checked_json import from_json
from dirl.types import FinishReason

Judgement = Literal["right", "wrong", "incomparable", "lost"]
"""`incomparable`: the answer could not be compared with the truth. `lost`: its reward failed. Both count as wrong."""


@dataclass(frozen=True)
class Response:
    sample_index: int
    text: str
    """Up to, without, the stop token."""
    judgement: Judgement
    tokens: int
    """Up to and including the stop token."""
    steps: int
    """Denoising steps: forwards that committed tokens."""
    finish_reason: FinishReason
    answer: str | None = None
    """What majority votes count; None: the response has none, or the reward knows of none."""
    reward: float | None = None
    """The weighted sum; None: it is lost."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    why: str | None = None
    """Why it could not be judged."""

    @property
    def right(self) -> bool:
        return self.judgement == "right"


@dataclass(frozen=True)
class Problem:
    """One prompt with all of its responses: a line of a file of per-problem results."""

    prompt_id: str
    question: str
    ground_truth: str
    responses: tuple[Response, ...]
    generate_s: float = 0.0
    """Its share of the seconds that the engine worked, and of those that the rewards took."""
    reward_s: float = 0.0

    @property
    def accuracy(self) -> float:
        return sum(response.right for response in self.responses) / len(self.responses)


def read_problem(line: str | bytes, where: str) -> Problem:
    """A line of a file of per-problem results; ValueError for what is none."""
    try:
        problem = from_json(Problem, line)
    except ValueError as error:
        raise ValueError(f"{where}: no problem of an evaluation: {error}") from error
    if not problem.responses:
        raise ValueError(f"{where}: no problem of an evaluation: it has no responses; evaluate anew")
    return problem


def unjudged(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """The responses that could not be judged, and why."""
    return [
        {"prompt_id": problem.prompt_id, "sample_index": r.sample_index, "judgement": r.judgement, "why": r.why}
        for problem in problems
        for r in problem.responses
        if r.judgement in ("incomparable", "lost")
    ]
