"""Experts, grouped or one by one, against the equation in float64; what they promise of hosts, graphs and weights."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from jaxtyping import jaxtyped
from tests.tiny import flat_gradient
from tests.typechecker import check
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from dirl.models import PretrainedModel, SDARMoeConfig, SDARMoeForCausalLM, register_models, save_model
from dirl.models import experts as of_experts
from dirl.models.experts import Experts, _ZeroIdleGradient, choose_experts, experts_implementation
from dirl.models.families import family_of
from dirl.models.families.weights import empty_backbone
from dirl.models.tokenizer import new_tokenizer
from dirl.modules.layers import Checkpointing, compile_layers, recompute_layers

SHAPE = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    moe_intermediate_size=16,
    num_experts=8,
    num_experts_per_tok=3,
    norm_topk_prob=True,
    initializer_range=0.35,
    pad_token_id=0,
)
TOKENS = 40


def layer(experts: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Qwen3MoeSparseMoeBlock:
    """Router and experts, with the same weights for every way to compute them."""
    config = SDARMoeConfig(**(SHAPE | changes))
    choose_experts(config, experts, "tiny", has_experts=True)
    block = Qwen3MoeSparseMoeBlock(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return block.to(dtype)


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(1, TOKENS, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(1))
    return values.to(dtype).requires_grad_()


def equation(block: Qwen3MoeSparseMoeBlock, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One token and one expert at a time, in float64: outputs, and the gradient of `loss` by `leaves`."""
    inputs = inputs.detach().double().requires_grad_()
    router, gate_up, down = (p.detach().double().requires_grad_() for p in leaves(block, inputs)[1:])
    config, rows = block.experts.config, []
    for x in inputs[0]:
        probabilities = torch.exp(router @ x) / torch.exp(router @ x).sum()
        chosen = sorted(range(config.num_experts), key=lambda e: -probabilities[e].item())[: config.num_experts_per_tok]
        total = sum(probabilities[e] for e in chosen) if config.norm_topk_prob else 1.0
        half = config.moe_intermediate_size
        results = []
        for e in chosen:
            gate, up = gate_up[e, :half] @ x, gate_up[e, half:] @ x
            results.append(probabilities[e] / total * (down[e] @ (gate / (1 + torch.exp(-gate)) * up)))
        rows.append(sum(results))
    out = torch.stack(rows)[None]
    return out.detach(), list(torch.autograd.grad(loss(out), [inputs, router, gate_up, down]))


def leaves(block: Qwen3MoeSparseMoeBlock, inputs: Tensor) -> list[Tensor]:
    return [inputs, block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj]


def loss(out: Tensor) -> Tensor:
    """Not linear, and other for every entry."""
    return (out.double().sin() * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum()


def error(value: Tensor, expected: Tensor) -> float:
    return float((value.detach().double() - expected).norm() / expected.norm())


# ------------------------------------------------------------------------------------------------ the equation


@pytest.fixture
def held_to_shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Not by the import hook: `torch.compile` of a layer goes through these functions, and through no check."""
    with monkeypatch.context() as patch:
        for name in ("weighted_experts", "grouped_product", "looped_product", "grouped_obstacle"):
            patch.setattr(of_experts, name, jaxtyped(getattr(of_experts, name), typechecker=check))
        yield
    for way in get_args(Experts):
        experts_implementation(way)  # transformers would keep the product that was held


@pytest.mark.usefixtures("held_to_shapes")
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    ("experts", "dtype", "tolerance"),
    [
        ("grouped", torch.float32, 1e-6),
        ("auto", torch.float32, 1e-6),
        ("loop", torch.float32, 1e-6),
        ("auto", torch.float64, 1e-6),  # the router's softmax is fp32 in every dtype
        ("grouped", torch.bfloat16, 0.02),  # of the weights' rounding alone
    ],
)
def test_outputs_and_gradients_are_those_of_the_equation(
    experts: str, dtype: torch.dtype, tolerance: float, normalised: bool
) -> None:
    block, inputs = layer(experts, dtype, norm_topk_prob=normalised), tokens(dtype)
    expected, expected_gradients = equation(block, inputs)
    out = block(inputs)
    assert out.dtype == dtype and error(out, expected) < tolerance
    gradients = torch.autograd.grad(loss(out), leaves(block, inputs))
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert error(gradient, wanted) < tolerance


def test_grouped_experts_are_those_of_transformers_loop() -> None:
    ours, theirs = layer("grouped"), layer("auto")
    theirs.experts.config._experts_implementation = "eager"
    found, expected = (
        [b(x), *torch.autograd.grad(loss(b(x)), leaves(b, x))] for b in (ours, theirs) for x in [tokens()]
    )
    for value, wanted in zip(found, expected, strict=True):
        assert error(value, wanted.double()) < 1e-6


@pytest.mark.parametrize("experts", ["grouped", "loop"])
def test_an_expert_without_tokens_changes_nothing_and_has_no_gradient(experts: str) -> None:
    """All tokens agree on three of the eight experts, the first and the last not among them."""
    block, inputs = layer(experts), tokens()
    with torch.no_grad():
        inputs[..., 0] = 1.0
        block.gate.weight[:, 0] = torch.tensor([-20.0, 4, -20, 5, -20, 4.5, -20, -20])
    expected, expected_gradients = equation(block, inputs)
    gradients = torch.autograd.grad(loss(block(inputs)), leaves(block, inputs))
    assert error(block(inputs), expected) < 1e-6
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert error(gradient, wanted) < 2e-6  # large logits have large roundings
    for gradient in gradients[2:]:
        assert [e for e in range(8) if gradient[e].abs().sum() > 0] == [1, 3, 5]


def test_gradients_that_a_kernel_leaves_unwritten_are_zero() -> None:
    matrices = torch.ones(4, 2, 3, requires_grad=True)
    passed = _ZeroIdleGradient.apply(matrices, torch.tensor([0, 5, 5, 7], dtype=torch.int32))
    written = torch.full((4, 2, 3), 2.0)
    written[[0, 2]] = torch.nan
    passed.backward(written)
    assert torch.equal(passed, matrices)
    assert matrices.grad[:, 0, 0].tolist() == [0, 2, 0, 2] and not matrices.grad.isnan().any()


def test_the_same_tokens_give_the_same_bits() -> None:
    block = layer("grouped", torch.bfloat16)
    first, second = (flat_gradient(loss(block(tokens(torch.bfloat16))), block.parameters()) for _ in range(2))
    assert torch.equal(first, second)


# ---------------------------------------------------------------------------------------- hosts, graphs, dtypes


class Operations(TorchDispatchMode):
    """Names of all operations, the backward's included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


MASKED = {"nonzero", "masked_select", "index_put", "_unsafe_index_put", "bincount"}
"""Operations that wait for a GPU, or may: how large their results are is in their inputs."""


def test_the_host_never_waits_for_grouped_experts_but_for_those_of_the_loop() -> None:
    """Tensors without contents refuse whatever asks for a number of theirs, in forward and backward."""
    for experts in ("grouped", "loop"):
        refused = pytest.raises(DataDependentOutputException) if experts == "loop" else nullcontext()
        config = layer(experts).experts.config
        with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16), Operations() as operations, refused:
            Qwen3MoeSparseMoeBlock(config)(torch.randn(1, TOKENS, 32, requires_grad=True)).sum().backward()
        if experts == "grouped":
            assert operations.names.count("_grouped_mm") == 6  # two projections, and two gradients of each
            assert not MASKED & set(operations.names)


def test_the_whole_layer_compiles_to_one_graph_whose_gradient_is_the_eager_one() -> None:
    torch._dynamo.reset()
    block, inputs = layer("grouped", torch.bfloat16), tokens(torch.bfloat16)
    eager = flat_gradient(loss(block(inputs)), [inputs, *block.parameters()])
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    assert torch.equal(flat_gradient(loss(compiled(inputs)), [inputs, *block.parameters()]), eager)


def model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    register_models()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SDARMoeForCausalLM(SDARMoeConfig(**SHAPE, vocab_size=64)).to(dtype).train()


def gradient_of(model: PreTrainedModel, length: int = TOKENS) -> Tensor:
    ids = torch.arange(length)[None] * 7 % 64
    return flat_gradient(loss(model(input_ids=ids, use_cache=False).logits), model.parameters())


@pytest.mark.parametrize("mode", ["none", pytest.param("full", marks=pytest.mark.thorough), "selective"])
def test_compiled_decoder_layers_have_one_graph_for_all_lengths_and_routes(mode: Checkpointing) -> None:
    torch._dynamo.reset()
    counters.clear()
    plain, compiled = model(torch.bfloat16), model(torch.bfloat16)
    recompute_layers(compiled.model.layers, mode)
    compile_layers(compiled.model.layers, backend="aot_eager")
    for length in (TOKENS, 24, 32, 56):
        wanted = gradient_of(plain, length)
        assert error(gradient_of(compiled, length), wanted) < 1e-6
    assert not counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= (4 if mode == "selective" else 2)


def test_in_other_dtypes_than_bf16_compiled_layers_fall_back_on_the_loop() -> None:
    torch._dynamo.reset()
    plain, compiled = model(), model()
    compile_layers(compiled.model.layers, backend="aot_eager")
    assert error(gradient_of(compiled), gradient_of(plain)) < 1e-5


@pytest.mark.parametrize("mixed", [False, True])
def test_a_recomputed_layer_sends_its_tokens_to_the_same_experts(mixed: bool) -> None:
    plain, recomputed = model(), model()
    routes: list[Tensor] = []
    recompute_layers(recomputed.model.layers, "full")
    for decoder in recomputed.model.layers:
        decoder.mlp.gate.register_forward_hook(lambda module, args, result: routes.append(result[2]))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        wanted = gradient_of(plain)
        assert torch.equal(gradient_of(recomputed), wanted)
    first, second, second_again, first_again = routes
    assert torch.equal(first, first_again) and torch.equal(second, second_again)
    assert not torch.equal(first, second)


def test_the_result_of_a_recomputed_layers_last_product_is_not_computed_again() -> None:
    products = {}
    for mode in ("none", "full"):
        chosen = model()
        recompute_layers(chosen.model.layers, mode)
        with Operations() as operations:
            gradient_of(chosen)
        products[mode] = operations.names.count("_grouped_mm")
    assert products == {"none": 2 * 6, "full": 2 * 7}


def test_under_autocast_experts_are_bf16_and_the_stream_stays_fp32() -> None:
    block, inputs = layer("grouped"), tokens()
    seen: list[torch.dtype] = []
    block.experts.act_fn = Recording(block.experts.act_fn, seen)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(inputs)
    assert seen == [torch.bfloat16] and out.dtype == torch.float32
    expected, expected_gradients = equation(block, inputs)
    assert 1e-4 < error(out, expected) < 0.02
    gradients = torch.autograd.grad(loss(out), leaves(block, inputs))
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(error(g, wanted) < 0.03 for g, wanted in zip(gradients, expected_gradients, strict=True))


class Recording(nn.Module):
    def __init__(self, inner: Callable[[Tensor], Tensor], seen: list[torch.dtype]) -> None:
        super().__init__()
        self.inner, self.seen = inner, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.dtype)
        return self.inner(x)


# ------------------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("dtype", "changes", "obstacle"),
    [
        (torch.float64, {}, r"does not know torch\.float64|needs bfloat16"),
        (torch.float32, {"moe_intermediate_size": 6}, r"multiples of 4 in torch\.float32, not \[6\]"),
        (torch.bfloat16, {"hidden_size": 12}, r"multiples of 8 in torch\.bfloat16, not \[12\]"),
    ],
)
def test_where_grouping_cannot_work_auto_loops_and_grouped_says_what_to_do(
    dtype: torch.dtype, changes: dict[str, int], obstacle: str
) -> None:
    inputs = torch.randn(1, 5, changes.get("hidden_size", 32)).to(dtype)
    automatic, looped = (layer(experts, dtype, **changes)(inputs) for experts in ("auto", "loop"))
    assert torch.equal(automatic, looped)
    with pytest.raises(ValueError, match=rf"experts='grouped': .*({obstacle}).*; set .* experts=auto or loop"):
        layer("grouped", dtype, **changes)(inputs)


@pytest.mark.parametrize("found_before", [None, False, True])
def test_sdars_experts_do_not_depend_on_what_was_loaded_before(
    found_before: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers leaves what it found for Qwen3-MoE on that class, of which SDAR's is a subclass."""
    monkeypatch.setattr(
        Qwen3MoeForCausalLM, "_can_set_experts_implementation_cached_value", found_before, raising=False
    )
    backbone = model()
    assert backbone.config._experts_implementation == experts_implementation("auto")
    with Operations() as operations:
        gradient_of(backbone)
    assert "_grouped_mm" in operations.names


def folder_of(folder: Path, kind: str) -> str:
    """A checkpoint with its tokenizer; `kind` is a model type."""
    tokenizer = new_tokenizer("0123456789+= ")
    own = dict(vocab_size=len(tokenizer), block_size=4)
    shape = {k: v for k, v in SHAPE.items() if kind != "qwen3" or "expert" not in k}
    classes = {
        "sdar_moe": (SDARMoeForCausalLM, SDARMoeConfig),
        "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    }
    register_models()
    model_class, config_class = classes[kind]
    save_model(folder, model_class(config_class(**(shape | own))), tokenizer)
    return str(folder)


@pytest.mark.parametrize("kind", ["sdar_moe", "qwen3_moe"])
@pytest.mark.parametrize("experts", ["auto", "grouped", "loop"])
def test_the_sources_choice_is_that_of_every_model_built_from_its_config(
    experts: str, kind: str, tmp_path: Path
) -> None:
    source = PretrainedModel(folder_of(tmp_path, kind), experts=experts)
    config = source.describe().config
    for backbone in (source.build(config), empty_backbone(family_of(config), config, torch.float32)):
        for decoder in backbone.model.layers:
            assert decoder.mlp.experts.config._experts_implementation == f"dirl_{experts}"
    with Operations() as operations, torch.no_grad():
        source.build(config)(input_ids=torch.arange(9)[None], packed_mask=torch.ones(1, 1, 9, 9, dtype=torch.bool))
    assert ("_grouped_mm" in operations.names) == (experts != "loop")


def test_a_saved_model_and_its_weights_know_nothing_of_the_choice(tmp_path: Path) -> None:
    saved = {}
    published = PretrainedModel(folder_of(tmp_path / "old", "sdar_moe"))
    for experts in ("grouped", "loop"):
        source = PretrainedModel(published.path, experts=experts)
        description = source.describe()
        backbone = source.build(description.config)
        save_model(tmp_path / experts, backbone, description.tokenizer)
        saved[experts] = json.loads((tmp_path / experts / "config.json").read_text()), list(backbone.state_dict())
        assert (tmp_path / experts / "model.safetensors").read_bytes() == (
            tmp_path / "old" / "model.safetensors"
        ).read_bytes()
    assert saved["grouped"] == saved["loop"]
    assert not [key for key in saved["grouped"][0] if "implementation" in key]


def test_a_choice_that_does_not_exist_or_has_no_object_is_an_error(tmp_path: Path) -> None:
    path = folder_of(tmp_path, "qwen3")
    with pytest.raises(ValueError, match="experts='grouped_mm': use one of auto, grouped, loop"):
        PretrainedModel(path, experts="grouped_mm").describe()
    with pytest.raises(ValueError, match=r"experts='loop': model .* has no experts; leave the option out"):
        PretrainedModel(path, experts="loop").describe()
    assert PretrainedModel(path).describe().spec.block_size == 4
