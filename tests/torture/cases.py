"""Many cases, some at a time, of the processes that fork them."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.torture.case import Case, Result
from tests.torture.nursery import Nursery
from tests.torture.reference import make_reference
from tests.torture.scenarios import ROOT, Scenario


def torture(
    scenarios: Sequence[Scenario], runs: int, seed: int, folder: Path, jobs: int, done: Callable[[int, Result], None]
) -> list[Result]:
    """So many cases, given out to the scenarios; folders of what went well are removed.

    Args:
        seed: of the first case; the others count on.
        jobs: cases at a time.
        done: told of each case, with its number.
    """
    nurseries = [Nursery(ROOT) for _ in range(2)]
    try:
        for nursery in nurseries:
            nursery.wait_until_ready()
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
                done(number, result)
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
