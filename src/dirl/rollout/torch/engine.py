"""The reference engine: plain torch on any device, KV cache, continuous batching, full traces.

Every engine step is one forward over the current block of all active sequences, whether they still denoise
it or write its final keys; finished sequences make room for waiting ones at once. The host waits for the device once
in a step, for the blocks of all sequences together, and knows from then on what the next step has to do.
"""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.attention import visible
from dirl.batches import Layout
from dirl.diffusion.commit import commit
from dirl.diffusion.sampling import candidates, finite_rows, scaled_logits, uniform
from dirl.models.families import family_of
from dirl.models.families.weights import named_tensors
from dirl.models.shape import ModelShape
from dirl.rollout.engine import RolloutEngine, broken_logits
from dirl.rollout.memory import LOGIT_BYTES, EngineMemory, RolloutSize, key_value_bytes
from dirl.rollout.response import finished_trajectory, response_end
from dirl.rollout.torch.slot_cache import SlotCache
from dirl.rollout.weights import checked
from dirl.types import DecodingParams, FinishReason, GenerationRequest, ModelSpec, Trajectory


class TorchEngine(RolloutEngine):
    """Runs anywhere and defines what the other engines must agree with, token for token.

    Args:
        max_batch_size: sequences that are decoded at a time.
        device: `auto` is the trainer's device.
        dtype: of weights and cache; `auto` is that of the model's config. Log-probs are fp32, of logits of this dtype.
    """

    def __init__(
        self,
        max_batch_size: int = 64,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"engine.max_batch_size={max_batch_size}: use at least 1")
        self.max_batch_size, self.device_name, self.dtype_name = max_batch_size, device, dtype
        self.forwards = 0
        """Forwards over blocks since `setup`, prefills not counted."""

    @classmethod
    def memory(cls, options: Mapping[str, Any], shape: ModelShape, rollout: RolloutSize) -> EngineMemory:
        sizes = {"auto": 2 if rollout.half_weights else 4, "float32": 4}
        size = sizes.get(options["dtype"], 2)
        slots = min(int(options["max_batch_size"]), rollout.requests)
        length = -(-rollout.longest // rollout.block_size) * rollout.block_size
        weights = float(size * shape.parameters)
        cache = float(slots * length * key_value_bytes(shape, size))
        logits = float(slots * rollout.block_size * shape.vocab_size * LOGIT_BYTES)
        return EngineMemory(weights, cache, logits, weights, 0.0, f"KV cache: {slots} sequences of {length} tokens")

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        self.family, self.spec = family_of(config), spec
        self.device = torch.device(device if self.device_name == "auto" else self.device_name)
        known = config.dtype or torch.get_default_dtype()
        self.dtype = known if self.dtype_name == "auto" else getattr(torch, self.dtype_name)
        with torch.random.fork_rng(devices=[]), self.device:
            own = copy.deepcopy(config)  # transformers writes the dtype into it
            model = self.family.build(own, self.dtype)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.shape = self.family.shape(own)
        self.cache: SlotCache | None = None
        self.policy_version, self.forwards = -1, 0

    @torch.no_grad()
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        self.policy_version = -1
        own = dict(part for name, value in named_tensors(self.model) for part in self.family.split(name, value))
        for name, value in checked(weights, {name: view.shape for name, view in own.items()}, policy_version):
            own[name].copy_(value)
        self.policy_version = policy_version

    @torch.no_grad()
    def generate(self, requests: Sequence[GenerationRequest], params: DecodingParams) -> Iterator[Trajectory]:
        if self.policy_version < 0:
            raise ValueError("the engine has no weights yet: call update_weights before generate")
        waiting = deque(requests)
        active = _Active.empty(self.spec.block_size, self.device)
        self._make_room(requests, params)
        try:
            while waiting or active.sequences:
                if waiting and len(active.sequences) < self.cache.slots:
                    active = self._admit(active, waiting)
                self.still_wanted()
                self._step(active, params)
                self.progress += 1
                finished = active.close_blocks(self.spec, params)
                if active.broken_here.any():
                    row = int(active.broken_here.any(1).nonzero()[0])
                    raise broken_logits(active.sequences[row].request, self.policy_version)
                if finished:
                    yield from (s.trajectory(self.policy_version) for s in finished)
                    active = self._evict(active)
        finally:
            self.cache = None  # between rollouts its memory belongs to the trainer

    def _make_room(self, requests: Sequence[GenerationRequest], params: DecodingParams) -> None:
        size = self.spec.block_size
        longest = max((len(r.prompt_ids) for r in requests), default=0) + params.max_response_tokens
        length = -(-longest // size) * size
        slots = min(self.max_batch_size, max(len(requests), 1))
        self.cache = SlotCache(self.shape, slots, length, self.device, self.model.dtype)

    def _admit(self, active: "_Active", waiting: deque[GenerationRequest]) -> "_Active":
        """Fill the free slots; equal prompts are prefilled once."""
        first = len(active.sequences)
        new = [waiting.popleft() for _ in range(min(len(waiting), self.cache.slots - first))]
        size = self.spec.block_size
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(r.prompt_ids for r in new))}
        rows = [torch.tensor(ids[: len(ids) // size * size], dtype=torch.long) for ids in distinct]
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.spec.pad_token_id)
        if inputs.shape[1]:
            owner = torch.tensor([distinct[r.prompt_ids] for r in new], device=self.device)
            self.cache.prefill(first, owner)
            # Padding lies in later blocks than the prompt's own, so block-causality hides it; what it leaves in
            # the cache is overwritten when those positions are decoded.
            self._hidden(inputs.to(self.device), torch.arange(inputs.shape[1], device=self.device), None)
        return active.extend(new, self.spec, self.device)

    def _step(self, active: "_Active", params: DecodingParams) -> None:
        """One forward over the current block of every active sequence; commits where something is masked."""
        size, spec = self.spec.block_size, self.spec
        at = active.masked_here.nonzero(as_tuple=True)
        row, column = (index.to(self.device, non_blocking=True) for index in at)
        positions = active.start[:, None] + torch.arange(size, device=self.device)
        span = max(s.start for s in active.sequences) + size
        self.cache.decode(positions, span)
        hidden = self._hidden(active.tokens, positions, torch.arange(span, device=self.device))
        self.forwards += 1
        masked = active.masked
        active.written = ~masked.any(1)
        if not len(row):
            return
        logits = self._part("head")(hidden[row, column])
        active.broken = torch.zeros_like(masked).index_put((row, column), ~finite_rows(logits))
        z = scaled_logits(logits, spec.banned, params.temperature)
        noise = uniform(active.seeds[row], positions[row, column], active.forward[row])
        tokens, logprobs, confidence = candidates(z, noise, params)
        scores = torch.zeros(masked.shape, device=self.device).index_put((row, column), confidence)
        chosen = commit(scores, masked, params, size)
        drawn = torch.full_like(active.tokens, spec.mask_token_id).index_put((row, column), tokens)
        active.apply(chosen, drawn, torch.zeros_like(scores).index_put((row, column), logprobs))

    def _hidden(self, input_ids: Tensor, positions: Tensor, key_positions: Tensor | None) -> Tensor:
        """Block-causal forward of [N, Q] tokens through the cache -> [N, Q, D]."""
        keys = positions if key_positions is None else key_positions
        allowed = visible(self._clean_layout(positions)[..., :, None], self._clean_layout(keys)[..., None, :])
        mask = (allowed[:, None] if allowed.dim() == 3 else allowed[None, None]).expand(len(input_ids), -1, -1, -1)
        return self._part("decoder")(
            input_ids=input_ids,
            position_ids=positions.expand(input_ids.shape),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _part(self, name: str) -> nn.Module:
        return self.family.parts.of(self.model, name)

    def _clean_layout(self, positions: Tensor) -> Layout:
        zero = torch.zeros_like(positions)
        return Layout(zero, zero, positions // self.spec.block_size, zero)

    def _evict(self, active: "_Active") -> "_Active":
        """The last sequences move to the slots of finished ones: as few as can be, for a slot is a long copy."""
        ended = [s.end is not None for s in active.sequences]
        count = ended.count(False)
        last = (i for i in range(count, len(ended)) if not ended[i])
        kept = [next(last) if ended[i] else i for i in range(count)]
        self.cache.keep(kept)
        return active.select(kept)


@dataclass
class _Sequence:
    """One request in the making; grows by a block at a time."""

    request: GenerationRequest
    number: int
    """In the order in which they were admitted."""
    start: int
    """Absolute position of the current block."""
    response_ids: list[int] = field(default_factory=list)
    step_map: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: tuple[int, FinishReason] | None = None
    """Its `response_end`; None while it is in the making."""

    def take_block(
        self, tokens: list[int], steps: list[int], logprobs: list[float], spec: ModelSpec, limit: int
    ) -> None:
        """Append a finished block (its prompt tokens left out) and see whether the response ends in it."""
        head = max(len(self.request.prompt_ids) - self.start, 0)
        before = len(self.response_ids)
        self.response_ids += tokens[head:]
        self.step_map += steps[head:]
        self.logprobs += logprobs[head:]
        self.end = response_end(self.response_ids, spec.stop_token_ids, limit, before)

    def trajectory(self, policy_version: int) -> Trajectory:
        return finished_trajectory(
            self.request, self.response_ids, self.step_map, self.logprobs, self.end, policy_version
        )


@dataclass
class _Active:
    """The sequences in slots 0..N-1 and the state of their current blocks."""

    sequences: list[_Sequence]
    tokens: Tensor
    """[N, B] committed and prompt tokens, the mask token elsewhere."""
    masked: Tensor
    """[N, B] bool."""
    steps: Tensor
    """[N, B] denoising step that committed each token; 0: prompt or still masked."""
    logprobs: Tensor
    """[N, B]."""
    start: Tensor
    """[N] absolute position of the block."""
    forward: Tensor
    """[N] forwards that the block has had."""
    seeds: Tensor
    """[N]."""
    written: Tensor
    """[N] bool: the last forward wrote the final keys of the block."""
    broken: Tensor
    """[N, B] bool: the last forward's logits were not finite."""
    masked_here: Tensor
    """`masked`, in the host's memory."""
    broken_here: Tensor
    """`broken`, there."""
    admitted: int = 0
    """Sequences so far, those that have finished included."""

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "_Active":
        def new(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            [],
            tokens=new(0, size),
            masked=new(0, size, dtype=torch.bool),
            steps=new(0, size),
            logprobs=new(0, size, dtype=torch.float32),
            start=new(0),
            forward=new(0),
            seeds=new(0),
            written=new(0, dtype=torch.bool),
            broken=new(0, size, dtype=torch.bool),
            masked_here=torch.zeros(0, size, dtype=torch.bool),
            broken_here=torch.zeros(0, size, dtype=torch.bool),
        )

    def extend(self, requests: list[GenerationRequest], spec: ModelSpec, device: torch.device) -> "_Active":
        """Append sequences at their first block, the prompt's tail visible in it."""
        size, count = spec.block_size, len(requests)
        starts = [len(r.prompt_ids) // size * size for r in requests]
        tails = [list(r.prompt_ids[s:]) for r, s in zip(requests, starts, strict=True)]
        tokens = torch.tensor([t + [spec.mask_token_id] * (size - len(t)) for t in tails], device=device)
        masked = torch.arange(size) >= torch.tensor([len(t) for t in tails])[:, None]
        new = _Active.empty(size, device)
        zero = {name: getattr(new, name).new_zeros((count, size)) for name in ("steps", "logprobs")}
        fresh = {
            "tokens": tokens,
            "masked": masked.to(device),
            "masked_here": masked,
            "broken": torch.zeros_like(masked, device=device),
            "broken_here": torch.zeros_like(masked),
            "start": torch.tensor(starts, device=device),
            "forward": torch.zeros(count, dtype=torch.long, device=device),
            "seeds": torch.tensor([r.seed for r in requests], device=device),
            "written": torch.zeros(count, dtype=torch.bool, device=device),
            **zero,
        }
        joined = {name: torch.cat([getattr(self, name), value]) for name, value in fresh.items()}
        numbers = range(self.admitted, self.admitted + count)
        sequences = [_Sequence(r, n, s) for r, n, s in zip(requests, numbers, starts, strict=True)]
        return _Active(self.sequences + sequences, **joined, admitted=self.admitted + count)

    def apply(self, chosen: Tensor, drawn: Tensor, logprobs: Tensor) -> None:
        """Commit the chosen candidates [N, B] of this denoising step."""
        self.forward = self.forward + 1
        self.tokens = torch.where(chosen, drawn, self.tokens)
        self.logprobs = torch.where(chosen, logprobs, self.logprobs)
        self.steps = torch.where(chosen, self.forward[:, None], self.steps)
        self.masked = self.masked & ~chosen

    def close_blocks(self, spec: ModelSpec, params: DecodingParams) -> list[_Sequence]:
        """Hand finished blocks to their sequences; open the next block where the final keys are written.

        Returns the sequences that are done, in the order in which they were admitted.
        """
        written = ~self.masked_here.any(1)
        if not written.all():
            tokens, steps, logprobs = self._look()
            complete = ~self.masked_here.any(1) & ~written
            columns = (x[complete].tolist() for x in (tokens, steps, logprobs))
            for i, *block in zip(complete.nonzero().squeeze(1).tolist(), *columns, strict=True):
                self.sequences[i].take_block(*block, spec, params.max_response_tokens)
        if written.any():
            self._open_blocks(written, spec)
        return sorted((s for s in self.sequences if s.end is not None), key=lambda s: s.number)

    def _look(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, steps and log-probs [N, B] as they are on the device, and what `..._here` keeps: one copy in all."""
        bits, flags = self.logprobs.view(torch.int32), self.masked + 2 * self.broken
        tokens, steps, bits, flags = torch.stack([self.tokens, self.steps, bits, flags]).cpu()
        self.masked_here, self.broken_here = flags % 2 == 1, flags >= 2
        return tokens, steps, bits.int().view(torch.float32)

    def _open_blocks(self, written_here: Tensor, spec: ModelSpec) -> None:
        for i in written_here.nonzero().squeeze(1).tolist():
            self.sequences[i].start += spec.block_size
        step = self.written[:, None]
        self.start = self.start + self.written.long() * spec.block_size
        self.forward = self.forward.masked_fill(self.written, 0)
        self.tokens = self.tokens.masked_fill(step, spec.mask_token_id)
        self.steps = self.steps.masked_fill(step, 0)
        self.masked = self.masked | step
        self.masked_here = self.masked_here | written_here[:, None]

    def select(self, kept: list[int]) -> "_Active":
        index = torch.tensor(kept, dtype=torch.long)
        there = index.to(self.tokens.device)
        tensors = {
            k: v[index if k.endswith("_here") else there] for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return _Active([self.sequences[i] for i in kept], **tensors, admitted=self.admitted)
