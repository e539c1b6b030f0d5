"""KV cache of the torch engine: one slot per active sequence, keys at their absolute positions.

A forward over a sequence's current block writes its keys and values in place; the next forward over the
same block overwrites them, and the last one, over the finished block, leaves the clean ones. Slots are
kept contiguous, so that attention reads a view and not a copy.
"""

import torch
from jaxtyping import Float, Int64
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
        self._places: Tensor | None = None
        """[N * B * Hkv] in the memory of a layer, [slots * Hkv * length] rows."""
        rows = (m.view(len(m), -1, m.shape[-1]).unbind(0) for m in (self.keys, self.values))
        self._rows = list(zip(*rows, strict=True))
        """Keys and values of each layer as such rows."""
        self._prompt_of_slot: Tensor | None = None
        self.span = 0
        self.more = torch.zeros(0, dtype=torch.long, device=device)

    @property
    def slots(self) -> int:
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def decode(self, positions: Int64[Tensor, "blocks B"], span: int, more: Int64[Tensor, " M"]) -> None:
        """The next forward is over blocks at `positions` [N + M, B] and reads positions 0..span-1.

        The first N are of the slots 0..N-1, the last M are those of the slots `more` [M]: one more block of each.
        """
        self._prompt_of_slot, self.span, self.more = None, span, more
        count, heads, device = len(positions) - len(more), self.keys.shape[2], positions.device
        slots = torch.cat([torch.arange(count, device=device), more])
        rows = (slots[:, None, None] * heads + torch.arange(heads, device=device)) * self.length
        self._places = (rows + positions[..., None]).flatten()
        self._read = [m[:, :count, :, :span].unbind(0) for m in (self.keys, self.values)]

    def prefill(self, slots: Int64[Tensor, " slots"], prompt_of_slot: Int64[Tensor, " slots"]) -> None:
        """The next forward is over prompts [U, L]; slots[i] keeps those of prompt_of_slot[i]."""
        self._prefilled, self._prompt_of_slot, self.more = slots, prompt_of_slot, prompt_of_slot[:0]

    def copy(self, source: int, targets: list[int], length: int) -> None:
        """The slots `targets` get the first `length` positions of the slot `source`."""
        for memory in (self.keys, self.values):
            memory[:, targets, :, :length] = memory[:, source, None, :, :length]

    def store(
        self, layer: int, keys: Float[Tensor, "N Q Hkv D"], values: Float[Tensor, "N Q Hkv D"]
    ) -> tuple[Float[Tensor, "S Hkv K D"], Float[Tensor, "S Hkv K D"]]:
        """Keep keys and values [N, Q, Hkv, D] of a layer; returns those of the S slots to attend to, [S, Hkv, K, D]."""
        if self._prompt_of_slot is not None:
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
            self.keys[layer, self._prefilled, :, : keys.shape[2]] = keys[self._prompt_of_slot]
            self.values[layer, self._prefilled, :, : keys.shape[2]] = values[self._prompt_of_slot]
            return keys, values
        assert self._places is not None, "`decode` or `prefill` says first what the forward is over"
        for memory, new in zip(self._rows[layer], (keys, values), strict=True):
            memory.index_copy_(0, self._places, new.reshape(-1, memory.shape[1]))
        return self._read[0][layer], self._read[1][layer]

    def update(
        self, keys: Float[Tensor, "N Hkv Q D"], values: Float[Tensor, "N Hkv Q D"], layer: int, *args, **kwargs
    ) -> tuple[Float[Tensor, "S Hkv K D"], Float[Tensor, "S Hkv K D"]]:
        """`store`, as transformers' layers call it: keys and values [N, Hkv, Q, D]."""
        return self.store(layer, keys.transpose(1, 2), values.transpose(1, 2))

    def keep(self, slots: list[int]) -> None:
        """Slot i gets the sequence of slots[i], for all i at once; what the slots behind them held is lost."""
        moves = [(target, source) for target, source in enumerate(slots) if target != source]
        if moves:
            target, source = torch.tensor(moves, device=self.keys.device).unbind(1)
            for memory in (self.keys, self.values):
                memory[:, target, :, : self.span] = memory[:, source, :, : self.span]

    def get_seq_length(self, *args, **kwargs) -> int:
        """Part of transformers' cache protocol; positions are always passed explicitly."""
        return 0
