"""The forward without module calls: the traces of transformers' modules, or those modules where it cannot be sure."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from tests.sdar_engine import ATOL, SHAPE, VOCAB, answers, requests_for, some_prompts, spec_of, tiny_model
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaModel, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3MLP, Qwen3RMSNorm

from dirl.models import SDARConfig, SDARForCausalLM
from dirl.models.families import ModelFamily, PlainDecoder, family_of
from dirl.models.families.qwen3 import Qwen3Family
from dirl.models.shape import ModelShape
from dirl.rollout import TorchEngine
from dirl.rollout.torch.modules import ModuleDecoder
from dirl.rollout.torch.slot_cache import SlotCache
from dirl.rollout.torch.stripped import StrippedDecoder, obstacle, side_by_side
from dirl.types import DecodingParams, Trajectory

pytestmark = pytest.mark.usefixtures("one_thread")

BF16_ATOL = 0.15
"""Of log-probs in bf16: products whose sums are rounded in another order differ by 2^-8 of themselves, at each of some
ten roundings between the embedding and logits that reach 4."""


def sdar(**values: object) -> SDARForCausalLM:
    torch.manual_seed(0)
    settings = dict(vocab_size=VOCAB, num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, **SHAPE) | values
    return SDARForCausalLM(SDARConfig(**settings)).eval()


def with_experts() -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[0])
    config = Qwen3MoeConfig(vocab_size=VOCAB, initializer_range=0.3, num_key_value_heads=2, **SHAPE, **experts)
    return Qwen3MoeForCausalLM(config).eval()


def with_biases() -> SDARForCausalLM:
    model = sdar(attention_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.5)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "tied": lambda: sdar(tie_word_embeddings=True),
    "as many keys as queries": lambda: sdar(num_key_value_heads=4, tie_word_embeddings=False),
    "biases and norms": with_biases,
    "yarn": lambda: sdar(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
    "gelu": lambda: sdar(hidden_act="gelu"),
    "experts": with_experts,
}


def engine(model: PreTrainedModel, forward: str, dtype: str = "float32") -> TorchEngine:
    made = TorchEngine(max_batch_size=3, forward=forward, dtype=dtype)
    made.setup(model.config, None, spec_of(4), "cpu")
    made.update_weights(family_of(model.config).weights(model), 0)
    return made


def traces(model: PreTrainedModel, forward: str, decoding: DecodingParams, dtype: str = "float32") -> dict:
    return answers(engine(model, forward, dtype), requests_for(some_prompts()), decoding)


def assert_same_trace(made: Trajectory, expected: Trajectory, tolerance: float) -> None:
    assert made.behaviour_logprobs == pytest.approx(expected.behaviour_logprobs, abs=tolerance)
    blank = [dataclasses.replace(t, behaviour_logprobs=()) for t in (made, expected)]
    assert blank[0] == blank[1]


@pytest.mark.parametrize("decoding", [DecodingParams(threshold=0.5), DecodingParams("sequential", temperature=0)])
@pytest.mark.parametrize("name", MODELS)
def test_the_traces_are_those_of_the_modules(name: str, decoding: DecodingParams) -> None:
    """Ten prompts of ten lengths in three slots: blocks that all see the same and blocks that do not."""
    model, decoding = MODELS[name](), dataclasses.replace(decoding, max_response_tokens=13)
    assert obstacle(family_of(model.config), model) is None
    made, expected = (traces(model, forward, decoding) for forward in ("auto", "modules"))
    for key, trajectory in expected.items():
        assert_same_trace(made[key], trajectory, ATOL)


def test_in_bf16_the_roundings_are_where_the_modules_have_them() -> None:
    decoding = DecodingParams("sequential", temperature=0, max_response_tokens=8)
    model = sdar(initializer_range=0.1)
    made, expected = (traces(model, forward, decoding, "bfloat16") for forward in ("auto", "modules"))
    same = [key for key in expected if made[key].response_ids == expected[key].response_ids]
    assert len(same) > len(expected) / 2, "a near tie of two tokens may go either way, and then the rest differs"
    for key in same:
        assert_same_trace(made[key], expected[key], BF16_ATOL)


class PlainLlama(ModelFamily):
    """No norms of queries and keys."""

    model_types = ("llama",)
    plain_decoders = (
        PlainDecoder(LlamaModel, LlamaDecoderLayer, LlamaRMSNorm, LlamaMLP, query_norm=None, key_norm=None),
    )

    def shape(self, config: PreTrainedConfig) -> ModelShape:
        return ModelShape.dense(config, head_norms=False)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    values = dict(vocab_size=VOCAB, num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, **SHAPE)
    return LlamaForCausalLM(LlamaConfig(**values)).eval()


HIDDEN = {
    "fp32": (lambda: sdar(num_hidden_layers=3), Qwen3Family(), torch.float32),
    "bf16": (lambda: sdar(num_hidden_layers=3), Qwen3Family(), torch.bfloat16),
    "llama": (llama, PlainLlama(), torch.float32),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_states_of_the_tokens_wanted_are_those_of_all(name: str) -> None:
    build, family, dtype = HIDDEN[name]
    model = build().to(dtype)
    assert obstacle(family, model) is None
    cache = SlotCache(family.shape(model.config), 2, 12, "cpu", dtype)
    tokens, positions = torch.randint(0, VOCAB, (2, 4)), torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]])
    at = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2])
    mask = (torch.arange(12) <= positions[:, -1:])[:, None, None]
    found = []
    with torch.no_grad():
        for decoder in (ModuleDecoder, StrippedDecoder):
            cache.decode(positions, 12, torch.zeros(0, dtype=torch.long))
            found.append(decoder(family, model, cache)(tokens, positions, mask, at))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)
    assert cache.keys[:, 0, :, 4:8].any() and not cache.keys[:, 0, :, 8:].any()


def test_two_blocks_of_a_sequence_in_one_forward_are_two_forwards() -> None:
    """The finished block of the second of three slots, beside the current blocks of all."""
    model, size = sdar(num_hidden_layers=3), 4
    family, none, more = family_of(model.config), torch.zeros(0, dtype=torch.long), torch.tensor([1])
    tokens = torch.randint(0, VOCAB, (4, size))
    positions = torch.tensor([0, 8, 4, 4])[:, None] + torch.arange(size)
    every = torch.arange(3).repeat_interleave(size), torch.arange(size).repeat(3)
    caches = [SlotCache(family.shape(model.config), 3, 12, "cpu", torch.float32) for _ in range(2)]
    for cache in caches:
        cache.keys.normal_(generator=torch.Generator().manual_seed(1))
        cache.values.normal_(generator=torch.Generator().manual_seed(2))
    seen = (torch.arange(12) <= positions[:, -1:])[:, None, None]
    with torch.no_grad():
        decoder = StrippedDecoder(family, model, caches[0])
        caches[0].decode(positions, 12, more)
        made = decoder(tokens, positions, seen, every)
        decoder = ModuleDecoder(family, model, caches[1])
        before = torch.stack([tokens[0], tokens[3], tokens[2]]), torch.stack([positions[0], positions[3], positions[2]])
        for ids, places in (before, (tokens[:3], positions[:3])):
            caches[1].decode(places, 12, none)
            expected = decoder(ids, places, (torch.arange(12) <= places[:, -1:])[:, None, None], every)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(caches[0].keys, caches[1].keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(caches[0].values, caches[1].values, rtol=1e-5, atol=1e-5)


def test_no_module_of_a_layer_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a module was called")

    for kind in (Qwen3DecoderLayer, Qwen3Attention, Qwen3MLP, Qwen3RMSNorm):
        monkeypatch.setattr(kind, "forward", fail)
    assert traces(tiny_model(), "auto", DecodingParams(max_response_tokens=4))
    with pytest.raises(AssertionError, match="a module was called"):
        traces(tiny_model(), "modules", DecodingParams(max_response_tokens=4))


def test_weights_pushed_later_are_seen() -> None:
    decoding = DecodingParams(threshold=0.5, max_response_tokens=9)
    requests, running = requests_for(some_prompts()), engine(tiny_model(0), "auto")
    before = answers(running, requests, decoding)
    running.update_weights(family_of(running.model.config).weights(tiny_model(1)), 1)
    after = answers(running, requests, decoding)
    expected = traces(tiny_model(1), "modules", decoding)
    for key, trajectory in expected.items():
        assert_same_trace(dataclasses.replace(after[key], policy_version=0), trajectory, ATOL)
        assert before[key].behaviour_logprobs != trajectory.behaviour_logprobs


def test_matrices_side_by_side_are_the_modules_own_memory() -> None:
    linears = [nn.Linear(3, size, bias=True) for size in (2, 4, 1)]
    for linear in linears:
        linear.requires_grad_(False)
    x = torch.randn(5, 3)
    expected = torch.cat([linear(x) for linear in linears], -1)
    weight, bias = side_by_side(*linears)
    torch.testing.assert_close(nn.functional.linear(x, weight, bias), expected)
    linears[1].weight.fill_(7.0)
    assert (weight[2:6] == 7).all()
    again, _ = side_by_side(*linears)
    assert again.data_ptr() == weight.data_ptr(), "nothing is copied twice"


# ------------------------------------------------------------------------------------------------ what it leaves


class OtherLinear(nn.Linear):
    """As an adapter's layer, it computes what nobody has said."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


class OtherFamily(Qwen3Family):
    plain_decoders = ()


def replace_projection(model: SDARForCausalLM) -> None:
    old = model.model.layers[1].self_attn.v_proj
    model.model.layers[1].self_attn.v_proj = new = OtherLinear(old.in_features, old.out_features, bias=False)
    new.weight = old.weight


def hook(model: SDARForCausalLM) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: 1.5 * out)


def other_epsilon(model: SDARForCausalLM) -> None:
    model.model.layers[0].self_attn.k_norm.variance_epsilon = 0.5


def parametrized(model: SDARForCausalLM) -> None:
    parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight", nn.Softplus(), unsafe=True)


def dynamic_rotary(model: SDARForCausalLM) -> None:
    model.model.rotary_emb.rope_type = "dynamic"


ODD = {
    "OtherLinear": replace_projection,
    "layers.0.mlp has a hook": hook,
    "one epsilon": other_epsilon,
    "ParametrizedLinear": parametrized,
    "dynamic": dynamic_rotary,
}


@pytest.mark.parametrize("reason", ODD)
def test_what_computes_something_else_is_called(reason: str) -> None:
    model = tiny_model()
    made = engine(model, "auto")
    ODD[reason](made.model)
    found = obstacle(made.family, made.model)
    assert found is not None and reason in found
    other = engine(model, "modules")
    ODD[reason](other.model)
    requests, decoding = requests_for(some_prompts()), DecodingParams(threshold=0.5, max_response_tokens=9)
    expected = answers(other, requests, decoding)
    assert answers(made, requests, decoding) == expected


def test_a_family_that_does_not_tell_has_its_modules_called() -> None:
    model = tiny_model()
    assert "OtherFamily does not say what a Qwen3Model computes" in str(obstacle(OtherFamily(), model))
    assert "no model of transformers" in str(obstacle(OtherFamily(), nn.Identity()))


def test_another_forward_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine\.forward='fast': use auto or modules"):
        TorchEngine(forward="fast")
