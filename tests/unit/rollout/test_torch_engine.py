"""The torch engine against a naive decoder without cache: same tokens, same trace, in any company."""

import dataclasses
import heapq
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from tests.reference import Draw, Logits, hf_logits, naive_decode
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from dirl.diffusion.sampling import uniform
from dirl.models import NewModel, SDARConfig, SDARForCausalLM, register_models
from dirl.rollout import TorchEngine
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Strategy, Trajectory

VOCAB, MASK, STOPS = 19, 18, (3, 5, 11)
SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16)
"""Prompt lengths: for every block size above 1, some shorter than a block, some that fill blocks, some that do not.

None is 0: every position of a first block of masks alone sees the same, so that confidences tie.
"""
ATOL = 1e-5
"""fp32 log-probs; the engine's batched and cached forwards add in another order than the oracle's."""


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_model(seed: int = 0, scale: float = 0.3) -> SDARForCausalLM:
    """Random weights; at this scale the confidences spread over (0, 1), so that thresholds and ranks matter."""
    register_models()
    torch.manual_seed(seed)
    config = SDARConfig(vocab_size=VOCAB, num_key_value_heads=2, initializer_range=scale, pad_token_id=0, **SHAPE)
    return SDARForCausalLM(config).eval()


def spec_of(block_size: int, stops: tuple[int, ...] = STOPS) -> ModelSpec:
    return ModelSpec(block_size, mask_token_id=MASK, stop_token_ids=stops, pad_token_id=0, vocab_size=VOCAB)


def engine_of(model: PreTrainedModel, spec: ModelSpec, max_batch_size: int = 64, version: int = 0) -> TorchEngine:
    engine = TorchEngine(max_batch_size)
    engine.setup(model.config, None, spec, "cpu")
    engine.update_weights(model.named_parameters(), version)
    return engine


def some_prompts(seed: int = 0) -> list[tuple[int, ...]]:
    """One of each length, stop tokens among them: those of a prompt end nothing."""
    choose = random.Random(seed)
    return [tuple(choose.randrange(MASK) for _ in range(length)) for length in LENGTHS]


def requests_for(prompts: Sequence[tuple[int, ...]]) -> list[GenerationRequest]:
    return [GenerationRequest(f"p{i}", i % 3, ids, seed=1000 + 7 * i) for i, ids in enumerate(prompts)]


def answers(engine: TorchEngine, requests: Sequence[GenerationRequest], params: DecodingParams) -> dict:
    """Trajectories by key; one for each request."""
    made = list(engine.generate(requests, params))
    assert sorted(t.key for t in made) == sorted((r.prompt_id, r.sample_index) for r in requests)
    return {t.key: t for t in made}


def same_uniforms(seed: int) -> Draw:
    """Inverse-CDF draws from the numbers that the engine uses for this seed; it counts forwards from 0."""

    def draw(block: int, forward: int, position: int, probs: Tensor) -> int:
        u = uniform(torch.tensor(seed), torch.tensor(position), torch.tensor(forward - 1))
        return int((probs.cumsum(0) <= u).sum())

    return draw


def assert_same(made: Trajectory, expected: Trajectory) -> None:
    for name in ("prompt_ids", "response_ids", "response_length", "step_map", "finish_reason"):
        assert getattr(made, name) == getattr(expected, name), name
    assert made.behaviour_logprobs == pytest.approx(expected.behaviour_logprobs, abs=ATOL)


def assert_naive(
    made: dict, model: SDARForCausalLM, requests: Sequence[GenerationRequest], spec: ModelSpec, params: DecodingParams
) -> None:
    for request in requests:
        expected = naive_decode(hf_logits(model), request.prompt_ids, spec, params, same_uniforms(request.seed))
        assert_same(made[request.prompt_id, request.sample_index], expected)


def decoded_like_the_oracle(block_size: int, params: DecodingParams, seed: int = 0) -> list[Trajectory]:
    model, spec, requests = tiny_model(seed), spec_of(block_size), requests_for(some_prompts(seed))
    made = answers(engine_of(model, spec), requests, params)
    assert_naive(made, model, requests, spec, params)
    return list(made.values())


# ------------------------------------------------------------------------------------- against the oracle

STRATEGIES = {
    "low_confidence_dynamic": DecodingParams(threshold=0.6, temperature=0, max_response_tokens=11),
    "low_confidence_static": DecodingParams("low_confidence_static", denoising_steps=2, temperature=0),
    "sequential": DecodingParams("sequential", denoising_steps=3, temperature=0),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("block_size", [1, 2, 4, 8])
def test_greedy_decoding_equals_the_naive_decoder(block_size: int, strategy: Strategy) -> None:
    params = dataclasses.replace(STRATEGIES[strategy], max_response_tokens=11)
    made = decoded_like_the_oracle(block_size, params)
    assert {t.finish_reason for t in made} == {"stop", "length"}, "both ends should be among the cases"


SAMPLED = {
    "plain": DecodingParams(threshold=0.5),
    "cool": DecodingParams(threshold=0.6, temperature=0.7),
    "top-k": DecodingParams(threshold=0.5, temperature=1.3, top_k=3),
    "top-p": DecodingParams(threshold=0.5, top_p=0.8),
    "min-p": DecodingParams(threshold=0.5, min_p=0.2),
    "all cuts": DecodingParams(threshold=0.5, temperature=0.7, top_k=6, top_p=0.9, min_p=0.1),
    "max": DecodingParams(threshold=0.5, confidence="max"),
    "max static": DecodingParams("low_confidence_static", denoising_steps=2, top_k=4, confidence="max"),
    "static": DecodingParams("low_confidence_static", denoising_steps=2, temperature=0.7),
    "sequential": DecodingParams("sequential", denoising_steps=2, top_p=0.9),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_decoding_equals_the_naive_decoder_with_the_same_uniforms(name: str) -> None:
    params = dataclasses.replace(SAMPLED[name], max_response_tokens=10)
    made = decoded_like_the_oracle(4, params, seed=1)
    assert max(t.denoising_steps(4) / len(t.response_ids) for t in made) > 0.25, "some block takes several steps"
    assert all(p <= 0 for t in made for p in t.behaviour_logprobs)


def moe_logits(model: Qwen3MoeForCausalLM) -> Logits:
    """transformers' own forward; Qwen3-MoE takes the mask itself, where Qwen3 takes it by kind of layer."""

    def logits(input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        additive = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))[None, None]
        return model(input_ids=input_ids, attention_mask=additive, position_ids=position_ids, use_cache=False).logits

    return logits


def test_a_mixture_of_experts_decodes_like_the_oracle() -> None:
    torch.manual_seed(0)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    config = Qwen3MoeConfig(vocab_size=VOCAB, initializer_range=0.3, num_key_value_heads=2, **SHAPE, **experts)
    model, spec, requests = Qwen3MoeForCausalLM(config).eval(), spec_of(4), requests_for(some_prompts())
    model.config._attn_implementation = "eager"
    params = DecodingParams(temperature=0, threshold=0.6, max_response_tokens=10)
    made = answers(engine_of(model, spec), requests, params)
    for request in requests:
        expected = naive_decode(moe_logits(model), request.prompt_ids, spec, params)
        assert_same(made[request.prompt_id, request.sample_index], expected)


def test_an_empty_prompt_decodes_like_any_other() -> None:
    params, model, spec = DecodingParams("sequential", max_response_tokens=10), tiny_model(), spec_of(4)
    requests = requests_for([(), (1, 2), (1, 2, 4, 6, 7)])
    assert_naive(answers(engine_of(model, spec), requests, params), model, requests, spec, params)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_behaviour_logprobs_are_finite_and_not_positive(temperature: float) -> None:
    params = DecodingParams(temperature=temperature, top_k=5, top_p=0.9, min_p=0.05, max_response_tokens=32)
    requests = requests_for(some_prompts() * 4)
    made = answers(engine_of(tiny_model(scale=0.6), spec_of(4)), requests, params).values()
    logprobs = torch.tensor([p for t in made for p in t.behaviour_logprobs])
    assert logprobs.isfinite().all() and logprobs.max() <= 0 and logprobs.min() < -0.5


# ------------------------------------------------------------------------------------- seeds and company


def assert_all_the_same(made: dict, expected: dict) -> None:
    for key, trajectory in made.items():
        assert_same(trajectory, expected[key])


@pytest.fixture(scope="module")
def company() -> tuple[SDARForCausalLM, list[GenerationRequest], DecodingParams, dict]:
    """Forty requests of uneven lengths, and what one large batch makes of them."""
    model, params = tiny_model(2, scale=0.1), DecodingParams(threshold=0.5, max_response_tokens=20)
    requests = requests_for([ids for seed in range(4) for ids in some_prompts(seed)])
    return model, requests, params, answers(engine_of(model, spec_of(4)), requests, params)


@pytest.mark.parametrize("max_batch_size", [1, 3])
def test_the_same_seeds_give_the_same_tokens_whatever_the_batch_size(company, max_batch_size: int) -> None:
    model, requests, params, expected = company
    assert_all_the_same(answers(engine_of(model, spec_of(4), max_batch_size), requests, params), expected)


def test_the_same_seeds_give_the_same_tokens_whatever_the_order(company) -> None:
    model, requests, params, expected = company
    shuffled = random.Random(0).sample(requests, len(requests))
    assert_all_the_same(answers(engine_of(model, spec_of(4), 7), shuffled, params), expected)


def test_the_same_seeds_give_the_same_tokens_whatever_the_company(company) -> None:
    model, requests, params, expected = company
    engine = engine_of(model, spec_of(4), 3)
    for few in (requests[9:10], requests[::5], requests[3:11]):  # one engine, so the cache has a past
        assert_all_the_same(answers(engine, few, params), expected)


def test_a_group_of_16_equal_prompts_gives_16_distinct_samples() -> None:
    requests = [GenerationRequest("p", i, (1, 2, 4, 6, 7), seed=i) for i in range(16)]
    engine = engine_of(tiny_model(scale=0.1), spec_of(4, stops=()))
    made = answers(engine, requests, DecodingParams(max_response_tokens=8))
    assert len({t.text_ids for t in made.values()}) == 16
    again = answers(engine, [dataclasses.replace(r, seed=5) for r in requests], DecodingParams(max_response_tokens=8))
    assert {t.response_ids for t in again.values()} == {made["p", 5].response_ids}, "one seed is one sample"


# --------------------------------------------------------------------------------------- work that is done


def forward_shapes(engine: TorchEngine) -> list[tuple[int, int]]:
    """[sequences, tokens] of every forward from now on."""
    shapes: list[tuple[int, int]] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    engine.model.model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def test_equal_prompts_are_prefilled_once() -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    shapes = forward_shapes(engine)
    long, short = tuple(range(1, 12)), (1, 2, 4, 6, 7)
    requests = [GenerationRequest("long", i, long, seed=i) for i in range(16)]
    requests += [GenerationRequest("short", i, short, seed=50 + i) for i in range(4)]
    answers(engine, requests, DecodingParams(max_response_tokens=6))
    assert shapes[0] == (2, 8), "two prompts, up to the last whole block"
    assert shapes[1] == (20, 4), "then a block of everyone"
    assert all(tokens == 4 for _, tokens in shapes[1:])


def test_prompts_shorter_than_a_block_are_not_prefilled() -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    shapes = forward_shapes(engine)
    answers(engine, [GenerationRequest("p", i, (1, 2, 4), seed=i) for i in range(2)], DecodingParams())
    assert {tokens for _, tokens in shapes} == {4} and len(shapes) == engine.forwards


def forwards_of(trajectory: Trajectory, block_size: int) -> int:
    """One per denoising step, and one per block but the last that writes its final keys."""
    blocks = -(-(len(trajectory.prompt_ids) + len(trajectory.response_ids)) // block_size)
    return trajectory.denoising_steps(block_size) + blocks - len(trajectory.prompt_ids) // block_size - 1


def scheduled(lengths: Sequence[int], slots: int) -> int:
    """Steps until all are done if each takes the first slot that becomes free."""
    free = [0] * slots
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def test_finished_sequences_make_room_at_once() -> None:
    slots, params = 4, DecodingParams(threshold=0.5, max_response_tokens=48)
    engine = engine_of(tiny_model(2, scale=0.1), spec_of(4), slots)
    requests = [GenerationRequest("p", i, (1, 2, 4, 6, 7, 8), seed=i) for i in range(24)]
    made = answers(engine, requests, params)
    work = [forwards_of(made["p", i], 4) for i in range(24)]
    assert max(work) > 4 * min(work), "the lengths should be uneven"
    assert engine.forwards == scheduled(work, slots)
    waiting_for_the_longest = sum(max(work[i : i + slots]) for i in range(0, 24, slots))
    assert engine.forwards < 0.75 * waiting_for_the_longest
    assert engine.forwards < 0.4 * sum(work)


def test_no_request_is_no_work() -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    assert list(engine.generate([], DecodingParams())) == []
    assert engine.forwards == 0


def test_trajectories_come_as_they_finish() -> None:
    model, params = tiny_model(2, scale=0.1), DecodingParams(threshold=0.5, max_response_tokens=48)
    requests = [GenerationRequest("p", i, (1, 2), seed=i) for i in range(12)]
    made = list(engine_of(model, spec_of(4)).generate(requests, params))
    work = [forwards_of(t, 4) for t in made]
    assert work == sorted(work) and work[0] < work[-1]
    first = engine_of(model, spec_of(4))
    next(first.generate(requests, params))
    assert first.forwards == work[0]


# --------------------------------------------------------------------------------------------- mask token


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mask_token_is_never_drawn_even_if_its_logit_is_the_largest(temperature: float) -> None:
    params = DecodingParams(threshold=0.5, temperature=temperature, max_response_tokens=12)
    requests = requests_for(some_prompts())
    model = tiny_model()
    expected = answers(engine_of(model, spec_of(4)), requests, params)
    engine = engine_of(model, spec_of(4))
    bias = torch.zeros(VOCAB)
    bias[MASK] = 1e4
    engine.model.lm_head.bias = nn.Parameter(bias)
    made = answers(engine, requests, params)
    assert all(MASK not in t.response_ids for t in made.values())
    assert_all_the_same(made, expected)


# --------------------------------------------------------------------------------------------------- stops


class Scripted(nn.Module):
    """Stands in for a causal LM: at absolute position i it is sure of token script[i], whatever the input."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.config = SimpleNamespace(num_hidden_layers=1, num_key_value_heads=1, head_dim=1)
        self.certain = 30.0 * torch.eye(VOCAB)[list(script)]
        self.lm_head = nn.Identity()

    def model(self, input_ids: Tensor, position_ids: Tensor, **kwargs: object) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.certain[position_ids])


def decode_script(prompt: str, response: str, limit: int, block_size: int = 4) -> Trajectory:
    """Letters are tokens, `.` and `!` are stop tokens; the response should fill whole blocks."""
    ids = {"a": 1, "b": 2, "c": 4, ".": STOPS[0], "!": STOPS[1]}
    prompt_ids = tuple(ids[c] for c in prompt)
    engine = TorchEngine()
    engine.setup(tiny_model().config, None, spec_of(block_size), "cpu")
    engine.model, engine.policy_version = Scripted([*prompt_ids, *(ids[c] for c in response)]), 0
    (made,) = engine.generate([GenerationRequest("p", 0, prompt_ids, 0)], DecodingParams(max_response_tokens=limit))
    letters = {index: letter for letter, index in ids.items()}
    assert "".join(letters[i] for i in made.response_ids) == response[: len(made.response_ids)]
    assert len(made.step_map) == len(made.behaviour_logprobs) == len(made.response_ids)
    assert (len(prompt) + len(made.response_ids)) % block_size == 0, "all positions of all decoded blocks"
    return made


@pytest.mark.parametrize(
    ("prompt", "response", "limit", "decoded", "length", "reason"),
    [
        ("abca", "bcabca.bbbbb", 12, 8, 7, "stop"),  # inside the second block, the tail is decoded too
        ("abca", "bca.cccc", 12, 4, 4, "stop"),  # the last position of a block
        ("abca", "b.a!cccc", 12, 4, 2, "stop"),  # the first of several
        ("abca", "bc!.cccc", 12, 4, 3, "stop"),  # any of the stop tokens
        ("abcab", "c.acbbbb", 12, 3, 2, "stop"),  # in a first block that is partly prompt
        ("ab", ".abbbb", 12, 2, 1, "stop"),  # right after a prompt shorter than a block
        ("a.c!", "bcabbbbb", 8, 8, 8, "length"),  # a stop token of the prompt is none
        ("abc.", "bcab", 4, 4, 4, "length"),
        ("ab.", "bcaab.cc", 12, 9, 6, "stop"),  # of a prompt that shares its block with the response
        ("abca", "bcabcabc", 6, 8, 6, "length"),  # the limit is inside a block
        ("abca", "bcabca.c", 6, 8, 6, "length"),  # beyond the limit, in the block of the limit: no stop
        ("abca", "bcabc.ac", 6, 8, 6, "stop"),  # at the limit
        ("abcab", "ca.bcabcccc", 1, 3, 1, "length"),
    ],
)
def test_a_response_ends_at_the_earliest_of_stop_token_and_limit(
    prompt: str, response: str, limit: int, decoded: int, length: int, reason: str
) -> None:
    padded = response + "b" * (-(len(prompt) + len(response)) % 4 + 8)
    made = decode_script(prompt, padded, limit)
    assert (len(made.response_ids), made.response_length, made.finish_reason) == (decoded, length, reason)


def test_all_sure_tokens_of_a_block_are_committed_in_one_step() -> None:
    assert decode_script("abcab", "cab" + "abca.bbb", 11).step_map == (1,) * 11


# ------------------------------------------------------------------------------------------------- weights


def test_new_weights_decode_as_the_new_model() -> None:
    old, new, spec = tiny_model(0), tiny_model(5), spec_of(4)
    requests, params = requests_for(some_prompts()), DecodingParams(temperature=0, max_response_tokens=10)
    engine = engine_of(old, spec, version=3)
    before = answers(engine, requests, params)
    assert {t.policy_version for t in before.values()} == {3}
    engine.update_weights(new.named_parameters(), 17)
    after = answers(engine, requests, params)
    assert {t.policy_version for t in after.values()} == {17}
    assert all(before[key].response_ids != after[key].response_ids for key in after)
    assert_naive(after, new, requests, spec, params)


def test_the_weights_are_copies() -> None:
    model, spec = tiny_model(), spec_of(4)
    params, requests = DecodingParams(temperature=0, max_response_tokens=6), requests_for(some_prompts()[:3])
    engine = engine_of(model, spec)
    before = answers(engine, requests, params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert answers(engine, requests, params) == before


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {("module." + name if name == "lm_head.weight" else name): value for name, value in weights.items()}


def without_the_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name != "lm_head.weight"}


def with_a_longer_vocabulary(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {"lm_head.weight": torch.zeros(VOCAB + 1, 32)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (renamed, "'module.lm_head.weight' is unknown"),
        (without_the_head, r"left out \['lm_head.weight'\]"),
        (with_a_longer_vocabulary, r"'lm_head.weight' has shape \(20, 32\), the engine \(19, 32\)"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(spoil: Callable[[dict], dict], message: str) -> None:
    engine = engine_of(tiny_model(), spec_of(4))
    with pytest.raises(ValueError, match=message):
        engine.update_weights(spoil(dict(tiny_model().named_parameters())).items(), 1)
    assert engine.policy_version == 0, "the version of a refused update is not carried"


def test_generating_before_weights_is_an_error() -> None:
    engine = TorchEngine()
    for _ in range(2):  # also when a used engine is set up anew
        engine.setup(tiny_model().config, None, spec_of(4), "cpu")
        with pytest.raises(ValueError, match="no weights yet: call update_weights"):
            list(engine.generate(requests_for([(1, 2)]), DecodingParams()))
        engine.update_weights(tiny_model().named_parameters(), 0)


def test_an_engine_can_hold_its_weights_in_another_precision() -> None:
    engine = TorchEngine(dtype="bfloat16")
    engine.setup(tiny_model().config, None, spec_of(4), "cpu")
    engine.update_weights(tiny_model().named_parameters(), 0)
    assert {p.dtype for p in engine.model.parameters()} == {torch.bfloat16}
    (made,) = answers(engine, requests_for([(1, 2, 4, 6, 7)]), DecodingParams(max_response_tokens=4)).values()
    logprobs = torch.tensor(made.behaviour_logprobs)
    assert (logprobs.bfloat16().float() != logprobs).any(), "log-probs stay in fp32"


def test_no_room_for_a_sequence_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_batch_size=0: use at least 1"):
        TorchEngine(max_batch_size=0)


def test_the_engines_dtype_leaves_the_trainers_config_alone() -> None:
    """transformers writes the dtype that a model is made with into its config, and the trainer builds from that."""
    description = NewModel(hidden_size=32, num_hidden_layers=1, alphabet="01").describe()
    before = description.config.dtype
    engine = TorchEngine(dtype="bfloat16")
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    assert engine.model.dtype == torch.bfloat16
    assert description.config.dtype == before == torch.float32


def test_the_cache_is_given_back_between_rollouts() -> None:
    source = NewModel(hidden_size=32, num_hidden_layers=1, alphabet="01")
    description, engine = source.describe(), TorchEngine()
    engine.setup(description.config, description.tokenizer, description.spec, "cpu")
    engine.update_weights(source.build(description.config).named_parameters(), 0)
    running = engine.generate([GenerationRequest("a", i, (0, 1), i) for i in range(3)], DecodingParams())
    next(running)
    assert engine.cache is not None
    list(running)
    assert engine.cache is None
