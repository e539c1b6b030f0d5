"""What lm-evaluation-harness found, in the form of this package's results: metrics, problems and samples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dirl.evaluation.metrics import ResponseMetrics
from dirl.evaluation.problems import Judgement, Problem, Response
from dirl.reading.control_tokens import unmark
from dirl.types import Trajectory

if TYPE_CHECKING:
    from dirl.evaluation.harness.model import EngineLM

Row = Mapping[str, Any]
"""One problem by one filter, as lm_eval logs it."""
OF_REWARDS = ("reward", "accuracy")
"""Metrics of this package that need somebody who judges."""


def named_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task or group: METRIC,FILTER as lm_eval names them, standard errors as METRIC,FILTER/stderr."""
    values: dict[str, float] = {}
    for name, value in found.items():
        if not isinstance(value, int | float) or "," not in name:
            continue
        metric, _, filtered = name.partition(",")
        stderr = metric.endswith("_stderr")
        values[f"{metric.removesuffix('_stderr')},{filtered}" + ("/stderr" if stderr else "")] = float(value)
    return values


def judging_metric(rows: Sequence[Row]) -> str | None:
    """METRIC,FILTER that says what is correct: of the first filter the first that is 0 or 1 for every problem."""
    first = [row for row in rows if row["filter"] == rows[0]["filter"]]
    for metric in rows[0]["metrics"]:
        if all(is_number(row[metric]) and row[metric] in (0, 1) for row in first):
            return f"{metric},{rows[0]['filter']}"
    return None


def problems_of(rows: Sequence[Row], task: str, model: "EngineLM", judge: str | None) -> list[Problem]:
    """The problems in their order; each response has the verdict on its problem, which lm_eval judges as one."""
    by_problem: dict[str, list[Row]] = {}
    for row in rows:
        by_problem.setdefault(str(row["doc_id"]), []).append(row)
    found = []
    for prompt in model.answers[task].prompts:
        of_problem = by_problem[prompt.prompt_id.partition(".")[0]]
        scores = {
            f"{metric},{row['filter']}": float(row[metric])
            for row in of_problem
            for metric in row["metrics"]
            if is_number(row[metric])
        }
        made = model.answers[task].trajectories[prompt.prompt_id]
        responses = tuple(_response(t, task, model, scores, judge) for t in made)
        found.append(Problem(prompt.prompt_id, prompt.question, str(of_problem[0]["target"]), responses))
    return found


def _response(
    made: Trajectory, task: str, model: "EngineLM", scores: Mapping[str, float], judge: str | None
) -> Response:
    right: Judgement = "right" if judge is not None and scores[judge] == 1 else "wrong"
    return Response(
        sample_index=made.sample_index,
        text=model.text(task, made),
        judgement=right,
        tokens=made.response_length,
        steps=made.denoising_steps(model.description.spec.block_size),
        finish_reason="stop" if model.was_cut(task, made) else made.finish_reason,
        reward=None if judge is None else scores[judge],
        rewards=scores,
    )


def measures(problems: Sequence[Problem], block_size: int, judged: bool, resamples: int, seed: int) -> dict[str, float]:
    """This package's own metrics; without those that need a verdict where there is none."""
    metrics = ResponseMetrics([], block_size, correct="", resamples=resamples, seed=seed)
    scored = [
        dataclasses.replace(
            problem, responses=tuple(dataclasses.replace(r, reward=r.reward or 0.0) for r in problem.responses)
        )
        for problem in problems
    ]
    metrics.update_problems(scored)
    left_out = OF_REWARDS[:1] if judged else OF_REWARDS
    values = {name: value for name, value in metrics.compute().items() if name.partition("/")[0] not in left_out}
    return values | {"responses": float(sum(len(problem.responses) for problem in problems))}


def sample_row(row: Row) -> dict[str, Any]:
    """A sample as lm_eval logs it, without marks, as plain values."""
    return {name: _plain(value) for name, value in row.items()}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return unmark(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return _plain(value.item()) if is_number(value) else repr(value)
