"""One run of an evaluation: responses are sampled and scored; the Evaluate callback and `dirl evaluate` call it."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from dirl.evaluation.judging import Judge
from dirl.evaluation.metrics import ResponseMetrics
from dirl.evaluation.problems import Problem
from dirl.rewards import Scorer
from dirl.rollout.engine import RolloutEngine
from dirl.types import DecodingParams, ModelSpec, Prompt, Trajectory

if TYPE_CHECKING:
    from dirl.evaluation.results_folder import ResultsFile


TIMED = ("/seconds", "/tokens_per_second")
"""Ends of the names of metrics that no two runs have in common."""


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, float]
    """Names of `ResponseMetrics`, over all ranks, with the bounds of intervals as NAME/low and NAME/high; counts:
    `responses` that were scored, `lost` (no reward: wrong), `reward/incomparable` (answers that could not be compared:
    wrong); `tokens_per_second` while engines worked, and `seconds` of this rank."""
    problems: list[Problem]
    """The problems of this rank, in the order of the prompts."""
    trajectories: list[Trajectory] = field(default_factory=list)
    """All of this rank, those that lost their reward without one; none of results that were read from a file."""


@dataclass(frozen=True)
class Settings:
    """How a task is answered.

    Args:
        decoding: how to sample.
        samples: responses per prompt; greedy decoding gives equal ones, and makes one.
        seed: of the requests; each has its own, which its prompt and its number decide.
        resamples: of the bootstrap over problems; 0: no intervals.
        portion: responses that are asked for at a time, and kept when all of them are judged; None: all.
    """

    decoding: DecodingParams
    samples: int = 1
    seed: int = 0
    resamples: int = 1000
    portion: int | None = None

    @property
    def count(self) -> int:
        return 1 if self.decoding.temperature == 0 else self.samples

    @property
    def ks(self) -> list[int]:
        """The values of k for pass@k and maj@k."""
        return [] if self.count == 1 else sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < self.count} | {self.count})

    def portions(self, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
        """The portions, cut alike whatever has been done of them: a response is always made beside the same others."""
        size = self.prompts_at_a_time(len(prompts))
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]

    def prompts_at_a_time(self, prompts: int) -> int:
        return max(1, prompts if self.portion is None else self.portion // self.count)


def run_evaluation(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    settings: Settings,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    device: str = "cpu",
    finished: Callable[[int], None] = lambda count: None,
    generating: AbstractContextManager = nullcontext(),  # noqa: B008 - it has no state
    file: "ResultsFile | None" = None,
) -> Evaluation:
    """Answer prompts with the engine's current weights; all ranks must call it, each with prompts of its own.

    Args:
        generating: entered while the engine works; ranks do not wait for one another within, only for the metrics.
        file: what has been done already, and where each portion goes when it is whole.
    """
    started = time.perf_counter()
    judge = Judge(engine, scorer, settings.decoding, spec, tokenizer)
    problems = [] if file is None else file.read(prompts, settings)
    trajectories: list[Trajectory] = []
    finished(len(problems) * settings.count)
    with generating:
        for portion in settings.portions(prompts):
            if portion[0].prompt_id in {problem.prompt_id for problem in problems}:
                continue
            done, made = judge.answer(portion, settings.count, settings.seed, finished)
            problems, trajectories = problems + done, trajectories + made
            check_judged(problems)
            if file is not None:
                file.append(done, made)
    metrics = measure(problems, scorer, settings, spec.block_size, device)
    return Evaluation(metrics | {"seconds": time.perf_counter() - started}, problems, trajectories)


def check_judged(problems: Sequence[Problem]) -> None:
    """Raise ValueError if every response has lost its reward: that is a fault of the reward."""
    responses = [response for problem in problems for response in problem.responses]
    if all(response.judgement == "lost" for response in responses):
        raise ValueError(f"all {len(responses)} responses lost their reward, the first: {responses[0].why}")


def measure(
    problems: Sequence[Problem], scorer: Scorer, settings: Settings, block_size: int, device: str = "cpu"
) -> dict[str, float]:
    """The metrics of problems that have been judged, over all ranks."""
    names, correct = [reward.name for reward in scorer.rewards], scorer.correctness.name
    votes = next(reward.votes for reward in scorer.rewards if reward.name == correct)
    metrics = ResponseMetrics(
        names, block_size, settings.ks, correct, votes, settings.resamples, settings.seed
    ).to(device)  # fmt: skip
    metrics.update_problems(problems)
    responses = [response for problem in problems for response in problem.responses]
    counts = {
        "responses": sum(r.judgement != "lost" for r in responses),
        "lost": sum(r.judgement == "lost" for r in responses),
        "reward/incomparable": sum(r.judgement == "incomparable" for r in responses),
    }
    values = metrics.compute() | {name: over_ranks(value, device) for name, value in counts.items()}
    tokens = over_ranks(sum(r.tokens for r in responses), device)
    longest = over_ranks(sum(problem.generate_s for problem in problems), device, largest=True)
    return values | ({"tokens_per_second": tokens / longest} if longest else {})


def over_ranks(value: float, device: str, largest: bool = False) -> float:
    """Sum, or the largest, over all ranks."""
    from torchmetrics import MaxMetric, SumMetric  # not above: see `ResponseMetrics`

    metric = (MaxMetric() if largest else SumMetric()).to(device)
    metric.update(float(value))
    return float(metric.compute())
