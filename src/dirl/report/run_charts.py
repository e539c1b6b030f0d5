"""Which columns of a run's metrics share a chart, in which order, and under which heading."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    section: str
    title: str
    unit: str
    pattern: str
    """A pattern of whole column names; what it captures first is the name of the curve, else the column is."""


GROUPS = (
    Group("Learning", "Reward", "", r"rollout/(reward)"),
    Group("Learning", "Reward by part", "", r"rollout/reward/(?!incomparable)(.+)"),
    Group("Learning", "Accuracy", "share of responses", r"rollout/(accuracy)"),
    Group("Learning", "Accuracy at evaluations", "share of responses", r"eval/(.+)/accuracy"),
    Group("Learning", "pass@k", "share of prompts", r"(?:rollout|eval)/((?:.+/)?pass_at_\d+)"),
    Group("Learning", "Loss", "", r"train/(loss|value_loss)"),
    Group("Learning", "Validation NELBO", "nats per response token", r"val/(nelbo_per_token)"),
    Group("Responses", "Response length", "tokens", r"(?:rollout|eval)/((?:.+/)?response_length)"),
    Group("Responses", "Tokens per step", "tokens per denoising step", r"(?:rollout|eval)/((?:.+/)?tokens_per_step)"),
    Group("Responses", "Truncated", "share of responses", r"(?:rollout|eval)/((?:.+/)?truncated)"),
    Group("Policy", "Entropy", "nats per token", r"train/(entropy)"),
    Group("Policy", "KL to the reference", "nats per token", r"train/(kl\w*)"),
    Group("Policy", "Clip fraction", "share of tokens", r"train/(clip_fraction)"),
    Group("Policy", "Ratio to the old policy", "", r"train/(ratio)"),
    Group("Policy", "Mismatch of engine and trainer", "nats per token", r"train/(mismatch\w*)"),
    Group("Policy", "Explained variance", "", r"train/(explained_variance)"),
    Group("Optimizer", "Gradient norm", "", r"train/(\w*grad_norm)"),
    Group("Optimizer", "Learning rate", "", r"train/(\w*lr)"),
    Group("Optimizer", "Skipped and empty steps", "count", r"train/((?:skipped|empty)_steps)"),
    Group("Groups", "Dropped, missing and uniform groups", "groups", r"rollout/(dropped_\w+|missing|uniform_groups)"),
    Group("Groups", "Groups learned from", "groups", r"rollout/(groups|stale_groups)"),
    Group("Groups", "Rounds and staleness", "", r"rollout/(rounds|staleness)"),
    Group("Groups", "Answers that were not judged", "count", r"((?:rollout|eval/.+)/(?:reward/incomparable|lost))"),
    Group("Speed", "Seconds by phase", "s", r"time/(.+)_s"),
    Group("Speed", "Seconds of an evaluation", "s", r"eval/(.+)/seconds"),
    Group("Speed", "Tokens per second", "tokens/s", r"throughput/(.+_per_s)"),
    Group("Speed", "Compute", "", r"throughput/(tflops_per_device|mfu)"),
    Group("Speed", "Memory", "GiB", r"memory/(.+)_gib"),
)
"""Groups in their order. What is in none has its own chart, under `Further`; what fits several is in the first."""
ALONE = "Reward by part"
"""What is not drawn of a single part: the chart before it says the same."""
LEFT_OUT = ("epoch", r"share/.*", r"throughput/step_s", r"eval/.+/(?:responses|reward(?:/.+)?)", r"train/scored_tokens")
"""What is not drawn: shares have a table, the others say what another curve says."""


def charts(columns: Iterable[str]) -> list[dict[str, Any]]:
    """Section, title, unit and columns of each chart, with a name for each column."""
    left = [name for name in sorted(columns) if not any(re.fullmatch(pattern, name) for pattern in LEFT_OUT)]
    made = []
    for group in GROUPS:
        found = {name: match[1] for name in left if (match := re.fullmatch(group.pattern, name))}
        left = [name for name in left if name not in found]
        if found and (group.title != ALONE or len(found) > 1):
            made.append(_chart(group.section, group.title, group.unit, found))
    return made + [_chart("Further", name, "", {name: name}) for name in left]


def _chart(section: str, title: str, unit: str, columns: dict[str, str]) -> dict[str, Any]:
    return {"section": section, "title": title, "unit": unit, "columns": [list(pair) for pair in columns.items()]}
