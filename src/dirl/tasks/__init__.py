"""What a run learns: its prompts, and the rewards that say what is correct. One task, or one kind of tasks, a file."""

from dirl.tasks.arithmetic import Arithmetic
from dirl.tasks.base import Split, Task
from dirl.tasks.countdown import Countdown
from dirl.tasks.files import Files
from dirl.tasks.generated import GeneratedTask
from dirl.tasks.lm_eval import LMEval
from dirl.tasks.mathematics import AIME24, AIME25, GSM8K, MATH500, OlympiadBench
from dirl.tasks.programming import MBPP, HumanEval
from dirl.tasks.reasoning_gym import ReasoningGym
from dirl.tasks.sudoku import Sudoku
from dirl.tasks.suite import Suite

__all__ = [
    "AIME24",
    "AIME25",
    "GSM8K",
    "MATH500",
    "MBPP",
    "Arithmetic",
    "Countdown",
    "Files",
    "GeneratedTask",
    "HumanEval",
    "LMEval",
    "OlympiadBench",
    "ReasoningGym",
    "Split",
    "Sudoku",
    "Suite",
    "Task",
]
