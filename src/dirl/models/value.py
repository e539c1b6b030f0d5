"""The value model: a backbone whose head is one number, at the positions that the policy is scored at."""

import copy

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from dirl.batches import PackedBatch
from dirl.models.families import Parts
from dirl.models.policy import BlockDiffusionLM
from dirl.models.tensor_parallel import local_weight


class ScalarHead(nn.Linear):
    """Hidden states [N, D] to values [N], in fp32 whatever the compute is; zero to begin with, as in TraceRL's code."""

    def __init__(self, hidden_size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(hidden_size, 1, bias=False, dtype=dtype)
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        return scalars(self.weight, hidden)


class ValueModel(BlockDiffusionLM):
    """A backbone with a `ScalarHead` in place of its own, see `with_scalar_head`.

    Where its modules lie, how it is sharded, recomputed and read from files is as of the policy.
    """

    def forward(  # type: ignore[override]
        self, batch: PackedBatch, positions: Int64[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """[N] fp32 values at positions [N] of a packed row."""
        return self.score_hidden(self.hidden_states(batch)[positions])

    def score_hidden(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:  # type: ignore[override]
        weight = self.part("head").weight
        assert isinstance(weight, Tensor)
        return scalars(local_weight(weight), hidden)


def scalars(weight: Float[Tensor, "1 D"], hidden: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """[N] products of weight [1, D] with hidden states [N, D], in fp32 or, of such weights, in double precision."""
    dtype = torch.promote_types(torch.float32, weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.mv(hidden.to(dtype), weight.to(dtype)[0])  # no view: FSDP2 warns of them


def with_scalar_head(backbone: PreTrainedModel, parts: Parts, dtype: torch.dtype) -> PreTrainedModel:
    """The backbone, which may have its weights on the meta device, with a new head that is tied to nothing."""
    owner, _, name = parts.head.rpartition(".")
    config = copy.deepcopy(backbone.config)
    setattr(backbone.get_submodule(owner), name, ScalarHead(config.hidden_size, dtype))
    config.tie_word_embeddings = False
    backbone.config = config
    return backbone
