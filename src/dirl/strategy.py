"""FSDP2 by config: Lightning's ModelParallelStrategy with the data-parallel size taken from the trainer."""

from datetime import timedelta

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes of the run.

    Args:
        save_distributed_checkpoint: every rank saves its shard; False: one file, gathered on the first rank.
        timeout_minutes: of a collective; a rank may wait for the longest rollout of the others.
    """

    def __init__(self, save_distributed_checkpoint: bool = True, timeout_minutes: int = 60) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
