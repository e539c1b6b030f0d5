"""The command evaluate. Its signature is its options."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dirl.cli.evaluation_output import print_results, write_results
from dirl.cli.evaluation_parts import models_of, parts_of, settings_of
from dirl.cli.evaluation_run import Run
from dirl.cli.prompt_data import PromptData
from dirl.evaluation import EvaluationTask
from dirl.evaluation.provenance import described
from dirl.evaluation.results_folder import ResultsFolder, read_settings
from dirl.evaluation.sweep import Sweep
from dirl.evaluation.tasks import check_name, named_tasks
from dirl.models import ModelSource, PretrainedModel
from dirl.outputs import check_new_folder
from dirl.ranges import at_least
from dirl.rewards import Reward, Scorer
from dirl.rollout import RolloutEngine, TorchEngine
from dirl.stopping import request
from dirl.tasks import Task
from dirl.tasks.given import said_of_files
from dirl.types import DecodingParams


def evaluate(
    source: ModelSource | None = None,
    data: PromptData = PromptData(),  # noqa: B008 - it is frozen
    decoding: dict[str, DecodingParams] | None = None,
    task: Task | None = None,
    rewards: list[Reward] | None = None,
    output: str | None = None,
    engine: RolloutEngine = TorchEngine(),  # noqa: B008 - not set up until used
    samples: int = 1,
    reward_workers: int = 2,
    reward_timeout_s: float = 10.0,
    on_reward_error: Literal["raise", "drop_group"] = "drop_group",
    seed: int = 0,
    correct: str | None = None,
    texts: bool = False,
    overwrite: bool = False,
    models: dict[str, ModelSource | str] | None = None,
    tasks: dict[str, Task | EvaluationTask] | None = None,
    sweep: Sweep = Sweep(),  # noqa: B008 - it is frozen
    resamples: int = 1000,
    portion: int = 1024,
) -> None:
    """Sample responses, score them, and print a table of metrics.

    Args:
        source: the model: a folder, hub name or checkpoint, or a class with its options.
        data: the prompts.
        decoding: settings by name, each evaluated on its own.
        task: whose prompts are answered, in place of those of data.path; `lm_eval:NAME,NAME`: of lm-evaluation-harness,
            see dirl.tasks.LMEval.
        rewards: their weighted sum is the reward; None: those of the task.
        output: folder for the results; the same command goes on with what a killed one has left there. None: nothing
            is written.
        engine: what generates.
        samples: responses per prompt (greedy decoding: one).
        reward_workers: processes for rewards that are not cheap.
        reward_timeout_s: time limit of one reward.
        on_reward_error: `raise`, or `drop_group`: the response is counted as lost, and as wrong.
        seed: of the requests, and of the bootstrap.
        correct: name of the reward that says what is correct (above 0); None: the first that judges, as `accuracy` and
            `exact_answer` do and `boxed` and `length` do not.
        texts: question, truth and the response in words beside the ids of the trajectories, for `trace` and people.
        overwrite: files in an existing folder are replaced.
        models: several, by name, in place of source: a class of models, or a folder, hub name or checkpoint alone;
            e.g. {before: sft/model, after: rl/model}.
        tasks: several, by name, in place of task: a class of tasks, or a task with decoding, samples, rewards, correct,
            limit and split of its own; e.g. {sums: dirl.tasks.Arithmetic}.
        sweep: the same at many thresholds or block sizes, with a figure of accuracy against tokens per step.
        resamples: of the bootstrap over problems that gives intervals; 0: none.
        portion: responses that are asked for at a time; a killed evaluation has lost those of one portion.
    """
    at_least(1, "evaluate", samples=samples, reward_workers=reward_workers, portion=portion)
    at_least(0, "evaluate", resamples=resamples, seed=seed)
    sources = _sources(source, models)
    common = {"seed": seed, "resamples": resamples, "portion": portion}
    if task is not None and task.evaluator == "lm_eval":
        given = {"tasks": tasks, "rewards": rewards, "correct": correct, "samples": None if samples == 1 else samples}
        return harness(task, sources, data, decoding, engine, sweep, common, output, overwrite, given)
    own = EvaluationTask(task or data.files(), decoding, samples, rewards, correct)
    asked = _tasks(own, tasks, data, task, sweep)
    if output is not None and (overwrite or read_settings(Path(output)) is None):
        check_new_folder(Path(output), "output", overwrite)
    options = (reward_workers, reward_timeout_s, on_reward_error)
    scorers = {name: Scorer(_rewards(name, one, task), *options, one.correct) for name, one in asked.items()}
    for scorer in scorers.values():
        _ = scorer.correctness  # an error now and not after the generation
        scorer.ask(request.check)
    engine.still_wanted = request.check
    plain_engine = described(engine)
    parts = parts_of(list(models_of(sources, sweep)), asked, scorers, data, engine, common)
    settings = {part.name: settings_of(part, plain_engine, engine) | {"texts": texts} for part in parts}
    folder = None if output is None else ResultsFolder(output, settings, overwrite)
    run = Run(engine, parts, settings, folder, texts)
    results = run.results()
    if folder is not None:
        write_results(folder, results, sweep)
        folder.close()
    print_results(results, sweep, named=bool(models or tasks or sweep), resamples=resamples, seed=seed)
    if folder is not None:
        print(f"results: {folder.path}")


def harness(*args: Any) -> None:
    """Tasks of lm-evaluation-harness, which is imported here."""
    from dirl.cli.harness import evaluate_harness

    engine = args[4]
    engine.still_wanted = request.check
    evaluate_harness(*args)


def _sources(source: ModelSource | None, models: Mapping[str, ModelSource | str] | None) -> dict[str, ModelSource]:
    """The models by name; the name of the only one is empty."""
    if (source is None) == (models is None):
        given = "both are given" if models is not None else "neither is given"
        raise ValueError(
            f"source and models: {given}; name one model by source, e.g. --source outputs/rl/model, or several by "
            "models, e.g. --models '{before: outputs/sft/model, after: outputs/rl/model}'"
        )
    if models is None:
        assert source is not None
        return {"": source}
    if not models:
        raise ValueError("models is empty: name at least one, e.g. {after: outputs/rl/model}")
    for name in models:
        check_name(name, "models")
    return {name: PretrainedModel(one, dtype="auto") if isinstance(one, str) else one for name, one in models.items()}


def _tasks(
    own: EvaluationTask,
    tasks: Mapping[str, Task | EvaluationTask] | None,
    data: PromptData,
    task: Task | None,
    sweep: Sweep,
) -> dict[str, EvaluationTask]:
    """The tasks by name, with all decodings of the sweep; the name of the only one is empty."""
    if tasks is None:
        data.check(task)
        if not own.decoding:
            raise ValueError(
                "decoding is empty: name at least one setting, e.g. --decoding '{greedy: {temperature: 0}}'"
            )
        found = {"": own}
        for name in own.decoding:
            check_name(name, "decoding")
    else:
        given = {"task": task, "data.path": data.path, "rewards": own.rewards, "correct": own.correct}
        if said := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"tasks and {', '.join(said)}: both are given; name each task, with its rewards, under tasks"
            )
        if of_harness := [name for name, one in tasks.items() if getattr(one, "task", one).evaluator == "lm_eval"]:
            raise ValueError(
                f"tasks.{of_harness[0]}: tasks of lm-evaluation-harness are evaluated alone: name all of them by task, "
                "e.g. --task lm_eval:gsm8k,drop"
            )
        if not tasks:
            raise ValueError("tasks is empty: name at least one, e.g. {sums: dirl.tasks.Arithmetic}")
        one = next(iter(tasks.values()))
        first = one.task if isinstance(one, EvaluationTask) else one
        if unused := said_of_files(first, data.files().options()):
            print(unused, file=sys.stderr)
        found = named_tasks(tasks, own.decoding, own.samples or 1)
    return {
        name: replace(
            one, decoding=sweep.decodings(one.decoding or {}, f"tasks.{name}.decoding" if name else "decoding")
        )
        for name, one in found.items()
    }


def _rewards(name: str, asked: EvaluationTask, task: Task | None) -> list[Reward]:
    """The rewards that are given, else the task's."""
    if name:
        return asked.scored_by(f"tasks.{name}.rewards")
    found = asked.rewards if asked.rewards is not None else asked.task.rewards()
    if not found:
        none = "none are given" if task is None else f"none are given, and task={type(task).__name__} names none"
        raise ValueError(f"rewards: {none}; name one, e.g. --rewards '[dirl.rewards.Accuracy]'")
    return found
