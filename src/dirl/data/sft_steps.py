"""Conversations cut into optimizer steps, noised and packed when they are asked for."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from dirl.batches import StepBatch
from dirl.diffusion.block_schedule import BlockSchedule
from dirl.diffusion.noise import NoiseConfig
from dirl.packing.pieces import Encoded, Piece, alone, conversation
from dirl.packing.rows import empty_batch, pack
from dirl.types import ModelSpec

VALIDATION_EPOCH = 2**31
"""Stands for the epoch in the seed of validation noise, so that it is the same every time."""


class SFTSteps(Dataset):
    """This rank's share of each optimizer step. Noise depends on (seed, epoch, example) alone.

    A remainder of conversations that does not fill a step waits for another epoch's order in training; in
    validation it makes a smaller last step.

    Args:
        schedule: of block sizes; None: every step has the model's.
        epoch_steps: steps that are taken of each epoch, by which the schedule counts; None: all.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        spec: ModelSpec,
        noise: NoiseConfig,
        global_batch_size: int,
        token_budget: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        schedule: BlockSchedule | None = None,
        epoch_steps: int | None = None,
    ) -> None:
        self.examples, self.spec, self.noise = examples, spec, noise
        self.global_batch_size, self.token_budget, self.shuffle = global_batch_size, token_budget, shuffle
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.schedule, self.epoch_steps = schedule, epoch_steps

    def __len__(self) -> int:
        full, rest = divmod(len(self.examples), self.global_batch_size)
        return full + (1 if rest and not self.shuffle else 0)

    def __getitem__(self, key: tuple[int, int]) -> StepBatch:
        epoch, step = key
        size = self._block_size(epoch, step)
        spec = self.spec if size is None else replace(self.spec, block_size=size)
        chosen = self._order(epoch)[step * self.global_batch_size : (step + 1) * self.global_batch_size]
        pieces: list[Piece] = []
        tokens = 0
        noise_epoch = epoch if self.shuffle else VALIDATION_EPOCH
        for index in chosen[self.rank :: self.world_size].tolist():
            rng = np.random.default_rng([self.seed, noise_epoch, index])
            piece, count = conversation(self.examples[index], spec, self.noise, rng, number=len(pieces))
            pieces.append(piece)
            tokens += count
        batches = pack(map(alone, pieces), self.token_budget)
        rows = batches or [empty_batch(spec)]
        return StepBatch(rows, float(tokens), len(pieces), self.token_budget, tokens, size)

    def _block_size(self, epoch: int, step: int) -> int | None:
        """The block size of a step, if it is not simply the model's."""
        if self.schedule is None:
            return None
        return self.schedule.size_at(epoch * (len(self) if self.epoch_steps is None else self.epoch_steps) + step)

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.examples))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
