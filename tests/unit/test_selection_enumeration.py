"""Which positions are committed depends on what was drawn: the likelihood of a trajectory, by enumeration.

Toy blocks of two and three positions over three tokens. Every candidate at every masked position of every
denoising step is enumerated with its probability, so the distribution over trajectories (tokens and step maps)
and the policy gradient are exact, and owe nothing to the formula of the selection factors that they judge.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import reference
from torch import Tensor, nn

from dirl.batches import IGNORE, PackedBatch
from dirl.models import BlockDiffusionLM
from dirl.types import DecodingParams, ModelSpec

VOCAB, MASK, PARAMETERS = 3, 3, 6
EXACT = 1e-12  # float64; about fifty terms of order one, relative to a gradient that is not small

State = tuple[int, ...]
"""The block: a token or MASK at each position."""
Outcome = tuple[tuple[int, int], ...]
"""What a denoising step committed: (position, token), by position."""
Path = tuple[tuple[State, Outcome], ...]
"""A trajectory: each step's block before it, and what it committed."""
Probs = Mapping[int, tuple[Tensor, Tensor]]
FactorFn = Callable[[DecodingParams, Probs, Mapping[int, int], Collection[int]], dict[int, Tensor]]
"""As `reference.selection_log_factors`: (decoding, probs, committed, waiting) -> {waiting position: log F}."""


class Told(nn.Module):
    """A decoder that says the given logits [T, V], whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.logits[None])


class HeldLogits(nn.Module):
    """A backbone whose hidden states are the given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.model = Told(logits)
        self.lm_head = nn.Linear(logits.shape[-1], logits.shape[-1], bias=False, dtype=logits.dtype)
        nn.init.eye_(self.lm_head.weight)


def packed_forward(
    decoding: DecodingParams, probs: Probs, committed: Mapping[int, int], waiting: Collection[int]
) -> dict[int, Tensor]:
    """The factors of the trainer's forward over one view, which sees the logits alone and cuts them itself."""
    masked = sorted([*committed, *waiting])
    confidences = torch.stack([probs[j][1] for j in masked])
    logits = torch.where(confidences > 0, confidences, 1.0).log() * decoding.temperature  # the mask token is cut anyway
    targets = torch.tensor([committed.get(j, IGNORE) for j in masked])
    same = torch.ones_like(targets)
    own = dict.fromkeys((f.name for f in dataclasses.fields(PackedBatch) if f.name != "columns"), same)
    batch = PackedBatch(**own | {"input_ids": MASK * same, "target_ids": targets, "loss_weights": same.float()})
    spec = ModelSpec(len(masked), MASK, stop_token_ids=(0,), pad_token_id=0, vocab_size=VOCAB + 1)
    scores = BlockDiffusionLM(HeldLogits(logits), spec, "dense")(batch, decoding, "trajectory", entropy=False)
    places = (masked[i] for i in scores.factor_positions.tolist())
    return dict(zip(places, scores.log_factors, strict=True))


FACTOR_FNS: dict[str, FactorFn] = {"oracle": reference.selection_log_factors, "packed forward": packed_forward}

DYNAMIC = DecodingParams(strategy="low_confidence_dynamic", threshold=0.45)
DYNAMIC_COLD = dataclasses.replace(DYNAMIC, temperature=0.8, threshold=0.5)
DYNAMIC_NEVER = dataclasses.replace(DYNAMIC, threshold=1.0)
STATIC = DecodingParams(strategy="low_confidence_static")
CUTS = {"top_k": {"top_k": 2}, "top_p": {"top_p": 0.75}, "min_p": {"min_p": 0.3}}
SAMPLED = {"dynamic": DYNAMIC, "dynamic cold": DYNAMIC_COLD, "dynamic never sure": DYNAMIC_NEVER, "static": STATIC} | {
    f"{name} {cut}": dataclasses.replace(decoding, **change)
    for name, decoding in {"dynamic": DYNAMIC, "static": STATIC}.items()
    for cut, change in CUTS.items()
}
BLIND = {
    "sequential": DecodingParams(strategy="sequential"),
    "sequential cut": DecodingParams(strategy="sequential", top_k=2, temperature=0.8),
    "dynamic by max": dataclasses.replace(DYNAMIC, confidence="max"),
    "dynamic by max, cut": dataclasses.replace(DYNAMIC, confidence="max", top_p=0.75),
    "static by max": dataclasses.replace(STATIC, confidence="max"),
}
STARTS: dict[str, State] = {"2": (MASK,) * 2, "3": (MASK,) * 3, "3 after a prompt token": (1, MASK, MASK)}


@pytest.fixture(params=FACTOR_FNS.values(), ids=FACTOR_FNS.keys())
def factor_fn(request: pytest.FixtureRequest) -> FactorFn:
    """The implementation under test."""
    return request.param


@pytest.fixture(params=STARTS.values(), ids=[f"block of {name}" for name in STARTS])
def start(request: pytest.FixtureRequest) -> State:
    return request.param


@pytest.fixture(params=[0, 3], ids=lambda seed: f"seed {seed}")
def seed(request: pytest.FixtureRequest) -> int:
    return request.param


# ----------------------------------------------------------------------------- the enumerated world


@dataclass
class Toy:
    """A block of a 'model' whose logits are linear in theta, with features drawn for each visible content."""

    start: State
    decoding: DecodingParams
    seed: int
    theta: Tensor = field(init=False, repr=False)
    seen: dict[State, Probs] = field(init=False, default_factory=dict, repr=False)
    factors: dict[tuple[FactorFn, State, Outcome], dict[int, Tensor]] = field(
        init=False, default_factory=dict, repr=False
    )

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        size = len(self.start)
        shape = ((VOCAB + 1) ** size, size, VOCAB + 1, PARAMETERS)
        self.features = torch.randn(shape, generator=generator, dtype=torch.float64) / 4
        self.theta = torch.randn(PARAMETERS, generator=generator, dtype=torch.float64).requires_grad_()
        self.rewards = torch.rand((VOCAB,) * size, generator=generator, dtype=torch.float64)

    def probs(self, state: State) -> Probs:
        """(draw, confidence) of each masked position, given the visible tokens of the block."""
        if state not in self.seen:
            row = sum(token * (VOCAB + 1) ** i for i, token in enumerate(state))
            logits = self.features[row] @ self.theta
            p = self.decoding
            cut = (MASK, p.temperature, p.top_k, p.top_p, p.min_p)
            self.seen[state] = {j: reference.distribution(logits[j], *cut) for j in masked_positions(state)}
        return self.seen[state]

    def reward(self, path: Path) -> Tensor:
        return self.rewards[after(*path[-1])]


def masked_positions(state: State) -> list[int]:
    return [j for j, token in enumerate(state) if token == MASK]


def after(state: State, outcome: Outcome) -> State:
    return tuple(dict(outcome).get(j, token) for j, token in enumerate(state))


def outcomes(toy: Toy, state: State) -> dict[Outcome, Tensor]:
    """Exact probability of everything that one denoising step can commit: a sum over all joint draws."""
    p, probs, masked = toy.decoding, toy.probs(state), masked_positions(state)
    seen = {j: probs[j][1].detach() for j in masked}
    total: dict[Outcome, Tensor] = {}
    for tokens in itertools.product(range(VOCAB + 1), repeat=len(masked)):
        drawn = dict(zip(masked, tokens, strict=True))
        chance = torch.stack([probs[j][0][y] for j, y in drawn.items()]).prod()
        if chance == 0:
            continue
        confidence = {j: float(seen[j].max() if p.confidence == "max" else seen[j][drawn[j]]) for j in masked}
        chosen = reference.commit(p.strategy, confidence, masked, p.threshold, p.quota(len(state)))
        outcome = tuple((j, drawn[j]) for j in sorted(chosen))
        total[outcome] = total.get(outcome, torch.zeros((), dtype=torch.float64)) + chance
    return total


def trajectories(toy: Toy) -> dict[Path, Tensor]:
    """Exact probability of every trajectory of the block."""
    steps: dict[State, dict[Outcome, Tensor]] = {}

    def walk(state: State, path: Path, chance: Tensor) -> None:
        if not masked_positions(state):
            found[path] = chance
            return
        if state not in steps:
            steps[state] = outcomes(toy, state)
        for outcome, probability in steps[state].items():
            walk(after(state, outcome), (*path, (state, outcome)), chance * probability)

    found: dict[Path, Tensor] = {}
    walk(toy.start, (), torch.ones((), dtype=torch.float64))
    return found


# ------------------------------------------------------------------------- the likelihoods under test


def plain(toy: Toy, path: Path) -> Tensor:
    """Sum of the committed tokens' log-probabilities at the step that committed them."""
    return torch.stack([torch.log(toy.probs(state)[j][0][y]) for state, done in path for j, y in done]).sum()


def full(toy: Toy, path: Path, factor_fn: FactorFn) -> Tensor:
    """`plain` plus the log selection factors."""
    factors = [f for step in path for f in step_factors(toy, *step, factor_fn).values()]
    return plain(toy, path) + sum(factors)


def step_factors(toy: Toy, state: State, outcome: Outcome, factor_fn: FactorFn) -> dict[int, Tensor]:
    """The factors of a step, asked for once: many trajectories share it."""
    key = factor_fn, state, outcome
    if key not in toy.factors:
        committed = dict(outcome)
        waiting = [j for j in masked_positions(state) if j not in committed]
        toy.factors[key] = factor_fn(toy.decoding, toy.probs(state), committed, waiting)
    return toy.factors[key]


def gradient_error(toy: Toy, likelihood: Callable[[Toy, Path], Tensor], baseline: bool = False) -> float:
    """Relative error of the policy gradient E[(R - baseline) grad likelihood] against grad E[R].

    The baseline, E[R] or 0, leaves an exact gradient as it is.
    """
    paths = trajectories(toy)
    expected_reward = torch.stack([chance * toy.reward(path) for path, chance in paths.items()]).sum()
    mean = expected_reward.detach() if baseline else 0.0
    weights = {path: chance.detach() * (toy.reward(path) - mean) for path, chance in paths.items()}
    surrogate = torch.stack([weight * likelihood(toy, path) for path, weight in weights.items()]).sum()
    (exact,) = torch.autograd.grad(expected_reward, toy.theta, retain_graph=True)
    (estimated,) = torch.autograd.grad(surrogate, toy.theta, retain_graph=True)
    return float((estimated - exact).norm() / exact.norm())


def probability_error(toy: Toy, factor_fn: FactorFn) -> float:
    """Largest relative error of exp(`full`) against the probability of a trajectory."""
    paths = trajectories(toy).items()
    return max(abs(float((full(toy, path, factor_fn).exp() / chance).detach()) - 1) for path, chance in paths)


# --------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize("decoding", [*SAMPLED.values(), *BLIND.values()], ids=[*SAMPLED, *BLIND])
def test_the_enumerated_trajectories_are_all_there_are(decoding: DecodingParams, start: State, seed: int) -> None:
    chances = trajectories(Toy(start, decoding, seed)).values()
    assert float(sum(chances).detach()) == pytest.approx(1, abs=1e-13)
    assert len(chances) > 1


@pytest.mark.parametrize("decoding", SAMPLED.values(), ids=SAMPLED.keys())
def test_the_plain_sum_gives_a_biased_policy_gradient(decoding: DecodingParams, start: State, seed: int) -> None:
    toy = Toy(start, decoding, seed)
    assert gradient_error(toy, plain) > 0.05
    assert gradient_error(toy, plain, baseline=True) > 0.05  # not a matter of variance reduction either


@pytest.mark.parametrize("decoding", SAMPLED.values(), ids=SAMPLED.keys())
def test_the_selection_factors_make_the_policy_gradient_exact(
    decoding: DecodingParams, start: State, seed: int, factor_fn: FactorFn
) -> None:
    toy = Toy(start, decoding, seed)
    assert gradient_error(toy, lambda toy, path: full(toy, path, factor_fn)) < EXACT


@pytest.mark.parametrize("decoding", SAMPLED.values(), ids=SAMPLED.keys())
def test_the_selection_factors_give_the_probability_of_each_trajectory(
    decoding: DecodingParams, start: State, seed: int, factor_fn: FactorFn
) -> None:
    assert probability_error(Toy(start, decoding, seed), factor_fn) < EXACT


@pytest.mark.parametrize("decoding", BLIND.values(), ids=BLIND.keys())
def test_the_plain_sum_is_exact_where_the_choice_does_not_see_the_draw(
    decoding: DecodingParams, start: State, seed: int, factor_fn: FactorFn
) -> None:
    toy = Toy(start, decoding, seed)
    assert gradient_error(toy, plain) < EXACT
    assert probability_error(toy, lambda *step: {}) < EXACT
    assert not any(step_factors(toy, *step, factor_fn) for path in trajectories(toy) for step in path)


@pytest.mark.parametrize("quota", [1, 2])
def test_static_factors_are_exact_for_any_number_of_positions_a_step(
    quota: int, seed: int, factor_fn: FactorFn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # B // steps never is 2 of 3, and 2 of 2 leaves nobody waiting, so the number is set here
    monkeypatch.setattr(DecodingParams, "quota", lambda decoding, block_size: quota)
    toy = Toy(STARTS["3"], STATIC, seed)
    assert any(len(outcome) == quota for path in trajectories(toy) for _, outcome in path)
    assert gradient_error(toy, plain) > 0.05
    assert gradient_error(toy, lambda toy, path: full(toy, path, factor_fn)) < EXACT


# ----------------------------------------------------- no part of the formula can be left out or swapped


@pytest.mark.parametrize("decoding", [DYNAMIC, DYNAMIC_COLD], ids=["dynamic", "dynamic cold"])
def test_both_cases_of_the_dynamic_factor_occur_and_neither_does_for_the_other(decoding: DecodingParams) -> None:
    toy = Toy(STARTS["3"], decoding, seed=3)
    surest = [
        max(float(toy.probs(state)[j][1][y].detach()) for j, y in outcome)
        for path in trajectories(toy)
        for state, outcome in path
        if len(outcome) < len(masked_positions(state))
    ]
    assert any(m >= decoding.threshold for m in surest) and any(m < decoding.threshold for m in surest)

    def always_at_most_m(decoding: DecodingParams, *step: Any) -> dict[int, Tensor]:
        return reference.selection_log_factors(dataclasses.replace(decoding, threshold=1.0), *step)

    def always_below_threshold(
        decoding: DecodingParams, probs: Probs, _: Any, waiting: Collection[int]
    ) -> dict[int, Tensor]:
        return {j: torch.log((probs[j][0] * (probs[j][1] < decoding.threshold)).sum()) for j in waiting}

    assert probability_error(toy, always_at_most_m) > 0.01
    assert probability_error(toy, always_below_threshold) > 0.01


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("decoding", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_the_sum_runs_over_the_cut_draw_and_the_comparison_over_the_uncut_confidence(
    decoding: DecodingParams, cut: dict[str, float]
) -> None:
    toy = Toy(STARTS["3"], dataclasses.replace(decoding, **cut), seed=3)

    def sum_over_confidence(decoding: DecodingParams, probs: Probs, *step: Any) -> dict[int, Tensor]:
        return reference.selection_log_factors(decoding, {j: (c, c) for j, (_, c) in probs.items()}, *step)

    def compare_the_draw(decoding: DecodingParams, probs: Probs, *step: Any) -> dict[int, Tensor]:
        return reference.selection_log_factors(decoding, {j: (d, d) for j, (d, _) in probs.items()}, *step)

    assert probability_error(toy, sum_over_confidence) > 0.01
    assert probability_error(toy, compare_the_draw) > 0.01
