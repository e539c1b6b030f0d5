"""What to ask of a GPU in half an hour: three targets of under nine minutes, the most valuable one first.

python -m benchmarks.half_hour 1
python -m benchmarks.half_hour 1 2 3 --dry-run
"""

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.device_clock import LEFT_OUT, device_name, pick_device
from benchmarks.half_hour_parts import TARGETS, Part
from benchmarks.isolated import Outcome, run_isolated

TARGET_SECONDS = 530.0
SHORTEST = 20.0
"""Seconds: a part that has fewer left is not started, for imports take as long."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit code 1 where a part failed or was stopped, after all have been tried."""
    options = _parser().parse_args(arguments)
    device = pick_device(options.dry_run)
    worked = [run_target(number, options, device) for number in options.targets]
    if not all(worked):
        raise SystemExit(1)


def run_target(number: int, options: argparse.Namespace, device: str) -> bool:
    """Run the parts of a target, write JSON after each, print the table last; returns whether all went well."""
    end = time.monotonic() + options.time_limit
    results: list[dict[str, Any]] = []
    parts = [part for part in TARGETS[number] if not options.parts or part.name in options.parts]
    for place, part in enumerate(parts, 1):
        left = end - time.monotonic()
        print(
            f"gpu-{number}, part {place} of {len(parts)}: {part.name}, at most {min(part.limit, left):.0f} s",
            flush=True,
        )
        result = _run(part, left, options.dry_run, _folder() / f"gpu-{number}" / part.name)
        _announce(result)
        results.append(result)
        path = record.save(f"gpu-{number}", {"dry_run": options.dry_run, "seconds": options.time_limit}, results)
    show(f"gpu-{number} on {device_name(device)}", results)
    print("written to", path, "and, with what each part printed, beside it", flush=True)
    return all(result["status"] in ("ok", "not here") for result in results)


def show(title: str, results: Sequence[dict[str, Any]]) -> None:
    """A line for each part: what it found, or what it said last."""
    cells = []
    for result in results:
        found = [f"{name} {record._cell(value)}" for name, value in result["found"].items()]
        said = [result["cause"]] if result["cause"] else []
        cells.append((result["part"], result["seconds"], result["status"], "\n".join(found + said) or "-"))
    record.show(title, ("part", "s", "status", "found"), cells, left=("status", "found"))


def _run(part: Part, left: float, dry_run: bool, folder: Path) -> dict[str, Any]:
    missing = part.missing(dry_run)
    if missing:
        outcome, cause = Outcome("not here", 0.0, [], []), f"needs {missing}"
    elif left < SHORTEST:
        outcome, cause = Outcome("left out", 0.0, [], []), "no time was left"
    else:
        limit = min(part.limit, left)
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if dry_run else {}
        outcome = run_isolated(part.command(limit, dry_run), limit, folder, hidden)
        cause = _left_out(outcome.last_lines) if outcome.status == "ok" and outcome.rows else outcome.cause
    row = {"part": part.name, **dataclasses.asdict(outcome), "cause": cause}
    return row | {"found": _found(part, outcome)}


def _left_out(lines: Sequence[str]) -> str:
    """What a part that ended by itself had no time for, from the note under its table."""
    text = " ".join(line.strip() for line in lines)
    return LEFT_OUT + text.split(LEFT_OUT, 1)[1].partition(" written to")[0] if LEFT_OUT in text else ""


def _found(part: Part, outcome: Outcome) -> dict[str, Any]:
    """The few numbers of the table; what cannot be told from the rows leaves them where they are."""
    try:
        return part.found(outcome.rows)
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        return {"no summary:": f"{type(error).__name__}: {error}"}


def _announce(result: dict[str, Any]) -> None:
    print(f"  {result['status']} after {result['seconds']:.0f} s {result['cause']}", flush=True)
    if result["status"] in ("failed", "stopped"):
        print(*(f"  | {line}" for line in result["last_lines"]), sep="\n", flush=True)


def _folder() -> Path:
    return Path(os.environ.get("OUT") or Path(__file__).parent / "results").absolute()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.half_hour", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="+", type=int, choices=sorted(TARGETS))
    names = sorted({part.name for parts in TARGETS.values() for part in parts})
    parser.add_argument("--parts", nargs="+", choices=names, help="of the targets, these alone")
    parser.add_argument(
        "--time-limit", type=float, default=TARGET_SECONDS, help="seconds of a target, all parts together"
    )
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on CPU")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # whoever ends this ends the part that is running, too
    main()
