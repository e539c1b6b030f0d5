"""An independent count of memory: training steps on tensors without contents, every live byte counted.

Torch's fake tensors run the real layers, autograd, checkpointing and FSDP2 at any size on any machine. What is
counted is what a GPU's allocator would hand out, but for attention, whose fused kernel is stood in for.
"""

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from dirl.models import BlockDiffusionLM, SDARConfig, SDARMoeConfig, register_models
from dirl.models.backbones.llada2 import LLaDA2MoeConfig
from dirl.models.families import Parts, family_of
from dirl.models.lora import LoRAConfig, add_adapters
from dirl.models.policy import ScoringPlan
from dirl.models.value import ValueModel, with_scalar_head
from dirl.modules.layers import Checkpointing, recompute_layers
from dirl.planning import ModelShape
from dirl.planning.activations import Compute
from dirl.types import DecodingParams, ModelSpec


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operations have made, or that were named to `hold`, and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def hold(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._add(tensor.to_local() if isinstance(tensor, DTensor) else tensor)

    def __torch_dispatch__(self, func: object, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # its local tensors come here next
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def __enter__(self) -> "LiveBytes":
        plain = self.plain = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            result = plain(storage, size)  # how FSDP2 frees and fills what it gathers
            if storage._cdata in self.sizes:
                self._count(storage._cdata, storage.nbytes())
            return result

        torch.UntypedStorage.resize_ = resize
        return super().__enter__()

    def __exit__(self, *args: object) -> None:
        torch.UntypedStorage.resize_ = self.plain
        super().__exit__(*args)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self._count(storage._cdata, storage.nbytes())
            weakref.finalize(storage, self._drop, storage._cdata)

    def _count(self, key: int, size: int) -> None:
        self.now += size - self.sizes.get(key, 0)
        self.sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def build(shape: ModelShape, dtype: torch.dtype = torch.float32, attention: str = "rehearsal") -> PreTrainedModel:
    """A model of the shape; within a FakeTensorMode it takes no memory."""
    register_models()
    AttentionInterface.register("rehearsal", fused_attention)
    sizes = {name: getattr(shape, name) for name in SIZES}
    kind = SDARConfig if shape.head_norms else LlamaConfig
    if shape.experts:
        kind = SDARMoeConfig
        sizes |= {"num_experts": shape.experts, "num_experts_per_tok": shape.experts_per_token}
        sizes |= {"moe_intermediate_size": shape.expert_size, "mlp_only_layers": list(range(shape.dense_layers))}
    if shape.fused:
        kind, sizes = LLaDA2MoeConfig, {**sizes, "first_k_dense_replace": shape.dense_layers}
        sizes["num_shared_experts"] = shape.shared_expert_size // shape.expert_size
        sizes |= {"n_group": 4, "topk_group": 2}
    config = kind(**sizes, use_cache=False, pad_token_id=0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype).train()


SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)


def fused_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: object):
    """transformers' attention interface around `_Fused`, in autocast's dtype as FlexAttention is called."""
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (query, key, value))
    return _Fused.apply(query, key, value).transpose(1, 2), None


class _Fused(torch.autograd.Function):
    """What a fused kernel holds, without what it computes: inputs, output, and one fp32 per query and head."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, log_sum = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, log_sum)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class Whole(BlockDiffusionLM):
    """Backbone and head, without what depends on the values of a packed row."""

    def __init__(
        self, shape: ModelShape, mode: Checkpointing = "none", lora: LoRAConfig | None = None, mixed: bool = True
    ) -> None:
        backbone = build(shape, torch.bfloat16 if lora is not None and mixed else torch.float32)
        if lora is not None:
            with patch.object(nn.Module, "to", lambda self, *args, **kwargs: self):  # which fake tensors do not know
                add_adapters(backbone, family_of(backbone.config), lora)
        recompute_layers(backbone.model.layers, mode)
        parts = family_of(backbone.config).parts if shape.experts else Parts()
        super().__init__(backbone, ModelSpec(4, 0, (1,), 0, shape.vocab_size), parts=parts)

    def forward(self, args: dict[str, Tensor], scored: int) -> Tensor:
        positions = torch.arange(scored)
        none = positions[:0]
        plan = ScoringPlan(positions, none, none, none, 0)
        hidden = self.backbone.model(**args).last_hidden_state[0, positions]
        return self.score_hidden(hidden, None, positions, plan, DecodingParams())[0]


class WholeValue(ValueModel):
    """As `Whole`, of a value model."""

    def __init__(self, shape: ModelShape, mode: Checkpointing = "none") -> None:
        backbone = build(shape)
        recompute_layers(backbone.model.layers, mode)
        super().__init__(with_scalar_head(backbone, Parts(), torch.float32), ModelSpec(4, 0, (1,), 0, shape.vocab_size))

    def forward(self, args: dict[str, Tensor], scored: int) -> Tensor:
        return self.score_hidden(self.backbone.model(**args).last_hidden_state[0, torch.arange(scored)])


def fake_tensors() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def autocast(on: bool) -> AbstractContextManager:
    """As Lightning enters it: weights are cast where they are used, and no copy is kept for later."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if on else nullcontext()


def row(tokens: int) -> dict[str, Tensor]:
    """Arguments of the backbone for a packed row."""
    ids = torch.zeros(1, tokens, dtype=torch.long)
    return {"input_ids": ids, "position_ids": ids.clone(), "packed_mask": None, "use_cache": False}


@contextmanager
def mesh_of(processes: int):
    """A device mesh of processes of which only this one exists; collectives return at once."""
    assert not dist.is_initialized()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        mesh: DeviceMesh = init_device_mesh("cpu", (processes,))
        yield mesh
    finally:
        dist.destroy_process_group()


def kept_per_token(shape: ModelShape, compute: Compute, mode: Checkpointing, lengths: tuple[int, int]) -> float:
    """Bytes that live between forward and backward, the weights and their copies left out."""
    model = build(shape, torch.bfloat16 if compute == "fsdp_bf16" else torch.float32)
    recompute_layers(model.model.layers, mode)
    kept = []
    for tokens in lengths:
        live, args = LiveBytes(), row(tokens)
        live.hold([*model.parameters(), args["input_ids"]])
        with live, autocast(compute != "fp32"):
            before = live.now
            hidden = model.model(**args).last_hidden_state
            kept.append(live.now - before)
            del hidden
    return (kept[1] - kept[0]) / (lengths[1] - lengths[0])
