"""Stage two: reinforcement learning with DiPO, every token scored at the step that committed it."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dirl.attention.backend import Backend
from dirl.losses.policy import PolicyLossConfig, clipped_surrogate, policy_loss
from dirl.models import BlockDiffusionLM, ModelSource, Scores
from dirl.models.head import LOG_FLOOR
from dirl.modules.base import BlockDiffusionModule, reshard
from dirl.modules.optimization import OptimizerConfig
from dirl.types import DecodingParams, PackedBatch, StepBatch


class DiPOModule(BlockDiffusionModule):
    """The policy and its update.

    Args:
        loss: options of the DiPO loss.
        decoding: how rollouts sample, which is also the distribution that the trainer scores.
        reference: model of the KL term; None: the one that training starts from.
    """

    def __init__(
        self,
        source: ModelSource,
        loss: PolicyLossConfig = PolicyLossConfig(),  # noqa: B008 - frozen
        decoding: DecodingParams = DecodingParams(),
        reference: ModelSource | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6),  # noqa: B008 - frozen
        attention: Backend = "auto",
        head_chunk: int = 4096,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(source, optimizer, attention, head_chunk, activation_checkpointing)
        if decoding.temperature == 0:
            raise ValueError(
                "model.decoding.temperature=0: greedy rollouts give a group of equals and nothing to learn from; use 1"
            )
        self.loss_config, self.decoding, self.reference_source = loss, decoding, reference
        self._reference: list[BlockDiffusionLM] = []  # in a list: no part of the module's parameters or checkpoint

    def configure_model(self) -> None:
        super().configure_model()
        if self.loss_config.kl_coef > 0 and not self._reference:
            source = self.reference_source or self.source
            description = source.describe()
            if description.spec != self.spec:
                raise ValueError(
                    f"the reference model ({description.spec}) differs from the policy ({self.spec}): KL compares the "
                    "same tokens in the same blocks; use a reference of the same family"
                )
            self._reference.append(self.build_model(source, description).eval().requires_grad_(False))

    @property
    def reference(self) -> BlockDiffusionLM | None:
        return self._reference[0].to(self.device) if self._reference else None

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        sums: dict[str, Tensor] = {}

        def loss_fn(batch: PackedBatch, divisor: Tensor) -> Tensor:
            loss, parts = self.loss(batch, divisor)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
            return loss

        if self.optimize(step, loss_fn):
            self._log_means(sums)
        else:
            self.log("train/skipped_steps", 1.0)

    def loss(self, batch: PackedBatch, divisor: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the step's loss, and sums over its scored tokens for the log."""
        scores: Scores = self.model(batch, self.decoding, self.loss_config.likelihood)
        at = scores.positions
        old = known_or(batch.old_logprobs[at], scores.logprobs)
        result = policy_loss(
            scores.logprobs,
            old,
            batch.behaviour_logprobs[at],
            batch.reference_logprobs[at] if self._reference else None,
            batch.advantages[at],
            batch.loss_weights[at],
            divisor,
            self.loss_config,
        )
        sums = {**result.sums, "entropy": scores.entropy.sum()}
        if not len(scores.factor_positions):
            return result.loss, sums
        return result.loss + self._factor_loss(batch, scores, divisor), sums

    def _factor_loss(self, batch: PackedBatch, scores: Scores, divisor: Tensor | float) -> Tensor:
        """`likelihood: trajectory`: each rejection is an event of its own, with its own ratio and clip."""
        at = scores.factor_positions
        old = known_or(batch.old_logprobs[at], scores.log_factors)
        surrogate, _, _ = clipped_surrogate(scores.log_factors, old, batch.advantages[at], self.loss_config)
        # What is or was impossible has no ratio to speak of: a step from the floor would be one of e^30.
        possible = (old > LOG_FLOOR) & (scores.log_factors > LOG_FLOOR)
        # A rejected position has no target, hence no weight of its own: it takes its trajectory's.
        weights = trajectory_weights(batch)[at]
        return -(surrogate.masked_fill(~possible, 0.0) * weights).sum() / divisor

    @torch.no_grad()
    def score_steps(self, steps: Sequence[StepBatch], keep_old: bool) -> list[StepBatch]:
        """Fill in the log-probs of the old policy (if it will move before they are used) and of the reference.

        Called with the weights that begin the epoch, on all ranks.
        """
        if not keep_old and not self._reference:
            return list(steps)
        scored = []
        with self.trainer.precision_plugin.forward_context():
            for step in steps:
                batches = [self._with_old(b, keep_old) for b in self.equal_micro_batches(step)]
                scored.append(dataclasses.replace(step, micro_batches=batches[: len(step.micro_batches)]))
        for model in self._reference:
            reshard(model)
        return scored

    def _with_old(self, batch: PackedBatch, keep_old: bool) -> PackedBatch:
        moved = batch.to(self.device)
        old, reference = moved.old_logprobs.clone(), moved.reference_logprobs.clone()
        if keep_old:
            scores = self.model(moved, self.decoding, self.loss_config.likelihood, entropy=False)
            old[scores.positions] = scores.logprobs
            old[scores.factor_positions] = scores.log_factors
        if self._reference:
            scores = self.reference(moved, self.decoding, entropy=False)
            reference[scores.positions] = scores.logprobs
        return dataclasses.replace(
            batch,
            old_logprobs=old.to(batch.old_logprobs.device),
            reference_logprobs=reference.to(batch.reference_logprobs.device),
        )

    def _log_means(self, sums: dict[str, Tensor]) -> None:
        names = sorted(sums)
        totals = self.sum_over_ranks(torch.stack([sums[n] for n in names]))
        means = dict(zip(names, (totals / totals[names.index("tokens")]).float(), strict=True))
        tokens = means.pop("tokens") * totals[names.index("tokens")]
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.log("train/scored_tokens", tokens.float())


def known_or(stored: Tensor, current: Tensor) -> Tensor:
    """The old policy's log-probs where they were stored, else the current ones (the policy has not moved)."""
    return torch.where(stored.isnan(), current.detach(), stored)


def trajectory_weights(batch: PackedBatch) -> Tensor:
    """[T] the loss weight of the scored tokens of each position's trajectory (it is the same for all of them)."""
    trajectory = batch.group_ids * (batch.branch_ids.max() + 1) + batch.branch_ids
    weights = batch.loss_weights.new_zeros(int(trajectory.max()) + 1)
    return weights.scatter_reduce(0, trajectory, batch.loss_weights, "amax")[trajectory]
