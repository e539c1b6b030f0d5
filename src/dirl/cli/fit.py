"""`fit` and `validate`: Lightning's, configured by YAML."""

import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from dirl.callbacks import Guard, Throughput
from dirl.callbacks.progress_bar import progress_callback
from dirl.checkpoints.reading import Contents
from dirl.checkpoints.resume import check_adapters, check_kind, check_strategy, find, flat, say_changes
from dirl.cli.early import check_arguments
from dirl.cli.errors import mark_launcher, tell_processes
from dirl.cli.keys import (
    CALLBACKS,
    add_keys,
    callbacks_of,
    check_checkpoints,
    check_keys,
    check_stage,
    check_trainer,
    drop_defaults,
)
from dirl.cli.log_folder import claim
from dirl.cli.parsers import PARSER_MODE, CommandParser
from dirl.cli.table import TRAINER_COMMANDS
from dirl.cli.text import parse_texts, unmark
from dirl.modules import BlockDiffusionModule, SFTModule
from dirl.outputs import check_writable
from dirl.progress_bar import on_terminal, quiet_libraries, say_above_bars
from dirl.stopping import request

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
    # a size in MB of the table before training, which counts weights as fp32, as under bf16-mixed they are
    "Precision .* is not supported by the model summary",
    # lightning's use of torch's pytree
    ".*LeafSpec.*",
)
"""Warnings of Lightning that do not concern its user here."""


class TrainingParser(CommandParser, LightningArgumentParser):
    """The parser of LightningCLI that reads arguments as `CommandParser` does."""


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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_keys(parser)

    def before_fit(self) -> None:
        self._dump_config()
        self.model.run_config = flat(self.config_dump)
        if self.resumed is not None:
            module = self.model
            check_strategy(self.resumed, self.trainer)
            check_adapters(self.resumed, None if module.lora is None else module.lora.settings())
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

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        given = sys.argv[1:] if args is None else args
        assert isinstance(given, list), "the commands are given as texts"
        check_arguments(given)
        self.config = parse_texts(parser.parse_args, given)
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        check_keys(config)
        check_trainer(config["trainer"])
        if "checkpoint" in config:
            check_checkpoints(config, given)
        drop_defaults(config)
        check_stage(config)

    def instantiate_classes(self) -> None:
        """Instantiate from texts without marks; the config that is written keeps them."""
        marked, self.config = self.config, unmark(self.config)
        try:
            super().instantiate_classes()
        finally:
            self.config = marked

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """TensorBoard and CSV unless the config names loggers (or false); one kind of progress bar; throughput."""
        trainer = self._get(self.config_init, "trainer")
        keys = {name: self._get(self.config_init, name) for name in ("task", "engine", "objective", *CALLBACKS)}
        if trainer["enable_checkpointing"] is False:
            keys["checkpoint"] = None
        callbacks = trainer["callbacks"] = callbacks_of(keys, self.model, self.datamodule, trainer["callbacks"] or [])
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
        say_above_bars()
        if first and not trainer["fast_dev_run"]:
            check_writable(root, "trainer.default_root_dir")
        if trainer["logger"] in (None, True) and not trainer["fast_dev_run"]:
            version = claim(root / "logs") if first else 0  # other processes write nothing
            kwargs["logger"] = [TensorBoardLogger(root, "logs", version), CSVLogger(root, "logs", version)]
        mark_launcher()
        made = super().instantiate_trainer(**kwargs)
        launcher = made.strategy.launcher
        _launchers.append(launcher)
        request.tell_others = tell_processes(started_processes)
        return made


_launchers: list[object] = []
"""The launchers of the trainers that this process has made."""


def started_processes() -> Sequence[subprocess.Popen]:
    """What trainers of this process have started beside it."""
    return [process for launcher in _launchers for process in getattr(launcher, "procs", [])]
