"""A run that is killed anywhere, any number of times, and resumed from what it last saved is the run that was not."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import Dataset

from dirl.checkpoints.resumable import Resumable
from dirl.data.step_loader import StepLoader, steps_done

HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
)


class KilledError(BaseException):
    """What a test throws into a run."""


@dataclass
class Killer:
    """Saves and throws at the `at`-th moment that it is told of; None: never."""

    at: int | None
    path: Path
    moments: int = 0

    def moment(self, trainer: L.Trainer) -> None:
        self.moments += 1
        if self.at == self.moments:
            trainer.save_checkpoint(self.path)
            raise KilledError


def saving_at_every_hook(base: type) -> type:
    """A callback that tells the killer of every hook: before all others, or, as a ModelCheckpoint, after them."""

    def hook(self: Any, trainer: L.Trainer, *args: object, **kwargs: object) -> None:
        self.killer.moment(trainer)

    return type(f"At{base.__name__}", (base,), dict.fromkeys(HOOKS, hook))


AtFirst, AtLast = saving_at_every_hook(L.Callback), saving_at_every_hook(ModelCheckpoint)


class Events(L.Callback):
    """Writes down the ends of epochs, and with which step a logger would."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: "Counting") -> None:
        pl_module.happened("epoch", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: "Counting") -> None:
        pl_module.happened("end of epoch", trainer.current_epoch)


class Steps(Dataset):
    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        return torch.tensor(key)


@dataclass(frozen=True)
class Run:
    """The shape of a run."""

    steps: int
    limit: tuple[str, int]
    """max_epochs or max_steps."""
    validation: dict[str, Any]
    skip: int
    """Every so manieth batch updates nothing."""


class Counting(Resumable):
    """Its one weight and its list of events tell every batch, its order, and how often it came."""

    def __init__(self, run: Run, killer: Killer) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.run, self.killer = run, killer
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.events: list[list] = []

    def happened(self, *event: object) -> None:
        event = [*event, self.trainer.fit_loop.epoch_loop._batches_that_stepped]
        if event[0] != "epoch" or [event] != self.events[-1:]:  # killed in the hook, it begins the same epoch again
            self.events.append(event)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.killer.moment(self.trainer)
        epoch, step = batch.tolist()
        optimizer = self.optimizers()
        if (epoch * self.run.steps + step) % self.run.skip:
            self.weight.grad = (0.5 * self.weight + 1).detach()
            self.update = "begun"
            optimizer.step()
            self.lr_schedulers().step()
        self.update = "made"
        self.happened("batch", epoch, step, batch_idx, self.trainer.global_step)
        self.killer.moment(self.trainer)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.happened("validation")

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD([self.weight], 0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3)}

    def train_dataloader(self) -> StepLoader:
        return StepLoader(Steps(), self.run.steps, steps_done(self.trainer))

    def val_dataloader(self) -> StepLoader:
        return StepLoader(Steps(), 2)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["events"] = [list(event) for event in self.events]

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.events = checkpoint["events"]


def fit(run: Run, at: int | None, resume: Path | None, path: Path) -> tuple[int, dict | None]:
    """The moments that passed and, if the run came to its end, the checkpoint of the end."""
    killer = Killer(at, path)
    module = Counting(run, killer)
    first, last = AtFirst(), AtLast()
    first.killer = last.killer = killer
    trainer = L.Trainer(
        **dict([run.limit]),
        **run.validation,
        callbacks=[first, Events(), last],
        default_root_dir=path.parent,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, ckpt_path=resume)
    except KilledError:
        return killer.moments, None
    trainer.save_checkpoint(path)
    return killer.moments, torch.load(path, weights_only=True)


def check_chain(run: Run, kills: list[float]) -> None:
    """Kill at fractions of what is left of the run, resume, and compare with the run in one go."""
    with TemporaryDirectory() as folder:
        moments, whole = fit(run, None, None, Path(folder) / "whole.ckpt")
        resume = None
        for number, fraction in enumerate(kills):
            path = Path(folder) / f"{number}.ckpt"
            _, ended = fit(run, 1 + int(fraction * moments), resume, path)
            if ended is None:
                resume = path
        _, again = fit(run, None, resume, Path(folder) / "again.ckpt")
    assert again["events"] == whole["events"]
    for key in ("loops", "dirl", "state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert again[key] == whole[key], key


VALIDATIONS = [
    {"limit_val_batches": 0},
    {},
    {"check_val_every_n_epoch": 2},
    {"val_check_interval": 1},
    {"val_check_interval": 2},
    {"check_val_every_n_epoch": None, "val_check_interval": 3},
]
RUNS = st.builds(
    Run,
    steps=st.integers(2, 4),
    limit=st.tuples(st.just("max_epochs"), st.integers(1, 4)) | st.tuples(st.just("max_steps"), st.integers(1, 9)),
    validation=st.sampled_from(VALIDATIONS),
    skip=st.sampled_from([3, 5, 1000]),
)


@pytest.mark.property
@pytest.mark.filterwarnings("ignore")
@given(RUNS, st.lists(st.floats(0, 0.999), min_size=1, max_size=4))
@example(Run(2, ("max_epochs", 3), {}, 3), [0.625, 0.0])  # between a validation and what comes next, and at once again
def test_a_chain_of_resumes_is_the_run_in_one_go(run: Run, kills: list[float]) -> None:
    check_chain(run, kills)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [("max_epochs", 2), ("max_steps", 4), ("max_steps", 3)])
def test_a_run_is_resumed_from_every_moment(limit: tuple[str, int]) -> None:
    run = Run(2, limit, {}, 1000)
    with TemporaryDirectory() as folder:
        moments, _ = fit(run, None, None, Path(folder) / "whole.ckpt")
    for moment in range(moments):
        check_chain(run, [moment / moments + 1e-9])
