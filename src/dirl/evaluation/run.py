"""One run of an evaluation: responses are sampled and scored; the Evaluate callback and `dirl evaluate` call it."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dirl.evaluation.metrics import ResponseMetrics
from dirl.rewards import Scorer
from dirl.rl.collector import Collector
from dirl.rollout.engine import RolloutEngine
from dirl.types import DecodingParams, ModelSpec, Prompt, Trajectory


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, float]
    """Names of `ResponseMetrics` and three counts, over all ranks, and `seconds` of this one: `responses` that were
    scored, `lost` (no reward: wrong), `reward/incomparable` (answers that could not be compared: wrong)."""
    trajectories: list[Trajectory]
    """Those that were scored."""


def run_evaluation(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    decoding: DecodingParams,
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    samples: int = 1,
    seed: int = 0,
    device: str = "cpu",
    finished: Callable[[int], None] = lambda count: None,
    generating: AbstractContextManager = nullcontext(),  # noqa: B008 - it has no state
) -> Evaluation:
    """Sample `samples` responses per prompt with the engine's current weights; all ranks must call it.

    Greedy decoding gives equal samples: one per prompt is made then.

    Args:
        generating: entered while the engine works; ranks do not wait for one another within, only for the metrics.
    """
    count = 1 if decoding.temperature == 0 else samples
    started = time.perf_counter()
    collector = Collector(engine, scorer, tokenizer, spec, count, max_rounds=1, seed=seed)
    with generating:
        result = collector.collect(iter(prompts), len(prompts), decoding, finished=finished)
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= count]
    names = [reward.name for reward in scorer.rewards]
    metrics = ResponseMetrics(names, spec.block_size, ks if count > 1 else (), scorer.correctness.name).to(device)
    scored = Counter(t.prompt_id for t in result.sampled)
    lost = {prompt.prompt_id: count - scored[prompt.prompt_id] for prompt in prompts}
    metrics.update(result.sampled, lost)
    counts = {
        "responses": len(result.sampled),
        "lost": sum(lost.values()),
        "reward/incomparable": result.counts["incomparable"],
    }
    values = metrics.compute() | {name: total(value, device) for name, value in counts.items()}
    return Evaluation(values | {"seconds": time.perf_counter() - started}, result.sampled)


def total(value: int, device: str) -> float:
    """Sum over all ranks."""
    from torchmetrics import SumMetric  # not above: see `ResponseMetrics`

    metric = SumMetric().to(device)
    metric.update(float(value))
    return float(metric.compute())
