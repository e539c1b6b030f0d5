"""`evaluate` on every suite: with a new model, and with responses whose verdicts are known."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.suites import ALPHABET, ROWS, printable_model

from dirl import tasks
from dirl.cli.main import main
from dirl.models import ModelDescription
from dirl.reading.prompts import PromptEncoder
from dirl.rewards.sandbox import why_not
from dirl.tasks import Task
from dirl.trajectory_files import read_trajectories, write_trajectories
from dirl.types import Prompt, Trajectory

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = (
    *("--source=dirl.models.NewModel", f"--source.alphabet={ALPHABET}", "--source.block_size=4"),
    *("--source.hidden_size=32", "--source.num_hidden_layers=1", "--source.head_dim=8", "--source.seed=1"),
    "--source.max_position_embeddings=2048",
)
needs_sandbox = pytest.mark.skipif(why_not() is not None, reason=f"no sandbox here: {why_not()}")
SUITES = [
    ("GSM8K", "gsm8k", "dirl"),
    ("MATH500", "math500", "dirl"),
    ("AIME24", "aime24", "avg64"),
    ("AIME25", "aime25", "avg64"),
    ("OlympiadBench", "olympiadbench", "dirl"),
    pytest.param("HumanEval", "humaneval", "sdar", marks=needs_sandbox),
    pytest.param("MBPP", "mbpp_sanitized", "sdar", marks=needs_sandbox),
]

RIGHT_AND_WRONG = {
    "gsm8k": (
        ["18", "\\$1{,}080", "-3\\text{ degrees}", "\\frac{9}{2}"],
        ["72", "1", "3", "4"],
    ),
    "math500": (
        ["\\frac{10}{12}", "(2, \\pi/2)", "Ada", "x<-2 \\text{ or } x>2"],
        ["\\frac{5}{7}", "(\\pi/2, 2)", "Bea", "(-2,2)"],
    ),
    "aime24": (["001", "25", "\\text{7}"], ["100", "26", "1/6"]),
    "aime25": (["16", "336"], ["61", "236"]),
    "olympiadbench": (
        ["3, -2", "2", "(3,1),(1,3)", "-2<t<2", "\\frac{\\sqrt{3} a^2}{4}", "12\\text{ m}"],
        ["3", "\\ge 2", "(3,1)", "[-2,2]", "\\sqrt{3}a^2", "-12"],
    ),
}


@pytest.mark.parametrize(("task", "rows", "config"), SUITES)
def test_every_suite_is_evaluated_from_the_command_line(task: str, rows: str, config: str, tmp_path: Path) -> None:
    main(
        [
            *("evaluate", "--config", str(CONFIGS / "evaluation" / f"{config}.yaml"), *MODEL),
            *(f"--task=dirl.tasks.{task}", f"--task.val={ROWS[rows]}", "--engine=dirl.rollout.TorchEngine"),
            *("--decoding={dynamic: {max_response_tokens: 8}}", "--samples=2", f"--output={tmp_path / 'out'}"),
        ]
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["dynamic"]
    found = list(read_trajectories(tmp_path / "out" / "dynamic.jsonl"))
    assert metrics["responses"] == len(found) > 0 and metrics["lost"] == 0
    assert metrics["accuracy"] == 0.0


@pytest.mark.parametrize(("task", "rows", "config"), SUITES[:5])
def test_right_answers_are_all_right_and_wrong_ones_all_wrong(
    task: str, rows: str, config: str, tmp_path: Path
) -> None:
    made = getattr(tasks, task)(val=ROWS[rows])
    for answers, accuracy in zip(RIGHT_AND_WRONG[rows], (1.0, 0.0), strict=True):
        texts = [f"Let us see: \\boxed{{0}}, no.\nSo $\\boxed{{{answer}}}$." for answer in answers]
        assert graded(made, task, rows, texts, tmp_path / str(accuracy)) == accuracy


@needs_sandbox
@pytest.mark.parametrize(
    ("task", "rows"), [("HumanEval", "humaneval"), ("MBPP", "mbpp_sanitized"), ("MBPP", "mbpp_full")]
)
def test_solutions_pass_and_others_do_not(task: str, rows: str, tmp_path: Path) -> None:
    found = [json.loads(line) for line in Path(ROWS[rows]).read_text().splitlines()]
    solutions = [row.get("code") or row["prompt"] + row["canonical_solution"] for row in found]
    made = getattr(tasks, task)(val=ROWS[rows])
    fenced = [f"Sure!\n```python\n{code}\n```\nDone." for code in solutions]
    assert graded(made, task, rows, fenced, tmp_path / "fenced") == 1.0
    assert graded(made, task, rows, solutions, tmp_path / "bare") == 1.0
    none = [f"```python\n{code}\n```\n```python\nimport os\nos._exit(0)\n```" for code in solutions]
    assert graded(made, task, rows, none, tmp_path / "none") == 0.0
    one = [fenced[0], *("```python\npass\n```" for _ in fenced[1:])]
    assert graded(made, task, rows, one, tmp_path / "one") == pytest.approx(1 / len(found))


def graded(task: Task, name: str, rows: str, texts: Sequence[str], folder: Path) -> float:
    """Accuracy by `evaluate` of responses with these texts, one a prompt."""
    description = printable_model().describe()
    prompts = task.prompts("val", PromptEncoder(description, 1024))
    assert len(prompts) == len(texts)
    pairs = zip(prompts, texts, strict=True)
    write_trajectories(folder / "made.jsonl", [trajectory(prompt, text, description) for prompt, text in pairs])
    main(
        [
            *(
                "evaluate",
                *MODEL,
                f"--task=dirl.tasks.{name}",
                f"--task.val={ROWS[rows]}",
                f"--output={folder / 'out'}",
            ),
            *("--engine=dirl.rollout.ReplayEngine", f"--engine.path={folder / 'made.jsonl'}"),
            "--decoding={made: {temperature: 0, max_response_tokens: 900}}",
        ]
    )
    metrics = json.loads((folder / "out" / "metrics.json").read_text())["made"]
    assert metrics["lost"] == 0
    return metrics["accuracy"]


def trajectory(prompt: Prompt, text: str, description: ModelDescription) -> Trajectory:
    """A response with this text, as an engine would give it."""
    ids = [*description.tokenizer.encode(text, add_special_tokens=False), description.spec.stop_token_ids[0]]
    length = len(ids)
    ids += ids[-1:] * (-(len(prompt.input_ids) + length) % description.spec.block_size)
    steps, logprobs = (1,) * len(ids), (0.0,) * len(ids)
    made = Trajectory(prompt.prompt_id, 0, prompt.input_ids, tuple(ids), length, steps, logprobs, "stop", 0)
    assert description.tokenizer.decode(ids[: length - 1]) == text
    return made
