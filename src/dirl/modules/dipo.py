"""Stage two: reinforcement learning with DiPO, every token scored at the step that committed it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from dirl.attention.backend import Backend
from dirl.losses.policy import PolicyLossConfig, bounded, clipped_surrogate, policy_loss
from dirl.models import BlockDiffusionLM, ModelSource, Scores
from dirl.models.head import LOG_FLOOR
from dirl.modules.base import BlockDiffusionModule
from dirl.modules.layers import Checkpointing
from dirl.modules.optimization import OptimizerConfig
from dirl.modules.sharding import reshard
from dirl.types import DecodingParams, PackedBatch, StepBatch


class DiPOModule(BlockDiffusionModule):
    """The policy and its update.

    Args:
        loss: options of the DiPO loss.
        decoding: how rollouts sample, which is also the distribution that the trainer scores.
        reference: model of the KL term; None: the one that training starts from. Its weights have the dtype of
            compute, so with `trainer.precision: bf16-mixed` they are bf16.
        reference_on_host: its weights stay in host memory but for the time in which it scores.
    """

    makes_rollouts = True

    def __init__(
        self,
        source: ModelSource,
        loss: PolicyLossConfig = PolicyLossConfig(),  # noqa: B008 - frozen
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
        self.loss_config, self.decoding, self.reference_source = loss, decoding, reference
        self.reference_on_host = reference_on_host
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
            reference = self.build_model(source, description, frozen=True, on_host=self.reference_on_host)
            on_gpu = self.trainer.strategy.root_device.type == "cuda"
            if self.reference_on_host and on_gpu and self.sharding_mesh is None:
                pin_weights(reference)
            self._reference.append(reference)

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        sums: dict[str, Tensor] = {}

        def loss_fn(batch: PackedBatch, divisor: Tensor) -> Tensor:
            loss, parts = self.loss(batch, divisor)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
            return loss

        if self.optimize(step, loss_fn):
            self._log_means(sums)

    def loss(self, batch: PackedBatch, divisor: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the step's loss, and sums over its scored tokens for the log."""
        likelihood = self.loss_config.likelihood
        row, plan = self.place(batch, self.decoding, likelihood)
        scores: Scores = self.model(row, self.decoding, likelihood, plan=plan)
        at = scores.positions
        assert row.reference_logprobs is not None or not (self._reference and len(at)), "the reference has not scored"
        result = policy_loss(
            scores.logprobs,
            known_or(row.old_logprobs, at, scores.logprobs),
            row.behaviour_logprobs[at],
            known_or(row.reference_logprobs, at, scores.logprobs) if self._reference else None,
            row.advantages[at],
            row.loss_weights[at],
            divisor,
            self.loss_config,
        )
        sums = {**result.sums, "entropy": scores.entropy.sum()}
        if not len(scores.factor_positions):
            return result.loss, sums
        # A rejected position has no target, hence no weight of its own: it takes its trajectory's.
        weights = self.placed(trajectory_weights(batch))[scores.factor_positions]
        loss, outside = self._factor_loss(row, scores, weights, divisor)
        return result.loss + loss, {**sums, "bounded": sums["bounded"] + outside}

    def _factor_loss(
        self, row: PackedBatch, scores: Scores, weights: Tensor, divisor: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """`likelihood: trajectory`: each rejection is an event of its own, with its own ratio, clip and bound."""
        at = scores.factor_positions
        old = known_or(row.old_logprobs, at, scores.log_factors)
        surrogate, _, _ = clipped_surrogate(scores.log_factors, old, row.advantages[at], self.loss_config)
        # What is or was impossible has no ratio to speak of: a step from the floor would be one of e^30.
        impossible = (old <= LOG_FLOOR) | (scores.log_factors <= LOG_FLOOR)
        loss = -(surrogate.masked_fill(impossible, 0.0) * weights).sum() / divisor
        return loss, bounded((scores.log_factors - old).masked_fill(impossible, 0.0))

    @torch.no_grad()
    def score_steps(self, steps: Sequence[StepBatch], keep_old: bool) -> list[StepBatch]:
        """Fill in the log-probs of the old policy (if it will move before they are used) and of the reference.

        Called with the weights that begin the epoch, on all ranks. Of the batches, only the filled fields are copied.
        """
        if not keep_old and not self._reference:
            return list(steps)
        scored = []
        with self.trainer.precision_plugin.forward_context(), self._reference_at_work():
            for step in steps:
                found = [self._score(batch, keep_old) for batch in self.equal_micro_batches(step)]
                batches = [fill_in(*pair) for pair in zip(step.micro_batches, found, strict=False)]
                scored.append(dataclasses.replace(step, micro_batches=batches))
        for model in (self.model, *self._reference):
            reshard(model)
        return scored

    def _score(self, batch: PackedBatch, keep_old: bool) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Name of a field -> positions in it and the log-probs that belong there, on the device: nothing waits yet."""
        likelihood = self.loss_config.likelihood if keep_old else "tokens"
        row, plan = self.place(batch, self.decoding, likelihood)
        found = {}
        if keep_old:
            scores = self.model(row, self.decoding, likelihood, entropy=False, plan=plan)
            events = (scores.factor_positions, scores.log_factors)
            found["old_logprobs"] = [(scores.positions, scores.logprobs), events]
        for reference in self._reference:
            plain = plan.without_factors()
            scores = reference(row, self.decoding, entropy=False, plan=plain)
            found["reference_logprobs"] = [(scores.positions, scores.logprobs)]
        return found

    def _reference_at_work(self) -> AbstractContextManager:
        """The reference's weights on the device; sharded ones come by themselves."""
        if not self._reference or self.sharding_mesh is not None:
            return nullcontext()
        if self.reference_on_host:
            return visiting(self._reference[0], self.placed)
        self._reference[0].to(self.device)
        return nullcontext()

    def _log_means(self, sums: dict[str, Tensor]) -> None:
        names = sorted(sums)
        totals = self.sum_over_ranks(torch.stack([sums[n] for n in names]))
        means = dict(zip(names, (totals / totals[names.index("tokens")]).float(), strict=True))
        tokens = means.pop("tokens") * totals[names.index("tokens")]
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.log("train/scored_tokens", tokens.float())


def known_or(stored: Tensor | None, at: Tensor, current: Tensor) -> Tensor:
    """The old policy's log-probs at these positions if they were stored, else the current (it has not moved)."""
    return current.detach() if stored is None else stored[at]


def fill_in(batch: PackedBatch, found: dict[str, list[tuple[Tensor, Tensor]]]) -> PackedBatch:
    """The batch with the named fields, in which all but these positions is 0."""
    fields = {}
    for name, events in found.items():
        fields[name] = torch.zeros_like(batch.behaviour_logprobs)
        for positions, logprobs in events:
            fields[name][positions.to(fields[name].device)] = logprobs.to(fields[name])
    return dataclasses.replace(batch, **fields)


@contextmanager
def visiting(model: nn.Module, placed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The model's tensors are moved by `placed` for the time of the block; those at home are kept."""
    home = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    for tensor, data in home:
        tensor.data = placed(data)
    try:
        yield
    finally:
        for tensor, data in home:
            tensor.data = data


def pin_weights(model: nn.Module) -> None:
    """Move the tensors of a model on the host into pinned memory, from where a GPU takes them at full speed."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.pin_memory()


def trajectory_weights(batch: PackedBatch) -> Tensor:
    """[T] the loss weight of the scored tokens of each position's trajectory (it is the same for all of them)."""
    trajectory = batch.group_ids * (batch.branch_ids.max() + 1) + batch.branch_ids
    weights = batch.loss_weights.new_zeros(int(trajectory.max()) + 1)
    return weights.scatter_reduce(0, trajectory, batch.loss_weights, "amax")[trajectory]
