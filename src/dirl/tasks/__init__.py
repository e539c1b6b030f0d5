"""What a run learns: its prompts, and the rewards that say what is correct. One task, one file."""

from dirl.tasks.arithmetic import Arithmetic
from dirl.tasks.base import Split, Task
from dirl.tasks.countdown import Countdown
from dirl.tasks.files import Files
from dirl.tasks.generated import GeneratedTask
from dirl.tasks.reasoning_gym import ReasoningGym
from dirl.tasks.sudoku import Sudoku

__all__ = ["Arithmetic", "Countdown", "Files", "GeneratedTask", "ReasoningGym", "Split", "Sudoku", "Task"]
