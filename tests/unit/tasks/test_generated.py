"""Generated tasks: right answers checked by other means, mistakes that are real, rows that do not leak."""

import hashlib
import itertools
import json
import random
import re

import pytest

from dirl.models import NewModel
from dirl.models.tokenizer import new_tokenizer
from dirl.reading.prompts import PromptEncoder
from dirl.rewards import RewardSample
from dirl.tasks import Arithmetic, Countdown, Sudoku
from dirl.tasks.arithmetic import worked_sum
from dirl.tasks.countdown import values, worked_expression
from dirl.tasks.sudoku import solution_count

TASKS = (Arithmetic, Countdown, Sudoku)
DIGESTS = {"arithmetic": "92b40894490925a5", "countdown": "f416f4380659d4d7", "sudoku": "11a90b12550d927b"}

SAMPLES = 2000


def box(solution: str) -> str:
    return re.fullmatch(r".*\\boxed\{([^{}]*)\}", solution).group(1)


def is_right(name: str, question: str, answer: str) -> bool:
    """Judges an answer from the question alone."""
    if name == "arithmetic":
        return int(answer) == sum(map(int, question.split("+")))
    if name == "countdown":
        numbers, target = question.split("->")
        used = sorted(int(n) for n in re.findall(r"\d+", answer))
        return used == sorted(map(int, numbers.split(","))) and eval(answer) == int(target)
    rows = [answer[i : i + 4] for i in (0, 4, 8, 12)]
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    boxes = [rows[r][c : c + 2] + rows[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2)]
    full = all(sorted(unit) == list("1234") for unit in rows + columns + boxes)
    return full and all(given in (".", digit) for given, digit in zip(question, answer, strict=True))


@pytest.fixture(params=TASKS, ids=lambda task: task.name)
def task(request):
    return request.param()


@pytest.fixture
def lessons(task):
    rng = random.Random(0)
    problems = [task.problem(rng) for _ in range(SAMPLES)]
    return [(problem, task.teacher(problem, rng)) for problem in problems]


def test_every_problem_comes_with_a_right_solution(task, lessons):
    assert all(is_right(task.name, problem.question, box(problem.solution)) for problem, _ in lessons)


def test_the_teacher_is_wrong_as_often_as_it_says(task, lessons):
    wrong = sum(not is_right(task.name, problem.question, box(solution)) for problem, solution in lessons) / SAMPLES
    assert abs(wrong - 0.45) < 0.045  # four standard deviations of 2000 draws


def test_the_task_judges_its_teacher_as_the_question_does(task, lessons):
    for problem, solution in lessons:
        assert task.is_correct(problem, solution) == is_right(task.name, problem.question, box(solution))


def test_a_teacher_without_mistakes_gives_the_solution(task):
    perfect, rng = type(task)(mistake_rate=0.0), random.Random(1)
    for problem in (task.problem(rng) for _ in range(50)):
        assert perfect.teacher(problem, rng) == problem.solution


def test_alphabet_is_exactly_the_characters_that_occur(task, lessons):
    texts = [text for problem, solution in lessons for text in (problem.question, problem.solution, solution)]
    spelled = "".join(texts)
    for word in task.words:
        assert word in spelled
        spelled = spelled.replace(word, "")
    assert set(task.alphabet) == set(spelled)
    assert len(set(task.alphabet)) == len(task.alphabet)
    assert set(task.characters()) == set("".join(texts))


def test_lengths_stay_within_bounds_that_are_reached(task, lessons):
    longest = max(len(solution) for _, solution in lessons)
    assert {len(problem.question) for problem, _ in lessons} == {task.max_question_characters}
    assert longest == task.max_solution_characters
    tokenizer = new_tokenizer(task.alphabet, words=task.words)
    tokens = max(len(tokenizer(solution).input_ids) for _, solution in lessons)
    assert task.max_response_tokens % 4 == 0 and 0 <= task.max_response_tokens - (tokens + 1) < 4
    assert task.max_prompt_tokens % 4 == 0 and task.max_prompt_tokens > task.max_question_characters


def test_its_reward_says_what_is_correct(task, lessons):
    (reward,) = task.rewards()
    assert reward.judges
    for index, (problem, solution) in enumerate(lessons[:40]):
        sample = RewardSample("p", index, problem.question, solution, problem.ground_truth, 30, 20, 40, 4)
        assert reward(sample) == is_right(task.name, problem.question, box(solution))


@pytest.mark.parametrize(
    ("slips", "solution"),
    [
        ((0, 0, 0), r"7+5=12;4+8+1=13;3+2+1=06;\boxed{632}"),
        ((-1, 0, 0), r"7+5=11;4+8+1=13;3+2+1=06;\boxed{631}"),
        ((0, 1, 0), r"7+5=12;4+8+1=14;3+2+1=06;\boxed{642}"),
        ((1, -1, 1), r"7+5=13;4+8+1=12;3+2+1=07;\boxed{723}"),
    ],
)
def test_a_slip_in_a_column_is_carried_to_the_answer(slips, solution):
    assert worked_sum("347", "285", slips) == solution


def test_a_slip_that_makes_ten_changes_the_carry():
    assert worked_sum("344", "285", (1, 0, 0)) == r"4+5=10;4+8+1=13;3+2+1=06;\boxed{630}"


def test_slips_beyond_what_a_column_can_hold_go_the_other_way():
    assert worked_sum("990", "990", (-1, 0, 1)).startswith("0+0=01;9+9+0=18;9+9+1=18;")


def test_every_slip_makes_the_sum_wrong():
    rng = random.Random(2)
    for _ in range(300):
        a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
        for slips in itertools.product((-1, 0, 1), repeat=3):
            assert (int(box(worked_sum(str(a), str(b), slips))) == a + b) == (slips == (0, 0, 0))


def test_steps_of_countdown_are_true_and_end_in_the_boxed_value():
    """A mistaken teacher computes well and misses the target."""
    task, rng = Countdown(), random.Random(4)
    for _ in range(SAMPLES):
        _, first, second, boxed = task.teacher(task.problem(rng), rng).split(";")
        for step in (first, second):
            left, right = step.split("=")
            assert eval(re.sub(r"\b0(\d)", r"\1", left)) == int(right)
        assert eval(box(boxed)) == int(second.split("=")[1])


def test_countdown_first_says_what_each_last_operator_would_need():
    task, rng = Countdown(), random.Random(5)
    for _ in range(300):
        problem = task.problem(rng)
        last, target = (int(n) for n in re.fullmatch(r"\d,\d,(\d)->(\d\d)", problem.question).groups())
        needs = task.teacher(problem, rng).split(";")[0].split(",")
        for operator, need in zip("+-*", needs, strict=True):
            reaching = [x for x in range(100) if eval(f"{x}{operator}{last}") == target]
            assert need == (f"{reaching[0]:02d}" if reaching else "--")


def test_brackets_stand_only_where_they_matter():
    assert worked_expression((3, 5, 7), ("+", "*"), 56) == r"49,63,08;3+5=08;08*7=56;\boxed{(3+5)*7}"
    assert worked_expression((3, 5, 7), ("*", "+"), 22) == r"15,29,--;3*5=15;15+7=22;\boxed{3*5+7}"
    assert worked_expression((3, 5, 1), ("*", "*"), 0) == r"--,01,00;3*5=15;15*1=15;\boxed{3*5*1}"


def test_any_three_numbers_leave_a_way_to_miss_every_target():
    for numbers in itertools.product(range(1, 10), repeat=3):
        assert len(set(values(numbers).values())) >= 2


def test_sudoku_has_one_solution_and_the_wanted_blanks():
    task, rng = Sudoku(), random.Random(3)
    questions = [task.problem(rng).question for _ in range(500)]
    assert {question.count(".") for question in questions} == {4, 5, 6, 7}
    assert all(solution_count(question) == 1 for question in questions)


def test_solutions_are_counted_as_by_trying_every_filling():
    rng = random.Random(4)
    counts = []
    for grid in ["1234341221434321", "1234341243212143"] * 3:
        blanks = rng.sample(range(16), 6) if counts else [0, 2, 4, 6, 10, 15]
        puzzle = "".join("." if i in blanks else digit for i, digit in enumerate(grid))
        fillings = (dict(zip(blanks, digits, strict=True)) for digits in itertools.product("1234", repeat=6))
        grids = ("".join(filling.get(i, digit) for i, digit in enumerate(grid)) for filling in fillings)
        counts.append(sum(is_right("sudoku", puzzle, filled) for filled in grids))
        assert solution_count(puzzle) == counts[-1]
    assert counts[0] == 2  # the blanks 1, 3 over 3, 1 can be swapped


def test_solutions_are_counted_by_hand_worked_numbers():
    assert solution_count("." * 16) == 288
    assert solution_count("11" + "." * 14) == 0
    assert solution_count("12343412" + "." * 8) == 4  # 2, 4 in columns 1 and 3; 1, 3 in 2 and 4


def parts(task):
    return task.conversations("train"), task.rows("train"), task.rows("val")


def test_rows_are_what_they_promise(task):
    task = type(task)(seed=5, solutions=400, train_prompts=60, val_prompts=30)
    sft, rl, held_out = parts(task)
    assert [len(rows) for rows in (sft, rl, held_out)] == [400, 60, 30]
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in sft)
    pairs = [tuple(m["content"] for m in row["messages"]) for row in sft]
    assert all(set(row) == {"question", "ground_truth_answer"} for row in rl + held_out)
    right = sum(is_right(task.name, question, box(solution)) for question, solution in pairs) / 400
    assert task.teacher_accuracy == right


def test_prompts_are_the_rows_in_the_chat_template_within_the_limit(task):
    description = NewModel(alphabet=task.alphabet, words=list(task.words)).describe()
    small = type(task)(train_prompts=20, val_prompts=10)
    for split in ("train", "val"):
        rows, prompts = small.rows(split), small.prompts(split, PromptEncoder(description, task.max_prompt_tokens))
        assert [p.prompt_id for p in prompts] == [str(index) for index in range(len(rows))]
        assert [p.question for p in prompts] == [row["question"] for row in rows]
        assert [p.ground_truth for p in prompts] == [row["ground_truth_answer"] for row in rows]


def test_a_template_says_what_is_asked():
    description = NewModel(alphabet=Arithmetic.alphabet).describe()
    task = Arithmetic(val_prompts=1, prompt_template="={question}=")
    (prompt,) = task.prompts("val", PromptEncoder(description, 32))
    assert f"<|user|>={prompt.question}=<|im_end|>" in description.tokenizer.decode(prompt.input_ids)


def test_held_out_questions_are_nowhere_else():
    """Countdown has 4572 questions: with 2000 held out, 1500 others would meet some of them by chance."""
    sft, rl, held_out = parts(Countdown(solutions=3000, train_prompts=1500, val_prompts=2000))
    rl, held_out = ({row["question"] for row in rows} for rows in (rl, held_out))
    assert len(held_out) == 2000 and len(rl) == 1500
    assert not held_out & (rl | {row["messages"][0]["content"] for row in sft})


def test_the_seed_decides_every_row_and_sizes_leave_the_others_alone(task):
    def rows(seed, solutions=50, train_prompts=20):
        return parts(type(task)(seed=seed, solutions=solutions, train_prompts=train_prompts, val_prompts=10))

    first = rows(1)
    assert rows(1) == first
    assert all(x != y for x, y in zip(rows(2), first, strict=True))
    longer = rows(1, 70, 30)
    assert longer[2] == first[2] and longer[1][:20] == first[1] and longer[0][:50] == first[0]


def test_the_rows_of_a_seed_are_those_of_the_published_numbers(task):
    """What the demo's table was measured on."""
    text = json.dumps(parts(type(task)(solutions=50, train_prompts=20, val_prompts=10)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[task.name]


def test_more_questions_than_the_task_has_is_an_error():
    with pytest.raises(ValueError, match="'countdown' has too few questions for 5000 distinct ones"):
        Countdown(val_prompts=5000).rows("val")


@pytest.mark.parametrize("name", ["solutions", "train_prompts", "val_prompts"])
def test_empty_parts_are_refused(name):
    with pytest.raises(ValueError, match=f"task.{name}=0: use at least 1"):
        Arithmetic(**{name: 0})


def test_a_mistake_rate_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"mistake_rate=1\.0"):
        Arithmetic(mistake_rate=1.0)
