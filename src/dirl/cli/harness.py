"""`evaluate --task lm_eval:NAME`: what may be asked with it, and what it prints and writes."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dirl.cli.evaluation_output import print_results, write_results
from dirl.cli.evaluation_parts import models_of
from dirl.cli.harness_run import HarnessPart, HarnessRun, settings_of
from dirl.cli.prompt_data import PromptData
from dirl.evaluation.harness.decoding import check_decoding
from dirl.evaluation.harness.loading import load_tasks
from dirl.evaluation.results import Result
from dirl.evaluation.results_folder import ResultsFolder
from dirl.evaluation.sweep import Sweep
from dirl.evaluation.tasks import check_name
from dirl.models import ModelSource
from dirl.rollout import RolloutEngine
from dirl.tasks import LMEval
from dirl.types import DecodingParams

NAMED = "default"
"""The decoding, where none is named."""


def evaluate_harness(
    task: LMEval,
    sources: Mapping[str, ModelSource],
    data: PromptData,
    decoding: Mapping[str, DecodingParams] | None,
    engine: RolloutEngine,
    sweep: Sweep,
    common: Mapping[str, int],
    output: str | None,
    overwrite: bool,
    given: Mapping[str, object],
) -> None:
    """Run all tasks on all models, print and write what was found.

    Args:
        common: seed, resamples, portion.
        given: options that a task of lm_eval has no use for, by name, with values where they are set.
    """
    check_given(task, data, given)
    bases = sweep.decodings(decoding or {NAMED: DecodingParams()}, "decoding")
    for name, base in bases.items():
        check_name(name, "decoding")
        check_decoding(name, base)
    tasks = load_tasks(task)
    for name in tasks.tasks:
        check_name(name, f"task=lm_eval:{','.join(task.names)}")
    parts = [HarnessPart(model, name, base) for model in models_of(sources, sweep) for name, base in bases.items()]
    settings = {
        part.name(name): settings_of(part, name, task, data.limit, engine, common)
        for part in parts
        for name in tasks.tasks
    }
    folder = None if output is None else ResultsFolder(output, settings, overwrite)
    run = HarnessRun(engine, task, tasks, data.limit, common, folder, settings)
    results = run.results(parts)
    judged = sweep if all("accuracy" in result.metrics for result in results) else Sweep()
    if folder is not None:
        write_results(folder, results, judged)
        if run.groups:
            folder.write("groups.json", run.groups)
        folder.close()
    several = len(results) > 1
    if several or run.groups:
        print_harness(results, run.groups)
    print_results(results, judged, named=several, resamples=common["resamples"], seed=common["seed"])
    if folder is not None:
        print(f"results: {folder.path}")


def check_given(task: LMEval, data: PromptData, given: Mapping[str, object]) -> None:
    """Raise ValueError for options that say what the tasks decide themselves."""
    data.check(task)
    said = [name for name, value in given.items() if value is not None]
    said += ["data.split"] if data.split is not None else []
    if said:
        raise ValueError(
            f"{', '.join(said)}: given, and task=lm_eval:{','.join(task.names)} decides that itself (prompts, number "
            "of responses, filters, metrics); leave it out"
        )


def print_harness(results: Sequence[Result], groups: Mapping[str, Mapping[str, float]]) -> None:
    """The metrics of lm_eval, a line each, with their standard errors; those of groups last."""
    table = Table("task", "filter", "metric", "value", "stderr", title="lm-evaluation-harness")
    rows = [(result.name, result.metrics) for result in results] + [(f"group {name}", m) for name, m in groups.items()]
    for name, metrics in rows:
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if comma and not key.endswith("/stderr"):
                stderr = metrics.get(f"{key}/stderr")
                table.add_row(name, filtered, metric, f"{value:.4g}", "" if stderr is None else f"{stderr:.3g}")
    Console().print(table)
