"""What an evaluation of a training run leaves."""

from pathlib import Path

import pytest

from dirl.evaluation import Problem, Response
from dirl.evaluation.in_training import in_order, write_evaluation
from dirl.evaluation.results import Result, read_results


def problem(number: int) -> Problem:
    response = Response(0, "1", "right", tokens=2, steps=1, finish_reason="stop", rewards={"accuracy": 1.0})
    return Problem(str(number), "0+1", "1", (response,))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 9])
def test_problems_of_all_ranks_stand_in_the_order_of_the_prompts(ranks: int) -> None:
    prompts = [problem(number) for number in range(7)]
    assert in_order([prompts[rank::ranks] for rank in range(ranks)]) == prompts


def test_the_folder_of_a_step_is_read_as_those_of_evaluate_are(tmp_path: Path) -> None:
    problems = [problem(number) for number in range(3)]
    file = "problems/sums/greedy.jsonl"
    result = Result(
        "step 7", "sums", "greedy", 4, {"accuracy": 1.0}, {"samples": 1}, [], 3, file, [], [], kept=problems
    )
    for _ in range(2):  # a run that is resumed evaluates anew
        folder = write_evaluation(tmp_path, 7, [result])
    assert folder == tmp_path / "evaluations" / "step-7"
    (found,) = read_results(folder)
    assert found.read_problems() == problems
    assert (found.model, found.task, found.metrics) == ("step 7", "sums", {"accuracy": 1.0})
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["greedy.jsonl", "results.json"]
