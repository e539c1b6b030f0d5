"""What `make torture` prints: a row a case, and a summary."""

from collections import Counter
from collections.abc import Sequence

from tests.torture.case import Result

HEADER = (
    f"{'case':>4}  {'scenario':<26} {'seed':>4} {'kills':>5} {'resumes':>7} {'anew':>4} {'cut':>3} {'s':>6}  result"
)


def row(number: int, result: Result) -> str:
    """One line, and below it where the kills came; then what is wrong."""
    verdict = "identical" if not result.wrong else f"{len(result.wrong)} differences, kept in {result.folder}"
    counts = f"{len(result.kills):5} {result.resumes:7} {result.anew:4} {len(result.damaged):3}"
    lines = [f"{number:4}  {result.scenario:<26} {result.seed:4} {counts} {result.seconds:6.1f}  {verdict}"]
    lines += [f"      killed at step {'; '.join(map(str, result.kills))}"] if result.kills else []
    return "\n".join([*lines, *(f"      {wrong}" for wrong in result.wrong[:5])])


def summary(results: Sequence[Result], seconds: float) -> str:
    kills, wrong = sum(len(r.kills) for r in results), sum(bool(r.wrong) for r in results)
    phases = Counter(kill.within.rsplit("/")[-1] for result in results for kill in result.kills)
    came = ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
    return (
        f"{len(results)} runs, {kills} kills ({came}), {sum(r.resumes for r in results)} resumes, "
        f"{sum(r.anew for r in results)} begun anew, {sum(len(r.damaged) for r in results)} checkpoints cut off, "
        f"{seconds:.0f} s: {len(results) - wrong} identical, {wrong} not"
    )
