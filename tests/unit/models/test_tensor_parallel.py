"""Which models tensor parallelism is made for, and what is said of the others."""

import pytest
import torch
from tests.tiny import TinyModel

from dirl.models.families import families, family_of
from dirl.models.families.tensor_plan import TensorPlan
from dirl.models.families.weights import empty_backbone
from dirl.models.tensor_parallel import check_tensor_parallel, cut_layer
from dirl.planning import SHAPES

SHAPE = SHAPES["sdar-8b"]
PLAN = TensorPlan((), (), ())


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("name", ["sdar-1.7b", "sdar-4b", "sdar-8b", "stable-diffcoder-8b", "dreamreasoner-8b"])
def test_dense_models_can_be_cut(name: str, size: int) -> None:
    check_tensor_parallel(size, PLAN, SHAPES[name], "sdar", lora=False)


@pytest.mark.parametrize(
    ("size", "plan", "lora", "said"),
    [
        (2, None, False, "tensor_parallel_size=2 and model.source of model_type='sdar_moe'"),
        (2, PLAN, True, "tensor_parallel_size=2 and model.lora are not supported together"),
        (3, PLAN, False, "tensor_parallel_size=3 does not divide num_attention_heads=32"),
        (16, PLAN, False, "tensor_parallel_size=16 does not divide num_key_value_heads=8"),
    ],
)
def test_others_are_refused_with_both_settings_named(size: int, plan: TensorPlan | None, lora: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_tensor_parallel(size, plan, SHAPE, "sdar_moe" if plan is None else "sdar", lora)


def test_families_without_experts_have_a_plan_that_names_all_of_a_layer() -> None:
    found = {type(family).__name__: family.tensor_plan is not None for family in families()}
    assert found["Qwen3Family"] and found["BlockLlamaFamily"] and found["DreamReasonerFamily"]
    assert not found["Qwen3MoeFamily"] and not found["LLaDA2Family"]
    config = TinyModel().describe().config
    plan, backbone = family_of(config).tensor_plan, empty_backbone(family_of(config), config, torch.float32)
    assert plan is not None
    owners = {name.rpartition(".")[0] for name, _ in backbone.model.layers[0].named_parameters()}
    assert owners == set(plan.modules)


def test_a_plan_that_leaves_out_what_has_weights_is_refused() -> None:
    config = TinyModel().describe().config
    layer = TinyModel().build(config).model.layers[0]
    with pytest.raises(ValueError, match=r"does not name '(input_layernorm|mlp.down_proj)', which has weights"):
        cut_layer(layer, TensorPlan((), (), ()), None)  # type: ignore[arg-type]
