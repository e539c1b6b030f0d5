"""One packed forward scores each token as the engine drew it, and as one naive forward per denoising step does.

Three ways to one number: the trainer's (views, packing, attention mask, chunked head), the engine's (KV cache,
batch of mixed lengths), and that of transformers' own attention over the plain sequence as it stood at the step.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from tests.packed import group_pieces
from tests.reference import hf_logits, naive_block_logits, naive_decode, naive_trajectory_logprobs
from tests.tiny import TinyModel, prompt, sample_groups
from torch import Tensor
from transformers import PreTrainedModel

from dirl.batches import PackedBatch
from dirl.models import BlockDiffusionLM
from dirl.models.policy import Likelihood
from dirl.packing.rows import pack
from dirl.types import DecodingParams, ModelSpec, Trajectory

TOLERANCE = 1e-5
"""Nats. fp32 log-probs of a few nats, where sums of some tens of terms run in another order: 4e-6 was the most seen."""

DYNAMIC = DecodingParams(threshold=0.4, max_response_tokens=13)
STATIC = dataclasses.replace(DYNAMIC, strategy="low_confidence_static", denoising_steps=2)
SEQUENTIAL = dataclasses.replace(DYNAMIC, strategy="sequential", denoising_steps=2)
CASES = {
    "dynamic": DYNAMIC,
    "dynamic, cold": dataclasses.replace(DYNAMIC, temperature=0.7),
    "dynamic, never sure": dataclasses.replace(DYNAMIC, threshold=1.0),
    "dynamic, top-k": dataclasses.replace(DYNAMIC, top_k=5),
    "dynamic, top-p": dataclasses.replace(DYNAMIC, top_p=0.8),
    "dynamic, min-p": dataclasses.replace(DYNAMIC, min_p=0.1),
    "dynamic, all cuts, cold": dataclasses.replace(DYNAMIC, temperature=0.7, top_k=7, top_p=0.9, min_p=0.02),
    "dynamic by max": dataclasses.replace(DYNAMIC, confidence="max"),
    "dynamic by max, cut, cold": dataclasses.replace(DYNAMIC, confidence="max", temperature=0.7, top_k=4),
    "static": STATIC,
    "static, one a step, cold": dataclasses.replace(STATIC, denoising_steps=None, temperature=0.7),
    "static, cut": dataclasses.replace(STATIC, top_p=0.8),
    "static by max": dataclasses.replace(STATIC, confidence="max"),
    "sequential": SEQUENTIAL,
    "sequential, cut, cold": dataclasses.replace(SEQUENTIAL, top_k=5, temperature=0.7),
}

TokenKey = tuple[int, int]
"""(number of the trajectory, absolute position)."""
FactorKey = tuple[int, int, int, int]
"""(number of the trajectory, absolute block, denoising step, absolute position)."""


@dataclass(frozen=True)
class World:
    """Groups that the engine sampled, and what the naive oracle says of their tokens."""

    backbone: PreTrainedModel
    spec: ModelSpec
    decoding: DecodingParams
    groups: list[list[Trajectory]]
    logprobs: dict[TokenKey, float]
    factors: dict[FactorKey, float]

    @property
    def trajectories(self) -> list[Trajectory]:
        return [t for group in self.groups for t in group]

    @property
    def reported(self) -> dict[TokenKey, float]:
        """The log-probabilities that the engine reported."""
        return {
            (n, len(t.prompt_ids) + i): logprob
            for n, t in enumerate(self.trajectories)
            for i, logprob in enumerate(t.behaviour_logprobs)
        }


@cache
def world(decoding: DecodingParams = DYNAMIC, block_size: int = 4, tied: bool = True, padding: int = 0) -> World:
    """Prompts of whole blocks, of a part of one, and of both; the advantage of a trajectory is its number."""
    source = TinyModel(block_size, tied, padding=padding)
    backbone, spec = source.make()
    lengths = [max(1, block_size - 1), block_size, block_size + block_size // 2, 2 * block_size]
    groups = sample_groups(source, [prompt(n) for n in lengths], 2, decoding)
    groups = [
        [dataclasses.replace(t, advantage=float(2 * g + i)) for i, t in enumerate(group)]
        for g, group in enumerate(groups)
    ]
    logprobs: dict[TokenKey, float] = {}
    factors: dict[FactorKey, float] = {}
    for n, t in enumerate(t for group in groups for t in group):
        with torch.no_grad():
            values, found = naive_trajectory_logprobs(hf_logits(backbone, "eager"), t, spec, decoding)
        logprobs |= {(n, len(t.prompt_ids) + i): value for i, value in enumerate(values.tolist())}
        factors |= {(n, *key): float(value) for key, value in found.items()}
    return World(backbone, spec, decoding, groups, logprobs, factors)


def packed(world: World, budget: int = 300, share_prompt: bool = True) -> list[PackedBatch]:
    segments = []
    for group in world.groups:
        segments += group_pieces(group, world.spec, [1.0] * len(group), share_prompt)
    return pack(segments, budget)


def scored(
    world: World, batches: Sequence[PackedBatch], likelihood: Likelihood = "tokens", **options: Any
) -> tuple[dict[TokenKey, float], dict[FactorKey, float]]:
    """What the packed forward says of each token and of each rejection, by whose and where it is."""
    model = BlockDiffusionLM(world.backbone, world.spec, **options)
    logprobs: dict[TokenKey, float] = {}
    factors: dict[FactorKey, float] = {}
    for batch in batches:
        scores = model(batch, world.decoding, likelihood)
        numbers, places = batch.columns["advantages"].long(), batch.position_ids
        at = scores.positions
        keys = zip(numbers[at].tolist(), places[at].tolist(), strict=True)
        add(logprobs, keys, scores.logprobs)
        at = scores.factor_positions
        columns = (numbers[at], batch.block_ids[at], batch.view_ids[at], places[at])
        add(factors, zip(*(c.tolist() for c in columns), strict=True), scores.log_factors)
    return logprobs, factors


def add(found: dict, keys: Any, values: Tensor) -> None:
    for key, value in zip(keys, values.tolist(), strict=True):
        assert key not in found, f"{key} was scored twice"
        found[key] = value


def assert_same(found: dict, wanted: dict) -> None:
    """The same keys, in whatever order, and the same values."""
    assert sorted(found) == sorted(wanted)
    wrong = {key: (found[key], wanted[key]) for key in wanted if not abs(found[key] - wanted[key]) < TOLERANCE}
    assert not wrong, f"{len(wrong)} of {len(wanted)} differ"


# ------------------------------------------------------------------------------------- the three numbers


@pytest.mark.parametrize("decoding", CASES.values(), ids=CASES.keys())
def test_packed_logprobs_are_those_of_a_naive_forward_per_step_and_of_the_engine(decoding: DecodingParams) -> None:
    this = world(decoding)
    found, factors = scored(this, packed(this))
    assert not factors
    assert_same(found, this.logprobs)
    assert_same(found, this.reported)


@pytest.mark.parametrize("decoding", CASES.values(), ids=CASES.keys())
def test_packed_selection_factors_are_those_of_the_oracle(decoding: DecodingParams) -> None:
    this = world(decoding)
    found, factors = scored(this, packed(this), "trajectory")
    assert_same(found, this.logprobs)
    assert_same(factors, this.factors)
    blind = decoding.strategy == "sequential" or decoding.confidence == "max"
    assert blind == (not factors)


@pytest.mark.parametrize(("block_size", "tied"), [(1, True), (2, False), (4, False), (8, True)])
def test_parity_holds_for_every_block_size_and_head(block_size: int, tied: bool) -> None:
    this = world(dataclasses.replace(DYNAMIC, temperature=0.8), block_size, tied)
    assert this.backbone.config.tie_word_embeddings == tied
    found, factors = scored(this, packed(this), "trajectory")
    assert_same(found, this.logprobs)
    assert_same(found, this.reported)
    assert_same(factors, this.factors)


@pytest.mark.parametrize("name", ["dynamic", "dynamic, all cuts, cold", "static", "sequential, cut, cold"])
def test_parity_holds_for_a_padded_vocabulary_of_which_no_id_without_a_token_is_drawn(name: str) -> None:
    plain, this = world(CASES[name]), world(CASES[name], padding=40)
    size = plain.spec.vocab_size
    assert this.spec.unknown_ids == tuple(range(size, size + 40))
    found, factors = scored(this, packed(this), "trajectory")
    assert_same(found, this.logprobs)
    assert_same(found, this.reported)
    assert_same(factors, this.factors)
    assert max(i for t in this.trajectories for i in t.response_ids) < size
    # more than half of an untrained model's probability lies there
    logits = naive_block_logits(hf_logits(this.backbone), prompt(8), 4, 4)
    assert logits.softmax(-1)[:, size:].sum(-1).mean() > 0.5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as is meant on CPU
@pytest.mark.parametrize("share_prompt", [True, False], ids=["shared prompt", "own prompts"])
@pytest.mark.parametrize("attention", ["dense", "segments", "flex"])
@torch.no_grad()  # FlexAttention has no backward on CPU
def test_parity_holds_for_every_attention(attention: str, share_prompt: bool) -> None:
    this = world()
    batches = packed(this, share_prompt=share_prompt)
    prompts = sum(int((b.branch_ids == 0).sum()) for b in batches)
    assert prompts == (4 + 4 + 8) * (1 if share_prompt else 2)
    found, factors = scored(this, batches, "trajectory", attention=attention)
    assert_same(found, this.logprobs)
    assert_same(factors, this.factors)


@pytest.mark.parametrize("budget", [1, 100, 260, 10_000], ids="budget {}".format)
def test_parity_holds_for_every_packing(budget: int) -> None:
    this = world()
    batches = packed(this, budget)
    groups = [int(b.group_ids.max()) + 1 for b in batches]
    assert {1: max(groups) == 1, 100: len(groups) > 3, 260: groups == [2, 2], 10_000: groups == [4]}[budget], groups
    assert_same(scored(this, batches)[0], this.logprobs)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as is meant on CPU
@pytest.mark.parametrize("share_prompt", [True, False], ids=["shared prompt", "own prompts"])
@pytest.mark.parametrize("attention", ["dense", "segments", "flex"])
@torch.no_grad()  # FlexAttention has no backward on CPU
def test_parity_holds_where_responses_are_split(attention: str, share_prompt: bool) -> None:
    this = world()
    whole, batches = packed(this, 10_000, share_prompt), packed(this, 32, share_prompt)
    longest = max(len(t.prompt_ids) + len(t.response_ids) for t in this.trajectories)
    assert max(map(len, batches)) <= 32 and longest <= 32
    assert sum(int((b.view_ids == 0).sum()) for b in batches) > 1.5 * sum(int((b.view_ids == 0).sum()) for b in whole)
    found, factors = scored(this, batches, "trajectory", attention=attention)
    assert_same(found, this.logprobs)
    assert_same(factors, this.factors)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("head_chunk", [1, 7, 10_000])
def test_parity_holds_for_every_chunk_of_the_head(head_chunk: int, grad: bool) -> None:
    this = world(CASES["dynamic, all cuts, cold"])
    with torch.set_grad_enabled(grad):
        found, factors = scored(this, packed(this), "trajectory", head_chunk=head_chunk)
    assert_same(found, this.logprobs)
    assert_same(factors, this.factors)


def test_greedy_trajectories_are_scored_by_their_confidence_whatever_the_cuts() -> None:
    this = world(dataclasses.replace(DYNAMIC, temperature=0.0, top_k=3, top_p=0.5))
    found, factors = scored(this, packed(this), "trajectory")
    assert not factors, "nothing was drawn"
    assert_same(found, this.logprobs)
    assert_same(found, this.reported)


def test_transformers_own_eager_and_sdpa_attention_agree_as_oracles() -> None:
    this = world()
    for n, trajectory in enumerate(this.trajectories[:3]):
        with torch.no_grad():
            values, _ = naive_trajectory_logprobs(
                hf_logits(this.backbone, "sdpa"), trajectory, this.spec, this.decoding
            )
        wanted = [this.logprobs[n, len(trajectory.prompt_ids) + i] for i in range(len(values))]
        assert values.tolist() == pytest.approx(wanted, abs=TOLERANCE)


# --------------------------------------------------------------------- what the above would prove of nothing


def test_the_sampled_trajectories_hold_every_kind() -> None:
    trajectories = world().trajectories
    size = world().spec.block_size
    lengths = {len(t.prompt_ids) for t in trajectories}
    assert {n % size for n in lengths} == {0, 2, 3} and min(lengths) < size
    assert any(t.finish_reason == "stop" and t.response_length < len(t.response_ids) for t in trajectories)
    assert any(t.finish_reason == "length" and t.response_length < len(t.response_ids) for t in trajectories)
    assert len({t.response_ids for t in trajectories}) == 8, "the groups are made of equals"
    assert any(step > 1 for t in trajectories for step in t.step_map)
    assert any(t.denoising_steps(size) < len(t.response_ids) for t in trajectories), "no step commits two tokens"


def test_the_model_is_neither_flat_nor_sure() -> None:
    values = torch.tensor(list(world().logprobs.values())).exp()
    assert values.std() > 0.15 and values.min() < 0.05 and values.max() > 0.7


def test_both_kinds_of_dynamic_rejection_occur() -> None:
    """Steps that left positions waiting and were sure of what they committed, and steps that were not."""
    this = world()
    surest: dict[tuple[int, int, int], float] = {}
    for (n, position), logprob in this.logprobs.items():
        step = this.trajectories[n].step_map[position - len(this.trajectories[n].prompt_ids)]
        key = n, position // 4, step
        surest[key] = max(surest.get(key, -9.0), logprob)  # temperature 1 and no cut: the confidence
    sure = {math.exp(surest[key[:3]]) >= this.decoding.threshold for key in this.factors}
    assert sure == {True, False}


def test_greedy_engine_tokens_are_those_of_a_naive_decoder() -> None:
    this = world(dataclasses.replace(DYNAMIC, temperature=0.0))
    for group in this.groups:
        naive = naive_decode(hf_logits(this.backbone), group[0].prompt_ids, this.spec, this.decoding)
        for t in group:
            assert (t.response_ids, t.step_map) == (naive.response_ids, naive.step_map)


def assert_engine_and_trainer_agree(source: TinyModel) -> None:
    """The torch engine reports for what it samples what the trainer then finds; for tests of families too."""
    backbone, spec = source.make()
    decoding = DecodingParams(threshold=0.4, max_response_tokens=13)
    groups = sample_groups(source, [prompt(n) for n in (3, 4, 6)], 2, decoding)
    numbered = [
        [dataclasses.replace(t, advantage=float(2 * g + i)) for i, t in enumerate(group)]
        for g, group in enumerate(groups)
    ]
    world = World(backbone, spec, decoding, numbered, {}, {})
    found, _ = scored(world, packed(world))
    assert len(found) > 40
    assert_same(found, world.reported)
