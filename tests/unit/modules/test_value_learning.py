"""TraceRL with a value model: both losses and gradients against the equations on naive forwards, and what is refused.

Values are of a model of its own, nudged away from the policies, whose head is no longer zero. Before the updates it is
the old value model, afterwards its weights have moved too.
"""

import copy
from collections.abc import Callable
from functools import cache, reduce
from operator import add

import lightning as L
import pytest
import torch
from tests.policies import CLOSE, CURRENT, DIVIDED, OLD, REFERENCE, WHOLE, Policies, State, trace_states
from tests.reference import StepScores, hf_logits, naive_gae, naive_tracerl_loss, naive_value_loss, naive_values
from tests.tiny import TinyModel, flat_gradient, nudge_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from dirl.batches import StepBatch
from dirl.models import ModelDescription
from dirl.models.value import ScalarHead, ValueModel
from dirl.modules import OptimizerConfig, RLModule
from dirl.modules.value import ValueConfig
from dirl.objectives import DiPO, Objective, TraceRL
from dirl.packing.rows import empty_batch
from dirl.rl.steps import step_batch
from dirl.types import DecodingParams, Trajectory

PARAMS = DecodingParams(threshold=0.25, max_response_tokens=9)
SOURCE = TinyModel(nudge=0.1, nudge_seed=5)
LEARNED: dict = {"value": True, "value_clip": 0.05, "gamma": 0.9, "lam": 0.7, "kl_coef": 0.0, "clip_low": 0.05}
Values = Callable[[Trajectory, State], Tensor]


@cache
def policies() -> Policies:
    return Policies.sample(PARAMS)


def new_head(seed: int) -> Tensor:
    return 0.1 * torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))


def module_with(objective: Objective, value: ValueConfig | None) -> RLModule:
    module = RLModule(OLD, objective=objective, decoding=PARAMS, reference=REFERENCE, value=value)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.configure_model()
    return module


def a_step(objective: Objective, budget: int) -> StepBatch:
    step = step_batch(policies().groups, policies().spec, objective, PARAMS.max_response_tokens, budget)
    assert (len(step.micro_batches) > 1) == (budget < WHOLE)
    return step


def with_head(backbone: PreTrainedModel, head: Tensor) -> PreTrainedModel:
    """The oracle's value model, in float64."""
    backbone = copy.deepcopy(backbone).double()
    backbone.config = backbone.model.config  # of a value model's own they are two
    backbone.lm_head = nn.Linear(32, 1, bias=False, dtype=torch.float64)
    backbone.lm_head.weight = nn.Parameter(head.detach().double())
    return backbone


def said_by(model: PreTrainedModel) -> Values:
    logits = hf_logits(model)
    return lambda trajectory, state: naive_values(logits, trajectory, policies().spec, *state)


def naive_losses(objective: TraceRL, old: Values, now: Values, moved: bool = True) -> tuple[Tensor, Tensor]:
    """Of policy and value; what GAE makes of the old values is a constant."""
    this, gae, of_policy, of_value = policies(), objective.gae, [], []
    for t in this.trajectories:
        states = trace_states(t, this.spec.block_size, objective.shrink)
        before = [old(t, state).detach() for state in states]
        found = naive_gae([v.tolist() for v in before], t.advantage, gae.gamma, gae.lam)
        advantages, returns = ([torch.tensor([pair[k] for pair in step]).double() for step in found] for k in (0, 1))
        logps = [(this.logprobs("current", t, state), this.logprobs("old", t, state)) for state in states]
        scores = [StepScores(logp, was if moved else logp.detach(), was) for logp, was in logps]
        of_policy.append((advantages, scores))
        of_value.append([(now(t, s), b, r) for s, b, r in zip(states, before, returns, strict=True)])
    bounds = {"clip_low": objective.clip_low, "clip_high": objective.clip_high}
    return naive_tracerl_loss(of_policy, **bounds, beta=0.0), naive_value_loss(of_value, gae.value_clip)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert wanted.norm() > 1e-3, "there is nothing to compare"
    assert float((found - wanted).norm() / wanted.norm()) < CLOSE


@pytest.mark.parametrize(("shrink", "budget"), [(1, WHOLE), (2, WHOLE), (2, DIVIDED)])
def test_losses_and_gradients_of_two_backbones_are_those_of_the_equations(shrink: int, budget: int) -> None:
    objective = TraceRL(shrink=shrink, **LEARNED)
    module = module_with(objective, ValueConfig(SOURCE))
    value = module.value_model
    assert isinstance(value, ValueModel)
    value.part("head").weight.data.copy_(new_head(1))
    before = with_head(SOURCE.make()[0], new_head(1))
    (step,) = module.score_steps([a_step(objective, budget)], keep_old=True)
    module.model.backbone.load_state_dict(CURRENT.make()[0].state_dict())
    nudge_weights(value, 0.02, 4)
    after = with_head(value.backbone, value.part("head").weight.detach())

    old, now = said_by(before), said_by(after)
    wanted, wanted_value = naive_losses(objective, old, now)
    losses = [module.loss(batch, step.loss_divisor)[0] for batch in step.micro_batches]
    value_losses = [module.value_losses(batch, step.loss_divisor)[0]["value_loss"] for batch in step.micro_batches]
    assert float(sum(losses).detach()) == pytest.approx(float(wanted.detach()), abs=CLOSE)
    assert float(sum(value_losses).detach()) == pytest.approx(float(wanted_value.detach()), rel=CLOSE)
    assert_near(reduce(add, (flat_gradient(x, module.model.parameters()) for x in losses)), policies().gradient(wanted))
    found = reduce(add, (flat_gradient(x, value.parameters()) for x in value_losses))
    assert_near(
        found, flat_gradient(wanted_value, [after.get_parameter(n) for n, _ in value.backbone.named_parameters()])
    )


@pytest.mark.parametrize("budget", [WHOLE, DIVIDED], ids=["one row", "divided"])
@pytest.mark.parametrize("share", [0.3, 0.0])
def test_a_shared_backbone_has_the_gradients_of_both_losses_in_their_shares(share: float, budget: int) -> None:
    """The old values are of the old policy's hidden states, the new ones of the current policy's."""
    objective, this = TraceRL(**LEARNED), policies()
    module = module_with(objective, ValueConfig(shared=True, shared_coef=share))
    head = module.value_model
    assert isinstance(head, ScalarHead)
    head.weight.data.copy_(new_head(1))
    (step,) = module.score_steps([a_step(objective, budget)], keep_old=True)
    module.model.backbone.load_state_dict(CURRENT.make()[0].state_dict())
    head.weight.data.copy_(new_head(2))

    before = with_head(OLD.make()[0], new_head(1))
    after = copy.copy(this.backbone)  # the trained policy's weights, so that one gradient has both losses
    after._modules = {**this.backbone._modules, "lm_head": with_head(this.backbone, new_head(2)).lm_head}
    old, now = said_by(before), said_by(after)
    wanted, wanted_value = naive_losses(objective, old, now)
    parts = [module.losses(batch, step.loss_divisor)[0] for batch in step.micro_batches]
    assert float(sum(p["value_loss"] for p in parts).detach()) == pytest.approx(float(wanted_value.detach()), rel=CLOSE)
    policy = list(module.model.parameters())
    found = reduce(add, (flat_gradient(p["loss"] + p["value_loss"], [*policy, head.weight]) for p in parts))
    backbone = flat_gradient_or_zero(wanted + share * wanted_value, this.backbone)
    assert_near(found[:-32], backbone)
    assert_near(found[-32:], flat_gradient(naive_losses(objective, old, now)[1], [after.lm_head.weight]))


def flat_gradient_or_zero(loss: Tensor, model: nn.Module) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    pairs = zip(gradients, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def test_before_the_policy_moves_old_values_are_the_values_and_the_loss_is_the_plain_square() -> None:
    objective = TraceRL(**LEARNED)
    module = module_with(objective, ValueConfig(SOURCE))
    module.value_model.part("head").weight.data.copy_(new_head(1))
    (step,) = module.score_steps([a_step(objective, WHOLE)], keep_old=False)
    (batch,) = step.micro_batches
    assert "old_logprobs" not in batch.columns
    loss, sums = module.value_losses(batch, 1.0)
    errors = (batch.columns["values"] - batch.columns["returns"]).square() * batch.columns["value_weights"] / 2
    assert float(loss["value_loss"].detach()) == pytest.approx(float(errors.sum()), rel=1e-5)
    assert sums["value_clip_fraction"] == 0


def test_division_changes_no_credit() -> None:
    objective = TraceRL(**LEARNED)
    module = module_with(objective, ValueConfig(SOURCE))
    module.value_model.part("head").weight.data.copy_(new_head(1))
    whole, parts = module.score_steps([a_step(objective, WHOLE), a_step(objective, DIVIDED)], keep_old=False)

    def by_token(step: StepBatch, name: str) -> dict[tuple[int, int], float]:
        return {
            (int(row.trajectory_ids[i]), int(row.position_ids[i])): float(row.columns[name][i])
            for row in step.micro_batches
            for i in (row.target_ids >= 0).nonzero().flatten()
        }

    for name in ("values", "advantages", "returns", "value_weights"):
        assert by_token(parts, name) == pytest.approx(by_token(whole, name), abs=1e-5)


def test_a_trajectory_weighs_as_in_the_policys_loss_and_its_tokens_all_the_same() -> None:
    for options in ({}, {"normalization": "constant", "step_mean": False}, {"trajectory_fraction": 0.5}):
        objective = TraceRL(value=True, shrink=2, **options)
        module = module_with(objective, ValueConfig(SOURCE))
        (step,) = module.score_steps([a_step(objective, WHOLE)], keep_old=False)
        (row,) = step.micro_batches
        for number in row.trajectory_ids[row.target_ids >= 0].unique():
            own = (row.trajectory_ids == number) & (row.target_ids >= 0)
            weights = row.columns["value_weights"][own]
            assert weights.sum() == pytest.approx(float(row.loss_weights[own].sum()), rel=1e-5)
            assert weights.unique().numel() == 1


def test_outcomes_are_the_groups_advantages_or_the_rewards() -> None:
    (first, *_), *_ = policies().groups
    first = copy.copy(first)
    object.__setattr__(first, "reward", 0.75)
    assert TraceRL(value=True).columns(first)["outcomes"] == first.advantage
    assert TraceRL(value=True, outcome="reward").columns(first)["outcomes"] == 0.75
    assert "outcomes" not in TraceRL().columns(first)


def test_a_row_that_keeps_other_ranks_company_has_gradients_that_are_zero() -> None:
    for value in (ValueConfig(SOURCE), ValueConfig(shared=True)):
        module = module_with(TraceRL(value=True), value)
        losses, _ = module.losses(empty_batch(module.spec), 1.0)
        if not value.shared:
            losses |= module.value_losses(empty_batch(module.spec), 1.0)[0]
        reduce(add, losses.values()).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_the_new_head_is_zero_and_names_and_shapes_of_a_checkpoint_are_as_expected() -> None:
    for tied in (True, False):
        for value in (ValueConfig(TinyModel(tied=tied, nudge=0.1)), ValueConfig(shared=True)):
            module = RLModule(TinyModel(tied=tied), decoding=PARAMS, objective=TraceRL(value=True), value=value)
            module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
            module.configure_model()
            assert {n: tuple(v.shape) for n, v in module.state_dict().items()} == module.expected_shapes()
            head = module.value_model.weight if value.shared else module.value_model.part("head").weight
            assert head.shape == (1, 32) and not head.any()
            policy, learner = module.learners()
            assert (policy.name, learner.name, learner.config.lr) == ("", "value", 5e-6)
            assert len(policy.parameters) + len(learner.parameters) == len(list(module.parameters()))
            assert len(module.weight_shapes()) == len(list(module.full_weights())) == len(policy.parameters)


class OtherTokens(TinyModel):
    def describe(self) -> ModelDescription:
        made = super().describe()
        made.tokenizer.get_vocab = lambda: {"x": 0}
        return made

    def build(self, config: object) -> PreTrainedModel:
        raise AssertionError("weights are read")


class Unread(TinyModel):
    build = OtherTokens.build


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Unread(block_size=8), r"model\.value\.source .*block_size=8.* differs from .*block_size=4.*model\.source"),
        (Unread(padding=3), r"model\.value\.source .*vocab_size"),
        (OtherTokens(), r"model\.value\.source has the policy's sizes, and other tokens"),
    ],
)
def test_a_value_model_of_another_tokenizer_or_spec_is_refused_before_weights_are_read(
    source: TinyModel, message: str
) -> None:
    module = RLModule(Unread(), objective=TraceRL(value=True), value=ValueConfig(source))
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=message):
        module.configure_model()


class Sampled(DiPO):
    gae = TraceRL(value=True).gae


@pytest.mark.parametrize(
    ("objective", "value", "message"),
    [
        (TraceRL(value=True), None, r"objective\.value=true .*model\.value=null .*model\.init_args\.value"),
        (TraceRL(), ValueConfig(), r"model\.value is given.*\(TraceRL\).*objective\.value=true"),
        (DiPO(), ValueConfig(shared=True), r"model\.value is given.*\(DiPO\)"),
        (TraceRL(value=True, view_fraction=0.5), ValueConfig(), r"objective\.value=true .*view_fraction=0\.5"),
        (Sampled(likelihood="trajectory"), ValueConfig(), r"objective\.value=true .*likelihood=trajectory"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_both_names(
    objective: Objective, value: ValueConfig | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RLModule(OLD, objective=objective, value=value)


def test_without_an_objective_that_needs_it_a_value_model_is_refused_before_weights_are_read() -> None:
    module = RLModule(Unread(), value=ValueConfig())
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"model\.value is given.*\(DiPO\)"):
        module.configure_model()


def test_options_of_the_value_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"model\.value\.shared_coef=-1\.0"):
        ValueConfig(shared_coef=-1.0)
    with pytest.raises(ValueError, match=r"model\.value\.shared=true .*model\.value\.source"):
        ValueConfig(SOURCE, OptimizerConfig(), shared=True)
