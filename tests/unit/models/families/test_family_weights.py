"""A family's weights: the names of checkpoints, views where it can be, cast before they are gathered, buffers too."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from tests.tiny import EXPERTS, SHAPE, TinyModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from dirl.models import SDARMoeConfig, register_models
from dirl.models.families import family_of
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.families.qwen3_moe import Qwen3MoeFamily
from dirl.models.families.weights import cast, empty_backbone, weight_shapes
from dirl.models.weight_files import WeightFiles
from dirl.rollout.weights import checked


def of_experts() -> PreTrainedModel:
    register_models()
    return AutoModelForCausalLM.from_config(SDARMoeConfig(**SHAPE, **EXPERTS))


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_models_weights_are_its_parameters_each_once(tied: bool) -> None:
    source = TinyModel(4, tied=tied)
    config = source.describe().config
    backbone = source.build(config)
    own = {name: parameter.shape for name, parameter in backbone.named_parameters()}
    family = family_of(config)
    assert {name: value.shape for name, value in family.weights(backbone)} == own
    assert (
        weight_shapes(family, backbone) == weight_shapes(family, empty_backbone(family, config, torch.float32)) == own
    )
    assert ("lm_head.weight" in own) == (not tied)


def test_experts_kept_together_are_handed_out_one_by_one_without_a_copy() -> None:
    gate_up, down = torch.arange(2 * 6 * 4.0).view(2, 6, 4), torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    name = "model.layers.0.mlp.experts."
    others = [("model.norm.weight", torch.ones(4)), ("model.layers.0.mlp.gate.weight", torch.ones(2, 4))]
    together = [others[0], (name + "gate_up_proj", gate_up), (name + "down_proj", down), others[1]]
    made = dict(part for weight in together for part in Qwen3MoeFamily().split(*weight))
    assert made.keys() == {
        *(other for other, _ in others),
        *(f"{name}{e}.{part}_proj.weight" for e in (0, 1) for part in ("gate", "up", "down")),
    }
    torch.testing.assert_close(made[name + "1.gate_proj.weight"], gate_up[1, :3])
    torch.testing.assert_close(made[name + "1.up_proj.weight"], gate_up[1, 3:])
    torch.testing.assert_close(made[name + "0.down_proj.weight"], down[0])
    assert made[name + "0.up_proj.weight"].untyped_storage().data_ptr() == gate_up.untyped_storage().data_ptr()


def test_the_experts_of_a_model_have_the_names_of_published_checkpoints() -> None:
    backbone = of_experts()
    family = family_of(backbone.config)
    shapes = weight_shapes(family, backbone)
    assert shapes["model.layers.1.mlp.experts.3.up_proj.weight"] == (16, 32)
    assert shapes["model.layers.1.mlp.experts.3.down_proj.weight"] == (32, 16)
    assert shapes["model.layers.0.mlp.gate.weight"] == (4, 32)
    assert list(shapes) == [name for name, _ in family.weights(backbone)], "an export relies on their order"
    assert sum(shape.numel() for shape in shapes.values()) == sum(p.numel() for p in backbone.parameters())


# ------------------------------------------------------------------------------------------------------- buffers


class Offset(nn.Module):
    """A head with a buffer that checkpoints hold, and one that they do not."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.register_buffer("offset", torch.arange(3.0))
        self.register_buffer("count", torch.tensor([7]))
        self.register_buffer("made", torch.ones(2), persistent=False)


class Buffered(Qwen3Family):
    def build(self, config, dtype=None):
        backbone = super().build(config, dtype)
        backbone.lm_head = Offset(backbone.lm_head)
        return backbone


def test_buffers_that_checkpoints_hold_come_with_the_weights_and_in_their_own_dtype() -> None:
    family = Buffered()
    backbone = family.build(TinyModel(4).describe().config)
    weights = dict(family.weights(backbone, torch.bfloat16))
    assert weights["lm_head.offset"].dtype == torch.float32
    assert weights["lm_head.count"].tolist() == [7]
    assert "lm_head.made" not in weights
    assert weights["model.norm.weight"].dtype == torch.bfloat16
    assert weight_shapes(family, backbone) == {name: value.shape for name, value in weights.items()}
    assert set(dict(checked(weights.items(), weight_shapes(family, backbone), 0))) == set(weights)


# ------------------------------------------------------------------------------------------------ bytes of a push


class Gathered(TorchDispatchMode):
    """Counts the bytes that collectives bring together."""

    bytes = 0

    def __torch_dispatch__(self, func: object, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        if "all_gather" in str(func):
            self.bytes += sum(value.nbytes for value in ([out] if isinstance(out, Tensor) else out))
        return out


@contextmanager
def two_processes() -> Iterator[object]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


def test_a_push_to_an_engine_in_bf16_gathers_half_the_bytes() -> None:
    source = TinyModel(4, tied=False)
    config = source.describe().config
    family, found = family_of(config), {}
    with two_processes() as mesh:
        for dtype in (None, torch.float32, torch.bfloat16):
            backbone = source.build(config)
            for layer in backbone.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(backbone, mesh=mesh)
            assert all(isinstance(p, DTensor) for p in backbone.parameters())
            with Gathered() as counted:
                sizes = [value.nbytes for _, value in family.weights(backbone, dtype)]
            found[dtype] = counted.bytes, sum(sizes)
    parameters = sum(p.numel() for p in source.build(config).parameters())
    full, half = found[torch.float32], found[torch.bfloat16]
    assert found[None] == full
    assert (full[1], half[1]) == (4 * parameters, 2 * parameters), "what comes out"
    assert full[0] == 2 * half[0] >= full[1], "and what went between the ranks, filled up to equal shards"


def test_cast_before_or_after_a_gather_gives_the_same_bits() -> None:
    weight = nn.Parameter(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * 1e3)
    shards = [nn.Parameter(part) for part in weight.detach().chunk(2)]
    before = torch.cat([cast(shard, torch.bfloat16) for shard in shards])
    assert torch.equal(before.view(torch.int16), weight.detach().to(torch.bfloat16).view(torch.int16))
    assert cast(weight, torch.float32).data_ptr() == cast(weight, None).data_ptr() == weight.data_ptr()


def test_a_wider_dtype_adds_no_bytes() -> None:
    assert cast(nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), torch.float32).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------------- reading


def test_experts_of_a_file_that_is_of_another_size_are_refused_by_name(tmp_path) -> None:
    from safetensors.torch import save_file

    backbone = of_experts()
    family = family_of(backbone.config)
    weights = {name: value.contiguous() for name, value in family.weights(backbone)}
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    weights[name] = torch.ones(15, 32)
    save_file(weights, tmp_path / "model.safetensors")
    files = WeightFiles(tmp_path, family)
    whole = dict(backbone.named_parameters())["model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(files.read("model.layers.0.mlp.experts.gate_up_proj", whole.shape), whole)
    with pytest.raises(ValueError, match=rf"{name} has shape \(15, 32\), the model's config says \(16, 32\)"):
        files.read("model.layers.1.mlp.experts.gate_up_proj", whole.shape)
