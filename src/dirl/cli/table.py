"""The commands of `dirl`: what each is for, and where it is; nothing is imported before it is asked for."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import NamedTuple


class Command(NamedTuple):
    place: str
    """Where the command is, as `module:function`."""
    about: str
    """The first line of the function's docstring, where the command is a function."""
    positional: bool = False
    """Whether what must be given is given without its name."""
    several: tuple[str, str] | None = None
    """The argument that is given without its name, once or more often, and what it is."""


TRAINER_COMMANDS = ("fit", "validate")
"""The commands that Lightning's CLI runs."""
FUNCTIONS: dict[str, Command] = {
    "rollout": Command("dirl.cli.commands:rollout", "Sample responses and write them as trajectories (JSON Lines)."),
    "evaluate": Command("dirl.cli.evaluate:evaluate", "Sample responses, score them, and print a table of metrics."),
    "compare": Command(
        "dirl.cli.compare:compare",
        "Put the results of evaluations into one table: Markdown, HTML or CSV.",
        several=("runs", "Folders of evaluations (evaluate.output); each is a column or more of the table."),
    ),
    "trace": Command(
        "dirl.cli.trace:trace",
        "Make one HTML page of a file of trajectories: how each response was denoised, with rewards and log-probs.",
        positional=True,
    ),
    "report": Command(
        "dirl.cli.report:report",
        "Make one HTML page of training runs: curves, evaluations, time by phase, samples, settings, warnings.",
        several=("runs", "Folders of the runs (trainer.default_root_dir); several are compared."),
    ),
    "chat": Command(
        "dirl.cli.chat.command:chat", "Talk with a model in the terminal: answers appear as they are denoised."
    ),
    "export": Command(
        "dirl.cli.commands:export",
        "Write the model of a checkpoint as a Hugging Face folder; needs no GPU and no other process.",
    ),
    "demo": Command(
        "dirl.cli.demo:demo", "Make a task, run SFT, then DiPO, and show what was learned (minutes on a laptop)."
    ),
    "configs": Command("dirl.cli.configs:configs", "Copy the example configs into a folder."),
    "serve": Command(
        "dirl.cli.serve:serve", "Serve a rollout engine to trainers by HTTP (dirl.rollout.ServerEngine), until SIGTERM."
    ),
}
"""Whose options are the arguments of a function."""
NAMES = (*TRAINER_COMMANDS, "plan", *FUNCTIONS)


def function(name: str) -> Callable:
    """The function of a command of FUNCTIONS, imported now."""
    place = FUNCTIONS[name].place
    with no_collection(place.partition(":")[0]):
        return resolve_name(place)


@contextmanager
def no_collection(module: str) -> Iterator[None]:
    """Import a module without looking for garbage: it makes a million objects, and to look takes a fifth of the time.

    What is there at the end is left out of later collections too.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def overview() -> str:
    """What `dirl --help` prints."""
    lines = ["usage: dirl COMMAND ...   (or: lightning run COMMAND ...)", ""]
    lines += ["  fit        train: SFT or RL, as the config says (--config configs/sft.yaml)"]
    lines += ["  validate   the validation NELBO of an SFT config, without training"]
    lines += ["  plan       what `fit` would cost with a config: memory by part, tokens and FLOPs per step"]
    lines += [f"  {name:<10} {command.about}" for name, command in FUNCTIONS.items()]
    return "\n".join(
        [*lines, "", "dirl COMMAND --help lists the options of a command. --debug shows the traceback of an error."]
    )
