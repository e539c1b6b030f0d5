"""The DiPO loss of the module and its gradient, against the equation on naive forwards, for each option.

Four policies near one another: one sampled, one is the old policy, one is trained, one is the reference. The
oracle runs in float64, one forward per denoising step, and never packs.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import lightning as L
import pytest
import torch
from tests.reference import Scored, hf_logits, naive_dipo_loss, naive_trajectory_logprobs
from tests.tiny import TinyModel, flat_gradient, prompt, sample_groups
from torch import Tensor
from transformers import PreTrainedModel

from dirl.batches import StepBatch
from dirl.models import BlockDiffusionLM
from dirl.models.policy import scoring_plan
from dirl.modules import RLModule
from dirl.objectives import DiPO
from dirl.rl.steps import step_batch
from dirl.types import DecodingParams, ModelSpec, Trajectory

CLOSE = 1e-5
"""fp32 forward and backward against float64, relative to the norm of the gradient; 2e-6 was the most seen."""

BEHAVIOUR, OLD, CURRENT, REFERENCE = (
    TinyModel(nudge=nudge, nudge_seed=seed) for nudge, seed in ((0.02, 0), (0.0, 0), (0.02, 8), (0.05, 3))
)
DYNAMIC = DecodingParams(threshold=0.4, max_response_tokens=9)
COLD = dataclasses.replace(DYNAMIC, temperature=0.7)
STATIC = dataclasses.replace(DYNAMIC, strategy="low_confidence_static", denoising_steps=2)
ADVANTAGES = (1.3, -0.7, -1.1, 0.4, 0.9, -0.6)
CAP, BOUNDS = 1.02, {"clip_low": 0.05, "clip_high": 0.08}
EVERYTHING = {"kl_coef": 0.3, "importance_cap": CAP, "likelihood": "trajectory", **BOUNDS}

CASES: dict[str, tuple[dict, DecodingParams]] = {
    "token": ({}, DYNAMIC),
    "sequence": ({"normalization": "sequence"}, DYNAMIC),
    "constant": ({"normalization": "constant"}, DYNAMIC),
    "tight bounds": (BOUNDS, DYNAMIC),
    "no bounds": ({"clip_low": 1.0, "clip_high": 1e9}, DYNAMIC),
    "KL": ({"kl_coef": 0.3}, DYNAMIC),
    "KL, sequence": ({"kl_coef": 0.3, "normalization": "sequence"}, DYNAMIC),
    "capped": ({"importance_cap": CAP}, DYNAMIC),
    "capped above all": ({"importance_cap": 1e9}, DYNAMIC),
    "trajectory": ({"likelihood": "trajectory"}, DYNAMIC),
    "trajectory, static": ({"likelihood": "trajectory"}, STATIC),
    "trajectory, sequence": ({"likelihood": "trajectory", "normalization": "sequence"}, DYNAMIC),
    "cold": ({}, COLD),
    "sequence ratio": ({"ratio": "sequence", "clip_low": 0.005, "clip_high": 0.004}, DYNAMIC),
    "sequence ratio, mean": ({"ratio": "sequence", "normalization": "sequence", "kl_coef": 0.1}, COLD),
    "clipped weights": ({"ratio": "cispo", **BOUNDS}, DYNAMIC),
    "clipped weights, capped, trajectory": (
        {"ratio": "cispo", "importance_cap": CAP, "likelihood": "trajectory", **BOUNDS},
        DYNAMIC,
    ),
    "no ratio": ({"ratio": "none", "kl_coef": 0.3, "kl": "k2"}, DYNAMIC),
    "everything, token": (EVERYTHING, DYNAMIC),
    "everything, sequence, cold": ({**EVERYTHING, "normalization": "sequence"}, COLD),
    "everything, constant, static": ({**EVERYTHING, "normalization": "constant"}, STATIC),
}


@dataclass(frozen=True)
class World:
    """Sampled groups and what each policy says of them; `backbone` is the trained one in float64."""

    groups: list[list[Trajectory]]
    spec: ModelSpec
    backbone: PreTrainedModel
    scored: list[Scored]


@cache
def world(decoding: DecodingParams) -> World:
    groups = sample_groups(BEHAVIOUR, [prompt(6, 6), prompt(3)], 3, decoding)
    advantages: Iterator[float] = iter(ADVANTAGES)
    groups = [[dataclasses.replace(t, advantage=next(advantages)) for t in group] for group in groups]
    models = {source: source.make()[0].double() for source in (OLD, CURRENT, REFERENCE)}
    spec = BEHAVIOUR.describe().spec

    def naive(source: TinyModel, t: Trajectory) -> tuple[Tensor, Tensor]:
        logprobs, factors = naive_trajectory_logprobs(hf_logits(models[source]), t, spec, decoding)
        assert all(f.isfinite() for f in factors.values()), "a rejection became impossible: choose other weights"
        return logprobs, torch.stack(list(factors.values()))

    scored = []
    for t in (t for group in groups for t in group):
        (logp, factors), (old_logp, old_factors), (reference_logp, _) = (naive(s, t) for s in (CURRENT, OLD, REFERENCE))
        behaviour = torch.tensor(t.behaviour_logprobs, dtype=torch.float64)
        scored.append(Scored(logp, t.advantage, old_logp, behaviour, reference_logp, factors, old_factors))
    return World(groups, spec, models[CURRENT], scored)


def naive_loss(this: World, config: DiPO, decoding: DecodingParams, moved: bool = True) -> Tensor:
    """The equation over one optimizer step that holds all trajectories; `moved` False: old is the current policy."""
    scored = this.scored
    if not moved:
        scored = [dataclasses.replace(s, old_logp=None, old_factors=None) for s in scored]
    return naive_dipo_loss(
        scored,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        normalisation=config.normalization,
        max_response_tokens=decoding.max_response_tokens,
        kl_coef=config.kl_coef,
        tis_cap=config.importance_cap,
        likelihood=config.likelihood,
        ratio=config.ratio,
        kl=config.kl,
    )


def naive_gradient(this: World, loss: Tensor) -> Tensor:
    parameters = list(this.backbone.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])


# --------------------------------------------------------------------------------------- the module's side


def module_with(config: DiPO, decoding: DecodingParams) -> RLModule:
    """The module as `fit` has it at the start of an epoch: the old policy's weights, and the reference's if needed."""
    module = RLModule(OLD, objective=config, decoding=decoding, reference=REFERENCE)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.configure_model()
    return module


def move(module: RLModule) -> None:
    """What optimizer steps would do: the current policy's weights."""
    module.model.backbone.load_state_dict(CURRENT.make()[0].state_dict())


def make_step(
    groups: Sequence[list[Trajectory]],
    spec: ModelSpec,
    config: DiPO,
    budget: int = 10_000,
    share: bool = True,
) -> StepBatch:
    return step_batch(groups, spec, config, DYNAMIC.max_response_tokens, budget, share)


def loss_and_gradient(module: RLModule, step: StepBatch) -> tuple[Tensor, Tensor]:
    """Sums over the micro-batches of the step."""
    parameters = list(module.model.parameters())
    known = module.step_sums(step)
    losses = [module.loss(batch, step.loss_divisor, known)[0] for batch in step.micro_batches]
    gradient = sum(flat_gradient(loss, parameters) for loss in losses)
    return torch.stack(losses).sum().double(), gradient


def assert_close(found: tuple[Tensor, Tensor], loss: Tensor, gradient: Tensor) -> None:
    assert gradient.norm() > 0.01, "there is nothing to compare"
    assert float((found[1] - gradient).norm() / gradient.norm()) < CLOSE
    assert float(found[0].detach()) == pytest.approx(float(loss.detach()), abs=CLOSE)


# ----------------------------------------------------------------------------------------------- the equation


@pytest.mark.parametrize(("options", "decoding"), CASES.values(), ids=CASES.keys())
def test_loss_and_gradient_are_those_of_the_equation(options: dict, decoding: DecodingParams) -> None:
    this, config = world(decoding), DiPO(**options)
    module = module_with(config, decoding)
    (step,) = module.score_steps([make_step(this.groups, this.spec, config)], keep_old=True)
    move(module)
    wanted = naive_loss(this, config, decoding)
    assert_close(loss_and_gradient(module, step), wanted, naive_gradient(this, wanted))


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_without_old_logprobs_the_ratio_is_one_and_still_has_a_gradient(options: dict) -> None:
    this, config = world(DYNAMIC), DiPO(**options)
    module = module_with(config, DYNAMIC)
    move(module)
    (step,) = module.score_steps([make_step(this.groups, this.spec, config)], keep_old=False)
    assert all("old_logprobs" not in b.columns for b in step.micro_batches)
    wanted = naive_loss(this, config, DYNAMIC, moved=False)
    assert_close(loss_and_gradient(module, step), wanted, naive_gradient(this, wanted))


@pytest.mark.parametrize(
    "name", ["everything, sequence, cold", "everything, constant, static", "sequence ratio", "sequence ratio, mean"]
)
@pytest.mark.parametrize(
    ("budget", "share", "backwards"), [(32, True, False), (90, True, True), (10_000, False, True)], ids=str
)
def test_the_gradient_of_a_step_does_not_depend_on_micro_batches_sharing_or_order(
    name: str, budget: int, share: bool, backwards: bool
) -> None:
    options, decoding = CASES[name]
    this, config = world(decoding), DiPO(**options)
    groups = [group[::-1] for group in this.groups[::-1]] if backwards else this.groups
    module = module_with(config, decoding)
    whole = make_step(this.groups, this.spec, config)
    parts = make_step(groups, this.spec, config, budget, share)
    assert len(whole.micro_batches) == 1 and (len(parts.micro_batches) > 1 or not share)
    assert (parts.loss_divisor, parts.sequences) == (whole.loss_divisor, whole.sequences)
    whole, parts = module.score_steps([whole, parts], keep_old=True)
    move(module)
    assert_close(loss_and_gradient(module, parts), *loss_and_gradient(module, whole))


# ---------------------------------------------------------------- what the above would prove of nothing


@pytest.mark.parametrize("decoding", [DYNAMIC, COLD, STATIC], ids=["dynamic", "cold", "static"])
def test_trajectories_of_one_group_differ_in_length(decoding: DecodingParams) -> None:
    assert any(len({len(t.response_ids) for t in group}) > 1 for group in world(decoding).groups)


@pytest.mark.parametrize("events", ["tokens", "rejections"])
def test_both_bounds_are_exceeded_under_both_signs_of_the_advantage(events: str) -> None:
    """Only two of the four take the gradient away: above with a positive advantage, below with a negative one."""
    kinds = set()
    for s in world(DYNAMIC).scored:
        ratios = (s.logp - s.old_logp if events == "tokens" else s.factors - s.old_factors).exp()
        kinds |= {("above", s.advantage > 0) for ratio in ratios if ratio > 1.08}
        kinds |= {("below", s.advantage > 0) for ratio in ratios if ratio < 0.95}
    assert len(kinds) == 4


def test_the_cap_acts_on_some_tokens_and_not_on_others() -> None:
    for decoding in (DYNAMIC, COLD, STATIC):
        weights = torch.cat([(s.old_logp - s.behaviour_logp).exp() for s in world(decoding).scored])
        assert (weights > CAP + 0.01).any() and (weights < CAP - 0.01).any()


@pytest.mark.parametrize(
    "option", ["kl_coef", "importance_cap", "clip_low", "clip_high", "likelihood", "normalization"]
)
def test_every_option_changes_the_gradient(option: str) -> None:
    this, plain = world(DYNAMIC), DiPO()
    values = {**EVERYTHING, "normalization": "sequence"}
    changed = DiPO(**{option: values[option]})
    gradients = [naive_gradient(this, naive_loss(this, config, DYNAMIC)) for config in (plain, changed)]
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) > 100 * CLOSE


# --------------------------------------------------------------------------------------------- what is logged


def test_the_sums_for_the_log_are_those_of_the_naive_numbers() -> None:
    this, config = world(DYNAMIC), DiPO(**EVERYTHING)
    module = module_with(config, DYNAMIC)
    (step,) = module.score_steps([make_step(this.groups, this.spec, config)], keep_old=True)
    move(module)
    _, sums = module.loss(step.micro_batches[0], step.loss_divisor)
    sign = torch.cat([torch.full_like(s.logp, s.advantage) for s in this.scored]).sign()
    logp, old, behaviour, reference = (
        torch.cat([getattr(s, name).detach() for s in this.scored])
        for name in ("logp", "old_logp", "behaviour_logp", "reference_logp")
    )
    ratio, ahead = (logp - old).exp(), reference - logp
    wanted = {
        "tokens": len(logp),
        "ratio": ratio.sum(),
        "clip_fraction": ((ratio > 1.08) & (sign > 0) | (ratio < 0.95) & (sign < 0)).sum(),
        "mismatch_kl": (behaviour - old).sum(),
        "mismatch_abs": (behaviour - old).abs().sum(),
        "reference_kl": (ahead.exp() - ahead - 1).sum(),
        "bounded": 0,
    }
    found = {name: float(value) for name, value in sums.items()}
    assert 0 < found.pop("entropy") < len(logp) * 3
    assert found == pytest.approx({name: float(value) for name, value in wanted.items()}, rel=1e-4)


def test_a_rejection_that_has_become_impossible_is_a_finite_constant() -> None:
    """The weights have moved far: at some positions every token would now be committed, and log F is floored."""
    this = world(DYNAMIC)
    config = DiPO(likelihood="trajectory")
    module = module_with(config, DYNAMIC)
    (step,) = module.score_steps([make_step(this.groups, this.spec, config)], keep_old=True)
    with torch.no_grad():
        module.model.backbone.lm_head.weight.zero_()  # all tokens equal: 1 / 14 each, above a threshold of 0.01
    low = dataclasses.replace(DYNAMIC, threshold=0.01)
    scores = BlockDiffusionLM(module.model.backbone, this.spec)(step.micro_batches[0], low, "trajectory")
    assert (scores.log_factors == -30.0).all() and len(scores.log_factors)
    module.decoding = low
    loss, gradient = loss_and_gradient(module, step)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", ["old_logprobs", "reference_logprobs", "behaviour_logprobs"])
@pytest.mark.parametrize("event", ["token", "rejection"])
def test_a_nan_among_the_stored_log_probs_is_no_sign_of_anything_but_makes_the_loss_nan(name: str, event: str) -> None:
    """It must reach the guard of the step: neither a token nor a rejection is left out, or scored anew, for it."""
    this, config = world(DYNAMIC), DiPO(**EVERYTHING)
    module = module_with(config, DYNAMIC)
    (step,) = module.score_steps([make_step(this.groups, this.spec, config)], keep_old=True)
    plan = scoring_plan(step.micro_batches[0], this.spec, DYNAMIC, "trajectory")
    if event == "rejection" and name != "old_logprobs":
        return  # rejections have no others
    where = plan.positions if event == "token" else plan.rejected
    step.micro_batches[0].columns[name][where[0]] = torch.nan
    assert module.loss(step.micro_batches[0], step.loss_divisor)[0].isnan()


def test_greedy_rollouts_are_refused_before_any_training() -> None:
    with pytest.raises(ValueError, match=r"model\.decoding\.temperature=0: .*nothing to learn from"):
        RLModule(OLD, decoding=DecodingParams(temperature=0.0))
