"""What a person should look at in a run: each warning has a threshold with a name, which the page says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean, median

from dirl.report.run_folder import Run, Series

ACCURACY_FELL = 0.05
"""How far the last accuracy may be below the best one."""
ENTROPY_COLLAPSED = 0.1
"""Least part of the entropy of the first tenth of the run that its last tenth may have."""
GROUPS_DROPPED = 0.5
"""Largest part of the sampled groups without spread, which teach nothing."""
TRUNCATED = 0.2
"""Largest part of the responses that the length limit may end, in the last tenth."""
SKIPPED_STEPS = 0
"""How many optimizer steps may be skipped because a number was not finite."""
MISMATCH = 0.1
"""Largest mean difference of log-probs between engine and trainer, in nats, in the last tenth."""
CLIP_FRACTION = 0.3
"""Largest part of the tokens whose ratio is clipped, in the last tenth."""
REWARD_CONSTANT = 1e-6
"""Least spread of the mean reward over the run."""
NELBO_ROSE = 0.05
"""How far the last validation NELBO may be above the best one, as a part of it."""
GRAD_NORM_JUMPED = 30.0
"""How many times its median the largest gradient norm may be."""
LOST_RESPONSES = 0.0
"""Largest part of the responses whose reward may have failed."""
FEWEST = 10
"""Points of a curve from which on its trend is looked at."""


@dataclass(frozen=True)
class Warned:
    name: str
    """The name of the threshold."""
    threshold: float
    text: str


def warnings_of(run: Run) -> list[Warned]:
    """The warnings of a run, in the order of the rules below."""
    return [Warned(name, threshold, text) for name, threshold, rule in RULES for text in rule(run, threshold)]


def first_and_last(series: Series) -> tuple[float, float]:
    """Means of the first and the last tenth of a curve."""
    values = series[1]
    part = max(1, len(values) // 10)
    return fmean(values[:part]), fmean(values[-part:])


def _accuracy_fell(run: Run, threshold: float) -> Iterator[str]:
    names = sorted({name for row in run.evaluations for name in row if name.endswith("/accuracy")})
    for name in names:
        values = [(row[name], row["step"]) for row in run.evaluations if name in row]
        (best, at), (last, _) = max(values), values[-1]
        if best - last > threshold:
            yield f"{name} is {last:.3g} at the end; it was {best:.3g} at step {at:.0f}"
    if not names and (curve := _long(run, "rollout/accuracy")):
        part = max(1, len(curve[1]) // 10)
        means = [fmean(curve[1][k : k + part]) for k in range(0, len(curve[1]) - part + 1, part)]
        if max(means) - (last := first_and_last(curve)[1]) > threshold:
            yield f"rollout/accuracy is {last:.3g} in the last tenth; the best tenth had {max(means):.3g}"


def _entropy_collapsed(run: Run, threshold: float) -> Iterator[str]:
    if curve := _long(run, "train/entropy"):
        first, last = first_and_last(curve)
        if last < threshold * first:
            yield f"train/entropy fell from {first:.3g} to {last:.3g} nats: the policy hardly explores any more"


def _groups_dropped(run: Run, threshold: float) -> Iterator[str]:
    groups = sum(run.series.get("rollout/groups", ((), ()))[1])
    for column, what in {
        "dropped_uniform": "were dropped, as their rewards have no spread",
        "uniform_groups": "were learned from without any advantage: all of their rewards are the same",
    }.items():
        found = sum(run.series.get(f"rollout/{column}", ((), ()))[1])
        of = groups + found if column == "dropped_uniform" else groups
        if found > threshold * of:
            yield f"{found:.0f} of {of:.0f} groups ({found / of:.0%}) {what}: prompts too easy or too hard"
    if (missing := sum(run.series.get("rollout/missing", ((), ()))[1])) > threshold * (groups + missing):
        yield f"{missing:.0f} of {groups + missing:.0f} wanted groups were not found within rollout.max_rounds"


def _truncated(run: Run, threshold: float) -> Iterator[str]:
    for name in [name for name in run.series if name.endswith("/truncated")]:
        last = first_and_last(run.series[name])[1]
        if last > threshold:
            yield f"{name}: the length limit ends {last:.0%} of the responses; raise max_response_tokens"


def _skipped(run: Run, threshold: float) -> Iterator[str]:
    if (count := run.last("train/skipped_steps") or 0) > threshold:
        yield f"{count:.0f} optimizer steps were skipped: a loss or gradient was not finite"
    for name, times in run.not_finite.items():
        yield f"{name} was not finite {times} times; the curve leaves these out"


def _mismatch(run: Run, threshold: float) -> Iterator[str]:
    if "train/mismatch_abs" in run.series:
        last = first_and_last(run.series["train/mismatch_abs"])[1]
        if last > threshold:
            yield f"engine and trainer differ by {last:.3g} nats a token; look at dtypes, or set importance_cap"


def _clipped(run: Run, threshold: float) -> Iterator[str]:
    if "train/clip_fraction" in run.series:
        last = first_and_last(run.series["train/clip_fraction"])[1]
        if last > threshold:
            yield f"{last:.0%} of the tokens are clipped: the policy moves far within a rollout; lower lr or passes"


def _reward_constant(run: Run, threshold: float) -> Iterator[str]:
    for name in [name for name in run.series if name == "rollout/reward" or name.startswith("rollout/reward/")]:
        values = run.series[name][1]
        if name.endswith("/incomparable") or len(values) < 3:
            continue
        if max(values) - min(values) < threshold:
            yield f"{name} is {values[-1]:.3g} in every rollout: nothing can be learned from it"


def _nelbo_rose(run: Run, threshold: float) -> Iterator[str]:
    if "val/nelbo_per_token" in run.series:
        steps, values = run.series["val/nelbo_per_token"]
        best = min(values)
        if values[-1] > best * (1 + threshold):
            at = steps[values.index(best)]
            yield f"val/nelbo_per_token is {values[-1]:.4g} at the end; it was {best:.4g} at step {at}: fewer epochs?"


def _grad_norm(run: Run, threshold: float) -> Iterator[str]:
    if curve := _long(run, "train/grad_norm"):
        most, middle = max(curve[1]), median(curve[1])
        if most > threshold * middle > 0:
            at = curve[0][curve[1].index(most)]
            yield f"train/grad_norm was {most:.3g} at step {at}, {most / middle:.0f} times its median"


def _lost(run: Run, threshold: float) -> Iterator[str]:
    if (failed := sum(run.series.get("rollout/dropped_failed", ((), ()))[1])) > threshold:
        yield f"{failed:.0f} groups were dropped because a reward failed"
    for name in sorted({name for row in run.evaluations for name in row if name.endswith("/lost")}):
        lost = sum(row.get(name, 0) for row in run.evaluations)
        of = sum(row.get(name.removesuffix("lost") + "responses", 0) for row in run.evaluations) + lost
        if lost > threshold * of:
            yield f"{name}: {lost:.0f} of {of:.0f} responses could not be judged, and count as wrong"


def _long(run: Run, name: str) -> Series | None:
    curve = run.series.get(name)
    return curve if curve is not None and len(curve[1]) >= FEWEST else None


RULES: tuple[tuple[str, float, Callable[[Run, float], Iterator[str]]], ...] = (
    ("ACCURACY_FELL", ACCURACY_FELL, _accuracy_fell),
    ("ENTROPY_COLLAPSED", ENTROPY_COLLAPSED, _entropy_collapsed),
    ("GROUPS_DROPPED", GROUPS_DROPPED, _groups_dropped),
    ("TRUNCATED", TRUNCATED, _truncated),
    ("SKIPPED_STEPS", SKIPPED_STEPS, _skipped),
    ("MISMATCH", MISMATCH, _mismatch),
    ("CLIP_FRACTION", CLIP_FRACTION, _clipped),
    ("REWARD_CONSTANT", REWARD_CONSTANT, _reward_constant),
    ("NELBO_ROSE", NELBO_ROSE, _nelbo_rose),
    ("GRAD_NORM_JUMPED", GRAD_NORM_JUMPED, _grad_norm),
    ("LOST_RESPONSES", LOST_RESPONSES, _lost),
)
