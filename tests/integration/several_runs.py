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
    for name, (strategy, *given) in runs.items():
        args = list(map(str, given))
        below = max(place for place, arg in enumerate(args) if arg == "--config") + 2  # options go on top of configs
        command = ["fit", *args[:below], "--config", str(STRATEGIES / f"{strategy}.yaml"), *args[below:]]
        command += ["--trainer.enable_progress_bar=false", f"--trainer.devices={processes}"]
        commands.append(
            [*command, "--trainer.enable_model_summary=false", f"--trainer.default_root_dir={folder / name}"]
        )
    said = "".join(together(make, commands, count=processes, folder=folder))
    assert (processes == 2) == ("MEMBER: 2/2" in said)


def make(commands: Sequence[Sequence[str]]) -> None:
    """In each process."""
    from dirl.cli.main import main  # not above: who starts the runs need not load it

    for arguments in commands:
        print(*arguments, flush=True)
        main(list(arguments))
