"""The four layouts of a policy update on one GPU; the same batches as on CPU, see `benchmarks.layouts`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import record
from benchmarks.baselines import LAYOUTS, Limits
from benchmarks.device_clock import Deadline, timed
from benchmarks.gpu_training import build, free
from benchmarks.layouts import CANDIDATES, DRY_RUN, PAPER, Candidate, count, print_case, spread
from benchmarks.shapes import model_spec, named_shape
from benchmarks.update import accumulate_gradient, scored_tokens
from benchmarks.workload import Load, make_groups
from dirl.modules.layers import Checkpointing


@dataclass(frozen=True)
class LayoutsPart:
    """Of long layouts a few forwards are measured and scaled, as on CPU; all recompute alike."""

    model: str = "sdar-1.7b"
    load: Load = PAPER
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    recompute: Checkpointing = "full"
    compiled: bool = False

    @classmethod
    def toy(cls) -> "LayoutsPart":
        return cls("tiny", DRY_RUN["dry run"], Limits(8, 24, 64))


def run(part: LayoutsPart, device: str, deadline: Deadline) -> list[dict[str, Any]]:
    """A row per layout and attention; ours first, for the others are compared with it."""
    rows: list[dict[str, Any]] = []
    for name, candidate in reversed(CANDIDATES.items()):
        if deadline.passed(name):
            continue
        record.keep(rows, {"case": "GPU", "candidate": name, **_measure(part, candidate, device)})
        free(device)
    for row in rows:
        ours = rows[0]
        row |= {f"{key}_ratio": row[key] / ours[key] for key in ("tokens", "seconds") if key in row}
    return rows[::-1]


def show(rows: Sequence[dict[str, Any]], note: str) -> None:
    fitting = [row for row in rows if "seconds" in row]
    print_case("one policy update on one GPU", fitting)
    missing = [row["candidate"] for row in rows if "seconds" not in row]
    print(note, f"Does not fit into memory: {', '.join(missing)}." if missing else "")


def _measure(part: LayoutsPart, candidate: Candidate, device: str) -> dict[str, Any]:
    shape = named_shape(part.model)
    spec = model_spec(shape, part.load.block_size)
    batches = LAYOUTS[candidate.layout](make_groups(part.load, spec), spec, part.limits)
    sample = [batch.to(device) for batch in spread(batches, candidate.forwards)]
    counts = count(batches, sample, candidate.attention)
    divisor = float(scored_tokens(batches))
    model = build(shape, part.recompute, part.compiled, device, part.load.block_size)
    model.attention = candidate.attention
    try:
        timing = timed(lambda: accumulate_gradient(model, sample, divisor), device, repeats=2)
    except torch.OutOfMemoryError:
        if candidate.layout == "one_forward":  # nothing to compare with
            raise
        return counts
    scale = counts["tokens"] / sum(map(len, sample))
    return {**counts, **dataclasses.asdict(timing), "seconds": timing.seconds * scale}
