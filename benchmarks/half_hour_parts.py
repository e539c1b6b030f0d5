"""The parts of the half hour: what each runs, for how long at most, and which few numbers of it matter."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[dict[str, Any]]
Found = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One command of a target.

    Args:
        name: of the part, its folder of results and its line in the table.
        arguments: of `python -m`.
        limit: seconds until it is ended, imports and compilation included.
        found: what the table shows of its rows.
        toy: arguments in place of `arguments` in a dry run on CPU; empty: those with --dry-run.
        needs: a module that not every host has.
        timed: whether the command takes --time-limit and so can end by itself.
    """

    name: str
    arguments: tuple[str, ...]
    limit: float
    found: Callable[[Rows], Found]
    toy: tuple[str, ...] = ()
    needs: str = ""
    timed: bool = True

    def command(self, limit: float, dry_run: bool) -> list[str]:
        """A timed command starts nothing new in the last quarter of its time."""
        ends = ("--time-limit", f"{0.75 * limit:.0f}") if self.timed else ()
        if dry_run and self.toy:
            return ["-m", *self.toy]
        return ["-m", *self.arguments, *ends, *(("--dry-run",) if dry_run else ())]

    def missing(self, dry_run: bool) -> str:
        """The module that it needs and that is not here; a dry run does without."""
        return "" if dry_run or not self.needs or importlib.util.find_spec(self.needs) else self.needs


def _rates(rows: Rows) -> Found:
    return dict(rows[0])


def _training(rows: Rows) -> Found:
    found: Found = {}
    for row in rows:
        name = f"{row['model']} {row['kind']} {row.get('tokens', row['asked'])}:"
        found[name] = (
            f"MFU {row['mfu']:.1%}, HFU {row['hfu']:.1%}, {row['tokens_per_second']:,.0f} tokens/s, "
            f"{row['seconds']:.3g} s after {row['first_seconds']:.3g} s, {row['peak_bytes'] / 1e9:.1f} GB"
            if "mfu" in row
            else "does not fit"
        )
    return found


def _attention(rows: Rows) -> Found:
    found: Found = {}
    for row in rows:
        text = f"{row['ours_ms']:.3g} ms, mask {row['ours_mask_ms']:.3g} ms, first {row['ours_first_seconds']:.3g} s"
        if "dense_ms" in row:
            text += f"; dense {row['dense_ms']:.3g} ms ({row['dense_ms'] / row['ours_ms']:.1f} x)"
        found[f"{row['tokens']} tokens:"] = text + (f", off by {row['difference']:.2g}" if "difference" in row else "")
    return found


def _layouts(rows: Rows) -> Found:
    """Ratios to the last row, ours, whether or not the run came to compute them."""
    ours = next((row for row in rows if row["candidate"].startswith("one forward")), None)
    return {
        f"{row['candidate']}:": (
            f"{row['seconds']:.3g} s" + (f" ({row['seconds'] / ours['seconds']:.2f} x)" if ours else "")
            if "seconds" in row
            else "does not fit"
        )
        for row in rows
    }


def _speed(rows: Rows) -> Found:
    return {
        f"{row['engine']} B {row['B']} batch {row['batch']} threshold {row['threshold']}:": (
            f"{row['tokens/s']:,.0f} tokens/s, {row['tokens per step']:.2f} tokens a step"
        )
        for row in rows
    }


def _push(rows: Rows) -> Found:
    return {
        f"{row['engine']}:": f"{row['push s']:.3g} s, {row['pushed MB']:,.0f} MB, {row['times a copy']:.1f} x a copy"
        for row in rows
    }


def _step(rows: Rows) -> Found:
    phases = ("rollout", "training", "push")
    return {
        f"{row['engine']}:": ", ".join(f"{name} {row[name]:.3g} s" for name in phases)
        + f", peak {row['peak GB']:.1f} GB, {row['response tokens']:,} tokens"
        for row in rows
    }


def _train(model: str, limit: float, *more: str) -> Part:
    arguments = ("benchmarks.gpu", "train", "--models", model, "--tokens", "16384", "--recompute", "full", *more)
    toy = ("benchmarks.gpu", "train", "--dry-run", "--tokens", "96", "--recompute", "full")
    return Part(f"train-{model}", arguments, limit, _training, toy)


LMDEPLOY, TORCH = "dirl.rollout.LMDeployEngine", "dirl.rollout.TorchEngine"
ROLLOUT = "benchmarks.rollout_gpu"

TARGETS: dict[int, tuple[Part, ...]] = {
    1: (
        Part("rates", ("benchmarks.gpu", "rates"), 50, _rates),
        _train("sdar-8b", 150, "--no-compiled"),
        _train("sdar-4b", 110, "--no-compiled"),
        Part("attention", ("benchmarks.gpu", "attention", "--tokens", "4096", "16384"), 100, _attention),
        Part("layouts", ("benchmarks.gpu", "layouts"), 120, _layouts),
    ),
    2: (
        Part("speed", (ROLLOUT, "speed", "--engines", LMDEPLOY), 150, _speed, needs="lmdeploy"),
        Part("step", (ROLLOUT, "step", "--engines", LMDEPLOY), 110, _step, needs="lmdeploy"),
        Part("push", (ROLLOUT, "push", "--engines", LMDEPLOY), 60, _push, needs="lmdeploy"),
    ),
    3: (
        Part("torch-step", (ROLLOUT, "step", "--engines", TORCH), 110, _step),
        Part("torch-speed", (ROLLOUT, "speed", "--engines", TORCH), 110, _speed),
    ),
}
