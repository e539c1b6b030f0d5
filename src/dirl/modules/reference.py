"""The frozen reference policy of a KL term: its weights are on the device for the time in which it scores."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dirl.batches import PackedBatch
from dirl.models import BlockDiffusionLM, ModelSource, Scores
from dirl.models.families.low_rank import adapters_off
from dirl.models.policy import ScoringPlan
from dirl.objectives import Objective
from dirl.types import DecodingParams, ModelSpec


class Reference:
    """Holds the model and no more, so that its weights are no part of the module's parameters or checkpoint.

    Args:
        sharded: its weights are gathered by themselves, layer by layer.
        on_host: its weights stay in host memory, except while it scores.
    """

    def __init__(self, model: BlockDiffusionLM, sharded: bool, on_host: bool) -> None:
        self.model, self.sharded, self.on_host = model, sharded, on_host

    def pin(self) -> None:
        """Weights that wait on the host of a GPU do so in pinned memory."""
        if self.on_host and not self.sharded:
            pin_weights(self.model)

    def on_device(self, device: torch.device, move: Callable[[Tensor], Tensor]) -> AbstractContextManager:
        """Have the weights on the device for the time of the block; `move` takes those there that go back after it."""
        if self.sharded:
            return nullcontext()
        if self.on_host:
            return moved_tensors(self.model, move)
        self.model.to(device)
        return nullcontext()

    def scores(self, row: PackedBatch, decoding: DecodingParams, plan: ScoringPlan) -> Scores:
        """What it says of a row, without entropies."""
        return self.model(row, decoding, entropy=False, plan=plan)


class AdaptersOff(Reference):
    """The policy itself without its adapters: there is no second model, and nothing to move."""

    def __init__(self, policy: BlockDiffusionLM) -> None:
        super().__init__(policy, sharded=True, on_host=False)

    def scores(self, row: PackedBatch, decoding: DecodingParams, plan: ScoringPlan) -> Scores:
        with adapters_off(self.model):
            return super().scores(row, decoding, plan)


def check_same_spec(reference: ModelSpec, policy: ModelSpec) -> None:
    """Raise ValueError unless both score the same tokens in the same blocks."""
    if reference != policy:
        raise ValueError(
            f"the reference model ({reference}) differs from the policy ({policy}): KL compares the same tokens in the "
            "same blocks; use a reference of the same family"
        )


def say_if_unused(source: ModelSource | None, objective: Objective) -> None:
    """Warn of a reference that was chosen for an objective that looks at none."""
    if source is not None and not objective.needs_reference:
        rank_zero_warn(
            f"model.reference: not used, as the objective ({type(objective).__name__}) has no KL term to a reference; "
            "set objective.kl_coef, or leave the reference out"
        )


@contextmanager
def moved_tensors(model: nn.Module, move: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put what `move` returns in place of each of the model's tensors for the time of the block, then put them back."""
    home = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    for tensor, data in home:
        tensor.data = move(data)
    try:
        yield
    finally:
        for tensor, data in home:
            tensor.data = data


def pin_weights(model: nn.Module) -> None:
    """Move the tensors of a model on the host into pinned memory, from where a GPU takes them at full speed."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.pin_memory()
