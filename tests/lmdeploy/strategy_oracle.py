"""LMDeploy's own strategy classes, unmodified, decoding on a CPU: what do they make of the torch engine's draws?

`UnmaskingProcessor` commits, `SchedulerSequenceDLLM` keeps each sequence, `DLLMStepInputs` makes the input of the next
forward. Not LMDeploy's are the forward (recomputed without a cache), the draws, and the stopping rule unless it is
asked for.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from lmdeploy.pytorch import consts
from lmdeploy.pytorch.config import DLLMConfig, UnmaskingStrategy
from lmdeploy.pytorch.engine.logits_process import SamplingInputs
from lmdeploy.pytorch.engine.model_agent.agent import BatchedOutputs
from lmdeploy.pytorch.messages import MessageStatus, SamplingParam, SequenceMeta
from lmdeploy.pytorch.model_inputs import ModelInputs, ModelInputsDelta
from lmdeploy.pytorch.strategies.base.model_agent import StoppingCriteria
from lmdeploy.pytorch.strategies.dllm import DLLMStrategyFactory
from lmdeploy.pytorch.strategies.dllm.model_agent import DLLMExtraInputs
from lmdeploy.pytorch.strategies.dllm.sequence import DLLMSequenceStrategy, SchedulerSequenceDLLM
from torch import Tensor

from dirl.diffusion.sampling import candidates, scaled_logits, uniform
from dirl.types import DecodingParams, GenerationRequest, ModelSpec

BlockLogits = Callable[[tuple[int, ...]], Tensor]
"""Tokens of all blocks -> logits [B, V] of the last block's positions."""

MakeCriteria = Callable[["StrategyOracle", list[SchedulerSequenceDLLM]], StoppingCriteria]


@dataclass(frozen=True)
class Decoded:
    """What LMDeploy's classes made of one request."""

    response_ids: tuple[int, ...]
    """Of every position of every decoded block, prompt tokens left out."""
    text_ids: tuple[int, ...]
    """What LMDeploy calls the generated tokens, cut where its stop position says."""
    step_map: tuple[int, ...]
    forwards: int
    """Over blocks that hold response positions; a prompt that fills its blocks takes one more, which is not counted."""


class StrategyOracle:
    """Decodes requests, `max_batch_size` at a time; a new one joins as soon as another has ended."""

    def __init__(
        self,
        logits: BlockLogits,
        spec: ModelSpec,
        decoding: DecodingParams,
        criteria: MakeCriteria,
        max_batch_size: int = 16,
    ) -> None:
        self.logits, self.spec, self.decoding, self.max_batch_size = logits, spec, decoding, max_batch_size
        self.make_criteria = criteria
        self.factory = strategy_factory(spec, decoding)
        self.agent = self.factory.build_model_agent_strategy()
        self.sampling = self.factory.build_sampling_strategy()
        self.strategy = self.factory.build_sequence_strategy()
        self.closest = 1.0
        """Smallest distance of confidences, to one another or to the threshold, at which a commit was decided: 0 is a
        tie, which LMDeploy's topk may break otherwise than the torch engine, which takes the leftmost."""

    @torch.no_grad()
    def decode(self, requests: Sequence[GenerationRequest]) -> list[Decoded]:
        made = [_Request(r, make_sequence(self.strategy, r, self.spec, self.decoding)) for r in requests]
        waiting, active = deque(made), []
        self.state = self.factory.build_step_inputs()
        while waiting or active:
            new = [waiting.popleft() for _ in range(min(len(waiting), self.max_batch_size - len(active)))]
            if new:
                self._prefill(new)
            else:
                self._decode(active)
            active = self._keep_running(active + new)
        return [r.decoded() for r in made]

    def _prefill(self, new: list["_Request"]) -> None:
        sequences = [r.sequence for r in new]
        inputs = prefill_inputs(sequences)
        extra = self.agent.make_extra_inputs(sequences, inputs)
        self.state.merge_prefill(inputs, *self._step(new, inputs, extra, self.make_criteria(self, sequences)))

    def _decode(self, active: list["_Request"]) -> None:
        inputs = self.state.model_inputs
        stepped = self._step(active, inputs, self.state.extra_inputs, self.state.stopping_criteria)
        self.state.step_decode(inputs, *stepped)

    def _step(
        self, batch: list["_Request"], inputs: ModelInputs, extra: DLLMExtraInputs, criteria: StoppingCriteria
    ) -> tuple:
        """Forward, draw, commit, stop, update; returns what `DLLMStepInputs` wants next to the model's inputs."""
        sequences = [r.sequence for r in batch]
        z, drawn = self._draw(batch, inputs)
        extra = self.agent.slice_extra_inputs(extra, inputs, {})
        before = extra.dllm_mask.clone().view(len(batch), -1)
        tokens, extra = self.agent.post_sampling(inputs, z, drawn, extra)
        sampling: SamplingInputs = self.sampling.make_sampling_inputs(sequences)
        stopped, stop_pos, criteria = criteria.step(tokens, sampling.stop_words, inputs=inputs, extra_inputs=extra)
        for request, old, new in zip(batch, before, extra.dllm_mask.view_as(before), strict=True):
            request.record(old.numpy(), new.numpy())
        extra_outputs = self.agent.make_extra_outputs(DLLMExtraInputs(extra.dllm_mask.clone()))
        outputs = BatchedOutputs(tokens.clone(), stopped, stop_pos, extra_outputs=extra_outputs)
        self.strategy.update_running(sequences, outputs, inputs, None)
        return extra, criteria, sampling.get_delta(), tokens, None, extra_outputs

    def _draw(self, batch: list["_Request"], inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Processed logits [N * B, V] and the torch engine's candidates [N * B] for the current blocks."""
        size, spec = self.spec.block_size, self.spec
        z, drawn = [], []
        for request, ids in zip(batch, inputs.input_ids.flatten().split(inputs.seq_length.tolist()), strict=True):
            sequence = request.sequence
            assert ids.tolist() == sequence.token_ids.tolist(), "LMDeploy's host and device differ"
            context = (*sequence.history_ids.tolist(), *ids.tolist())
            start = len(context) - size
            z.append(scaled_logits(self.logits(context), spec.banned, self.decoding.temperature))
            noise = uniform(torch.tensor(request.seed), start + torch.arange(size), torch.tensor(request.forward))
            tokens, _, confidence = candidates(z[-1], noise, self.decoding)
            drawn.append(tokens)
            self._watch_ties(confidence[ids[-size:] == spec.mask_token_id])
        return torch.cat(z), torch.cat(drawn)

    def _watch_ties(self, confidence: Tensor) -> None:
        """How near the confidences of the masked positions of a block are to another choice of what to commit."""
        best = confidence.sort(descending=True).values
        last = 1 if self.decoding.strategy == "low_confidence_dynamic" else self.decoding.quota(self.spec.block_size)
        distances = (best[last - 1 : last] - best[last : last + 1]).tolist() if len(best) > last else []
        if self.decoding.strategy == "low_confidence_dynamic":
            distances += (confidence - self.decoding.threshold).abs().tolist()
        if self.decoding.strategy != "sequential":
            self.closest = min([self.closest, *distances])

    def _keep_running(self, batch: list["_Request"]) -> list["_Request"]:
        kept = [i for i, r in enumerate(batch) if r.sequence.status == MessageStatus.RUNNING]
        if not kept:
            self.state = self.factory.build_step_inputs()
        elif len(kept) < len(batch):
            inputs, index = self.state.model_inputs, torch.tensor(kept)
            offsets = inputs.block_offsets[index]
            delta = ModelInputsDelta(index, offsets, index.numpy(), inputs.max_q_seqlen, inputs.max_kv_seqlen, 0)
            self.state.reindex(delta)
        return [batch[i] for i in kept]


def design_rule(oracle: StrategyOracle, sequences: list[SchedulerSequenceDLLM]) -> "EarliestEnd":
    return EarliestEnd(sequences)


def lmdeploys_rule(oracle: StrategyOracle, sequences: list[SchedulerSequenceDLLM]) -> StoppingCriteria:
    return oracle.agent.make_stopping_criteria(sequences)


class EarliestEnd(StoppingCriteria):
    """A response ends at the earliest of stop token (after the prompt) and length limit: plain loops."""

    def __init__(self, sequences: list[SchedulerSequenceDLLM]) -> None:
        self.sequences = sequences

    def clone(self) -> "EarliestEnd":
        return self

    def merge(self, other: "EarliestEnd") -> "EarliestEnd":
        return EarliestEnd(self.sequences + other.sequences)

    def update(self, delta: ModelInputsDelta) -> "EarliestEnd":
        return EarliestEnd([self.sequences[i] for i in delta.indices.tolist()])

    def step(
        self, token_ids: Tensor, stop_words: Tensor | None, inputs: ModelInputs, extra_inputs: DLLMExtraInputs
    ) -> tuple[Tensor, Tensor, "EarliestEnd"]:
        count = len(self.sequences)
        blocks, states = token_ids.view(count, -1).tolist(), extra_inputs.dllm_mask.view(count, -1).tolist()
        lengths = (inputs.history_lengths + inputs.seq_length).tolist()
        ends = [
            self._end(sequence, block, length - len(block)) if set(state) == {consts.DLLM_UNMASKED} else None
            for sequence, block, state, length in zip(self.sequences, blocks, states, lengths, strict=True)
        ]
        stopped = torch.tensor([end is not None for end in ends])
        return stopped, torch.tensor([0 if end is None else end for end in ends]), self

    @staticmethod
    def _end(sequence: SchedulerSequenceDLLM, block: list[int], start: int) -> int | None:
        """Where in this complete block the response ends."""
        param = sequence.sampling_param
        for i, token in enumerate(block):
            length = start + i + 1 - sequence.input_end_pos
            if length >= 1 and (token in param.stop_words or length == param.max_new_tokens):
                return i
        return None


def strategy_factory(spec: ModelSpec, decoding: DecodingParams) -> DLLMStrategyFactory:
    """LMDeploy's, as its engine would make it for this model and these settings."""
    model = SimpleNamespace(dllm_block_length=None, dllm_mask_token=spec.mask_token_id, bos_token_id=None)
    strategy = UnmaskingStrategy.from_str(decoding.strategy)
    return DLLMStrategyFactory(
        model, DLLMConfig(spec.block_size, strategy, decoding.denoising_steps, decoding.threshold)
    )


def make_sequence(
    strategy: DLLMSequenceStrategy, request: GenerationRequest, spec: ModelSpec, decoding: DecodingParams
) -> SchedulerSequenceDLLM:
    """A sequence that runs, as the scheduler would have it after its admission."""
    settings = SamplingParam(
        top_k=0,
        temperature=1.0,
        random_seed=request.seed,
        stop_words=list(spec.stop_token_ids),
        max_new_tokens=decoding.max_response_tokens,
    )
    session = SimpleNamespace(session_id=request.sample_index, seq_meta=SequenceMeta(64, strategy=strategy))
    sequence = strategy.make_sequence(request.sample_index, session, sampling_param=settings)
    sequence.update_token_ids(np.array(request.prompt_ids))
    sequence.set_state(_State())
    return sequence


def prefill_inputs(sequences: list[SchedulerSequenceDLLM]) -> ModelInputs:
    """One row of all tokens of all sequences, none of them in a cache."""
    lengths = torch.tensor([s.num_token_ids for s in sequences])
    return ModelInputs(
        input_ids=torch.from_numpy(np.concatenate([s.token_ids for s in sequences]))[None],
        seq_length=lengths,
        history_lengths=torch.tensor([s.num_history_ids for s in sequences]),
        block_offsets=torch.zeros(len(sequences), 1, dtype=torch.long),
        is_decoding=False,
        num_ignored_history=torch.zeros_like(lengths),
        max_q_seqlen=int(lengths.max()),
        max_kv_seqlen=int(lengths.max()),
        sum_kv_seqlen=int(lengths.sum()),
    )


class _State:
    """Stands where the scheduler's lifecycle does, which also frees pages."""

    status = MessageStatus.RUNNING

    def finish(self) -> None:
        self.status = MessageStatus.STOPPED


@dataclass
class _Request:
    """A sequence and what is seen of its masks from outside."""

    request: GenerationRequest
    sequence: SchedulerSequenceDLLM
    forward: int = 0
    """Denoising forwards of the current block."""
    forwards: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    """Denoising step by absolute position."""

    @property
    def seed(self) -> int:
        return self.request.seed

    def record(self, before: np.ndarray, after: np.ndarray) -> None:
        """Look at the mask of the current block around a commit, before the sequence is updated."""
        start = self.sequence.num_all_ids - len(before)
        masked = before == consts.DLLM_MASKED
        self.forwards += bool(masked.any() or self.steps)
        self.forward = self.forward + 1 if masked.any() else 0
        chosen = masked & (after != consts.DLLM_MASKED)
        assert chosen.any() == masked.any(), "a forward over masked positions commits something"
        self.steps |= {start + int(i): self.forward for i in chosen.nonzero()[0]}

    def decoded(self) -> Decoded:
        first = len(self.request.prompt_ids)
        ids = self.sequence.all_ids.tolist()
        assert sorted(self.steps) == list(range(first, len(ids)))
        return Decoded(
            response_ids=tuple(ids[first:]),
            text_ids=tuple(self.sequence.generated_ids.tolist()),
            step_map=tuple(self.steps[i] for i in range(first, len(ids))),
            forwards=self.forwards,
        )
