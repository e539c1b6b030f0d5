"""Policies near one another, and an objective's loss of what one of them sampled: by the module, and for its oracle.

One policy sampled, one is the old policy, one is trained, one is the reference. For oracles they speak in float64, one
forward for each state of a block; for the module they are what `fit` would have.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import lightning as L
import pytest
import torch
from tests.reference import Logits, Scored, hf_logits, naive_masked_logprobs
from tests.tiny import TinyModel, flat_gradient, prompt, sample_groups
from torch import Tensor
from transformers import PreTrainedModel

from dirl.modules import RLModule
from dirl.objectives import Objective
from dirl.rl.steps import step_batch
from dirl.types import DecodingParams, ModelSpec, Trajectory

CLOSE = 1e-5
"""fp32 forward and backward against float64, relative to the norm of the gradient."""
WHOLE, DIVIDED = 10_000, 32
"""Token budgets: one row for all, and rows of a few views each."""

BEHAVIOUR, OLD, CURRENT, REFERENCE = (
    TinyModel(nudge=nudge, nudge_seed=seed) for nudge, seed in ((0.02, 0), (0.0, 0), (0.02, 8), (0.05, 3))
)
ADVANTAGES = (1.3, -0.7, -1.1, 0.4, 0.9, -0.6)

Policy = Literal["old", "current", "reference"]
State = tuple[tuple[int, ...], tuple[int, ...]]
"""Absolute positions of one block: those that are masked, and those of them that are scored."""


@dataclass(frozen=True)
class Policies:
    """Two groups of three trajectories, and what the policies say of their tokens."""

    decoding: DecodingParams
    groups: list[list[Trajectory]]
    spec: ModelSpec
    backbone: PreTrainedModel
    """The trained one in float64."""
    models: dict[Policy, Logits]
    said: dict[tuple, Tensor] = field(default_factory=dict)

    @classmethod
    def sample(cls, decoding: DecodingParams) -> "Policies":
        advantages: Iterator[float] = iter(ADVANTAGES)
        groups = sample_groups(BEHAVIOUR, [prompt(6, 6), prompt(3)], 3, decoding)
        groups = [[dataclasses.replace(t, advantage=next(advantages)) for t in group] for group in groups]
        sources: dict[Policy, TinyModel] = {"old": OLD, "current": CURRENT, "reference": REFERENCE}
        backbones = {name: source.make()[0].double() for name, source in sources.items()}
        models = {name: hf_logits(backbone) for name, backbone in backbones.items()}
        return cls(decoding, groups, BEHAVIOUR.describe().spec, backbones["current"], models)

    @property
    def trajectories(self) -> list[Trajectory]:
        return [t for group in self.groups for t in group]

    def logprobs(self, policy: Policy, trajectory: Trajectory, state: State) -> Tensor:
        """[n] of what the state scores; only the current policy's have a gradient."""
        key = policy, trajectory.key, state
        if key not in self.said:
            found = naive_masked_logprobs(self.models[policy], trajectory, self.spec, self.decoding, *state)
            self.said[key] = found if policy == "current" else found.detach()
        return self.said[key]

    def scored(self, trajectory: Trajectory, states: Sequence[State], moved: bool) -> Scored:
        """The tokens of the states in their order; `moved` False: the old policy is the current one."""
        logp, old, reference = (
            torch.cat([self.logprobs(policy, trajectory, state) for state in states])
            for policy in ("current", "old", "reference")
        )
        head = len(trajectory.prompt_ids)
        behaviour = [trajectory.behaviour_logprobs[i - head] for _, scored in states for i in scored]
        assert trajectory.advantage is not None
        return Scored(logp, trajectory.advantage, old if moved else None, torch.tensor(behaviour).double(), reference)

    def gradient(self, loss: Tensor) -> Tensor:
        parameters = list(self.backbone.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])

    def by_module(
        self, objective: Objective, moved: bool, token_budget: int = WHOLE, seed: tuple[int, ...] = (0,)
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss and gradient of a step of all trajectories, and the sums for the log, as `fit` has them."""
        module = RLModule(OLD, objective=objective, decoding=self.decoding, reference=REFERENCE)
        module.trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        module.configure_model()
        current = CURRENT.make()[0].state_dict()
        if not moved:
            module.model.backbone.load_state_dict(current)
        limit = self.decoding.max_response_tokens
        step = step_batch(self.groups, self.spec, objective, limit, token_budget, seed=seed)
        assert (len(step.micro_batches) > 1) == (token_budget < WHOLE)
        (step,) = module.score_steps([step], keep_old=moved)
        module.model.backbone.load_state_dict(current)
        known, parameters = module.step_sums(step), list(module.model.parameters())
        found = [module.loss(batch, step.loss_divisor, known) for batch in step.micro_batches]
        gradient = sum(flat_gradient(loss, parameters) for loss, _ in found)
        sums = {name: sum(part[name].detach().double() for _, part in found) for name in found[0][1]}
        return sum(loss.detach().double() for loss, _ in found), gradient, sums

    def assert_close(self, found: tuple[Tensor, Tensor, dict[str, Tensor]], loss: Tensor) -> None:
        """The module's against the oracle's."""
        gradient = self.gradient(loss)
        assert gradient.norm() > 0.01, "there is nothing to compare"
        assert float((found[1] - gradient).norm() / gradient.norm()) < CLOSE
        assert float(found[0]) == pytest.approx(float(loss.detach()), abs=CLOSE)


def trace_states(trajectory: Trajectory, block_size: int, shrink: int = 1) -> list[State]:
    """By the step map: `shrink` steps of a block at once, at the state before the first of them."""
    head = len(trajectory.prompt_ids)
    steps = {head + i: (step - 1) // shrink for i, step in enumerate(trajectory.step_map)}
    found: list[State] = []
    for block in sorted({i // block_size for i in steps}):
        own = {i: step for i, step in steps.items() if i // block_size == block}
        for step in sorted(set(own.values())):
            masked = tuple(i for i in own if own[i] >= step)
            found.append((masked, tuple(i for i in own if own[i] == step)))
    return found
