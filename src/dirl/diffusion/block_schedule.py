"""Block sizes that training goes through on its way to the model's own."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class BlockSchedule:
    """Which block size an optimizer step of SFT has.

    Args:
        sizes: one after the other, e.g. [1, 2, 4]. The last is the model's block size, and stays to the end of the run.
        steps: optimizer steps with each of them but the last; one number means as many with each.
    """

    sizes: list[int]
    steps: int | list[int]

    def __post_init__(self) -> None:
        name = f"data.block_schedule.sizes={self.sizes}"
        if len(self.sizes) < 2 or any(isinstance(size, bool) or size < 1 for size in self.sizes):
            raise ValueError(f"{name}: name two block sizes or more, each at least 1, e.g. [1, 2, 4]")
        if any(one == next_ for one, next_ in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ValueError(f"{name}: a size follows itself; name it once, with the steps of both")
        counts = self.counts
        if len(counts) != len(self.sizes) - 1 or any(isinstance(count, bool) or count < 1 for count in counts):
            raise ValueError(
                f"data.block_schedule.steps={self.steps}: give one number, or one for each of the first "
                f"{len(self.sizes) - 1} sizes, each at least 1; the last size stays to the end"
            )

    @property
    def counts(self) -> list[int]:
        """Optimizer steps of each size but the last."""
        return [self.steps] * (len(self.sizes) - 1) if isinstance(self.steps, int) else self.steps

    @property
    def before_last(self) -> int:
        """Optimizer steps before the last size begins."""
        return sum(self.counts)

    def size_at(self, step: int) -> int:
        """Args: step: optimizer steps of the run that are done."""
        return self.sizes[bisect_right(list(accumulate(self.counts)), step)]

    def check(self, block_size: int, steps: int | None) -> None:
        """Raise ValueError unless it ends with the model's block size, within the run.

        Args:
            steps: optimizer steps of the run; None: without end.
        """
        if self.sizes[-1] != block_size:
            raise ValueError(
                f"data.block_schedule.sizes={self.sizes} ends with {self.sizes[-1]}, the model has block_size="
                f"{block_size}, with which it is exported: let the schedule end with it, or set "
                f"model.init_args.source.init_args.block_size={self.sizes[-1]}"
            )
        if steps is not None and steps <= self.before_last:
            raise ValueError(
                f"data.block_schedule: the last block size, {block_size}, begins after {self.before_last} optimizer "
                f"steps, and the run has {steps}: it would be exported with a block size that it was not trained at; "
                "train for longer, or lower data.block_schedule.steps"
            )
