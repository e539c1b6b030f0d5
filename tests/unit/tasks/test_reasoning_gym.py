"""The task of reasoning-gym: its questions stay and do not leak, and its own scorer judges what stands in the box."""

import pytest

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

from reasoning_gym.factory import DATASETS

from dirl.models import NewModel
from dirl.reading.prompts import PromptEncoder
from dirl.rewards import Incomparable, ReasoningGymScore, RewardSample, Scorer
from dirl.rewards import ReasoningGym as Solved
from dirl.rewards.reasoning_gym import INFO
from dirl.tasks import ReasoningGym
from dirl.types import Prompt

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
SILENT = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Generators that show no answer."""
OF_OTHERS = {"composite"}
"""Needs the datasets that it is made of as an option."""


def task(generator: str = "chain_sum", options: dict | None = None, **counts: int) -> ReasoningGym:
    counts = {"train_prompts": 40, "val_prompts": 10, "solutions": 60, "val_solutions": 8} | counts
    return ReasoningGym(generator, SUMS if options is None else options, **counts)


def sample(row: dict, response: str) -> RewardSample:
    info = {INFO: row[INFO]}
    return RewardSample("0", 0, row["question"], response, row["ground_truth_answer"], 5, 5, 100, 4, info)


def boxed(answer: str) -> str:
    return f"so \\boxed{{{answer}}}"


def test_questions_are_the_generators_and_the_same_each_time() -> None:
    rows = task().rows("val")
    assert rows == task().rows("val")
    assert rows != task(seed=1).rows("val")
    for row in rows:
        sum_ = row["question"].removeprefix("State the final answer to the following arithmetic problem: ")
        assert eval(sum_.removesuffix(" =")) == int(row["ground_truth_answer"])


def test_no_question_of_an_evaluation_is_trained_on() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    made = task(options=few, val_prompts=30)
    held_out = {row["question"] for row in made.rows("val")}
    train = [row["question"] for row in made.rows("train")]
    asked = [row["messages"][0]["content"] for split in ("train", "val") for row in made.conversations(split)]
    assert len(held_out) == 30 and len(train) == len(set(train)) == 40 and len(asked) == 68
    assert not held_out & {*train, *asked}


def test_solutions_are_right_and_in_a_box() -> None:
    for row in task().conversations("train"):
        question, solution = (message["content"] for message in row["messages"])
        sum_ = question.removeprefix("State the final answer to the following arithmetic problem: ")
        assert solution == f"\\boxed{{{eval(sum_.removesuffix(' ='))}}}"


def test_prompts_carry_to_the_reward_which_question_they_are() -> None:
    alphabet = "".join(map(chr, range(32, 127)))
    encode = PromptEncoder(NewModel(alphabet=alphabet).describe(), 200)
    prompts = task().prompts("val", encode)
    assert [prompt.question for prompt in prompts] == [row["question"] for row in task().rows("val")]
    scored = Scorer(task().rewards(), workers=1)
    with scored:
        samples = [answered(prompt, right) for prompt in prompts[:3] for right in (True, False)]
        values = [result.total for result in scored.score(samples).results.values()]
    assert values == [1.0, 0.0] * 3


def answered(prompt: Prompt, right: bool) -> RewardSample:
    answer = prompt.ground_truth if right else prompt.ground_truth + "1"
    sampled = (prompt.prompt_id, int(right), prompt.question, boxed(answer), prompt.ground_truth)
    return RewardSample(*sampled, 5, 5, 100, 4, prompt.info)


def test_partial_credit_is_no_right_answer() -> None:
    row = task("number_sorting", {}).rows("val")[0]
    told = sample(row, boxed("['1']"))
    assert Solved()(told) == 0.0
    assert (Solved.judges, ReasoningGymScore.judges) == (True, False)
    sums = task().rows("val")[0]
    near = sample(sums, boxed(sums["ground_truth_answer"] + " apples"))
    assert Solved()(near) == 0.0 and 0.0 < ReasoningGymScore()(near) < 1.0
    assert ReasoningGymScore()(sample(sums, "no box")) == 0.0


def test_an_answer_that_the_scorer_fails_on_is_wrong_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(self: object, answer: str, entry: dict) -> float:
        return float(int(answer) == int(entry["answer"]))

    row = task().rows("val")[0]
    monkeypatch.setattr(DATASETS["chain_sum"][0], "score_answer", strict)
    value = Solved()(sample(row, boxed("one")))
    assert value == 0.0 and isinstance(value, Incomparable)


def test_a_scorer_that_fails_on_the_right_answer_too_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> float:
        raise ImportError("a package is missing")

    row = task().rows("val")[0]
    monkeypatch.setattr(DATASETS["chain_sum"][0], "score_answer", broken)
    with pytest.raises(ImportError, match="a package is missing"):
        Solved()(sample(row, boxed("1")))


@pytest.mark.parametrize("generator", sorted(set(DATASETS) - SILENT - OF_OTHERS))
def test_the_answer_that_a_generator_shows_is_right(generator: str) -> None:
    row = ReasoningGym(generator, val_prompts=1).rows("val")[0]
    assert Solved()(sample(row, boxed(row["ground_truth_answer"]))) == 1.0


@pytest.mark.parametrize("generator", sorted(SILENT))
def test_generators_without_an_answer_have_prompts_but_no_solutions(generator: str) -> None:
    made = ReasoningGym(generator, val_prompts=2, solutions=2)
    assert len(made.rows("val")) == 2
    with pytest.raises(ValueError, match=f"'{generator}' shows no answer"):
        made.conversations("train")


@pytest.mark.parametrize(
    ("generator", "options", "counts", "said"),
    [
        ("chain_sums", {}, {}, "task.generator='chain_sums' is none of reasoning-gym's: .*chain_sum"),
        ("chain_sum", {"terms": 2}, {}, r"task.options=\{'terms': 2\} are not for generator 'chain_sum'"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, {}, "not for generator 'chain_sum'"),
        ("chain_sum", {"seed": 2}, {}, "task.options has 'seed'"),
        ("chain_sum", {}, {"val_prompts": 0}, "task.val_prompts=0: use at least 1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(
    generator: str, options: dict, counts: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        task(generator, options, **counts)


def test_too_few_questions_are_said() -> None:
    digits = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match=r"task.train_prompts=5000: generator 'chain_sum' .* gave \d+ other questions"):
        task(options=digits, train_prompts=5000).rows("train")


def test_a_prompt_of_another_task_is_refused() -> None:
    other = RewardSample("0", 0, "1+1", boxed("2"), "2", 5, 5, 100, 4, {"level": 1})
    with pytest.raises(ValueError, match="is no entry of reasoning-gym"):
        Solved()(other)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'dirl\[reasoning-gym\]'"):
        ReasoningGym("gcd")
