"""The command compare: results of evaluations as one table."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dirl.evaluation.formats import comma_separated, made_with, markdown, page
from dirl.evaluation.results import Result, read_results
from dirl.evaluation.results_folder import write_whole
from dirl.evaluation.tables import compare as side_by_side
from dirl.evaluation.tables import pairs
from dirl.outputs import check_new_file

Format = Literal["markdown", "html", "csv"]
ENDINGS: dict[str, Format] = {".md": "markdown", ".html": "html", ".csv": "csv"}


def compare(
    runs: list[str],
    output: str | None = None,
    format: Format | None = None,
    tasks: list[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Put the results of evaluations into one table: Markdown, HTML or CSV.

    Args:
        runs: folders that `evaluate` has written. Two models on the same problems are tested against one another.
        output: file to write; None: the table is printed.
        format: of the table; None: by the ending of the output, or Markdown.
        tasks: columns, by name; None: all.
        resamples: of the paired bootstrap of the difference between two models.
        seed: of the resamples.
        overwrite: an existing file is replaced.
    """
    if output is not None:
        check_new_file(Path(output), "output", overwrite)
    chosen = format or (ENDINGS.get(Path(output).suffix.lower()) if output is not None else "markdown")
    if chosen is None:
        raise ValueError(f"output={output!r}: its ending is none of {', '.join(ENDINGS)}; name the format by --format")
    found = [(run, result) for run in runs for result in read_results(run)]
    results, names = _chosen([result for _, result in found], tasks), model_names(runs, found, tasks)
    text = _text(results, names, chosen, resamples, seed)
    if output is None:
        print(text, end="")
    else:
        write_whole(Path(output), text)
        print(f"{len(results)} results written to {output}")


def model_names(runs: Sequence[str], found: Sequence[tuple[str, Result]], tasks: list[str] | None) -> list[str]:
    """What the run of each result calls the model, behind the run's own name where two have models of one name."""
    kept = [(run, result) for run, result in found if tasks is None or result.task in tasks]
    seen = Counter(name for run in runs for name in {result.model for r, result in kept if r == run})
    short = {run: Path(run).name for run in runs}
    unique = len(set(short.values())) == len(runs)
    return [
        result.model if seen[result.model] == 1 else f"{short[run] if unique else run}: {result.model}"
        for run, result in kept
    ]


def _chosen(results: Sequence[Result], tasks: list[str] | None) -> list[Result]:
    known = list(dict.fromkeys(result.task for result in results))
    if missing := [task for task in tasks or [] if task not in known]:
        raise ValueError(f"tasks: no run has {missing[0]!r}; they have {', '.join(known)}")
    return [result for result in results if tasks is None or result.task in tasks]


def _text(results: list[Result], names: list[str], chosen: Format, resamples: int, seed: int) -> str:
    table = side_by_side(results, names)
    if chosen == "csv":
        return comma_separated(results, names)
    write = markdown if chosen == "markdown" else page
    return write(table, pairs(results, names, resamples, seed), made_with(results, names))
