"""What is compared: tasks, objectives, learning rates and seeds."""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.study.tasks import GymTask, OwnTask, StudyTask
from dirl.tasks import Arithmetic, Countdown, Sudoku

CONFIGS = Path(__file__).parents[2] / "configs"

TASKS: dict[str, StudyTask] = {
    "arithmetic": OwnTask(Arithmetic),
    "countdown": OwnTask(Countdown),
    "sudoku": OwnTask(Sudoku),
    "chain_sum": GymTask("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}),
    "gcd": GymTask("gcd", {"max_value": 99}),
    "spell_backward": GymTask("spell_backward", {"min_word_len": 3, "max_word_len": 6}),
}
"""This package's own, and three of reasoning-gym."""

SEEDS = (0, 1, 2)
"""Of the runs that are reported: data, new weights, noise and samples."""
TUNING_TASK = "arithmetic"
TUNING_SEED = 100
"""Of the runs that choose a learning rate, which are not reported."""
LEARNING_RATES = (1e-4, 2e-4, 4e-4)
"""The same grid for every objective."""


@dataclass(frozen=True)
class Scale:
    """How long the runs are.

    Args:
        sft_steps: optimizer steps of 64 conversations.
        rollouts: of 8 prompts with 16 responses each; also the optimizer steps of RL.
        width: hidden size of the model; with 160 and 4 layers it has 1.0 M parameters.
    """

    sft_steps: int = 600
    rollouts: int = 30
    width: int = 160

    def evaluations(self, seed: int) -> list[str]:
        """Four of a run that is reported; of one that chooses a learning rate the last alone."""
        if seed == TUNING_SEED:
            return ["--evaluate.at_start=false", f"--evaluate.every_n_epochs={self.rollouts}"]
        return [f"--evaluate.every_n_epochs={max(self.rollouts // 3, 1)}"]


@dataclass(frozen=True)
class Objective:
    """One row of the comparison.

    Args:
        overlay: name of the file in configs/objective.
        options: further options of `fit`.
    """

    overlay: str
    options: tuple[str, ...] = field(default=())

    def args(self) -> list[str]:
        return ["--config", str(CONFIGS / "objective" / f"{self.overlay}.yaml"), *self.options]


def _init(**options: object) -> tuple[str, ...]:
    return tuple(f"--objective.init_args.{name}={value}" for name, value in options.items())


OBJECTIVES = {
    "best of group": Objective("best_of_group"),
    "DiPO": Objective("dipo"),
    "DiPO, half the views": Objective("dipo", _init(view_fraction=0.5)),
    "DiPO, trajectory": Objective("dipo_trajectory"),
    "DiPO, confidence max": Objective("dipo", ("--model.init_args.decoding.confidence=max",)),
    "TraceRL": Objective("tracerl", _init(kl_coef=0.0)),
    "TraceRL, shrink 2": Objective("tracerl", _init(kl_coef=0.0, shrink=2)),
    "TraceRL, values": Objective("tracerl_value", _init(kl_coef=0.0)),
    "leftmost": Objective("leftmost"),
    "block ELBO": Objective("block_elbo", _init(kl_coef=0.0)),
    "coupled": Objective("coupled", _init(kl_coef=0.0)),
    "one step": Objective("one_step", _init(kl_coef=0.0)),
    "SPG": Objective("spg"),
    "StableDRL": Objective("stable_drl"),
    "wd1": Objective("wd1"),
    "LightningRL": Objective("lightningrl", _init(kl_coef=0.0)),
    "GSPO": Objective("gspo"),
    "CISPO": Objective("cispo"),
}
"""By name, in the order of the table. KL terms are off, as a reference model costs another forward of every row."""
FIRST = ("best of group", "DiPO", "TraceRL", "leftmost", "block ELBO")
"""What is compared unless others are named."""


@dataclass(frozen=True)
class Case:
    """One RL run."""

    task: str
    objective: str
    seed: int
    lr: float

    @property
    def name(self) -> str:
        """Of its folder."""
        words = self.objective.replace(",", "").replace(" ", "-").lower()
        return f"{self.task}/{words}-lr{self.lr:g}-seed{self.seed}"
