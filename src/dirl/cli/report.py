"""The command `report`: a page of training runs."""

from pathlib import Path

from dirl.outputs import check_new_file
from dirl.report.run_data import write_report


def report(runs: list[str], output: str | None = None, overwrite: bool = False) -> None:
    """Make one HTML page of training runs: curves, evaluations, time by phase, samples, settings, warnings.

    Args:
        runs: folders of the runs (trainer.default_root_dir); several are compared.
        output: page to write; None: report.html in the folder of the first run.
        overwrite: an existing page is replaced.
    """
    if not runs:
        raise ValueError("runs=[]: name the folder of at least one run")
    roots = [Path(run) for run in runs]
    if len({root.resolve() for root in roots}) < len(roots):
        raise ValueError(f"runs={runs}: one is named twice; name each once")
    page = Path(runs[0]) / "report.html" if output is None else Path(output)
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"run={str(root)!r}: no such folder; name the trainer.default_root_dir of a run")
    check_new_file(page, "output", overwrite)
    found = write_report(roots, page)
    for run in found:
        if run.earlier:
            names = ", ".join(folder.name for folder in run.earlier)
            print(f"{run.root}: {names} are of other runs, which were started anew in that folder; they are left out")
    starts = sum(len(run.folders) for run in found)
    counts = f"runs: {len(found)}, starts: {starts}"
    print(f"{counts}, written to {page} ({page.stat().st_size / 1e6:.1f} MB)")
