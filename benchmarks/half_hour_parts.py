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
        toy: all arguments of a dry run on CPU; empty: `arguments` with --dry-run.
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


def _traces(rows: Rows) -> Found:
    return {f"{row['engine']} batch {row['batch']}:": f"{row['tokens/s']:,.0f} tokens/s" for row in rows}


CHECKED = {
    "equal_tokens": "equal tokens",
    "chance": "by chance",
    "logprob_mean": "log-probs off by",
    "trainer_greedy_mean": "trainer's by",
    "trainer_drawn_mean": "drawn by",
    "push_bytes": "bytes",
    "push_s": "push s",
    "copy_s": "copy s",
    "allocated_awake": "bytes awake",
    "allocated_asleep": "asleep",
    "sleep_again_s": "sleep s",
    "wake_again_s": "wake s",
}
"""What the table has of the numbers of a check in tests/gpu, and how it calls them."""


def _checks(rows: Rows) -> Found:
    found: Found = {}
    for row in rows:
        numbers = [f"{label} {row[key]:.4g}" for key, label in CHECKED.items() if isinstance(row.get(key), float)]
        broken = [f"BROKEN {', '.join(row['broken'])}"] if "broken" in row else []
        found[f"{row['check']}:"] = ", ".join(broken + numbers) or "-"
    return found


def _train(name: str, model: str, limit: float, *more: str) -> Part:
    """One row length, all activations but the layers' inputs computed anew."""
    arguments = ("benchmarks.gpu", "train", "--models", model, "--tokens", "16384", "--recompute", "full", *more)
    toy = ("benchmarks.gpu", "train", "--dry-run", "--tokens", "96", "--recompute", "full", *more)
    return Part(name, arguments, limit, _training, toy)


def _tests(name: str, limit: float, tests: Sequence[str], needs: str = "") -> Part:
    """Of tests/gpu; without a GPU they are collected, and skip."""
    arguments = ("pytest", "-v", "-s", "-p", "no:cacheprovider", *tests)
    return Part(name, arguments, limit, _checks, toy=arguments, needs=needs, timed=False)


LMDEPLOY, TORCH = "dirl.rollout.LMDeployEngine", "dirl.rollout.TorchEngine"
ROLLOUT, SIZES = "benchmarks.rollout_gpu", ("--block-sizes", "4", "--batches", "64", "256")
ATTENTION = ("benchmarks.gpu", "attention")
LMDEPLOY_TESTS = "tests/gpu/test_lmdeploy_gpu.py"


def _rollout(name: str, part: str, engine: str, limit: float, found: Callable[[Rows], Found]) -> Part:
    """LMDeploy is not there on every host; a dry run takes the torch engine."""
    arguments = (ROLLOUT, part, "--engines", engine, *SIZES)
    needs = "lmdeploy" if engine == LMDEPLOY else ""
    return Part(name, arguments, limit, found, toy=(ROLLOUT, part, "--dry-run"), needs=needs)


TARGETS: dict[int, tuple[Part, ...]] = {
    1: (
        Part("rates", ("benchmarks.gpu", "rates"), 45, _rates),
        _train("train-8b", "sdar-8b", 150, "--no-compiled"),
        _train("train-4b", "sdar-4b", 105, "--no-compiled"),
        Part("attention", (*ATTENTION, "--tokens", "4096", "16384"), 100, _attention, toy=(*ATTENTION, "--dry-run")),
        Part("layouts", ("benchmarks.gpu", "layouts"), 125, _layouts),
    ),
    2: (
        _tests("parity", 130, (LMDEPLOY_TESTS, "-k", "greedy_parity"), needs="lmdeploy"),
        _rollout("speed", "speed", LMDEPLOY, 120, _speed),
        _rollout("step", "step", LMDEPLOY, 90, _step),
        _rollout("push", "push", LMDEPLOY, 50, _push),
        _tests("sleep", 60, (LMDEPLOY_TESTS, "-k", "sleep_gives"), needs="lmdeploy"),
        Part("traces", ("benchmarks.untraced",), 80, _traces, needs="lmdeploy"),
    ),
    3: (
        _tests("tests", 140, ("tests/gpu", "--ignore", LMDEPLOY_TESTS)),
        _rollout("torch-step", "step", TORCH, 100, _step),
        _rollout("torch-speed", "speed", TORCH, 90, _speed),
        _train("optimizer-8b", "sdar-8b", 90, "--no-compiled", "--layers", "12", "--optimizer"),
        _train("compiled-4b", "sdar-4b", 110, "--compiled"),
        # In what the others leave of their time.
        _tests(
            "lmdeploy-tests", 240, (LMDEPLOY_TESTS, "-k", "not greedy_parity and not sleep_gives"), needs="lmdeploy"
        ),
    ),
}
