"""A dataloader whose items are whole optimizer steps, and which resumes in mid-epoch where it stopped."""

from collections.abc import Iterator

from torch.utils.data import DataLoader, Dataset, Sampler


class StepSampler(Sampler):
    """Yields (epoch, step); Lightning sets the epoch, a resumed run starts at `start`."""

    def __init__(self, steps: int) -> None:
        self.steps, self.epoch, self.start = steps, 0, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, self.start = self.start, 0
        for step in range(first, self.steps):
            yield self.epoch, step

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class StepLoader(DataLoader):
    """Loads `dataset[(epoch, step)]`, a `StepBatch` each. Lightning saves and restores its state.

    The dataset belongs to one rank: `trainer.use_distributed_sampler` must be false.
    """

    def __init__(self, dataset: Dataset, steps: int, num_workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=StepSampler(steps),
            num_workers=num_workers,
            pin_memory=pin_memory,
        )
        self.done = 0

    def __iter__(self) -> Iterator:
        self.done = self.sampler.start
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done % len(self.sampler)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["done"] >= len(self.sampler):
            raise ValueError(
                f"the checkpoint is {state['done']} optimizer steps into its epoch, an epoch now has {len(self.sampler)}: "
                "resume with the data and batch size of the checkpoint"
            )
        self.sampler.start = self.done = state["done"]
