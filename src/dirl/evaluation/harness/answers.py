"""The responses to a task of lm-evaluation-harness: made portion by portion, each kept, those that are there read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dirl.evaluation.harness.model import Asked
from dirl.evaluation.results_folder import append_lines, cut, whole_lines
from dirl.rollout.engine import RolloutEngine
from dirl.rollout.sample import sample
from dirl.trajectory_files import read_trajectories, trajectory_line
from dirl.types import Prompt, Trajectory


@dataclass
class AnswersFile:
    """The answers to one task, in whole portions; without a path they are in memory alone."""

    path: Path | None

    def read(self) -> dict[tuple[str, int], Trajectory]:
        """The trajectories that the file holds, by prompt and number."""
        if self.path is None or not self.path.is_file():
            return {}
        cut(self.path, whole_lines(self.path))  # a killed process may leave half a line
        return {trajectory.key: trajectory for trajectory in read_trajectories(self.path)}

    def append(self, made: Sequence[Trajectory]) -> None:
        if self.path is not None:
            path = self.path
            append_lines(path, [trajectory_line(path, trajectory) for trajectory in made])


def answer(
    asked: Asked,
    file: AnswersFile,
    load: Callable[[], RolloutEngine],
    seed: int,
    portion: int,
    finished: Callable[[int], None] = lambda count: None,
) -> dict[str, list[Trajectory]]:
    """The trajectories by prompt id, in the order of their numbers.

    Args:
        load: gives the engine with its weights; called where anything is left to be made.
        portion: responses that are asked for at a time, and kept when all of them are made.
    """
    known = file.read()
    found: dict[str, list[Trajectory]] = {}
    size = max(1, portion // asked.samples)
    for start in range(0, len(asked.prompts), size):
        prompts = asked.prompts[start : start + size]
        keys = [(prompt.prompt_id, number) for prompt in prompts for number in range(asked.samples)]
        if all(key in known for key in keys):
            check_same(prompts, known, file.path)
            finished(len(keys))
        else:
            made = {}
            for trajectory in sample(load(), prompts, asked.samples, asked.decoding, (seed, 0, 1)):
                made[trajectory.key] = trajectory
                finished(1)
            file.append([made[key] for key in keys if key not in known])
            known |= made
        found |= {p.prompt_id: [known[p.prompt_id, n] for n in range(asked.samples)] for p in prompts}
    return found


def check_same(prompts: Sequence[Prompt], known: dict[tuple[str, int], Trajectory], path: Path | None) -> None:
    """Raise ValueError for trajectories of other prompts."""
    for prompt in prompts:
        if known[prompt.prompt_id, 0].prompt_ids != prompt.input_ids:
            raise ValueError(
                f"{path}: problem {prompt.prompt_id} was asked otherwise when it was answered: the task or its data "
                "has changed; name another folder, or add --overwrite=true"
            )
