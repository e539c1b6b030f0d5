"""What is compared: where training starts, and which block sizes it goes through."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dirl.tasks import Countdown

CONFIGS = Path(__file__).parents[2] / "configs"
BLOCK_SIZE = 4
SHAPE: dict[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
}
"""Of all models, 0.6 M parameters."""
SEEDS = (0, 1, 2)
HELD_OUT = 192
"""Conversations on which the bound is measured."""


def held_out(seed: int) -> list[dict[str, Any]]:
    """Those of SFT's validation."""
    return Countdown(seed=seed, val_solutions=HELD_OUT).conversations("val")


@dataclass(frozen=True)
class Scale:
    """How long the runs are.

    Args:
        ar_steps: optimizer steps of next-token training.
        steps: optimizer steps of SFT.
        batch: conversations of a step, in both.
        lr: peak learning rate, in both.
        evaluations: of an SFT run, at equal distances.
    """

    ar_steps: int = 600
    steps: int = 160
    batch: int = 32
    lr: float = 2e-3
    evaluations: int = 8


@dataclass(frozen=True)
class Arm:
    """One row of the comparison."""

    name: str
    adapted: bool
    """From the autoregressive model; else from random weights."""
    scheduled: bool

    def schedule(self, steps: int) -> str | None:
        """The last half of the run has the model's block size."""
        return f"{{sizes: [1, 2, {BLOCK_SIZE}], steps: {max(steps // 4, 1)}}}" if self.scheduled else None


ARMS = (
    Arm("AR, blocks 1, 2, 4", adapted=True, scheduled=True),
    Arm("AR, blocks of 4", adapted=True, scheduled=False),
    Arm("scratch, blocks 1, 2, 4", adapted=False, scheduled=True),
    Arm("scratch, blocks of 4", adapted=False, scheduled=False),
)
