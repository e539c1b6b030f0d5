"""KV cache of the torch engine: one slot per active sequence, keys at their absolute positions.

A forward over a sequence's current block writes its keys and values in place; the next forward over the
same block overwrites them, and the last one, over the finished block, leaves the clean ones. Slots are
kept contiguous, so that attention reads a view and not a copy.
"""

import torch
from torch import Tensor

from dirl.models.shape import ModelShape


class SlotCache:
    """Room for `slots` sequences of `length` tokens; transformers' layers call `update`."""

    def __init__(
        self, shape: ModelShape, slots: int, length: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        sizes = (shape.num_hidden_layers, slots, shape.num_key_value_heads, length, shape.head_dim)
        self.keys = torch.zeros(sizes, device=device, dtype=dtype)
        self.values = torch.zeros(sizes, device=device, dtype=dtype)
        self._write_rows: Tensor | None = None
        self._write_positions: Tensor | None = None
        self._prompt_of_slot: Tensor | None = None
        self._span = 0

    @property
    def slots(self) -> int:
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def decode(self, positions: Tensor, span: int) -> None:
        """The next forward is over blocks of slots 0..N-1 at `positions` [N, B] and reads positions 0..span-1."""
        self._prompt_of_slot = None
        self._write_rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self._write_positions, self._span = positions, span

    def prefill(self, first_slot: int, prompt_of_slot: Tensor) -> None:
        """The next forward is over prompts [U, L]; slot first_slot + i keeps those of prompt_of_slot[i]."""
        self._first_slot, self._prompt_of_slot = first_slot, prompt_of_slot

    def update(self, keys: Tensor, values: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Store keys and values [N, Hkv, Q, D] of one layer; returns those to attend to."""
        if self._prompt_of_slot is not None:
            slots = slice(self._first_slot, self._first_slot + len(self._prompt_of_slot))
            self.keys[layer, slots, :, : keys.shape[2]] = keys[self._prompt_of_slot]
            self.values[layer, slots, :, : keys.shape[2]] = values[self._prompt_of_slot]
            return keys, values
        rows, positions = self._write_rows, self._write_positions
        assert rows is not None, "`decode` or `prefill` says first what the forward is over"
        self.keys[layer][rows, :, positions] = keys.transpose(1, 2)
        self.values[layer][rows, :, positions] = values.transpose(1, 2)
        return self.keys[layer, : len(rows), :, : self._span], self.values[layer, : len(rows), :, : self._span]

    def keep(self, slots: list[int]) -> None:
        """Slot i gets the sequence of slots[i], for all i at once; what the slots behind them held is lost."""
        moves = [(target, source) for target, source in enumerate(slots) if target != source]
        if moves:
            target, source = torch.tensor(moves, device=self.keys.device).unbind(1)
            for memory in (self.keys, self.values):
                memory[:, target, :, : self._span] = memory[:, source, :, : self._span]

    def get_seq_length(self, *args, **kwargs) -> int:
        """Part of transformers' cache protocol; positions are always passed explicitly."""
        return 0
