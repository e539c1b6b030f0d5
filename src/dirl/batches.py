"""What the trainer computes on: the layout of packed tokens, a packed row, and the rows of one optimizer step."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

IGNORE = -100
"""`target_ids` of a position that is not scored."""


@dataclass(frozen=True)
class Layout:
    """Where each packed token stands: [T] integer tensors; see `dirl.attention.visibility`.

    group: sequences that never see one another; branch: 0 is the shared prompt, r the r-th response;
    block: absolute block index; view: 0 clean, v >= 1 the v-th noised copy of its block.
    """

    group_ids: Int[Tensor, "*T"]
    branch_ids: Int[Tensor, "*T"]
    block_ids: Int[Tensor, "*T"]
    view_ids: Int[Tensor, "*T"]

    def __len__(self) -> int:
        return self.group_ids.shape[-1]

    def __getitem__(self, index: object) -> "Layout":
        """Index all four tensors alike, e.g. `layout[:, None]` for the query side of a broadcast."""
        return Layout(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class PackedBatch:
    """Tokens of many sequences in one row, the input of one forward. All tensors are [T]; packing alone makes it.

    "Not scored" is IGNORE in `target_ids`; columns are 0 there, and a column that is not known is not there: a NaN is
    always a fault.
    """

    input_ids: Int[Tensor, " T"]
    position_ids: Int[Tensor, " T"]
    group_ids: Int[Tensor, " T"]
    branch_ids: Int[Tensor, " T"]
    block_ids: Int[Tensor, " T"]
    view_ids: Int[Tensor, " T"]
    target_ids: Int[Tensor, " T"]
    """The token to score at this position, IGNORE where there is none."""
    loss_weights: Float[Tensor, " T"]
    """Weight of each scored token in the loss: SFT's 1/t, RL's normalisation within the step."""
    trajectory_ids: Int[Tensor, " T"]
    """Which trajectory (SFT: conversation) of this rank's optimizer step a token is of, also where a response lies in
    parts over several rows; -1: of a prompt that several share."""
    columns: Mapping[str, Float[Tensor, " T"]] = field(default_factory=dict)
    """What an objective knows of each scored token, by name: `advantages`, `behaviour_logprobs`; also `old_logprobs`
    and `reference_logprobs` once those policies have scored the row."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def layout(self) -> Layout:
        return Layout(self.group_ids, self.branch_ids, self.block_ids, self.view_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedBatch":
        return self.map(Tensor.pin_memory)

    def map(self, fn: Callable[[Tensor], Tensor]) -> "PackedBatch":
        """Every tensor, columns included, through `fn`."""
        own = {f.name: fn(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "columns"}
        return PackedBatch(**own, columns={name: fn(value) for name, value in self.columns.items()})

    def tensors(self) -> dict[str, Shaped[Tensor, " T"]]:
        """All of them by name, columns included."""
        return {**{name: value for name, value in vars(self).items() if name != "columns"}, **self.columns}

    def with_columns(self, columns: Mapping[str, Float[Tensor, " T"]]) -> "PackedBatch":
        """The row with these columns beside or in place of its own."""
        return dataclasses.replace(self, columns={**self.columns, **columns})


@dataclass(frozen=True)
class StepBatch:
    """Everything one rank feeds into one optimizer step."""

    micro_batches: list[PackedBatch]
    loss_divisor: float
    """This rank's share of what the step's loss is divided by, e.g. its number of response tokens (SFT)."""
    sequences: int
    """This rank's number of examples or trajectories."""
    token_budget: int
    """Tokens that a row was filled to; only one view that no such row holds makes a longer one."""
    response_tokens: int
    """That this rank learns from, each counted once, however often it is scored."""
    block_size: int | None = None
    """The block size of this step, where a schedule decides it; None: the model's."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StepBatch":
        moved = [batch.to(device, non_blocking) for batch in self.micro_batches]
        return dataclasses.replace(self, micro_batches=moved)

    def pin_memory(self) -> "StepBatch":
        return dataclasses.replace(self, micro_batches=[b.pin_memory() for b in self.micro_batches])

    def state(self) -> dict[str, Any]:
        """The batch as plain containers of tensors, for a file."""
        return {**vars(self), "micro_batches": [dict(vars(batch)) for batch in self.micro_batches]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "StepBatch":
        """The inverse of `state`."""
        return cls(**{**state, "micro_batches": [PackedBatch(**batch) for batch in state["micro_batches"]]})
