"""Several runs of `dirl` one after the other in the same processes: imports and their start are paid once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.processes import together

ROOT = Path(__file__).parents[2]
STRATEGIES = ROOT / "configs" / "strategy"


def fit_all(folder: Path, runs: Mapping[str, Sequence[object]], processes: int) -> None:
    """Make runs that all succeed.

    Args:
        folder: each run's folder is in it, under its name.
        runs: for each name its strategy (a file of configs/strategy) and the arguments of `fit`.
    """
    commands = []
    for name, (strategy, *args) in runs.items():
        command = ["fit", *map(str, args), "--trainer.enable_progress_bar=false", f"--trainer.devices={processes}"]
        command += ["--trainer.enable_model_summary=false", f"--trainer.default_root_dir={folder / name}"]
        commands.append([*command[:-4], "--config", str(STRATEGIES / f"{strategy}.yaml"), *command[-4:]])
    said = "".join(together(make, commands, count=processes, folder=folder))
    assert (processes == 2) == ("MEMBER: 2/2" in said)


def make(commands: Sequence[Sequence[str]]) -> None:
    """In each process."""
    from dirl.cli.main import main  # not above: who starts the runs need not load it

    for arguments in commands:
        print(*arguments, flush=True)
        main(list(arguments))
