"""Kill training runs at random moments, resume them, and demand that they end as if nothing had happened.

    python -m tests.torture --runs 56 --seed 0
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp

from tests.torture.case import Case, Result
from tests.torture.nursery import Nursery
from tests.torture.reference import make_reference
from tests.torture.scenarios import ROOT, SCENARIOS, Scenario


def torture(
    scenarios: Sequence[Scenario], runs: int, seed: int, folder: Path, jobs: int = 1, say: bool = False
) -> list[Result]:
    """So many cases, given out to the scenarios; folders of what went well are removed."""
    nurseries = [Nursery(ROOT) for _ in range(2)]
    try:
        with ThreadPoolExecutor(jobs) as pool:
            wholes = list(
                pool.map(
                    lambda number: make_reference(scenarios[number], folder / f"whole{number}", nurseries[number % 2]),
                    range(len(scenarios)),
                )
            )

            def run(number: int, which: int) -> Result:
                result = Case(wholes[which], seed + number, folder / f"case{number}", nurseries).run()
                if not result.wrong:
                    shutil.rmtree(result.folder)
                if say:
                    print(row(number, result), flush=True)
                return result

            return list(pool.map(run, range(runs), given_out(scenarios, runs)))
    finally:
        for nursery in nurseries:
            nursery.close()


def given_out(scenarios: Sequence[Scenario], runs: int) -> list[int]:
    """The scenario of each case: each has its share, at any time."""
    counts = [0.0] * len(scenarios)
    order = []
    for _ in range(runs):
        which = min(range(len(scenarios)), key=lambda i: (counts[i] + 1) / scenarios[i].share)
        counts[which] += 1
        order.append(which)
    return order


HEADER = f"{'case':>4}  {'scenario':<26} {'seed':>4} {'kills':>5} {'resumes':>7} {'anew':>4} {'cut':>3} {'s':>6}  result"


def row(number: int, result: Result) -> str:
    """One line, and below it where the kills came; then what is wrong."""
    verdict = "identical" if not result.wrong else f"{len(result.wrong)} differences, kept in {result.folder}"
    counts = f"{len(result.kills):5} {result.resumes:7} {result.anew:4} {len(result.damaged):3}"
    lines = [f"{number:4}  {result.scenario:<26} {result.seed:4} {counts} {result.seconds:6.1f}  {verdict}"]
    lines += [f"      killed at step {'; '.join(result.kills)}"] if result.kills else []
    return "\n".join([*lines, *(f"      {wrong}" for wrong in result.wrong[:5])])


def summary(results: Sequence[Result], seconds: float) -> str:
    kills, wrong = sum(len(r.kills) for r in results), sum(bool(r.wrong) for r in results)
    phases: dict[str, int] = {}
    for kill in (k for r in results for k in r.kills):
        phase = kill.split(" ", 1)[1].rsplit("/")[-1]
        phases[phase] = phases.get(phase, 0) + 1
    came = ", ".join(f"{phase} {count}" for phase, count in sorted(phases.items(), key=lambda item: -item[1]))
    return (
        f"{len(results)} runs, {kills} kills ({came}), {sum(r.resumes for r in results)} resumes, "
        f"{sum(r.anew for r in results)} begun anew, {sum(len(r.damaged) for r in results)} checkpoints cut off, "
        f"{seconds:.0f} s: {len(results) - wrong} identical, {wrong} not"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=56, help="killed runs, over all scenarios")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others count on")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--scenario", action="append", help="name of one scenario, may be repeated; none: all")
    options = parser.parse_args()
    scenarios = [s for s in SCENARIOS if not options.scenario or s.name in options.scenario]
    if not scenarios:
        parser.error(f"no such scenario; there are {', '.join(repr(s.name) for s in SCENARIOS)}")
    began, folder = time.monotonic(), Path(mkdtemp(prefix="torture-"))
    print(HEADER, flush=True)
    results = torture(scenarios, options.runs, options.seed, folder, options.jobs, say=True)
    print(summary(results, time.monotonic() - began))
    if any(result.wrong for result in results):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
