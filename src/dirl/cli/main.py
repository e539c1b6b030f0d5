"""The command line: `dirl X`, the same as `lightning run X`.

`fit` and `validate` are Lightning's, configured by YAML; the others are functions of `dirl.cli.commands`, whose
signatures are their options.
"""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from dirl import __version__
from dirl.callbacks import Guard, Throughput
from dirl.checkpoints.reading import Contents
from dirl.checkpoints.resume import check_kind, check_strategy, find, flat, say_changes
from dirl.cli import commands
from dirl.cli.errors import ShortErrors, mark_launcher, tell_processes
from dirl.cli.log_folder import claim
from dirl.cli.serve import serve
from dirl.cli.text import parse_texts, unmark, use_texts
from dirl.modules import BlockDiffusionModule, SFTModule
from dirl.outputs import check_writable
from dirl.progress import on_terminal, progress_callback, quiet_libraries
from dirl.stopping import request

PARSER_MODE = "omegaconf+"
use_texts(PARSER_MODE)
COMMANDS: dict[str, Callable] = {
    "rollout": commands.rollout,
    "evaluate": commands.evaluate,
    "export": commands.export,
    "demo": commands.demo,
    "configs": commands.configs,
    "serve": serve,
}
TRAINER_COMMANDS = ("fit", "validate")
HARMLESS = (
    # asks for a copy of the weights from before the optimizer step; a checkpoint holds those after it, on purpose
    "Using ModelCheckpoint with manual optimization",
    # the folder is this run's own: TensorBoard's files and config.yaml stand beside metrics.csv
    "Experiment logs directory .* exists and is not empty",
    # no validation data
    "Total length of `list` across ranks is zero",
    # on purpose: a step stays on the host until it is planned
    "You have overridden `transfer_batch_to_device` in `LightningModule`",
    # what is logged per epoch is reduced before: a reduction where a value is read would wait for ranks without a bar
    "It is recommended to use `self.log.*sync_dist=True",
    # lightning's use of torch's pytree
    ".*LeafSpec.*",
)
"""Warnings of Lightning that do not concern its user here."""


def main(args: list[str] | None = None) -> int | None:
    """Run one command; returns an exit code, None meaning success. Errors are raised, signals as Stopped."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(no_advertisement)
    with request.listening():
        return run(sys.argv[1:] if args is None else list(args))


def no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning recommends other products at every start."""
    return "Tip: For seamless" not in record.getMessage()


def run(args: list[str]) -> int | None:
    """`main`, without listening for signals."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a class_path may name a file of the user's; console scripts do not look here
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    if args and args[0] in TRAINER_COMMANDS:
        DirlCLI(args=args)
        return None
    if args and args[0] == "plan":
        from dirl.cli.plan import plan  # not above: its parser is that of `fit`

        return plan(args[1:])
    if args and args[0] in COMMANDS:
        return run_command(args[0], args[1:])
    if args and args[0] in ("-h", "--help"):
        print(overview())
    elif args and args[0] == "--version":
        print(f"dirl {__version__}")
    elif args:
        known = [*TRAINER_COMMANDS, "plan", *COMMANDS]
        nearest = get_close_matches(args[0], known, 1)
        meant = f"Did you mean {nearest[0]}? " if nearest else ""
        print(f"error: {args[0]!r} is no command of dirl. {meant}The commands are {', '.join(known)}", file=sys.stderr)
        return 2
    else:
        print(overview(), file=sys.stderr)
        return 2
    return 0


def overview() -> str:
    """What `dirl --help` prints."""
    lines = ["usage: dirl COMMAND ...   (or: lightning run COMMAND ...)", ""]
    lines += ["  fit        train: SFT or RL, as the config says (--config configs/sft.yaml)"]
    lines += ["  validate   the validation NELBO of an SFT config, without training"]
    lines += ["  plan       what `fit` would cost with a config: memory by part, tokens and FLOPs per step"]
    lines += [f"  {name:<10} {fn.__doc__.splitlines()[0]}" for name, fn in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "dirl COMMAND --help lists the options of a command. --debug shows the traceback of an error."]
    )


def run_command(name: str, args: list[str]) -> int | None:
    """Parse the options of a function of `dirl.cli.commands` and call it."""
    if not on_terminal():
        quiet_libraries()
    return COMMANDS[name](**parse_command(name, args))


def parse_command(name: str, args: list[str]) -> dict[str, Any]:
    """The arguments of a function of `dirl.cli.commands`, instantiated from options and config files."""
    fn = COMMANDS[name]
    parser = CommandParser(prog=f"dirl {name}", description=fn.__doc__.splitlines()[0], parser_mode=PARSER_MODE)
    parser.add_argument("-c", "--config", action="config", help="YAML file with any of the options below.")
    parser.add_function_arguments(fn, fail_untyped=True, sub_configs=True)
    config = parser.instantiate(unmark(parse_texts(parser.parse_args, args)))
    config.pop("config")
    return dict(config)


class CommandParser(ShortErrors):
    """Takes no abbreviated keys, in nested classes either (their parsers are made without arguments)."""

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)


class TrainingParser(ShortErrors, LightningArgumentParser):
    """`CommandParser` for LightningCLI."""

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)


class DirlCLI(LightningCLI):
    """LightningCLI for the two stages: modules and DataModules by `class_path`, unknown keys are errors."""

    def __init__(self, args: list[str], run: bool = True) -> None:
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        super().__init__(
            BlockDiffusionModule,
            None,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"parser_mode": PARSER_MODE},
            parser_class=TrainingParser,
            trainer_defaults={"use_distributed_sampler": False, "inference_mode": False},
            save_config_kwargs={"overwrite": True},
            args=args,
            run=run,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in TRAINER_COMMANDS}

    def before_fit(self) -> None:
        self._dump_config()
        self.model.run_config = flat(self.config_dump)
        if self.resumed is not None:
            module = self.model
            check_strategy(self.resumed, self.trainer)
            check_kind(self.resumed, type(module).__name__, module.spec.block_size, module.expected_shapes())
            say_changes(self.resumed.own["config"], module.run_config)

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint of `--ckpt_path` and look into it; Lightning would load all of it for hyperparameters."""
        self.resumed: Contents | None = None
        config = self.config.get(self.config.get("subcommand") or "", {})
        if config.get("ckpt_path"):
            self.resumed = find(config["ckpt_path"], Path(config["trainer"]["default_root_dir"] or "."))
            config["ckpt_path"] = str(self.resumed.path)

    def before_validate(self) -> None:
        if not isinstance(self.model, SFTModule):
            raise ValueError("validate measures the NELBO of SFT; use `dirl evaluate` for a model trained by RL")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        self.config = parse_texts(parser.parse_args, args)

    def instantiate_classes(self) -> None:
        """From texts without marks; the config that is written keeps them."""
        marked, self.config = self.config, unmark(self.config)
        try:
            super().instantiate_classes()
        finally:
            self.config = marked

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """TensorBoard and CSV unless the config names loggers (or false); one kind of progress bar; throughput."""
        trainer = self._get(self.config_init, "trainer")
        callbacks = trainer["callbacks"] = list(trainer["callbacks"] or [])
        if not any(isinstance(c, Guard) for c in callbacks):
            callbacks.insert(0, Guard())  # its checkpoint is written before others close engines
        if trainer["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(progress_callback())
        if not any(isinstance(c, Throughput) for c in callbacks):
            callbacks.append(Throughput())
        root = Path(trainer["default_root_dir"] or ".")
        first = rank_zero_only.rank in (None, 0)
        if trainer["enable_progress_bar"] is False or not first or not on_terminal():
            quiet_libraries()
        if first and not trainer["fast_dev_run"]:
            check_writable(root, "trainer.default_root_dir")
        if trainer["logger"] in (None, True) and not trainer["fast_dev_run"]:
            version = claim(root / "logs") if first else 0  # other processes write nothing
            places = {"name": "logs", "version": version}
            kwargs["logger"] = [TensorBoardLogger(root, **places), CSVLogger(root, **places)]
        mark_launcher()
        made = super().instantiate_trainer(**kwargs)
        launcher = made.strategy.launcher
        _launchers.append(launcher)
        request.tell_others = tell_processes(started_processes)
        return made


_launchers: list[object] = []
"""Of the trainers of this process."""


def started_processes() -> Sequence[subprocess.Popen]:
    """What trainers of this process have started beside it."""
    return [process for launcher in _launchers for process in getattr(launcher, "procs", [])]
