"""FSDP2 by config: Lightning's ModelParallelStrategy with the data-parallel size taken from the trainer."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from dirl.checkpoints.files import clear_leftovers, flush, part_of, put_in_place, said_if_it_fails
from dirl.ranges import at_least


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes of the run.

    Args:
        save_distributed_checkpoint: every rank saves its shard; False: one file, gathered on the first rank.
        timeout_minutes: of a collective; a rank may wait for the longest rollout of the others.
    """

    def __init__(self, save_distributed_checkpoint: bool = True, timeout_minutes: int = 60) -> None:
        at_least(1, "strategy", timeout_minutes=timeout_minutes)
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """A folder of shards gets its name when all ranks have written theirs."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path, part = self.broadcast((Path(filepath), part_of(Path(filepath))))
        if self.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(path.parent)
        self.barrier()
        with said_if_it_fails(path, part):
            super().save_checkpoint(checkpoint, part, storage_options)
        self.barrier()
        if self.is_global_zero:
            for written in (*part.iterdir(), part):
                flush(written)
            put_in_place(part, path)
        self.barrier()
