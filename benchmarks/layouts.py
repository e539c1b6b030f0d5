"""One policy update on the same trajectories in four layouts: DiRL's, TraceRL's, an ideal of one forward a step, ours.

python -m benchmarks.layouts                                     the selection of docs/performance.md
python -m benchmarks.layouts --block-size 16 --tokens-per-step 1 one load; defaults are those of `Load`
"""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import record
from benchmarks.baselines import LAYOUTS, Limits
from benchmarks.fresh_process import cost_columns, in_fresh_process, measured
from benchmarks.shapes import model_config, model_spec, named_shape, random_backbone
from benchmarks.update import accumulate_gradient, computed_pairs, scored_tokens
from benchmarks.workload import Load, make_groups
from dirl.attention.backend import Backend
from dirl.batches import PackedBatch
from dirl.models import BlockDiffusionLM
from dirl.planning import visible_pairs

PAPER = Load()
SELECTION = {
    "B 4, 2 a step, 2k": PAPER,
    "the same, equal steps": dataclasses.replace(PAPER, steps="equal"),
    "B 4, 1 a step, 2k": dataclasses.replace(PAPER, tokens_per_step=1),
    "B 4, 4 a step, 256 to 2048": dataclasses.replace(PAPER, tokens_per_step=4, shortest=256, longest=2048),
    "B 4, 2 a step, group 32, prompt 1024": Load(group_size=32, prompt_tokens=1024, shortest=256, longest=512),
    "B 16, 1 a step, 512 to 1024": Load(16, 1, shortest=512, longest=1024),
    "B 16, 4 a step, 512 to 1024": Load(16, 4, shortest=512, longest=1024),
    "B 32, 2 a step, 256 to 512": Load(32, 2, shortest=256, longest=512),
}
DRY_RUN = {"dry run": Load(4, 2, groups=1, group_size=2, prompt_tokens=6, shortest=9, longest=14)}


@dataclass(frozen=True)
class Candidate:
    """A layout with the attention that it runs on; `forwards`: of a long layout, how many are measured and scaled."""

    layout: str
    attention: Backend
    forwards: int | None = None


CANDIDATES = {
    "DiRL, dense mask": Candidate("dirl", "dense", 1),
    "DiRL, our attention": Candidate("dirl", "auto", 4),
    "TraceRL, dense mask": Candidate("tracerl", "dense", 4),
    "TraceRL, our attention": Candidate("tracerl", "auto", 4),
    "per step, no padding": Candidate("per_step", "auto"),
    "one forward (ours)": Candidate("one_forward", "auto"),
}
FIXED_COST = "DiRL, dense mask"


def measure(load: Load, candidate: Candidate, limits: Limits, shape_name: str, seconds: float) -> dict[str, Any]:
    """Cost of one update; run it in a fresh process."""
    shape = named_shape(shape_name)
    spec = model_spec(shape, load.block_size)
    batches = LAYOUTS[candidate.layout](make_groups(load, spec), spec, limits)
    sample = spread(batches, candidate.forwards)
    whole = len(sample) == len(batches)
    counts = count(batches, sample, candidate.attention)
    if not sample:
        return counts
    divisor = float(scored_tokens(batches))
    model = BlockDiffusionLM(random_backbone(model_config(shape, load.block_size)), spec, candidate.attention)

    def update() -> float:
        model.zero_grad()
        return accumulate_gradient(model, sample, divisor)

    loss, cost = measured(update, seconds if whole else 0.0)
    norm = torch.stack([p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]).sum().sqrt()
    learned = {"loss": loss, "gradient_norm": float(norm)} if whole else {}
    return {**counts, **cost_columns(cost, counts["tokens"] / sum(map(len, sample))), **learned}


def count(batches: Sequence[PackedBatch], sample: Sequence[PackedBatch], attention: Backend) -> dict[str, Any]:
    """What the forwards hold; pairs that attention computes are counted in the sample and scaled to all by tokens."""
    tokens = sum(map(len, batches))
    computed = sum(computed_pairs(batch.layout, attention) for batch in sample)
    return {
        "forwards": len(batches),
        "measured_forwards": len(sample),
        "tokens": tokens,
        "scored_tokens": scored_tokens(batches),
        "visible_pairs": sum(visible_pairs(b.layout) for b in batches),
        "computed_pairs": round(computed * tokens / sum(map(len, sample))) if sample else None,
    }


def spread(batches: Sequence[PackedBatch], number: int | None) -> list[PackedBatch]:
    """`number` of the batches, evenly spaced; all if there are no more."""
    if number is None or number >= len(batches):
        return list(batches)
    return [batches[(2 * i + 1) * len(batches) // (2 * number)] for i in range(number)]


def compare(cases: dict[str, Load], limits: Limits, shape: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """A row per case and candidate, printed case by case.

    DiRL's dense forwards are all of one length, whatever the load: they are measured in the first case alone.
    """
    rows, dense = [], None
    for title, load in cases.items():
        found = []
        for name, candidate in CANDIDATES.items():
            again = name == FIXED_COST and dense is not None
            asked = dataclasses.replace(candidate, forwards=0) if again else candidate
            cost = in_fresh_process(measure, load, asked, limits, shape, seconds, threads=threads)
            found.append({"case": title, "candidate": name, **dataclasses.asdict(load), **cost})
            if again:
                found[-1] |= _scaled(dense, cost["tokens"] / dense["tokens"])
            elif name == FIXED_COST:
                dense = cost
        ours = found[-1]
        for row in found:
            row |= {f"{key}_ratio": row[key] / ours[key] for key in ("tokens", "computed_pairs", "seconds")}
        rows += found
        print_case(title, found)
    return rows


def _scaled(cost: dict[str, Any], scale: float) -> dict[str, Any]:
    times = {key: cost[key] * scale for key in ("computed_pairs", "seconds", "wall_seconds")}
    return {**times, "peak_bytes": cost["peak_bytes"]}


def print_case(title: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = ("layout", "forwards", "tokens", "visible pairs", "computed", "seconds", "peak MB", "tokens x", "time x")
    cells = [
        (
            row["candidate"],
            row["forwards"],
            row["tokens"],
            f"{row['visible_pairs'] / 1e6:,.1f} M",
            f"{row['computed_pairs'] / 1e6:,.1f} M",
            f"{row['seconds']:.2f}" + ("*" if row["measured_forwards"] < row["forwards"] else ""),
            row["peak_bytes"] / 1e6,
            row["tokens_ratio"],
            row["seconds_ratio"],
        )
        for row in rows
    ]
    note = "x: times ours. *: some forwards measured, scaled to all by tokens."
    record.show(title, columns, cells, note)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Load) if getattr(options, f.name) is not None}
    cases = {"your load": Load(**given)} if given else SELECTION
    limits = Limits(options.prompt_limit, options.response_limit, options.token_budget)
    if options.dry_run:
        cases, limits, options.model, options.seconds = DRY_RUN, Limits(8, 24, 64), "tiny", 0.0
    rows = compare(cases, limits, options.model, options.threads, options.seconds)
    settings = {"model": options.model, "limits": dataclasses.asdict(limits), "threads": options.threads}
    print("written to", record.save("layouts", settings, rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Load):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=None)
    parser.add_argument("--model", default="small", help="shape of benchmarks/shapes.py")
    parser.add_argument("--prompt-limit", type=int, default=1024)
    parser.add_argument("--response-limit", type=int, default=8192)
    parser.add_argument("--token-budget", type=int, default=16384, help="tokens of a packed forward")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6, help="repeat updates for so long; the fastest counts")
    parser.add_argument("--dry-run", action="store_true", help="toy size")
    return parser


if __name__ == "__main__":
    main()
