"""Slow oracles, written from the equations alone: attention, decoding, views of a step map, selection and losses.

Plain loops in float64, one sequence at a time, no cache, no packing. What the package computes fast is
compared with what is computed here; nothing here imports the package, its types apart.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dirl.types import DecodingParams, ModelSpec, Strategy, Trajectory

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input_ids [1, L], visible mask [L, L] bool, position_ids [1, L]) -> logits [1, L, V]."""

Draw = Callable[[int, int, int, Tensor], int]
"""(absolute block, forward of that block from 1, absolute position, draw probabilities [V]) -> token."""


# ---------------------------------------------------------------------------------------------- attention


class Token(NamedTuple):
    """Where one packed token stands: branch 0 is the shared prompt, view 0 is clean."""

    group: int
    branch: int
    block: int
    view: int


def visible(q: Token, k: Token) -> bool:
    """Whether query q sees key k."""
    if q.group != k.group:
        return False
    earlier_clean = k.view == 0 and k.branch in (0, q.branch) and k.block < q.block
    own_copy = (k.block, k.view, k.branch) == (q.block, q.view, q.branch)
    return earlier_clean or own_copy


def dense_mask(tokens: Sequence[Token]) -> Tensor:
    """[T, T] bool, query by key."""
    return torch.tensor([[visible(q, k) for k in tokens] for q in tokens])


def block_causal_mask(length: int, block_size: int) -> Tensor:
    """[length, length] bool of a clean sequence: a token sees its own block and all blocks before."""
    return torch.tensor([[k // block_size <= q // block_size for k in range(length)] for q in range(length)])


# -------------------------------------------------------------------------------------------------- model


def hf_logits(hf_model: Any, attention: Literal["eager", "sdpa"] = "eager") -> Logits:
    """The `Logits` callable of a causal model of transformers, through transformers' own attention.

    The attention with which the model was loaded is put back after each call.
    """

    def logits(input_ids: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        config, device = hf_model.config, hf_model.device
        additive = torch.zeros(mask.shape, dtype=hf_model.dtype).masked_fill(~mask.cpu(), float("-inf"))
        additive = additive[None, None].to(device)
        by_kind = getattr(config, "layer_types", None) is not None
        loaded_with = config._attn_implementation
        config._attn_implementation = attention
        try:
            output = hf_model(
                input_ids=input_ids.to(device),
                attention_mask={"full_attention": additive} if by_kind else additive,
                position_ids=position_ids.to(device),
                use_cache=False,
            )
        finally:
            config._attn_implementation = loaded_with
        return output.logits.cpu()

    return logits


def naive_block_logits(model: Logits, ids: Sequence[int], block_start: int, block_size: int) -> Tensor:
    """[B, V] float64: logits of the block at `block_start`, the last of `ids`, by one forward over all of `ids`."""
    length = block_start + block_size
    assert len(ids) == length and block_start % block_size == 0, (len(ids), block_start, block_size)
    input_ids, position_ids = torch.tensor([list(ids)]), torch.arange(length)[None]
    return model(input_ids, block_causal_mask(length, block_size), position_ids)[0, block_start:].double()


def distribution(
    logits: Tensor, illegal: int | Collection[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Tensor, Tensor]:
    """What a candidate is drawn from and what its confidence is read from, both [V] float64.

    Confidence: softmax(logits / temperature) without the illegal tokens (the mask token, ids without a token). Draw:
    the same, cut by top-k, then top-p, then min-p. Temperature 0: confidence at temperature 1, the draw has all its
    mass on the argmax.
    """
    out = {illegal} if isinstance(illegal, int) else illegal
    legal = torch.tensor([index not in out for index in range(len(logits))])
    z = torch.where(legal, logits.double(), float("-inf")) / (temperature or 1.0)
    confidence = torch.softmax(z, dim=0)
    if temperature == 0:
        top_k, top_p, min_p = 1, 1.0, 0.0
    values = confidence.tolist()
    kept = sorted(range(len(values)), key=lambda v: -values[v])  # stable: of equals, the smaller id first
    if top_k:
        kept = kept[:top_k]
    total = sum(values[v] for v in kept)
    before = [sum(values[u] for u in kept[:rank]) / total for rank in range(len(kept))]
    kept = [v for rank, v in enumerate(kept) if rank == 0 or before[rank] <= top_p]
    kept = [v for v in kept if values[v] >= min_p * values[kept[0]]]
    in_cut = torch.zeros(len(values), dtype=torch.float64)
    in_cut[kept] = 1.0
    return confidence * in_cut / (confidence * in_cut).sum(), confidence


# ----------------------------------------------------------------------------------------------- decoding


def commit(
    strategy: Strategy, confidences: Mapping[int, float], masked: Collection[int], threshold: float, quota: int
) -> set[int]:
    """The masked positions that one denoising step commits. Of equally confident ones the leftmost goes first."""
    if strategy == "sequential":
        return set(sorted(masked)[:quota])
    best_first = sorted(masked, key=lambda j: (-confidences[j], j))
    if strategy == "low_confidence_static":
        return set(best_first[:quota])
    assert strategy == "low_confidence_dynamic", strategy
    return {best_first[0]} | {j for j in masked if confidences[j] >= threshold}


def naive_decode(
    model: Logits, prompt_ids: Sequence[int], spec: ModelSpec, decoding: DecodingParams, draw: Draw | None = None
) -> Trajectory:
    """Decode one request without a cache. Candidates come from `draw`, or are the argmax where it is None.

    With temperature 0 the candidate is always the argmax, and its log-probability that of the confidence.
    """
    ids = list(prompt_ids)
    step_map: dict[int, int] = {}
    logprobs: dict[int, float] = {}
    while not _is_finished(ids[len(prompt_ids) :], spec, decoding):
        block = len(ids) // spec.block_size
        masked = set(range(len(ids), (block + 1) * spec.block_size))
        ids += [spec.mask_token_id] * len(masked)
        forward = 0
        while masked:
            forward += 1
            for position, (token, logprob) in _denoise(model, ids, masked, forward, spec, decoding, draw).items():
                ids[position], logprobs[position], step_map[position] = token, logprob, forward
                masked.remove(position)
    response = ids[len(prompt_ids) :]
    length, reason = _response_end(response, spec, decoding)
    return Trajectory(
        prompt_id="naive",
        sample_index=0,
        prompt_ids=tuple(prompt_ids),
        response_ids=tuple(response),
        response_length=length,
        step_map=tuple(step_map[i] for i in range(len(prompt_ids), len(ids))),
        behaviour_logprobs=tuple(logprobs[i] for i in range(len(prompt_ids), len(ids))),
        finish_reason=reason,
        policy_version=0,
    )


@torch.no_grad()
def _denoise(
    model: Logits,
    ids: Sequence[int],
    masked: Collection[int],
    forward: int,
    spec: ModelSpec,
    decoding: DecodingParams,
    draw: Draw | None,
) -> dict[int, tuple[int, float]]:
    """One denoising step of the last block of `ids`: {committed position: (token, its log-probability)}."""
    start = len(ids) - spec.block_size
    logits = naive_block_logits(model, ids, start, spec.block_size)
    candidates: dict[int, tuple[int, float]] = {}
    confidences: dict[int, float] = {}
    for j in sorted(masked):
        draw_probs, confidence_probs = _distribution(logits[j - start], spec, decoding)
        if draw is None or decoding.temperature == 0:
            values = draw_probs.tolist()
            token = values.index(max(values))
        else:
            token = draw(start // spec.block_size, forward, j, draw_probs)
        score_probs = draw_probs if decoding.temperature > 0 else confidence_probs
        candidates[j] = token, math.log(score_probs[token])
        confidences[j] = float(confidence_probs.max() if decoding.confidence == "max" else confidence_probs[token])
    quota = decoding.quota(spec.block_size)
    return {j: candidates[j] for j in commit(decoding.strategy, confidences, masked, decoding.threshold, quota)}


def _distribution(logits: Tensor, spec: ModelSpec, decoding: DecodingParams) -> tuple[Tensor, Tensor]:
    illegal = {spec.mask_token_id, *spec.unknown_ids}
    return distribution(logits, illegal, decoding.temperature, decoding.top_k, decoding.top_p, decoding.min_p)


def _is_finished(response: Sequence[int], spec: ModelSpec, decoding: DecodingParams) -> bool:
    return len(response) >= decoding.max_response_tokens or any(token in spec.stop_token_ids for token in response)


def _response_end(
    response: Sequence[int], spec: ModelSpec, decoding: DecodingParams
) -> tuple[int, Literal["stop", "length"]]:
    """(response_length, finish_reason): the earliest of stop token, itself counted, and length limit."""
    for length in range(1, decoding.max_response_tokens + 1):
        if response[length - 1] in spec.stop_token_ids:
            return length, "stop"
    return decoding.max_response_tokens, "length"


# ------------------------------------------------------------------------------------------------- views


def naive_trajectory_logprobs(
    model: Logits, trajectory: Trajectory, spec: ModelSpec, decoding: DecodingParams
) -> tuple[Tensor, dict[tuple[int, int, int], Tensor]]:
    """Log-probabilities [n] of all response positions, and {(block, step, position): log F}, by a forward per step.

    n is len(response_ids), the tail included; block and position are absolute. Differentiable. Temperature 0
    scores a token by the confidence, as `naive_decode` does, and has no factors: nothing was drawn.
    """
    size, prompt = spec.block_size, len(trajectory.prompt_ids)
    ids = [*trajectory.prompt_ids, *trajectory.response_ids]
    step = {prompt + i: v for i, v in enumerate(trajectory.step_map)}
    logprobs: dict[int, Tensor] = {}
    factors: dict[tuple[int, int, int], Tensor] = {}
    for block in range(prompt // size, len(ids) // size):
        start = block * size
        drawn = [i for i in range(start, start + size) if i >= prompt]
        for v in range(1, max(step[i] for i in drawn) + 1):
            shown = [ids[i] if i not in drawn or step[i] < v else spec.mask_token_id for i in range(start + size)]
            logits = naive_block_logits(model, shown, start, size)
            probs = {i: _distribution(logits[i - start], spec, decoding) for i in drawn}
            committed = {i: ids[i] for i in drawn if step[i] == v}
            for i, token in committed.items():
                draw_probs, confidence_probs = probs[i]
                logprobs[i] = torch.log((draw_probs if decoding.temperature > 0 else confidence_probs)[token])
            waiting = {i for i in drawn if step[i] > v}
            for j, factor in selection_log_factors(decoding, probs, committed, waiting).items():
                factors[block, v, j] = factor
    return torch.stack([logprobs[i] for i in range(prompt, len(ids))]), factors


def naive_masked_logprobs(
    model: Logits,
    trajectory: Trajectory,
    spec: ModelSpec,
    params: DecodingParams,
    masked: Collection[int],
    scored: Sequence[int],
) -> Tensor:
    """Log-probabilities [n] of the response's tokens at `scored`, all of one block, of which `masked` is masked.

    Positions are absolute. One forward over all blocks up to this one; differentiable. Temperatures above 0 only.
    """
    ids = [*trajectory.prompt_ids, *trajectory.response_ids]
    (start,) = {i // spec.block_size * spec.block_size for i in (*masked, *scored)}
    shown = [spec.mask_token_id if i in masked else ids[i] for i in range(start + spec.block_size)]
    logits = naive_block_logits(model, shown, start, spec.block_size)
    return torch.stack([torch.log(_distribution(logits[i - start], spec, params)[0][ids[i]]) for i in scored])


def selection_log_factors(
    decoding: DecodingParams,
    probs: Mapping[int, tuple[Tensor, Tensor]],
    committed: Mapping[int, int],
    waiting: Collection[int],
) -> dict[int, Tensor]:
    """log F_j of one denoising step: that the candidate at j, drawn and thrown away, was not to be committed.

    Args:
        probs: (draw, confidence) probabilities [V] of each masked position; see `distribution`.
        committed: token of each position that the step committed.
        waiting: the positions that were masked and stayed so, the j of the equation.

    Empty where the choice of positions does not depend on what was drawn; -inf where `probs` could not have
    made this choice.
    """
    if decoding.strategy == "sequential" or decoding.confidence == "max" or decoding.temperature == 0:
        return {}
    confidences = [float(probs[i][1][token].detach()) for i, token in committed.items()]
    static = decoding.strategy == "low_confidence_static"
    m = min(confidences) if static else max(confidences)
    factors = {}
    for j in waiting:
        draw_probs, confidence_probs = probs[j]
        if not static and m >= decoding.threshold:
            loses = confidence_probs.detach() < decoding.threshold
        else:
            loses = confidence_probs.detach() <= m
        factors[j] = torch.log((draw_probs * loses).sum())
    return factors


# ------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Scored:
    """One trajectory as the policy loss sees it; n scored tokens, f selection factors."""

    logp: Tensor
    """[n], carries the gradient."""
    advantage: float
    old_logp: Tensor | None = None
    """[n]; None: the policy has not moved, old_logp = sg(logp)."""
    behaviour_logp: Tensor | None = None
    reference_logp: Tensor | None = None
    factors: Tensor | None = None
    """[f] log F_j, carries the gradient."""
    old_factors: Tensor | None = None
    """[f]; None: sg(factors)."""


def naive_dipo_loss(
    trajectories: Sequence[Scored],
    *,
    clip_low: float,
    clip_high: float,
    normalisation: Literal["token", "sequence", "constant"] = "token",
    max_response_tokens: int | None = None,
    kl_coef: float = 0.0,
    tis_cap: float | None = None,
    likelihood: Literal["tokens", "trajectory"] = "tokens",
    ratio: Literal["token", "sequence", "cispo", "none"] = "token",
    kl: Literal["k2", "k3"] = "k3",
) -> Tensor:
    """-sum min(r A, clip(r) A) w / divisor + kl_coef * sum k3 / divisor over one optimizer step.

    ratio: `token` as above; `cispo` sg(clip(r)) A log p; `none` A log p; `sequence` has for each trajectory of n tokens
    n times min(s A, clip(s) A), s = (product of its r) ** (1 / n). k2 is half the square of the difference.

    divisor: `token` all scored tokens, `sequence` those of the trajectory times the number of trajectories,
    `constant` number of trajectories * max_response_tokens. w = sg(min(exp(old - behaviour), tis_cap)).
    `trajectory` adds each log F_j as an event with its own ratio, without w and KL, not counted in the divisor.
    """
    loss = torch.zeros((), dtype=torch.float64)
    for t in trajectories:
        if normalisation == "token":
            divisor = sum(len(other.logp) for other in trajectories)
        elif normalisation == "sequence":
            divisor = len(trajectories) * len(t.logp)
        else:
            assert normalisation == "constant" and max_response_tokens is not None, (normalisation, max_response_tokens)
            divisor = len(trajectories) * max_response_tokens
        for i, logp in enumerate(t.logp):
            old = logp.detach() if t.old_logp is None else t.old_logp[i].detach()
            weight = 1.0 if tis_cap is None else min(math.exp(old - t.behaviour_logp[i].detach()), tis_cap)
            if ratio != "sequence":
                loss = loss - weight * _event(logp, old, t.advantage, clip_low, clip_high, ratio) / divisor
            if kl_coef:
                ahead = t.reference_logp[i].detach() - logp
                k = torch.exp(ahead) - ahead - 1 if kl == "k3" else ahead * ahead / 2
                loss = loss + kl_coef * k / divisor
        if ratio == "sequence":
            old = t.logp.detach() if t.old_logp is None else t.old_logp.detach()
            mean = (t.logp - old).sum() / len(t.logp)
            loss = loss - len(t.logp) * _clipped(mean, t.advantage, clip_low, clip_high) / divisor
        if likelihood == "trajectory" and t.factors is not None:
            for i, factor in enumerate(t.factors):
                old = factor.detach() if t.old_factors is None else t.old_factors[i].detach()
                loss = loss - _event(factor, old, t.advantage, clip_low, clip_high, ratio) / divisor
    return loss


def _event(logp: Tensor, old: Tensor, advantage: float, low: float, high: float, ratio: str) -> Tensor:
    """What is maximised of one token, or one rejection."""
    if ratio == "cispo":
        return min(max(math.exp(logp.detach() - old), 1 - low), 1 + high) * advantage * logp
    return advantage * logp if ratio == "none" else _clipped(logp - old, advantage, low, high)


class StepScores(NamedTuple):
    """What three policies say of the n tokens of one step of a trace, merged or not; [n] each."""

    logp: Tensor
    """Carries the gradient."""
    old_logp: Tensor
    reference_logp: Tensor


def naive_tracerl_loss(
    trajectories: Sequence[tuple[float | Sequence[Tensor], Sequence[StepScores]]],
    *,
    clip_low: float,
    clip_high: float,
    beta: float,
    anchor: Literal["old", "reference"] = "old",
    max_response_tokens: int | None = None,
) -> Tensor:
    """-J of TraceRL's eq. 3: of (advantage, steps) of each trajectory the sum over steps of the mean over their tokens.

    An advantage is one number, or for each step those of its tokens. The expectation over trajectories is their mean;
    the KL is k3, averaged alike. max_response_tokens divides the sum over the steps; None: it is a mean.
    """
    loss = torch.zeros((), dtype=torch.float64)
    for advantage, steps in trajectories:
        of_steps = [advantage] * len(steps) if isinstance(advantage, float) else advantage
        for step, own in zip(steps, of_steps, strict=True):
            surrogate = _clipped(step.logp - step.old_logp.detach(), own, clip_low, clip_high)
            ahead = (step.old_logp if anchor == "old" else step.reference_logp).detach() - step.logp
            of_step = -surrogate.mean() + beta * (torch.exp(ahead) - ahead - 1).mean()
            loss = loss + of_step / (max_response_tokens or len(steps))
    return loss / len(trajectories)


def naive_block_elbo(
    score: Callable[[tuple[int, ...]], Tensor],
    maskable: Sequence[int],
    draws: Sequence[Collection[int]],
    complementary: bool,
) -> Tensor:
    """ESPO's estimate of one block's ELBO: the mean over draws S of |block| / |S| sum_{i in S} log p(y_i | S masked).

    Args:
        score: of masked positions, in order: the log-probabilities of their tokens.
        complementary: the mean over S and what S leaves, each with (|block| + 1) / its size, an empty one counting 0.
    """
    found = torch.zeros((), dtype=torch.float64)
    for drawn in draws:
        halves = [tuple(i for i in maskable if i in drawn), tuple(i for i in maskable if i not in drawn)]
        for half in halves if complementary else halves[:1]:
            scale = (len(maskable) + 1) / 2 if complementary else len(maskable)
            found = found + (score(half).sum() * scale / len(half) if half else 0.0)
    return found / len(draws)


class BoundScores(NamedTuple):
    """The ELBO estimates of one response by three policies."""

    advantage: float
    tokens: int
    bound: Tensor
    """Carries the gradient."""
    old: Tensor
    reference: Tensor


def naive_elbo_loss(
    responses: Sequence[BoundScores],
    *,
    clip_low: float,
    clip_high: float,
    per_token: bool,
    kl_coef: float,
    kl: Literal["k2", "k3"],
) -> Tensor:
    """ESPO: the mean of -min(r A, clip(r) A) + kl_coef KL / T, log r = (L - L_old) / T; EBPO has no T (`per_token`)."""
    loss = torch.zeros((), dtype=torch.float64)
    for each in responses:
        tokens = each.tokens if per_token else 1
        loss = loss - _clipped((each.bound - each.old.detach()) / tokens, each.advantage, clip_low, clip_high)
        ahead = each.reference.detach() - each.bound
        loss = loss + kl_coef * (ahead**2 / 2 if kl == "k2" else torch.exp(ahead) - ahead - 1) / tokens
    return loss / len(responses)


def naive_sandwich(
    score: Callable[[tuple[int, ...]], Tensor],
    maskable: Sequence[int],
    draws: Sequence[Collection[int]],
    complementary: bool,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """SPG's lower and upper bound of one block: 1 / beta sum_k log (mean over sets of w [k masked] p_k^beta).

    w is |block| / |set|, or (|block| + 1) / |set| for a set and what it leaves, which are both sets then, empty or not.
    """
    rest = [tuple(i for i in maskable if i not in drawn) for drawn in draws] if complementary else []
    sets = [*(tuple(i for i in maskable if i in drawn) for drawn in draws), *rest]
    scale = len(maskable) + complementary
    lower, raised = torch.zeros((), dtype=torch.float64), dict.fromkeys(maskable, torch.zeros((), dtype=torch.float64))
    for masked in filter(None, sets):
        for i, logp in zip(masked, score(masked), strict=True):
            lower = lower + scale / len(masked) * logp / len(sets)
            raised[i] = raised[i] + scale / len(masked) * torch.exp(logp) ** beta / len(sets)
    return lower, sum((torch.log(u) for u in raised.values() if u > 0), torch.zeros(())) / beta


class Sandwich(NamedTuple):
    """Bounds of one response's likelihood."""

    advantage: float
    tokens: int
    lower: Tensor
    upper: Tensor
    old_lower: Tensor

    def bound(self, mix: float) -> Tensor:
        return self.lower if self.advantage > 0 else mix * self.upper + (1 - mix) * self.lower


def naive_spg_loss(responses: Sequence[Sandwich], mix: float) -> Tensor:
    """-sum A bound / tokens of all responses."""
    return -sum(each.advantage * each.bound(mix) for each in responses) / sum(each.tokens for each in responses)


def naive_stable_drl_loss(responses: Sequence[Sandwich], mix: float, low: float, high: float) -> Tensor:
    """-sum w A bound / T over sum w, w = clip(exp((L - L_old) / T), low, high) without gradient."""
    weights = [math.exp((e.lower.detach() - e.old_lower.detach()) / e.tokens) for e in responses]
    weights = [min(max(w, low), high) for w in weights]
    terms = (w * e.advantage * e.bound(mix) / e.tokens for w, e in zip(weights, responses, strict=True))
    return -sum(terms) / sum(weights)


def naive_wd1_loss(groups: Sequence[Sequence[tuple[float, Tensor]]]) -> Tensor:
    """The mean over groups of -sum softmax(A) log p + sum softmax(-A) log p; of (advantage, log p) of each response."""
    loss = torch.zeros((), dtype=torch.float64)
    for group in groups:
        for sign in (1, -1):
            total = sum(math.exp(sign * advantage) for advantage, _ in group)
            for advantage, logp in group:
                loss = loss - sign * math.exp(sign * advantage) / total * logp
    return loss / len(groups)


def _clipped(log_ratio: Tensor, advantage: float | Tensor, low: float, high: float) -> Tensor:
    ratio = torch.exp(log_ratio.double())
    inside = torch.clamp(ratio, 1 - low, 1 + high)
    return torch.minimum(ratio * advantage, inside * advantage)


def group_advantages(rewards: Sequence[float], mode: Literal["zscore", "mean", "leave_one_out"]) -> list[float]:
    """Reward minus the group's mean; `zscore` divides by the population std. A group without spread has zeros.

    `leave_one_out`: reward minus the mean of the other rewards.
    """
    if max(rewards) == min(rewards):  # asked of the rewards: the std of equal floats need not be exactly 0
        return [0.0] * len(rewards)
    if mode == "leave_one_out":
        others = [[r for j, r in enumerate(rewards) if j != i] for i in range(len(rewards))]
        return [r - math.fsum(rest) / len(rest) for r, rest in zip(rewards, others, strict=True)]
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if mode == "mean":
        return centred
    assert mode == "zscore", mode
    std = math.sqrt(math.fsum(x * x for x in centred) / len(centred))
    return [x / std for x in centred]


def naive_sft_loss(
    logprobs: Tensor, noise: Mapping[int, float], masked: Collection[int], response: Collection[int], block_size: int
) -> Tensor:
    """Eq. 3 for one noised copy of one sequence: -sum over masked i of log p_i / t(block of i), per response token.

    Args:
        logprobs: [L] log-probability of the right token at each absolute position.
        noise: t of each block (absolute index) that holds response tokens.
        masked: absolute positions that the noise masked, all of them response tokens.
        response: absolute positions of the tokens that are trained on, visible ones included.
    """
    loss = torch.zeros((), dtype=torch.float64)
    for i in masked:
        assert i in response, f"position {i} is masked and not of the response"
        loss = loss - logprobs[i].double() / noise[i // block_size]
    return loss / len(response)


# ------------------------------------------------------------------------------------------ values and credit


def naive_gae(
    steps: Sequence[Sequence[float]], outcome: float, gamma: float, lam: float
) -> list[list[tuple[float, float]]]:
    """Advantage and return of each token of one trajectory, by sums over all that follows (TraceRL, section 4.2).

    Args:
        steps: the values of the tokens that each denoising step commits, first to last.
    """
    last = len(steps) - 1

    def value(t: int) -> float:
        return sum(steps[t]) / len(steps[t]) if t <= last else 0.0

    def reward(t: int) -> float:
        return outcome if t == last else 0.0

    def step_return(t: int) -> float:
        return sum(gamma ** (u - t) * reward(u) for u in range(t, last + 1))

    def step_advantage(t: int) -> float:
        deltas = (reward(u) - value(u) + gamma * value(u + 1) for u in range(t, last + 1))
        return sum((gamma * lam) ** n * delta for n, delta in enumerate(deltas))

    def token(t: int, own: float) -> tuple[float, float]:
        advantage = reward(t) - own + gamma * value(t + 1) + gamma * lam * step_advantage(t + 1)
        return advantage, reward(t) + gamma * step_return(t + 1)

    return [[token(t, own) for own in tokens] for t, tokens in enumerate(steps)]


def naive_values(
    model: Logits, trajectory: Trajectory, spec: ModelSpec, masked: Collection[int], scored: Sequence[int]
) -> Tensor:
    """[n] values of the response's tokens at `scored`, by a model whose "logits" are one number; differentiable.

    As `naive_masked_logprobs`: positions are absolute, and `masked` those that are masked in their block.
    """
    ids = [*trajectory.prompt_ids, *trajectory.response_ids]
    (start,) = {i // spec.block_size * spec.block_size for i in (*masked, *scored)}
    shown = [spec.mask_token_id if i in masked else ids[i] for i in range(start + spec.block_size)]
    return torch.stack([naive_block_logits(model, shown, start, spec.block_size)[i - start, 0] for i in scored])


def naive_value_loss(trajectories: Sequence[Sequence[tuple[Tensor, Tensor, Tensor]]], clip: float | None) -> Tensor:
    """TraceRL, eq. 4: the mean over each trajectory's tokens, then over trajectories; [n] each step's values, old
    values and returns."""
    loss = torch.zeros((), dtype=torch.float64)
    for steps in trajectories:
        values, old, returns = (torch.cat(parts) for parts in zip(*steps, strict=True))
        errors = (values - returns) ** 2
        if clip is not None:
            near = torch.minimum(torch.maximum(values, old - clip), old + clip)
            errors = torch.maximum(errors, (near - returns) ** 2)
        loss = loss + errors.mean() / 2
    return loss / len(trajectories)


def naive_value_error(value: float, old: float, target: float, clip: float | None) -> float:
    """The term of one token in the value's loss (TraceRL, eq. 4)."""
    if clip is None:
        return (value - target) ** 2 / 2
    near = old + min(max(value - old, -clip), clip)
    return max((value - target) ** 2, (near - target) ** 2) / 2
