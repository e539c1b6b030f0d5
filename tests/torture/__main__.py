"""Kill training runs at random moments, resume them, and demand that they end as if nothing had happened.

python -m tests.torture --runs 56 --seed 0
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from tests.torture.case import Result
from tests.torture.cases import torture
from tests.torture.scenarios import SCENARIOS
from tests.torture.table import HEADER, row, summary


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

    def say(number: int, result: Result) -> None:
        print(row(number, result), flush=True)

    results = torture(scenarios, options.runs, options.seed, folder, options.jobs, say)
    print(summary(results, time.monotonic() - began))
    if any(result.wrong for result in results):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
