"""Suites: rows in their published forms become what is asked and compared; rows of another suite are errors."""

import json
from pathlib import Path

import pytest
from tests.suites import ROWS, printable_model

from dirl.models import ModelDescription
from dirl.reading.prompts import PromptEncoder
from dirl.rewards.sandbox import why_not
from dirl.tasks import AIME24, AIME25, GSM8K, MATH500, MBPP, HumanEval, OlympiadBench, Task
from dirl.tasks.programming import names_of
from dirl.types import Prompt

BOXED = "\nPlease reason step by step, and put your final answer within $\\boxed{}$."
MATHEMATICS = (GSM8K, MATH500, AIME24, AIME25, OlympiadBench)


@pytest.fixture(scope="module")
def description() -> ModelDescription:
    return printable_model().describe()


def encoder(description: ModelDescription, **options: object) -> PromptEncoder:
    return PromptEncoder(description, 1024, **options)


def asked(prompt: Prompt, description: ModelDescription) -> str:
    text = description.tokenizer.decode(prompt.input_ids)
    return text.removeprefix("<|user|>").removesuffix("<|im_end|><|assistant|>")


def truths(task: Task, description: ModelDescription) -> list[str]:
    return [prompt.ground_truth for prompt in task.prompts("val", encoder(description))]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (GSM8K(val=ROWS["gsm8k"]), 4),
        (MATH500(val=ROWS["math500"]), 4),
        (AIME24(val=ROWS["aime24"]), 3),
        (AIME25(val=ROWS["aime25"]), 2),
        (OlympiadBench(val=ROWS["olympiadbench"]), 6),
    ],
)
def test_questions_of_mathematics_are_asked_step_by_step(
    task: Task, expected: int, description: ModelDescription
) -> None:
    prompts = task.prompts("val", encoder(description))
    assert len(prompts) == expected
    for prompt in prompts:
        assert asked(prompt, description) == prompt.question + BOXED
    assert [reward.name for reward in task.rewards()] == ["accuracy"]


def test_truths_are_what_each_suite_calls_the_answer(description: ModelDescription) -> None:
    assert truths(GSM8K(val=ROWS["gsm8k"]), description)[1].endswith("#### 1,080")
    assert truths(MATH500(val=ROWS["math500"]), description)[0] == "\\frac{5}{6}"
    assert truths(AIME24(val=ROWS["aime24"]), description) == ["1", "025", "7"]
    assert truths(AIME25(val=ROWS["aime25"]), description) == ["16", "336^\\circ"]
    assert truths(OlympiadBench(val=ROWS["olympiadbench"]), description)[:4] == [
        "$-2,3$",
        "$2$",
        "\\boxed{(1,3)}, \\boxed{(3,1)}",
        "$(-2,2)$",
    ]


def test_olympiadbench_puts_the_context_first_counts_proofs_and_keeps_no_pictures(
    description: ModelDescription,
) -> None:
    encode = encoder(description)
    prompts = OlympiadBench(val=ROWS["olympiadbench"]).prompts("val", encode)
    assert prompts[4].question == ("A triangle has three sides of length $a$.\nWhat is its area in terms of $a$?")
    assert encode.counts.without_truth == 1
    assert prompts[5].info["unit"] == "m" and not [name for name in prompts[5].info if name.startswith("image")]


def test_a_question_with_a_picture_is_an_error_or_skipped(tmp_path: Path, description: ModelDescription) -> None:
    rows = [json.loads(line) for line in Path(ROWS["olympiadbench"]).read_text().splitlines()]
    rows[1]["image_1"] = "a picture"
    task = OlympiadBench(val=write(tmp_path, rows))
    with pytest.raises(ValueError, match=r"rows.jsonl:2: image_1: the question has pictures, .*on_bad_row skip"):
        task.prompts("val", encoder(description))
    assert len(task.prompts("val", encoder(description, on_bad_row="skip"))) == 5


def test_humaneval_asks_for_the_function_and_tests_it(description: ModelDescription) -> None:
    first, second = HumanEval(val=ROWS["humaneval"]).prompts("val", encoder(description))
    assert asked(first, description).startswith("Read the following function signature and docstring, and fully ")
    assert asked(first, description).endswith("only contain the code for this function.\n" + first.question)
    assert first.ground_truth.endswith("check(running_total)\n") and "def check(candidate)" in first.ground_truth
    assert second.info == {"prelude": second.question, "tried": ["shifted_back"], "task_id": "HumanEval/1"}


@pytest.mark.parametrize(("part", "imports"), [("mbpp_sanitized", ["", "import math", ""]), ("mbpp_full", ["", ""])])
def test_mbpp_shows_the_tests_in_both_of_its_forms(
    part: str, imports: list[str], description: ModelDescription
) -> None:
    prompts = MBPP(val=ROWS[part]).prompts("val", encoder(description))
    assert [prompt.info["prelude"] for prompt in prompts] == imports
    for prompt in prompts:
        assert prompt.question.endswith(f"\nYour code should pass these tests:\n\n{prompt.ground_truth}")
        assert asked(prompt, description) == (
            f"You are an expert Python programmer, and here is your task:\n{prompt.question}\n You should submit your "
            "final solution in the following format: ```python\n\n```"
        )


@pytest.mark.parametrize(
    ("task", "other", "message"),
    [
        (GSM8K, "math500", r"math500.jsonl:1: answer='.*frac\{5\}\{6\}' has no `####` before its result"),
        (GSM8K, "mbpp_full", r"mbpp_full.jsonl:1: no column 'question'"),
        (MATH500, "gsm8k", r"gsm8k.jsonl:1: no column 'problem'"),
        (AIME24, "math500", r"math500.jsonl:1: answer='.*frac\{5\}\{6\}' is no integer from 0 to 999, as .* AIME"),
        (OlympiadBench, "gsm8k", r"gsm8k.jsonl:1: no column 'final_answer'"),
        (HumanEval, "mbpp_full", r"mbpp_full.jsonl:1: prompt=None; expected a text, as the suite has there; the row"),
        (MBPP, "humaneval", r"humaneval.jsonl:1: test_list=None; expected a list of texts, as the suite has there"),
    ],
)
def test_rows_of_another_suite_are_an_error_that_names_the_place(
    task: type, other: str, message: str, description: ModelDescription
) -> None:
    with pytest.raises(ValueError, match=message):
        task(val=ROWS[other]).prompts("val", encoder(description))


def test_answers_without_gsm8ks_marks_are_an_error(tmp_path: Path, description: ModelDescription) -> None:
    task = GSM8K(val=write(tmp_path, [{"question": "1+1?", "answer": "2"}]))
    with pytest.raises(ValueError, match=r"rows.jsonl:1: answer='2' has no `####` before its result, .*tasks.Files"):
        task.prompts("val", encoder(description))


def test_mbpp_without_tests_is_an_error(tmp_path: Path, description: ModelDescription) -> None:
    task = MBPP(val=write(tmp_path, [{"text": "Do it.", "test_list": []}]))
    with pytest.raises(ValueError, match=r"rows.jsonl:1: test_list=\[\] holds no test; mend or remove the row"):
        task.prompts("val", encoder(description))


def test_mirrors_with_other_columns_are_named_by_options(tmp_path: Path, description: ModelDescription) -> None:
    task = AIME25(
        val=write(tmp_path, [{"Problem": "1+1?", "Answer": 2}]), question_column="Problem", answer_column="Answer"
    )
    assert truths(task, description) == ["2"]


@pytest.mark.parametrize("task", [*MATHEMATICS, HumanEval, MBPP])
def test_without_the_file_or_the_network_the_error_says_what_to_give(
    task: type, description: ModelDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    name = task.__name__
    with pytest.raises(ValueError, match=rf"task {name}: '.+/.+' is no local file .*reach the Hub; .*--task.val PATH"):
        task().prompts("val", encoder(description))
    with pytest.raises(ValueError, match=rf"task {name}: 'gone/rows.jsonl' does not exist here"):
        task(val="gone/rows.jsonl").prompts("val", encoder(description))


def test_suites_ask_the_hub_for_their_splits(description: ModelDescription, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    wanted = []

    def note(path: str, config: str | None, split: str) -> None:
        wanted.append((path, config, split))
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", note)
    for task in (*MATHEMATICS, HumanEval, MBPP):
        for split in ("train", "val"):
            try:
                assert task().prompts(split, encoder(description)) == []
            except ValueError:
                continue
    assert wanted == [
        ("openai/gsm8k", "main", "train"),
        ("openai/gsm8k", "main", "test"),
        ("HuggingFaceH4/MATH-500", None, "test"),
        ("HuggingFaceH4/aime_2024", None, "train"),
        ("yentinglin/aime_2025", None, "train"),
        ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
        ("openai/openai_humaneval", None, "test"),
        ("google-research-datasets/mbpp", "sanitized", "train"),
        ("google-research-datasets/mbpp", "sanitized", "test"),
    ]


def test_origin_names_the_suite_and_its_source() -> None:
    assert GSM8K(val="a.jsonl").origin("val") == "task GSM8K, val='a.jsonl'"


@pytest.mark.skipif(why_not() is not None, reason=f"no sandbox here: {why_not()}")
@pytest.mark.parametrize("task", [HumanEval, MBPP])
def test_suites_of_programming_are_judged_by_their_tests(task: type) -> None:
    assert [reward.name for reward in task().rewards()] == ["unit_tests"]


@pytest.mark.parametrize("task", [*MATHEMATICS, HumanEval, MBPP])
def test_a_template_without_a_place_for_the_question_is_an_error(task: type) -> None:
    with pytest.raises(ValueError, match=r"has no \{question\}"):
        task(prompt_template="Answer!")


def write(folder: Path, rows: list[dict]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_mbpp_names_what_its_solution_defines_and_its_tests_use(description: ModelDescription) -> None:
    encode = encoder(description)
    sanitized, full = (MBPP(val=ROWS[part]).prompts("val", encode) for part in ("mbpp_sanitized", "mbpp_full"))
    assert [prompt.info["tried"] for prompt in sanitized] == [["count_vowels"], ["circumference"], ["max"]]
    assert [prompt.info["tried"] for prompt in full] == [["Pair", "longest"], ["sort_it"]]
    assert names_of("print 'no Python 3'", "assert f(1)") == names_of(None, "assert f(1)") == []
