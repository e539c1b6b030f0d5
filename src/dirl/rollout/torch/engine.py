"""The reference engine: plain torch on any device, KV cache, continuous batching, full traces.

Every engine step is one forward over the current block of all active sequences. The final keys of a finished block
are written by the same forward as the first step of the next one; finished sequences make room for waiting ones at
once. The host waits for the device once in a step, for the blocks of all sequences together, and knows from then on
what the next step has to do.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.attention import dense_mask
from dirl.batches import Layout
from dirl.diffusion.drawing import Drawing, check_drawing, draw_rows
from dirl.models.families import family_of
from dirl.models.families.weights import named_tensors
from dirl.models.shape import ModelShape
from dirl.rollout.engine import RolloutEngine, broken_logits
from dirl.rollout.memory import LOGIT_BYTES, EngineMemory, RolloutSize, key_value_bytes
from dirl.rollout.stop_strings import StopStrings
from dirl.rollout.torch.active import Active, Partial
from dirl.rollout.torch.modules import ModuleDecoder
from dirl.rollout.torch.slot_cache import SlotCache
from dirl.rollout.torch.stripped import StrippedDecoder, obstacle
from dirl.rollout.weights import checked
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

MASK_LINE = 16
"""The number of keys that are read is rounded up to a multiple of this."""

PREFILL_TOKENS = 1 << 12
"""Tokens of prompts, padding included, that go through the model at a time; a longer prompt goes alone."""

Watch = Callable[[Sequence[Partial]], None]


class TorchEngine(RolloutEngine):
    """Runs anywhere and defines what the other engines must agree with, token for token.

    Args:
        max_batch_size: sequences that are decoded at a time.
        device: `auto` is the trainer's device.
        dtype: of weights and cache; `auto` is that of the model's config. Log-probs are fp32, of logits of this dtype.
        forward: `modules` calls transformers' modules layer by layer; `auto` leaves them out, which is faster, where
            the model's family says what they compute. Log-probs may differ in the last digits.
        drawing: on a GPU, `auto` draws by kernels, once they have been seen to draw what torch's functions draw;
            `kernel` does not look first, `torch` does without them.
    """

    def __init__(
        self,
        max_batch_size: int = 64,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        forward: Literal["auto", "modules"] = "auto",
        drawing: Drawing = "auto",
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"engine.max_batch_size={max_batch_size}: use at least 1")
        if forward not in ("auto", "modules"):
            raise ValueError(f"engine.forward={forward!r}: use auto or modules")
        self.max_batch_size, self.device_name, self.dtype_name = max_batch_size, device, dtype
        check_drawing(drawing)
        self.forward_name, self.drawing = forward, drawing
        self.forwards = 0
        """Forwards over blocks since `setup`, prefills not counted."""
        self.watch: Watch | None = None
        """Told after each denoising step how far every response is that has gained tokens in it; it changes none."""

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
        self.family, self.spec, self.tokenizer = family_of(config), spec, tokenizer
        self.device = torch.device(device if self.device_name == "auto" else self.device_name)
        check_drawing(self.drawing, self.device)
        known = config.dtype or torch.get_default_dtype()
        dtype = known if self.dtype_name == "auto" else self.dtype_name
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        with torch.random.fork_rng(devices=[]), self.device:
            own = copy.deepcopy(config)  # transformers writes the dtype into it
            model: nn.Module = self.family.build(own, self.dtype)
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
    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        if self.policy_version < 0:
            raise ValueError("the engine has no weights yet: call update_weights before generate")
        strings = StopStrings.of(decoding.stop_strings, self.tokenizer)
        waiting = deque(requests)
        active = Active.empty(self.spec.block_size, self.device)
        self._make_room(requests, decoding)
        try:
            while waiting or active.sequences:
                if waiting and len(active.sequences) < self.cache.slots:
                    active = self._admit(active, waiting)
                self.still_wanted()
                denoised = self._step(active, decoding)
                self.heartbeat += 1
                finished = active.close_blocks(self.spec, decoding, strings)
                if active.broken_here.any():
                    row = int(active.broken_here.any(1).nonzero()[0])
                    raise broken_logits(active.sequences[row].request, self.policy_version)
                if self.watch is not None and denoised.any():
                    self.watch(active.partial(denoised))
                if finished:
                    yield from (s.trajectory(self.policy_version) for s in finished)
                    active = self._evict(active)
        finally:
            self.cache = None  # between rollouts its memory belongs to the trainer
            del self._decoder

    def _make_room(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> None:
        size = self.spec.block_size
        longest = max((len(r.prompt_ids) for r in requests), default=0) + decoding.max_response_tokens
        length = -(-longest // size) * size
        slots = min(self.max_batch_size, max(len(requests), 1))
        dtype = self.model.dtype
        assert isinstance(dtype, torch.dtype)
        self.cache = SlotCache(self.shape, slots, length, self.device, dtype)
        stripped = self.forward_name == "auto" and obstacle(self.family, self.model) is None
        decoder = StrippedDecoder if stripped else ModuleDecoder
        self._decoder: StrippedDecoder | ModuleDecoder = decoder(self.family, self.model, self.cache)

    def _admit(self, active: Active, waiting: deque[GenerationRequest]) -> Active:
        """Fill the free slots; equal prompts are prefilled once, and not at all where a sequence holds their keys."""
        first, size = len(active.sequences), self.spec.block_size
        new = [waiting.popleft() for _ in range(min(len(waiting), self.cache.slots - first))]
        slots: dict[tuple[int, ...], list[int]] = {}
        for slot, request in enumerate(new, first):
            slots.setdefault(request.prompt_ids, []).append(slot)
        for held, sequence in enumerate(active.sequences):
            if (targets := slots.pop(sequence.request.prompt_ids, None)) is not None:
                self.cache.copy(held, targets, len(sequence.request.prompt_ids) // size * size)
        left = sorted((ids for ids in slots if len(ids) >= size), key=len, reverse=True)
        while left:  # like lengths together
            self.still_wanted()
            count = max(1, PREFILL_TOKENS // len(left[0]))
            self._prefill({ids: slots[ids] for ids in left[:count]})
            left = left[count:]
            self.heartbeat += 1
        return active.extend(new, self.spec, self.device)

    def _prefill(self, slots: Mapping[tuple[int, ...], list[int]]) -> None:
        """Write the keys of the whole blocks of prompts, of at least one each, into their slots."""
        size = self.spec.block_size
        rows = [torch.tensor(ids[: len(ids) // size * size], dtype=torch.long) for ids in slots]
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.spec.pad_token_id)
        pairs = [(slot, number) for number, own in enumerate(slots.values()) for slot in own]
        self.cache.prefill(*torch.tensor(pairs, device=self.device).unbind(1))
        # Padding lies in later blocks than the prompt's own, so block-causality hides it; what it leaves in
        # the cache is overwritten when those positions are decoded.
        positions = torch.arange(inputs.shape[1], device=self.device)[None]
        mask = dense_mask(self._clean_layout(positions[0]))[None, None]
        none = positions.new_empty(0)
        self._decoder(inputs.to(self.device), positions, mask, (none, none))

    def _step(self, active: Active, decoding: DecodingParams) -> Tensor:
        """One forward over the current block of every active sequence, and the block before that was just finished.

        A decoder that does not take both at a time gets that block alone. Returns who has denoised: [N] bool, here.
        """
        size, spec = self.spec.block_size, self.spec
        both = self._decoder.takes_both
        late = active.trailing_here & (not both)
        row, column = (self._there(index) for index in (active.masked_here & ~late[:, None]).nonzero(as_tuple=True))
        more = self._there((active.trailing_here & both).nonzero().squeeze(1))
        tokens, masked = active.tokens, active.masked
        positions = active.start[:, None] + torch.arange(size, device=self.device)
        if late.any():
            finished = self._there(late)[:, None]
            tokens, masked = torch.where(finished, active.trailing, tokens), masked & ~finished
            positions = positions - size * finished.long()
        if len(more):
            tokens = torch.cat([tokens, active.trailing[more]])
        blocks = torch.cat([positions, positions[more] - size]) if len(more) else positions
        mask = self._open_cache(active, blocks, more, bool(active.trailing_here.any()))
        hidden = self._decoder(tokens, blocks, mask, (row, column))
        self.forwards += 1
        if len(row):
            columns = (active.seeds[row], positions[row, column], active.forward[row])
            draws = draw_rows(self._part("head")(hidden), *columns, spec.banned, decoding, drawing=self.drawing)
            active.take(draws, (row, column), masked, spec, decoding)
        return ~late

    def _open_cache(self, active: Active, blocks: Tensor, more: Tensor, uneven: bool) -> Tensor | None:
        """Which keys blocks see, all that are not of later ones: [N + M, 1, 1, K]; None where all see all.

        Args:
            blocks: [N + M, B] positions.
            uneven: some end before the others, wherever the sequences are.
        """
        ends = {s.start + self.spec.block_size for s in active.sequences}
        span, mask = max(ends), None
        if len(ends) > 1 or uneven:  # kernels copy a mask, in every layer, whose lines are no multiple of 16 bytes
            span = min(-(-span // MASK_LINE) * MASK_LINE, self.cache.length)
            mask = (torch.arange(span, device=self.device) <= blocks[:, -1:])[:, None, None]
        self.cache.decode(blocks, span, more)
        return mask

    def _there(self, index: Tensor) -> Tensor:
        return index.to(self.device, non_blocking=True)

    def _part(self, name: str) -> nn.Module:
        return self.family.parts.of(self.model, name)

    def _clean_layout(self, positions: Tensor) -> Layout:
        zero = torch.zeros_like(positions)
        return Layout(zero, zero, positions // self.spec.block_size, zero)

    def _evict(self, active: Active) -> Active:
        """The last sequences move to the slots of finished ones: as few as can be, for a slot is a long copy."""
        ended = [s.end is not None for s in active.sequences]
        count = ended.count(False)
        last = (i for i in range(count, len(ended)) if not ended[i])
        kept = [next(last) if ended[i] else i for i in range(count)]
        self.cache.keep(kept)
        return active.select(kept)
