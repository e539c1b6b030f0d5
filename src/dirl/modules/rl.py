"""Stage two: reinforcement learning from the trajectories of a rollout, by the objective of the config."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dirl.attention.backend import Backend
from dirl.batches import PackedBatch, StepBatch
from dirl.models import ModelDescription, ModelSource, Scores
from dirl.models.autoregressive import check_fills_masks
from dirl.models.lora import LoRAConfig
from dirl.models.value import ScalarHead, ValueModel
from dirl.modules import value as of_value
from dirl.modules.backward import LossFn, Scalars
from dirl.modules.base import BlockDiffusionModule
from dirl.modules.building import check_dtype
from dirl.modules.columns import Found, fill_in, has_old
from dirl.modules.layers import Checkpointing
from dirl.modules.learners import Learner
from dirl.modules.optimization import OptimizerConfig
from dirl.modules.reference import AdaptersOff, Reference, check_same_spec, say_if_unused
from dirl.modules.sharding import reshard
from dirl.modules.step_sums import StepSums, divided, trajectories, unscored
from dirl.modules.value import ValueConfig
from dirl.objectives import DiPO, Objective
from dirl.objectives.scored import ScoredRow, columns_at, scored_row
from dirl.rl.credit import with_credit
from dirl.types import DecodingParams


class RLModule(BlockDiffusionModule):
    """The policy and its update.

    Args:
        decoding: how rollouts sample, which is also the distribution that the trainer scores.
        reference: model of the objective's KL term; None: the one that training starts from. Its weights have the dtype
            of compute, so with `trainer.precision: bf16-mixed` they are bf16. With `lora`, None is no second model but
            the policy with its adapters off.
        reference_on_host: its weights stay in host memory but for the time in which it scores.
        objective: what a step learns from; None: `dirl.objectives.DiPO`. In configs it has a key of its own,
            `objective`.
        value: the value model of an objective that learns from one; see `dirl.modules.value.ValueConfig`.
    """

    makes_rollouts = True
    default_objective: type[Objective] = DiPO
    """What it learns by where the config names none."""

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
        value: ValueConfig | None = None,
        lora: LoRAConfig | None = None,
    ) -> None:
        check_fills_masks(source=source, reference=reference)
        super().__init__(
            source,
            optimizer,
            attention,
            head_chunk,
            activation_checkpointing,
            compile_layers,
            offload_optimizer,
            max_skipped_steps,
            lora,
        )
        if decoding.temperature == 0:
            raise ValueError(
                "model.decoding.temperature=0: greedy rollouts give a group of equals and nothing to learn from; use 1"
            )
        self.decoding, self.value = decoding, value
        self.reference_source, self.reference_on_host = reference, reference_on_host
        self._reference: Reference | None = None
        self.value_model: ValueModel | ScalarHead | None = None
        self.objective = self.default_objective()
        if objective is not None or value is None:  # else one that needs values is still to come
            self.use(objective or self.objective)

    def use(self, objective: Objective) -> None:
        """Learn by this one; ValueError if it cannot learn from what is decoded here, or from the value model."""
        objective.check(self.decoding)
        of_value.check_needed(self.value, objective)
        self.objective = objective

    @cached_property
    def value_description(self) -> ModelDescription:
        """The description of the value model's backbone."""
        source = None if self.value is None else self.value.source
        return self.description if source is None else source.describe()

    def configure_model(self) -> None:
        self.use(self.objective)  # before weights are read
        say_if_unused(self.reference_source, self.objective)
        of_value.check_alike(self.value_description, self.description)
        super().configure_model()
        if self.value is not None and self.value_model is None:
            self.value_model = self._build_value(self.value)
        if self.objective.needs_reference and self._reference is None:
            self._reference = self._build_reference()

    def _build_reference(self) -> Reference:
        if self.lora is not None and self.reference_source is None:
            if self.reference_on_host:
                rank_zero_info("reference_on_host: not needed, the reference is the policy with its adapters off")
            assert self.model is not None, "the policy is built first"
            return AdaptersOff(self.model)
        source = self.reference_source or self.source
        description = source.describe()
        check_same_spec(description.spec, self.spec)
        model = self.build_model(source, description, frozen=True, on_host=self.reference_on_host)
        reference = Reference(model, self.sharding_mesh is not None, self.reference_on_host)
        if self.trainer.strategy.root_device.type == "cuda":
            reference.pin()
        return reference

    def _build_value(self, value: ValueConfig) -> ValueModel | ScalarHead:
        if not value.shared:
            model = self.build_model(value.source or self.source, self.value_description, kind=ValueModel)
            assert isinstance(model, ValueModel)
            check_dtype(next(model.parameters()).dtype)
            return model
        assert self.model is not None, "the policy is built first"
        dtype = next(self.model.parameters()).dtype
        return of_value.shared_head(self.description.config.hidden_size, dtype, self.sharding_mesh)

    def learners(self) -> list[Learner]:
        if self.value is None or self.value_model is None:
            return super().learners()
        return [*super().learners(), Learner("value", list(self.value_model.parameters()), self.value.optimizer)]

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        found = super().expected_shapes()
        if self.value is None:
            return found
        return found | of_value.expected_shapes(self.value, self.value_description, "value_model.")

    def training_step(self, step: StepBatch, batch_idx: int) -> None:
        sums: dict[str, Tensor] = {}
        known = self.step_sums(step)

        def summed(found: tuple[dict[str, Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
            losses, parts = found
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
            return losses

        loss_fns: list[LossFn] = [lambda batch, divisor: summed(self.losses(batch, divisor, known))]
        if isinstance(self.value_model, ValueModel):
            loss_fns.append(lambda batch, divisor: summed(self.value_losses(batch, divisor)))
        if self.optimize(step, *loss_fns):
            self._log_means(sums)

    def loss(
        self, batch: PackedBatch, divisor: Float[Tensor, ""] | float, known: StepSums | None = None
    ) -> tuple[Float[Tensor, ""], Scalars]:
        """This micro-batch's share of the policy's loss, and sums over its scored tokens for the log.

        Args:
            known: `step_sums` of the step; None: the row's own are all there is.
        """
        losses, sums = self.losses(batch, divisor, known)
        return losses["loss"], sums

    def losses(
        self, batch: PackedBatch, divisor: Float[Tensor, ""] | float, known: StepSums | None = None
    ) -> tuple[Scalars, Scalars]:
        """As `loss`, by name, with the loss of a value that shares the policy's backbone."""
        row, hidden = self._scored(batch)
        if self.objective.needs_sums(has_old(batch)):
            known = known or StepSums.of_rows(self.objective, [row], trajectories(batch))
            row = known.beside(row)
        found = self.objective.loss(row)
        losses, sums = {"loss": found.loss / divisor}, found.sums
        if isinstance(self.value_model, ScalarHead):
            assert self.value is not None and self.objective.gae is not None, "`use` looks"
            values = self.value_model(of_value.partly(hidden, self.value.shared_coef))
            losses["value_loss"], more = of_value.value_loss(values, row.columns, self.objective.gae, divisor)
            sums = {**sums, **more}
        return losses, {**sums, "tokens": torch.ones_like(row.logprobs).sum(), "entropy": row.entropy.sum()}

    def value_losses(self, batch: PackedBatch, divisor: Float[Tensor, ""] | float) -> tuple[Scalars, Scalars]:
        """This micro-batch's share of the loss of a value model of its own, and sums for the log."""
        assert isinstance(self.value_model, ValueModel) and self.objective.gae is not None, "`use` looks"
        row, plan = self.place(batch, self.decoding)
        values = self.value_model(row, plan.positions)
        loss, sums = of_value.value_loss(values, columns_at(row, plan.positions), self.objective.gae, divisor)
        return {"value_loss": loss}, sums

    def _scored(self, batch: PackedBatch) -> tuple[ScoredRow, Tensor]:
        """What the policy says of the row's scored positions, and its hidden states there."""
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
            weights = plan.view_weights(row.loss_weights[at])
            rejected = scored_row(row, scores.factor_positions, scores.log_factors, none, weights)
        return scored_row(row, at, scores.logprobs, scores.entropy, rejected=rejected), scores.hidden

    @torch.no_grad()
    def step_sums(self, step: StepBatch) -> StepSums | None:
        """What the objective sums over trajectories, where no row can know it by itself: by a forward of every row.

        That is where a trajectory of any rank lies in several rows, or the loss needs totals of the step. Called by all
        ranks before the step's first loss; a sharded forward is a collective.
        """
        batches, objective = step.micro_batches, self.objective
        if not objective.needs_sums(moved=True):
            return None
        if not objective.needs_sums(moved := bool(self.largest_over_ranks(any(map(has_old, batches))))):
            return None
        if not objective.needs_totals and not self.largest_over_ranks(divided(batches)):
            return None
        if objective.sums_need_scores(moved):
            rows = [self._scored(batch)[0] for batch in self.equal_micro_batches(step)]
        else:
            rows = [unscored(*self.place(batch, self.decoding)) for batch in batches]
        return StepSums.of_rows(objective, rows, trajectories(*batches), self.sum_over_ranks)

    @torch.no_grad()
    def score_steps(self, steps: Sequence[StepBatch], keep_old: bool, first_too: bool = True) -> list[StepBatch]:
        """Fill in the log-probs of the old policy (if it will move before they are used) and of the reference, and what
        each token is worth by the value model.

        Called with the weights that begin the epoch, on all ranks. `first_too` is False where the first step is learned
        from once, by these very weights, of which it needs no log-probs beside its own. Only filled columns are copied.
        """
        reference, gae = self._reference, self.objective.gae
        keep_old = keep_old and self.objective.needs_old
        if not keep_old and reference is None and gae is None:
            return list(steps)
        scored = []
        at_work = nullcontext() if reference is None else reference.on_device(self.device, self.to_device)
        with self.trainer.precision_plugin.forward_context(), at_work:
            for number, step in enumerate(steps):
                old = keep_old and (first_too or number > 0)
                found = [self._score(batch, old) for batch in self.equal_micro_batches(step)]
                batches = [fill_in(*pair) for pair in zip(step.micro_batches, found, strict=False)]
                batches = batches if gae is None else with_credit(batches, gae)
                scored.append(dataclasses.replace(step, micro_batches=batches))
        assert self.model is not None, "`configure_model` builds it"
        for model in (self.model, self.value_model, None if reference is None else reference.model):
            if model is not None:
                reshard(model)
        return scored

    def _score(self, batch: PackedBatch, keep_old: bool) -> Found:
        """Score a row; what is found stays on the device, so that nothing waits yet."""
        likelihood = self.objective.likelihood if keep_old else "tokens"
        row, plan = self.place(batch, self.decoding, likelihood)
        found: Found = {}
        if isinstance(self.value_model, ValueModel):
            found["values"] = [(plan.positions, self.value_model(row, plan.positions))]
        if keep_old or isinstance(self.value_model, ScalarHead):
            assert self.model is not None, "`configure_model` builds it"
            scores = self.model(row, self.decoding, likelihood, entropy=False, plan=plan)
            events = (scores.factor_positions, scores.log_factors)
            if keep_old:
                found["old_logprobs"] = [(scores.positions, scores.logprobs), events]
            if isinstance(self.value_model, ScalarHead):
                found["values"] = [(scores.positions, self.value_model(scores.hidden))]
        if self._reference is not None:
            scores = self._reference.scores(row, self.decoding, plan.without_factors())
            found["reference_logprobs"] = [(scores.positions, scores.logprobs)]
        return found

    def _log_means(self, sums: dict[str, Tensor]) -> None:
        names = sorted(sums)
        totals = dict(zip(names, self.sum_over_ranks(torch.stack([sums[n] for n in names])), strict=True))
        tokens = totals.pop("tokens")
        self.log("train/scored_tokens", tokens.float())
        if not tokens:  # no rank had a row
            return
        means = {name: total / tokens for name, total in totals.items()}
        if self.value_model is not None and (explained := of_value.take_explained_variance(means)) is not None:
            self.log("train/explained_variance", explained, prog_bar=True)
        self.log_dict({f"train/{name}": value.float() for name, value in means.items()})
