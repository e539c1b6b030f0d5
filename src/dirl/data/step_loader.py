"""A dataloader whose items are whole optimizer steps, and which resumes in mid-epoch where the trainer stopped."""

from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Dataset, Sampler

from dirl.stopping import leave_signals_to_parent


class StepSampler(Sampler):
    """Yields (epoch, optimizer step). Lightning sets the epoch; `start` says, when one begins, at which of its steps.

    A map-style dataset fetched by a sampler's plain indices could not tell one epoch from the next.
    """

    def __init__(self, steps: int, start: Callable[[], int] = lambda: 0) -> None:
        self.steps, self.epoch, self.start = steps, 0, start

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.start()
        if start > self.steps:
            raise ValueError(
                f"the checkpoint is {start} optimizer steps into its epoch, an epoch now has {self.steps}: "
                "resume with the data and batch size of the checkpoint"
            )
        for step in range(start, self.steps):
            yield self.epoch, step

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class StepLoader(DataLoader):
    """Loads `dataset[(epoch, step)]`, the optimizer step as a `StepBatch` each.

    The dataset belongs to one rank: `trainer.use_distributed_sampler` must be false.

    Args:
        start: number of steps of the current epoch that are done, asked when the first item is fetched. The
            trainer's own count of batches is the one place that knows it (Lightning restores a loader's state in some
            kinds of resume and not in others).
    """

    def __init__(
        self,
        dataset: Dataset,
        steps: int,
        start: Callable[[], int] = lambda: 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        sampler = StepSampler(steps, start)
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=leave_signals_to_parent if num_workers else None,
        )

    def __iter__(self) -> Iterator:  # type: ignore[override]  # torch names a class of its own, private to it
        # A generator: nothing is asked or fetched before the first item is wanted, after a checkpoint is restored.
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Tells Lightning that this loader resumes in mid-epoch; `start` is all it needs."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take what `state_dict` has given."""


def steps_done(trainer: object) -> Callable[[], int]:
    """`start` for the training of a Lightning trainer: batches of this epoch that it has already taken."""
    return lambda: trainer.fit_loop.epoch_loop.batch_progress.current.ready


def check_sampler(trainer: object) -> None:
    """Raise ValueError if Lightning would put a sampler of its own in place of `StepSampler`."""
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ValueError(
            "trainer.use_distributed_sampler=true: set it to false; every process already loads its own share of a step"
        )
