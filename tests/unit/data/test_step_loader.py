"""The step loader: epochs of whole optimizer steps, resumed in mid-epoch without a step twice or left out."""

import warnings
from collections.abc import Iterator
from itertools import islice

import lightning as L
import pytest
from lightning.fabric.utilities.types import _Stateful
from torch.utils.data import Dataset

from dirl.data.rl import say_if_unused
from dirl.data.step_loader import StepLoader, steps_done

Key = tuple[int, int]


class Keys(Dataset):
    """Item (epoch, step) is that key: what was asked for is what comes."""

    def __getitem__(self, key: Key) -> Key:
        return key


class Progress:
    """What a trainer knows of its epoch: how many steps it has taken."""

    def __init__(self, done: int = 0) -> None:
        self.done, self.asked = done, 0

    def __call__(self) -> int:
        self.asked += 1
        return self.done


def loader(num_workers: int, progress: Progress | None = None) -> StepLoader:
    """Of five steps an epoch."""
    return StepLoader(Keys(), 5, progress or Progress(), num_workers)


def train(data: StepLoader, progress: Progress, epoch: int, steps: int | None = None) -> Iterator[Key]:
    """As Lightning goes through an epoch: it counts a step after its batch has come, and anew at the end."""
    data.sampler.set_epoch(epoch)
    for key in islice(data, steps):
        progress.done += 1
        yield tuple(key)
    if progress.done == len(data):
        progress.done = 0


workers = pytest.mark.parametrize("num_workers", [0, 2])


@workers
def test_epochs_advance_and_each_is_whole(num_workers: int) -> None:
    progress = Progress()
    data = loader(num_workers, progress)
    assert len(data) == 5
    for epoch in range(3):
        assert list(train(data, progress, epoch)) == [(epoch, step) for step in range(5)]


@workers
def test_a_resumed_run_goes_on_in_mid_epoch_and_its_later_epochs_are_whole(num_workers: int) -> None:
    progress = Progress()
    killed = list(train(loader(num_workers, progress), progress, epoch=4, steps=2))
    assert killed == [(4, 0), (4, 1)]  # workers have fetched further steps by now
    data = loader(num_workers, progress)
    assert list(train(data, progress, 4)) == [(4, 2), (4, 3), (4, 4)]
    assert list(train(data, progress, 5)) == [(5, step) for step in range(5)]


@workers
def test_a_run_saved_at_the_end_of_an_epoch_begins_the_next_at_its_start(num_workers: int) -> None:
    progress = Progress()
    list(train(loader(num_workers, progress), progress, 0))
    assert list(train(loader(num_workers, progress), progress, 1)) == [(1, step) for step in range(5)]


@workers
def test_the_trainer_is_asked_when_the_first_step_is_fetched_and_no_sooner(num_workers: int) -> None:
    progress = Progress()
    steps = iter(loader(num_workers, progress))
    assert progress.asked == 0
    progress.done = 3  # Lightning restores a checkpoint after it has made the iterator
    assert [step for _, step in steps] == [3, 4]
    assert progress.asked == 1


def test_an_epoch_without_progress_begins_at_its_start() -> None:
    data = StepLoader(Keys(), 5)
    assert [step for _, step in islice(data, 2)] == [0, 1]
    assert [step for _, step in data] == [0, 1, 2, 3, 4]


def test_lightning_takes_the_loader_for_one_that_resumes() -> None:
    """Lightning asks for this protocol and warns at a resume in mid-epoch where it is not met."""
    assert isinstance(loader(0), _Stateful)


def test_steps_done_are_the_batches_that_the_trainer_has_taken() -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    done = steps_done(trainer)
    assert done() == 0
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for _ in range(3):
        progress.increment_ready()
    assert done() == 3
    progress.reset_on_run()
    assert done() == 0


@pytest.mark.parametrize(
    ("limit", "trial", "said"),
    [(1, False, True), (0.5, False, True), (1.0, False, False), (4, False, False), (1, True, False)],
)
def test_steps_of_a_rollout_that_are_left_out_are_told_of(limit: float, trial: bool, said: bool) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        say_if_unused(3, limit, trial)
    assert [f"limit_train_batches={limit} trains 1 of the 3" in str(w.message) for w in found] == [True] * said
