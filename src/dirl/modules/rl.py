"""Stage two: reinforcement learning from the trajectories of a rollout, by the objective of the config."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from dirl.attention.backend import Backend
from dirl.batches import PackedBatch, StepBatch
from dirl.models import ModelSource, Scores
from dirl.models.policy import ScoringPlan
from dirl.modules.base import BlockDiffusionModule
from dirl.modules.layers import Checkpointing
from dirl.modules.optimization import OptimizerConfig
from dirl.modules.reference import Reference
from dirl.modules.sharding import reshard
from dirl.modules.step_sums import StepSums, divided
from dirl.objectives import DiPO, Objective
from dirl.objectives.scored import ScoredRow, scored_row
from dirl.types import DecodingParams

Found = dict[str, list[tuple[Tensor, Tensor]]]
"""Name of a column -> positions in a row and the log-probs that belong there."""


class RLModule(BlockDiffusionModule):
    """The policy and its update.

    Args:
        decoding: how rollouts sample, which is also the distribution that the trainer scores.
        reference: model of the objective's KL term; None: the one that training starts from. Its weights have the dtype
            of compute, so with `trainer.precision: bf16-mixed` they are bf16.
        reference_on_host: its weights stay in host memory but for the time in which it scores.
        objective: what a step learns from; None: `dirl.objectives.DiPO`. In configs it has a key of its own,
            `objective`.
    """

    makes_rollouts = True

    def __init__(
        self,
        source: ModelSource,
        decoding: DecodingParams = DecodingParams(),
        reference: ModelSource | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6),  # noqa: B008 - frozen
        attention: Backend = "auto",
        head_chunk: int | None = None,
        activation_checkpointing: Checkpointing = "none",
        compile_layers: bool = False,
        offload_optimizer: bool = False,
        reference_on_host: bool = False,
        max_skipped_steps: int = 10,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(
            source,
            optimizer,
            attention,
            head_chunk,
            activation_checkpointing,
            compile_layers,
            offload_optimizer,
            max_skipped_steps,
        )
        if decoding.temperature == 0:
            raise ValueError(
                "model.decoding.temperature=0: greedy rollouts give a group of equals and nothing to learn from; use 1"
            )
        self.decoding = decoding
        self.use(objective or DiPO())
        self.reference_source, self.reference_on_host = reference, reference_on_host
        self._reference: Reference | None = None

    def use(self, objective: Objective) -> None:
        """Learn by this one; ValueError if it cannot learn from what is decoded here."""
        objective.check(self.decoding)
        self.objective = objective

    def configure_model(self) -> None:
        super().configure_model()
        if self.objective.needs_reference and self._reference is None:
            source = self.reference_source or self.source
            description = source.describe()
            if description.spec != self.spec:
                raise ValueError(
                    f"the reference model ({description.spec}) differs from the policy ({self.spec}): KL compares the "
                    "same tokens in the same blocks; use a reference of the same family"
                )
            model = self.build_model(source, description, frozen=True, on_host=self.reference_on_host)
            self._reference = Reference(model, self.sharding_mesh is not None, self.reference_on_host)
            if self.trainer.strategy.root_device.type == "cuda":
                self._reference.pin()

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        sums: dict[str, Tensor] = {}
        known = self.step_sums(step)

        def loss_fn(batch: PackedBatch, divisor: Tensor) -> Tensor:
            loss, parts = self.loss(batch, divisor, known)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
            return loss

        if self.optimize(step, loss_fn):
            self._log_means(sums)

    def loss(
        self, batch: PackedBatch, divisor: Tensor | float, known: StepSums | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the step's loss, and sums over its scored tokens for the log.

        Args:
            known: `step_sums` of the step; None: the row's own are all there is.
        """
        row = self._scored(batch)
        if self.objective.needs_sums(has_old(batch)):
            known = known or StepSums.of_rows(self.objective, [row], int(batch.trajectory_ids.max()) + 1)
            row = known.beside(row)
        found = self.objective.loss(row)
        tokens = torch.ones_like(row.logprobs).sum()
        return found.loss / divisor, {**found.sums, "tokens": tokens, "entropy": row.entropy.sum()}

    def _scored(self, batch: PackedBatch) -> ScoredRow:
        """What the policy says of the row's scored positions."""
        likelihood = self.objective.likelihood
        row, plan = self.place(batch, self.decoding, likelihood)
        assert self.model is not None, "`configure_model` builds it"
        scores: Scores = self.model(row, self.decoding, likelihood, plan=plan)
        at, unscored = scores.positions, "reference_logprobs" not in row.columns
        assert self._reference is None or not (unscored and len(at)), "the reference has not scored"
        rejected = None
        if len(scores.factor_positions):
            # A rejected position has no target, hence no weight of its own: it takes its view's.
            none = scores.log_factors.new_zeros(len(scores.factor_positions))
            weights = view_weights(row.loss_weights[at], plan)
            rejected = scored_row(row, scores.factor_positions, scores.log_factors, none, weights)
        return scored_row(row, at, scores.logprobs, scores.entropy, rejected=rejected)

    @torch.no_grad()
    def step_sums(self, step: StepBatch) -> StepSums | None:
        """What the objective sums over trajectories, where no row can know it by itself: by a forward of every row.

        That is where a trajectory of any rank lies in several rows, or the loss needs totals of the step. Called by all
        ranks before the step's first loss; a sharded forward is a collective.
        """
        batches, objective = step.micro_batches, self.objective
        if not objective.needs_sums(moved=True):
            return None
        if not objective.needs_sums(bool(self.largest_over_ranks(any(map(has_old, batches))))):
            return None
        if not objective.needs_totals and not self.largest_over_ranks(divided(batches)):
            return None
        rows = [self._scored(batch) for batch in self.equal_micro_batches(step)]
        return StepSums.of_rows(objective, rows, step.sequences, self.sum_over_ranks)

    @torch.no_grad()
    def score_steps(self, steps: Sequence[StepBatch], keep_old: bool) -> list[StepBatch]:
        """Fill in the log-probs of the old policy (if it will move before they are used) and of the reference.

        Called with the weights that begin the epoch, on all ranks. Of the batches, only the filled columns are copied.
        """
        reference = self._reference
        if not keep_old and reference is None:
            return list(steps)
        scored = []
        at_work = nullcontext() if reference is None else reference.at_work(self.device, self.placed)
        with self.trainer.precision_plugin.forward_context(), at_work:
            for step in steps:
                found = [self._score(batch, keep_old) for batch in self.equal_micro_batches(step)]
                batches = [fill_in(*pair) for pair in zip(step.micro_batches, found, strict=False)]
                scored.append(dataclasses.replace(step, micro_batches=batches))
        assert self.model is not None, "`configure_model` builds it"
        for model in (self.model, *([] if reference is None else [reference.model])):
            reshard(model)
        return scored

    def _score(self, batch: PackedBatch, keep_old: bool) -> Found:
        """On the device: nothing waits yet."""
        likelihood = self.objective.likelihood if keep_old else "tokens"
        row, plan = self.place(batch, self.decoding, likelihood)
        found: Found = {}
        if keep_old:
            assert self.model is not None, "`configure_model` builds it"
            scores = self.model(row, self.decoding, likelihood, entropy=False, plan=plan)
            events = (scores.factor_positions, scores.log_factors)
            found["old_logprobs"] = [(scores.positions, scores.logprobs), events]
        if self._reference is not None:
            scores = self._reference.model(row, self.decoding, entropy=False, plan=plan.without_factors())
            found["reference_logprobs"] = [(scores.positions, scores.logprobs)]
        return found

    def _log_means(self, sums: dict[str, Tensor]) -> None:
        names = sorted(sums)
        totals = self.sum_over_ranks(torch.stack([sums[n] for n in names]))
        means = dict(zip(names, (totals / totals[names.index("tokens")]).float(), strict=True))
        tokens = means.pop("tokens") * totals[names.index("tokens")]
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.log("train/scored_tokens", tokens.float())


def fill_in(batch: PackedBatch, found: Found) -> PackedBatch:
    """The batch with the named columns, in which all but these positions is 0."""
    columns: dict[str, Any] = {}
    for name, events in found.items():
        columns[name] = torch.zeros_like(batch.loss_weights)
        for positions, logprobs in events:
            columns[name][positions.to(columns[name].device)] = logprobs.to(columns[name])
    return batch.with_columns(columns)


def has_old(batch: PackedBatch) -> bool:
    """Whether the old policy has scored it, since the policy moves before it learns from it."""
    return "old_logprobs" in batch.columns


def view_weights(weights: Tensor, plan: ScoringPlan) -> Tensor:
    """[M] of each rejected position the largest weight [N] of its view's scored tokens (DiPO's are all the same)."""
    largest = weights.new_zeros(plan.views).scatter_reduce(0, plan.position_views, weights, "amax")
    return largest[plan.rejected_views]
