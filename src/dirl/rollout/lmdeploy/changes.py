"""All that this package changes in LMDeploy: subclasses of its strategies for diffusion LMs, put in place at start.

What they cure: samples of a group were drawn with one another's seeds; there was no step map and no usable
log-prob; stop tokens were missed beside a prompt's tail and after a length limit; the mask token id was fixed.
Sampling, confidence and commit are those of the torch engine, the same functions of the logits, so the two
engines agree token for token wherever their logits do. Import this module only after `check_lmdeploy`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float, Int, UInt8
from lmdeploy.pytorch import consts
from lmdeploy.pytorch.devices import DeviceContext
from lmdeploy.pytorch.engine.engine import Engine
from lmdeploy.pytorch.engine.executor import build_executor
from lmdeploy.pytorch.engine.logits_process import SamplingInputs
from lmdeploy.pytorch.engine.model_agent import build_model_agent
from lmdeploy.pytorch.strategies.dllm import DLLMStrategyFactory
from lmdeploy.pytorch.strategies.dllm.model_agent import (
    DLLMExtraInputs,
    DLLMExtraOutputs,
    DLLMModelAgentStrategy,
    DLLMStoppingCriteria,
)
from lmdeploy.pytorch.strategies.dllm.sampling import DLLMSamplingStrategy
from torch import Tensor

from dirl.diffusion.commit import commit
from dirl.diffusion.drawing import draw_rows
from dirl.rollout.lmdeploy.rank_group import RankGroup, from_first
from dirl.rollout.lmdeploy.sequences import TracedSequence, TracedSequences, Tracing


@contextmanager
def changed(tracing: Tracing, build_executor: Callable[..., Any] | None = None) -> Iterator[None]:
    """An engine built in here has the changed strategies; `trace_samples` then makes its agent sample by them.

    Args:
        build_executor: None: that of a single device.
    """
    base = "lmdeploy.pytorch.engine"
    with (
        _changed_agent(tracing),
        patch(f"{base}.engine.build_strategy_factory", _factory(tracing)),
        patch(f"{base}.engine.build_executor", build_executor or _build_empty_executor),
        # It asks for versions of packages that its engine does not use.
        patch("lmdeploy.pytorch.envs.enable_check_env", False),
    ):
        yield


def _changed_agent(tracing: Tracing) -> AbstractContextManager[Any]:
    return patch("lmdeploy.pytorch.engine.model_agent.agent.build_strategy_factory", _factory(tracing))


def _factory(tracing: Tracing) -> Callable[..., DLLMStrategyFactory]:
    def build(model_config: Any, misc_config: Any, specdecode_config: Any = None) -> DLLMStrategyFactory:
        return _Factory(model_config, misc_config.dllm_config, tracing)

    return build


def ranked_agent(group: RankGroup, tracing: Tracing, parts: dict[str, Any]) -> Any:
    """A model agent for one rank of several, with the changed strategies.

    Args:
        parts: what LMDeploy's executors are made of.
    """
    parts = dict(parts)
    context, device = group.context(parts.pop("dist_config")), DeviceContext(device_type=parts.pop("device_type"))
    with _changed_agent(tracing):
        return build_model_agent(**parts, dist_ctx=context, device_ctx=device)


def _build_empty_executor(*args: Any, misc_config: Any, **kwargs: Any) -> Any:
    """The single-device executor, started without weights: LMDeploy allows that of its ray executor alone."""
    misc_config.empty_init = False
    executor = build_executor(*args, misc_config=misc_config, **kwargs)
    misc_config.empty_init = True
    executor.model_agent.state.is_sleeping = True
    return executor


def trace_samples(engine: Engine, tracing: Tracing) -> None:
    """Let the engine's model agent (of a single-device executor) draw and commit as the torch engine does."""
    agent = engine.executor.model_agent

    async def sample(
        self: Any, logits: Tensor, inputs: Any, extra_inputs: DLLMExtraInputs, sampling_inputs: Any
    ) -> tuple[Tensor, None, Tensor, DLLMExtraInputs]:
        size = tracing.spec.block_size
        input_ids = self.agent_strategy.slice_outputs(inputs.input_ids.flatten(), inputs.seq_length)
        ends = inputs.history_lengths + inputs.seq_length
        block = DenoisingBlocks(
            tokens=input_ids.view(-1, size),
            state=extra_inputs.dllm_mask.view(-1, size),
            start=ends - size,
            seeds=sampling_inputs.random_seeds.view(-1, size)[:, 0],
            forward=sampling_inputs.random_offsets.view(-1, size)[:, 0],
        )
        tokens, extra_inputs.dllm_mask, extra_inputs.logprobs, offsets = block.step(logits, tracing)
        sampling_inputs.random_offsets = offsets
        tracing.forwards += 1
        return tokens, None, tokens, extra_inputs

    agent.async_sampling_logits = MethodType(sample, agent)


@dataclass
class DenoisingBlocks:
    """The current blocks of N sequences before a denoising step."""

    tokens: Int[Tensor, "N B"]
    """[N, B]."""
    state: UInt8[Tensor, "N B"]
    """[N, B] uint8: masked, unmasked or cached, by LMDeploy's constants."""
    start: Int[Tensor, " N"]
    """[N] absolute position of the block."""
    seeds: Int[Tensor, " N"]
    """[N]."""
    forward: Int[Tensor, " N"]
    """[N] denoising forwards that the block has had."""

    def step(
        self, logits: Float[Tensor, "NB V"], tracing: Tracing
    ) -> tuple[Int[Tensor, " NB"], UInt8[Tensor, " NB"], Float[Tensor, " NB"], Int[Tensor, " NB"]]:
        """Draw and commit, given logits [N * B, V].

        Returns:
            tokens, state and log-probs at the committed positions [N * B] (NaN where the logits are not finite: so
            `TracedSequences` learns of it, and ends the sequence), and the forward counts [N * B] from which LMDeploy,
            which adds one after each step, gets those of the next.
        """
        size = self.tokens.shape[1]
        masked = self.state == consts.DLLM_MASKED
        positions = self.start[:, None] + torch.arange(size, device=logits.device)
        seeds, forwards = (column.repeat_interleave(size) for column in (self.seeds, self.forward))
        banned, how = tracing.spec.banned, tracing.decoding
        draws = draw_rows(logits, seeds, positions.flatten(), forwards, banned, how, masked.flatten(), tracing.drawing)
        logprobs = draws.logprobs.masked_fill(~draws.finite, torch.nan)
        drawn, confidence = draws.tokens.view(-1, size), draws.confidence.view(-1, size)
        chosen = commit(confidence, masked, tracing.decoding, size)
        tokens = torch.where(chosen, drawn, self.tokens)
        # A block that was complete before this forward has its final keys written by it.
        complete = ~masked.any(1, keepdim=True)
        state = torch.where(chosen, consts.DLLM_UNMASKED, self.state)
        state = torch.where(complete, consts.DLLM_CACHED, state).to(self.state.dtype)
        offsets = torch.where(complete.squeeze(1), -1, self.forward).repeat_interleave(size)
        return tokens.flatten(), state.flatten(), logprobs, offsets


class _Factory(DLLMStrategyFactory):
    """Builds the changed strategies, for the mask token and block size of this model."""

    def __init__(self, model_config: Any, dllm_config: Any, tracing: Tracing) -> None:
        model_config.dllm_mask_token = tracing.spec.mask_token_id
        super().__init__(model_config, dllm_config)
        self.tracing = tracing

    def build_sampling_strategy(self) -> "_Sampling":
        return _Sampling(self.tracing.spec.pad_token_id, self.dllm_block_length)

    def build_model_agent_strategy(self) -> "_ModelAgent":
        return _ModelAgent(self.dllm_config, self.model_config.dllm_mask_token)

    def build_sequence_strategy(self) -> TracedSequences:
        return TracedSequences(self.dllm_block_length, self.model_config.dllm_mask_token, self.tracing)


class _Sampling(DLLMSamplingStrategy):
    """Seeds and forward counts go with their sequence's rows; what LMDeploy's own sampling needs is left out."""

    def make_sampling_inputs(self, seqs: list[TracedSequence]) -> SamplingInputs:
        size, count = self.dllm_block_length, len(seqs)
        self.session_to_cleanup: list[Any] = []  # of guided decoding
        seeds = torch.tensor([s.sampling_param.random_seed for s in seqs], dtype=torch.long)
        forwards = torch.tensor([s.forward for s in seqs], dtype=torch.long)  # while it runs, the device counts them
        return SamplingInputs(
            stop_words=_stop_words([s.sampling_param.stop_words for s in seqs], size),
            random_seeds=seeds.repeat_interleave(size),
            random_offsets=forwards.repeat_interleave(size),
            num_ignore_eos=torch.zeros(count * size, dtype=torch.long),
            batch_size=count * size,
        )


def _stop_words(words: list[list[int]], size: int) -> Tensor | None:
    """[N * B, W], shorter lists filled up with -1; None: there are none."""
    width = max(map(len, words))
    if not width:
        return None
    if all(w == words[0] for w in words):
        return torch.tensor([words[0]]).repeat(len(words) * size, 1)
    rows = torch.tensor([w + [-1] * (width - len(w)) for w in words])
    return rows.repeat_interleave(size, 0)


@dataclass
class _TracedOutputs(DLLMExtraOutputs):
    logprobs: Tensor | None
    """[N * B] log-prob of each position's candidate; used where it was committed. None on all ranks but the first."""


class _ModelAgent(DLLMModelAgentStrategy):
    """Hands log-probs out, and stops where the response ends."""

    def make_extra_outputs(self, extra_inputs: DLLMExtraInputs) -> _TracedOutputs:
        return _TracedOutputs(extra_inputs.dllm_mask, getattr(extra_inputs, "logprobs", None))

    @contextmanager
    def broadcast_next_token(
        self, next_token_ids: Tensor, extra_inputs: DLLMExtraInputs, dist_ctx: Any
    ) -> Iterator[None]:
        """What the first of several ranks has committed goes to the others, by a group that torch does not know."""
        from_first(dist_ctx.attn_tp_group.gpu_group, next_token_ids, extra_inputs.dllm_mask)
        yield

    def make_stopping_criteria(self, seqs: list[TracedSequence]) -> "_EarliestStop":
        criteria = super().make_stopping_criteria(seqs)
        prompt_ends = torch.tensor([s.input_end_pos for s in seqs])
        return _EarliestStop(criteria.num_appendable_ids, prompt_ends)


class _EarliestStop(DLLMStoppingCriteria):
    """What tells LMDeploy that a sequence decodes no further block: a stop token of the response, or the length limit.

    `dirl.rollout.response.response_end` says of a finished response where it ends and why. LMDeploy has to know before
    that, on the device and of a batch at once, as it begins the next forward before the host has seen this one's
    tokens. So this is the same rule in tensors, and a test holds the two together. Stop strings the host finds, a
    forward later (`TracedSequences`).
    """

    def clone(self) -> "_EarliestStop":
        return _EarliestStop(self.num_appendable_ids, self.output_start_pos)

    def merge(self, other: "_EarliestStop") -> "_EarliestStop":
        merged = super().merge(other)
        return _EarliestStop(merged.num_appendable_ids, merged.output_start_pos)

    def update(self, delta: Any) -> "_EarliestStop":
        updated = super().update(delta)
        return _EarliestStop(updated.num_appendable_ids, updated.output_start_pos)

    def step(
        self,
        token_ids: Tensor,
        stop_words: Tensor | None,
        inputs: Any = None,
        extra_inputs: DLLMExtraInputs | None = None,
    ) -> tuple[Tensor, Tensor, "_EarliestStop"]:
        count = len(self.num_appendable_ids)
        tokens = token_ids.view(count, -1)
        size = tokens.shape[1]
        unmasked = (extra_inputs.dllm_mask.view(count, size) == consts.DLLM_UNMASKED).all(1)
        remaining = self.num_appendable_ids - unmasked * size
        last = (size - 1 + remaining).clamp_max(size - 1)
        if stop_words is not None:
            start = inputs.history_lengths + inputs.seq_length - size
            response = start[:, None] + torch.arange(size, device=tokens.device) >= self.output_start_pos[:, None]
            hit = (tokens[..., None] == stop_words.view(count, size, -1)).any(-1) & response
            first = torch.where(hit.any(1), hit.int().argmax(1), size)
            ends = unmasked & (first <= last)
            last = torch.where(ends, first, last)
            remaining = torch.where(ends, remaining.clamp_max(0), remaining)
        stopped = unmasked & (remaining <= 0)
        return stopped, last, _EarliestStop(remaining, self.output_start_pos)
