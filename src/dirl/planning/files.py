"""What a run leaves on disk: checkpoints and exports, in bytes."""

from dataclasses import replace
from typing import NamedTuple

from dirl.planning.setup import TrainingSetup, adapters_bytes, trained_bytes


class FileSizes(NamedTuple):
    """Sizes of one checkpoint and of one export; a rollout under way, which RL's checkpoints hold, comes on top."""

    weights: float
    """Bytes in a checkpoint: of the policy, adapters and a value model."""
    optimizer: float
    per_process: float
    """What the process with the most of a checkpoint writes."""
    export: float

    @property
    def checkpoint(self) -> float:
        return self.weights + self.optimizer


def file_sizes(setup: TrainingSetup, half_weights: bool, adapter_export: bool = False) -> FileSizes:
    """Sharded checkpoints hold everything once, whatever the number of copies; others are the first process' alone.

    Args:
        half_weights: the model that training begins from is stored in two bytes, and so is an export of it.
        adapter_export: adapters alone are exported.
    """
    whole = replace(setup, strategy="single")
    frozen = (2.0 if setup.mixed else 4.0) * setup.shape.parameters if setup.adapters is not None else 0.0
    learned = trained_bytes(whole)
    checkpoint = 3 * learned + frozen
    shared = setup.devices if setup.strategy == "fsdp2" else 1
    export = adapters_bytes(setup) if adapter_export else (2.0 if half_weights else 4.0) * setup.shape.parameters
    return FileSizes(learned + frozen, 2 * learned, checkpoint / shared, export)
