"""The command `demo`: a small task, learned from scratch."""

from pathlib import Path
from typing import Literal

from dirl.outputs import check_writable


def demo(
    task: Literal["arithmetic", "countdown", "sudoku"] = "arithmetic", seed: int = 0, output: str = "runs"
) -> None:
    """Make a task, run SFT, then DiPO, and show what was learned (minutes on a laptop).

    Args:
        task: what the model learns.
        seed: of data, weights, noise and sampling.
        output: the run is written to OUTPUT/demo-TASK-SEED.
    """
    folder = Path(output) / f"demo-{task}-{seed}"
    check_writable(folder, "output")
    from dirl.demo.run import run_demo  # not above: a mistake in an option needs none of it

    run_demo(task, seed, folder)
