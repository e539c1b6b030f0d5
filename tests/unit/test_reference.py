"""The oracles themselves, against numbers worked by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.reference import (
    Scored,
    Token,
    block_causal_mask,
    commit,
    dense_mask,
    distribution,
    group_advantages,
    hf_logits,
    naive_block_logits,
    naive_decode,
    naive_dipo_loss,
    naive_sft_loss,
    naive_trajectory_logprobs,
    selection_log_factors,
)
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from dirl.types import DecodingParams, ModelSpec, Trajectory

MASK, STOP = 4, 3
SPEC = ModelSpec(block_size=2, mask_token_id=MASK, stop_token_ids=(STOP,), pad_token_id=0, vocab_size=5)
LN2 = math.log(2)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(text: str) -> Tensor:
    return torch.tensor([[int(c) for c in row] for row in text.split()]).bool()


# ---------------------------------------------------------------------------------------------- attention


def test_the_predicate_gives_the_hand_drawn_mask() -> None:
    tokens = [
        Token(0, 0, 0, 0),  # shared prompt
        Token(0, 1, 1, 0),  # first response, block 1, clean
        Token(0, 1, 1, 1),  # its first noised copy
        Token(0, 1, 1, 2),  # its second
        Token(0, 1, 2, 1),  # block 2, noised
        Token(0, 2, 1, 0),  # second response, block 1, clean
        Token(0, 2, 1, 1),
        Token(1, 0, 0, 0),  # another group
    ]
    expected = rows("10000000 11000000 10100000 10010000 11001000 10000100 10000010 00000001")
    assert torch.equal(dense_mask(tokens), expected)


def test_a_clean_sequence_is_block_causal_by_the_same_predicate() -> None:
    assert torch.equal(block_causal_mask(5, 2), rows("11000 11000 11110 11110 11111"))
    assert torch.equal(block_causal_mask(5, 2), dense_mask([Token(0, 0, i // 2, 0) for i in range(5)]))


# -------------------------------------------------------------------------------------------------- model


@pytest.fixture
def qwen() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=11, num_key_value_heads=1, **shape)).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_blocks_of_one_are_the_causal_forward_of_transformers(qwen: Qwen3ForCausalLM, attention: str) -> None:
    ids = [1, 5, 2, 7, 3]
    causal = qwen(torch.tensor([ids])).logits[0].double()
    qwen.config._attn_implementation = "a kernel of our own"
    last = naive_block_logits(hf_logits(qwen, attention), ids, 4, 1)
    torch.testing.assert_close(last, causal[4:], atol=1e-6, rtol=1e-5)  # fp32
    assert qwen.config._attn_implementation == "a kernel of our own"


@torch.no_grad()
def test_a_block_is_seen_whole_and_later_ones_change_nothing(qwen: Qwen3ForCausalLM) -> None:
    model = hf_logits(qwen)
    before = naive_block_logits(model, [1, 5, 2, 7], 2, 2)
    assert (naive_block_logits(model, [1, 5, 2, 8], 2, 2)[0] - before[0]).abs().max() > 1e-4
    assert (naive_block_logits(model, [1, 6, 2, 7], 2, 2) - before).abs().max() > 1e-4
    position_ids, mask = torch.arange(6)[None], block_causal_mask(6, 2)
    longer = model(torch.tensor([[1, 5, 2, 7, 9, 9]]), mask, position_ids)[0, 2:4].double()
    torch.testing.assert_close(longer, before, atol=1e-6, rtol=1e-5)  # fp32


# ------------------------------------------------------------------------------------------- distribution


def draw_probs(*probs: float, **cuts: float) -> list[float]:
    """Draw probabilities of a vocabulary of these probabilities and a mask token of a large logit."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | cuts
    logits = torch.cat([f64(*probs).log(), f64(9.0)])
    draw, confidence = distribution(logits, len(probs), **settings)
    assert draw[-1] == confidence[-1] == 0
    if settings["temperature"] == 1.0:
        assert confidence[:-1].tolist() == pytest.approx(probs)
    return draw[:-1].tolist()


def test_the_draw_is_cut_by_top_k_top_p_and_min_p() -> None:
    assert draw_probs(0.1, 0.4, 0.2, 0.3) == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert draw_probs(0.1, 0.4, 0.2, 0.3, top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    # before 0.4, 0.3, 0.2, 0.1 lie 0, 0.4, 0.7, 0.9
    assert draw_probs(0.1, 0.4, 0.2, 0.3, top_p=0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert draw_probs(0.1, 0.4, 0.2, 0.3, top_p=0.8) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert draw_probs(0.1, 0.4, 0.2, 0.3, top_p=0.1) == [0, 1, 0, 0]
    # 0.6 * 0.4 = 0.24
    assert draw_probs(0.1, 0.4, 0.2, 0.3, min_p=0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7])


def test_top_p_counts_what_top_k_left() -> None:
    # of 0.4 and 0.3 the first holds 4/7 = 0.571 of the mass: it alone exceeds 0.5, in the full vocabulary not
    assert draw_probs(0.1, 0.4, 0.2, 0.3, top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert draw_probs(0.1, 0.4, 0.2, 0.3, top_k=2, top_p=0.5) == [0, 1, 0, 0]


def test_temperature_sharpens_and_zero_is_greedy_with_confidences_at_one() -> None:
    # temperature 1/2 squares: 0.01, 0.16, 0.04, 0.09 of 0.30
    assert draw_probs(0.1, 0.4, 0.2, 0.3, temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])
    draw, confidence = distribution(f64(0.0, LN2, 9.0), 2, 0.0, 0, 1.0, 0.0)
    assert draw.tolist() == [0, 1, 0]
    assert confidence.tolist() == pytest.approx([1 / 3, 2 / 3, 0])


# ------------------------------------------------------------------------------------------------- commit


@pytest.mark.parametrize(
    ("strategy", "threshold", "quota", "expected"),
    [
        ("low_confidence_dynamic", 0.5, 1, {1, 4}),
        ("low_confidence_dynamic", 0.6, 1, {1, 4}),
        ("low_confidence_dynamic", 0.9, 2, {4}),
        ("low_confidence_static", 0.1, 1, {4}),
        ("low_confidence_static", 0.1, 2, {1, 4}),
        ("low_confidence_static", 0.1, 9, {1, 3, 4, 5}),
        ("sequential", 0.1, 2, {1, 3}),
    ],
)
def test_a_step_commits_what_the_strategy_says(strategy: str, threshold: float, quota: int, expected: set[int]) -> None:
    confidences = {0: 1.0, 1: 0.6, 2: 1.0, 3: 0.2, 4: 0.7, 5: 0.2}  # 0 and 2 are visible already
    assert commit(strategy, confidences, {5, 4, 3, 1}, threshold, quota) == expected


def test_of_equally_confident_positions_the_leftmost_is_committed() -> None:
    for strategy in ("low_confidence_dynamic", "low_confidence_static"):
        assert commit(strategy, {3: 0.5, 1: 0.5, 2: 0.5}, [3, 2, 1], 0.9, 1) == {1}


# ------------------------------------------------------------------------------------------------- decode


class Scripted:
    """A model whose probabilities of tokens 0..3 at a position depend on that block's visible content alone."""

    def __init__(self, script: dict[tuple[int, ...], list[list[float]]], block_size: int = 2) -> None:
        self.script, self.block_size = script, block_size
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        ids = input_ids[0].tolist()
        assert torch.equal(mask, block_causal_mask(len(ids), self.block_size))
        assert position_ids[0].tolist() == list(range(len(ids)))
        self.seen.append(ids)
        table = self.script[tuple(ids[-self.block_size :])]
        last = torch.tensor([[*probs, 1.0] for probs in table], dtype=torch.float64).log()
        return torch.cat([torch.full((len(ids) - self.block_size, 5), math.nan, dtype=torch.float64), last])[None]


EVEN = [0.25, 0.25, 0.25, 0.25]
SCRIPT = {
    (MASK, MASK): [[0.5, 0.3, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1]],
    (MASK, 1): [[0.1, 0.2, 0.7, 0.0], EVEN],
    (2, MASK): [EVEN, [0.1, 0.05, 0.05, 0.8]],
    (0, MASK): [EVEN, [0.1, 0.2, 0.3, 0.4]],
}


def test_greedy_decoding_by_hand_from_a_partly_filled_block() -> None:
    model = Scripted(SCRIPT)
    got = naive_decode(model, [0, 0, 2], SPEC, DecodingParams(temperature=0.0, max_response_tokens=9))
    # block 1 starts with prompt token 2; position 3 becomes the stop token 3 at once
    assert (got.response_ids, got.step_map, got.response_length, got.finish_reason) == ((STOP,), (1,), 1, "stop")
    assert got.behaviour_logprobs == pytest.approx([math.log(0.8)])
    assert model.seen == [[0, 0, 2, MASK]]
    got.check(SPEC)


def test_the_most_confident_position_goes_first_and_the_length_limit_keeps_the_whole_block() -> None:
    model = Scripted(SCRIPT)
    got = naive_decode(model, [0, 0], SPEC, DecodingParams(temperature=0.0, max_response_tokens=3))
    # each block: token 1 at its second position (0.6 > 0.5), then 2 at its first (0.7)
    assert got.response_ids == (2, 1, 2, 1) and got.step_map == (2, 1, 2, 1)
    assert (got.response_length, got.finish_reason) == (3, "length")
    assert got.behaviour_logprobs == pytest.approx([math.log(p) for p in (0.7, 0.6, 0.7, 0.6)])
    assert model.seen[1:3] == [[0, 0, MASK, 1], [0, 0, 2, 1, MASK, MASK]]
    got.check(SPEC)


def test_the_tail_after_the_stop_token_is_kept_and_no_block_follows() -> None:
    script = {(0, MASK): [EVEN, [0.9, 0.0, 0.0, 0.1]], (MASK, MASK): [[0.0, 0.0, 0.0, 1.0], [0.9, 0.1, 0.0, 0.0]]}
    decoding = DecodingParams(temperature=0.0, threshold=0.5, max_response_tokens=9)
    got = naive_decode(Scripted(script), [0], SPEC, decoding)
    assert got.response_ids == (0, STOP, 0) and got.step_map == (1, 1, 1)
    assert (got.text_ids, got.finish_reason) == ((0, STOP), "stop")


def test_the_stop_token_counts_only_up_to_the_length_limit() -> None:
    script = {(MASK, MASK): [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]}
    decoding = DecodingParams(temperature=0.0, threshold=0.5)
    for limit, length, reason in [(1, 1, "length"), (2, 2, "stop"), (3, 2, "stop")]:
        got = naive_decode(Scripted(script), [0, 0], SPEC, replace(decoding, max_response_tokens=limit))
        assert got.response_ids == (0, STOP)
        assert (got.response_length, got.finish_reason) == (length, reason)


def test_a_stop_token_in_the_prompt_does_not_end_the_response() -> None:
    decoding = DecodingParams(temperature=0.0, max_response_tokens=2)
    got = naive_decode(Scripted(SCRIPT), [STOP, 0], SPEC, decoding)
    assert got.response_ids == (2, 1) and got.finish_reason == "length"


def test_drawn_candidates_that_are_not_committed_are_drawn_again() -> None:
    calls: list[tuple[int, int, int]] = []
    answers = {(1, 1, 2): 1, (1, 1, 3): 0, (1, 2, 3): 3}

    def draw(block: int, forward: int, position: int, probs: Tensor) -> int:
        calls.append((block, forward, position))
        return answers[block, forward, position]

    script = SCRIPT | {(1, MASK): [EVEN, [0.1, 0.2, 0.3, 0.4]]}
    decoding = DecodingParams(max_response_tokens=2, top_k=2)
    got = naive_decode(Scripted(script), [0, 0], SPEC, decoding, draw)
    # step 1 draws 1 (confidence 0.3) and 0 (0.2): position 2 is committed, 3 is drawn anew and becomes 3
    assert calls == [(1, 1, 2), (1, 1, 3), (1, 2, 3)]
    assert got.response_ids == (1, STOP) and got.step_map == (1, 2)
    assert got.behaviour_logprobs == pytest.approx([math.log(0.3 / 0.8), math.log(0.4 / 0.7)])


# ------------------------------------------------------------------------------------------------- views


def trajectory(prompt: Sequence[int], response: Sequence[int], steps: Sequence[int]) -> Trajectory:
    return Trajectory(
        "p", 0, tuple(prompt), tuple(response), len(response), tuple(steps), (0.0,) * len(steps), "stop", 0
    )


def test_each_token_is_scored_by_the_forward_of_its_step() -> None:
    model = Scripted(SCRIPT)
    logprobs, factors = naive_trajectory_logprobs(
        model, trajectory([0], [3, 2, 1], [1, 2, 1]), SPEC, DecodingParams(threshold=0.9)
    )
    assert logprobs.exp().tolist() == pytest.approx([0.4, 0.7, 0.6])
    assert model.seen == [[0, MASK], [0, 3, MASK, MASK], [0, 3, MASK, 1]]
    # block 1, step 1, position 2 waits: all its tokens are at most 0.6, so it never wins
    assert list(factors) == [(1, 1, 2)] and factors[1, 1, 2].exp().item() == pytest.approx(1.0)


def test_replay_gives_what_the_decoder_reported() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(5**3, 3, 5, generator=generator, dtype=torch.float64) * 3
    spec = replace(SPEC, block_size=3)

    def model(input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        ids = input_ids[0].tolist()
        row = sum(token * 5**i for i, token in enumerate(ids[-3:]))
        return torch.cat([torch.zeros(len(ids) - 3, 5, dtype=torch.float64), table[row]])[None]

    def draw(block: int, forward: int, position: int, probs: Tensor) -> int:
        return int(torch.multinomial(probs, 1, generator=generator))

    for strategy in ("low_confidence_dynamic", "low_confidence_static", "sequential"):
        for prompt in ([0], [0, 1, 2], [0, 1, 2, 0, 1]):
            for temperature in (0.0, 0.7):
                decoding = DecodingParams(
                    strategy=strategy, threshold=0.4, temperature=temperature, max_response_tokens=7
                )
                made = naive_decode(model, prompt, spec, decoding, draw)
                made.check(spec)
                logprobs, factors = naive_trajectory_logprobs(model, made, spec, decoding)
                assert logprobs.tolist() == pytest.approx(made.behaviour_logprobs, abs=1e-12)
                assert all(-50 < factor <= 1e-12 for factor in factors.values())
                assert bool(factors) == (strategy != "sequential" and temperature > 0 and max(made.step_map) > 1)


def test_selection_factors_by_hand() -> None:
    sure, unsure = f64(0.7, 0.2, 0.1), f64(0.4, 0.35, 0.25)
    waiting = f64(0.5, 0.3, 0.2)
    cut = f64(5 / 8, 3 / 8, 0.0)
    decoding = DecodingParams(threshold=0.6)

    def factor(decoding: DecodingParams, committed: dict[int, int], at_2: tuple[Tensor, Tensor]) -> float:
        probs = {0: (sure, sure), 1: (unsure, unsure), 2: at_2}
        return selection_log_factors(decoding, probs, committed, [2])[2].exp().item()

    # the committed 0.7 reaches the threshold: position 2 waits while below 0.6, always
    assert factor(decoding, {0: 0}, (waiting, waiting)) == pytest.approx(1.0)
    assert factor(replace(decoding, threshold=0.5), {0: 0}, (waiting, waiting)) == pytest.approx(0.5)
    # the committed 0.35 does not: position 2 waits while at most 0.35
    assert factor(decoding, {1: 1}, (waiting, waiting)) == pytest.approx(0.5)
    assert factor(decoding, {1: 1}, (cut, waiting)) == pytest.approx(3 / 8)
    assert factor(decoding, {1: 1}, (unsure, unsure)) == pytest.approx(0.35 + 0.25)  # a tie goes to the left
    # of several committed, dynamic looks at the largest (0.7), static at the smallest (0.25, then 0.2 is left)
    assert factor(replace(decoding, threshold=0.45), {0: 0, 1: 2}, (waiting, waiting)) == pytest.approx(0.5)
    static = DecodingParams(strategy="low_confidence_static", threshold=0.1)
    assert factor(static, {0: 0, 1: 2}, (waiting, waiting)) == pytest.approx(0.2)
    for blind in (DecodingParams(strategy="sequential"), replace(decoding, confidence="max")):
        assert selection_log_factors(blind, {0: (sure, sure), 2: (waiting, waiting)}, {0: 0}, [2]) == {}


# ------------------------------------------------------------------------------------------------- losses

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def unmoved(advantage: float, length: int) -> Scored:
    return Scored(torch.zeros(length, dtype=torch.float64), advantage)


def test_the_loss_is_normalised_by_tokens_sequences_or_a_constant() -> None:
    pair = [unmoved(1.0, 1), unmoved(-0.5, 3)]  # ratios 1: sums of advantages 1 and -1.5
    assert naive_dipo_loss(pair, **CLIP).item() == pytest.approx(-(1 - 1.5) / 4)
    assert naive_dipo_loss(pair, normalisation="sequence", **CLIP).item() == pytest.approx(-(1 - 0.5) / 2)
    constant = naive_dipo_loss(pair, normalisation="constant", max_response_tokens=10, **CLIP)
    assert constant.item() == pytest.approx(-(1 - 1.5) / 20)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.1, 2.0, 2.2, 2.2),  # inside
        (2.0, 2.0, 2.56, 0.0),  # above and wanted: held at 1.28
        (2.0, -2.0, -4.0, -4.0),  # above and unwanted: not held
        (0.5, 2.0, 1.0, 1.0),  # below and wanted: not held
        (0.5, -2.0, -1.6, 0.0),  # below and unwanted: held at 0.8
    ],
)
def test_the_ratio_is_clipped_on_the_pessimistic_side(
    ratio: float, advantage: float, value: float, slope: float
) -> None:
    logp = f64(-1.0).requires_grad_()
    loss = naive_dipo_loss([Scored(logp, advantage, old_logp=f64(-1 - math.log(ratio)))], **CLIP)
    loss.backward()
    assert loss.item() == pytest.approx(-value)
    assert logp.grad.item() == pytest.approx(-slope)


def test_an_unmoved_policy_has_the_plain_policy_gradient() -> None:
    logp = f64(-1.0, -2.0).requires_grad_()
    naive_dipo_loss([Scored(logp, 3.0)], **CLIP).backward()
    assert logp.grad.tolist() == pytest.approx([-1.5, -1.5])


def test_kl_is_k3_against_the_reference() -> None:
    logp = f64(-1.0).requires_grad_()
    loss = naive_dipo_loss([Scored(logp, 0.0, reference_logp=f64(-1 + LN2))], kl_coef=0.1, **CLIP)
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * (2 - LN2 - 1))
    assert logp.grad.item() == pytest.approx(0.1 * (1 - 2))


def test_the_mismatch_weight_is_truncated_and_carries_no_gradient() -> None:
    logp = f64(-1.0, -1.0).requires_grad_()
    behaviour = f64(-1 + LN2, -1 - 3 * LN2)  # weights 1/2, and 8 held at 2
    loss = naive_dipo_loss([Scored(logp, 1.0, behaviour_logp=behaviour)], tis_cap=2.0, **CLIP)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.5 + 2) / 2)
    assert logp.grad.tolist() == pytest.approx([-0.25, -1.0])


def test_selection_factors_are_events_of_their_own_that_the_divisor_does_not_count() -> None:
    logp, factors = f64(-1.0, -1.0).requires_grad_(), f64(-0.5, -0.5).requires_grad_()
    scored = Scored(
        logp,
        1.0,
        behaviour_logp=f64(-1 + LN2, -1 + LN2),
        factors=factors,
        old_factors=f64(-0.5, -0.5 - LN2),  # ratios 1, and 2 held at 1.28
    )
    assert naive_dipo_loss([scored], tis_cap=2.0, **CLIP).item() == pytest.approx(-0.5)
    loss = naive_dipo_loss([scored], tis_cap=2.0, likelihood="trajectory", **CLIP)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.5 + 0.5 + 1 + 1.28) / 2)
    assert factors.grad.tolist() == pytest.approx([-0.5, 0.0])
    assert logp.grad.tolist() == pytest.approx([-0.25, -0.25])


def test_group_advantages_by_hand() -> None:
    root = math.sqrt(3)
    assert group_advantages([1, 0, 0, 0], "zscore") == pytest.approx([root, -1 / root, -1 / root, -1 / root])
    assert group_advantages([1, 0, 0, 0], "mean") == pytest.approx([0.75, -0.25, -0.25, -0.25])
    # three times 0.1 has a floating-point mean of more than 0.1, and must not become three times -1
    assert group_advantages([0.1, 0.1, 0.1], "zscore") == [0, 0, 0]


def test_sft_loss_by_hand() -> None:
    # blocks of 2, prompt 0..2, response 3..5; t = 0.5 and 0.25; 3 and 4 are masked
    logprobs = torch.log(f64(1, 1, 1, 0.5, 0.25, 0.125))
    loss = naive_sft_loss(logprobs, noise={1: 0.5, 2: 0.25}, masked=[3, 4], response=[3, 4, 5], block_size=2)
    assert loss.item() == pytest.approx((LN2 / 0.5 + 2 * LN2 / 0.25) / 3)
