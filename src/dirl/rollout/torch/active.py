"""The sequences that the torch engine decodes at a time, and the state of their current blocks."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dirl.diffusion.commit import commit
from dirl.diffusion.drawing import Draws
from dirl.rollout.response import finished_trajectory, response_end
from dirl.rollout.stop_strings import StopStrings
from dirl.types import DecodingParams, FinishReason, GenerationRequest, ModelSpec, Trajectory


@dataclass
class InTheMaking:
    """One request in the making; grows by a block at a time."""

    request: GenerationRequest
    number: int
    """Its number in the order in which responses were admitted."""
    start: int
    """Absolute position of the current block."""
    response_ids: list[int] = field(default_factory=list)
    step_map: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: tuple[int, FinishReason] | None = None
    """Its `response_end`; None while it is in the making."""

    def take_block(
        self,
        tokens: list[int],
        steps: list[int],
        logprobs: list[float],
        spec: ModelSpec,
        limit: int,
        strings: StopStrings | None,
    ) -> None:
        """Append a finished block (its prompt tokens left out) and see whether the response ends in it."""
        head = max(len(self.request.prompt_ids) - self.start, 0)
        before = len(self.response_ids)
        self.response_ids += tokens[head:]
        self.step_map += steps[head:]
        self.logprobs += logprobs[head:]
        self.end = response_end(self.response_ids, spec.stop_token_ids, limit, before, strings)

    def trajectory(self, policy_version: int) -> Trajectory:
        assert self.end is not None, "still in the making"
        return finished_trajectory(
            self.request, self.response_ids, self.step_map, self.logprobs, self.end, policy_version
        )


@dataclass(frozen=True)
class Partial:
    """A response in the making, after a denoising step."""

    request: GenerationRequest
    done: tuple[int, ...]
    """Tokens of its finished blocks."""
    block: tuple[int | None, ...]
    """Those of the block under way, prompt tokens left out; None where it is masked yet. Empty: it is finished."""


@dataclass
class Active:
    """The sequences in slots 0..N-1 and the state of their current blocks."""

    sequences: list[InTheMaking]
    tokens: Int64[Tensor, "N B"]
    """[N, B] committed and prompt tokens, the mask token elsewhere."""
    masked: Bool[Tensor, "N B"]
    """[N, B] bool."""
    steps: Int64[Tensor, "N B"]
    """[N, B] denoising step that committed each token; 0: prompt or still masked."""
    logprobs: Float[Tensor, "N B"]
    """[N, B]."""
    start: Int64[Tensor, " N"]
    """[N] absolute position of the block."""
    forward: Int64[Tensor, " N"]
    """[N] forwards that the block has had."""
    seeds: Int64[Tensor, " N"]
    """[N]."""
    trailing: Int64[Tensor, "N B"]
    """[N, B] tokens of the block before, where `trailing_here`."""
    broken: Bool[Tensor, "N B"]
    """[N, B] bool: the last forward's logits were not finite."""
    masked_here: Bool[Tensor, "N B"]
    """`masked`, in the host's memory."""
    broken_here: Bool[Tensor, "N B"]
    """`broken`, there."""
    trailing_here: Bool[Tensor, " N"]
    """[N] bool, there: the next forward has to write the final keys of the block before, too."""
    admitted: int = 0
    """Sequences so far, those that have finished included."""

    @classmethod
    def empty(cls, size: int, device: torch.device) -> "Active":
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
            trailing=new(0, size),
            broken=new(0, size, dtype=torch.bool),
            masked_here=torch.zeros(0, size, dtype=torch.bool),
            broken_here=torch.zeros(0, size, dtype=torch.bool),
            trailing_here=torch.zeros(0, dtype=torch.bool),
        )

    def extend(self, requests: list[GenerationRequest], spec: ModelSpec, device: torch.device) -> "Active":
        """Append sequences at their first block, the prompt's tail visible in it."""
        size, count = spec.block_size, len(requests)
        starts = [len(r.prompt_ids) // size * size for r in requests]
        tails = [list(r.prompt_ids[s:]) for r, s in zip(requests, starts, strict=True)]
        tokens = torch.tensor([t + [spec.mask_token_id] * (size - len(t)) for t in tails], device=device)
        masked = torch.arange(size) >= torch.tensor([len(t) for t in tails])[:, None]
        new = Active.empty(size, device)
        zero = {name: getattr(new, name).new_zeros((count, size)) for name in ("steps", "logprobs", "trailing")}
        fresh = {
            "tokens": tokens,
            "masked": masked.to(device),
            "masked_here": masked,
            "broken": torch.zeros_like(masked, device=device),
            "broken_here": torch.zeros_like(masked),
            "start": torch.tensor(starts, device=device),
            "forward": torch.zeros(count, dtype=torch.long, device=device),
            "seeds": torch.tensor([r.seed for r in requests], device=device),
            "trailing_here": torch.zeros(count, dtype=torch.bool),
            **zero,
        }
        joined = {name: torch.cat([getattr(self, name), value]) for name, value in fresh.items()}
        numbers = range(self.admitted, self.admitted + count)
        sequences = [InTheMaking(r, n, s) for r, n, s in zip(requests, numbers, starts, strict=True)]
        return Active(self.sequences + sequences, **joined, admitted=self.admitted + count)

    def take(
        self,
        draws: Draws,
        at: tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]],
        masked: Bool[Tensor, "N B"],
        spec: ModelSpec,
        how: DecodingParams,
    ) -> None:
        """Commit candidates of a denoising step.

        Args:
            at: rows and columns [M] of the draws: the masked positions.
            masked: [N, B] bool; none in the rows that do not denoise.
        """
        zeros = torch.zeros(masked.shape, device=masked.device)
        self.broken = torch.zeros_like(masked).index_put(at, ~draws.finite)
        chosen = commit(zeros.index_put(at, draws.confidence), masked, how, spec.block_size)
        self.forward = self.forward + masked.any(1)
        self.tokens = torch.where(chosen, self.tokens.index_put(at, draws.tokens), self.tokens)
        self.logprobs = torch.where(chosen, zeros.index_put(at, draws.logprobs), self.logprobs)
        self.steps = torch.where(chosen, self.forward[:, None], self.steps)
        self.masked = self.masked & ~chosen

    def close_blocks(
        self, spec: ModelSpec, decoding: DecodingParams, strings: StopStrings | None = None
    ) -> list[InTheMaking]:
        """Hand finished blocks to their sequences and open the next ones.

        Returns the sequences that are done, in the order in which they were admitted.
        """
        tokens, steps, logprobs = self._look()
        self.trailing_here = complete = ~self.masked_here.any(1)
        if complete.any():
            columns = (x[complete].tolist() for x in (tokens, steps, logprobs))
            for i, *block in zip(complete.nonzero().squeeze(1).tolist(), *columns, strict=True):
                self.sequences[i].take_block(*block, spec, decoding.max_response_tokens, strings)
                self.sequences[i].start += spec.block_size
            self._open_blocks(spec)
        return sorted((s for s in self.sequences if s.end is not None), key=lambda s: s.number)

    def _look(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, steps and log-probs [N, B] as they are on the device, and what `..._here` keeps: one copy in all."""
        bits, flags = self.logprobs.view(torch.int32), self.masked + 2 * self.broken
        tokens, steps, bits, flags = torch.stack([self.tokens, self.steps, bits, flags]).cpu()
        self.masked_here, self.broken_here = flags % 2 == 1, flags >= 2
        return tokens, steps, bits.int().view(torch.float32)

    def partial(self, rows: Bool[Tensor, " N"]) -> list[Partial]:
        """How far these sequences are, after `close_blocks`.

        Args:
            rows: [N] bool.
        """
        found = []
        every = (self.sequences, self.tokens.tolist(), self.masked_here.tolist(), self.trailing_here, rows)
        for sequence, tokens, masked, finished, asked in zip(*every, strict=True):
            if not asked:
                continue
            head = max(len(sequence.request.prompt_ids) - sequence.start, 0)
            block = [None if hidden else token for token, hidden in zip(tokens, masked, strict=True)]
            under_way = () if finished else tuple(block[head:])
            found.append(Partial(sequence.request, tuple(sequence.response_ids), under_way))
        return found

    def _open_blocks(self, spec: ModelSpec) -> None:
        done = ~self.masked.any(1)
        step = done[:, None]
        self.trailing = self.tokens
        self.start = self.start + done.long() * spec.block_size
        self.forward = self.forward.masked_fill(done, 0)
        self.tokens = self.tokens.masked_fill(step, spec.mask_token_id)
        self.steps = self.steps.masked_fill(step, 0)
        self.masked = self.masked | step
        self.masked_here = self.masked_here | self.trailing_here[:, None]

    def select(self, kept: list[int]) -> "Active":
        index = torch.tensor(kept, dtype=torch.long)
        there = index.to(self.tokens.device)
        tensors = {
            k: v[index if k.endswith("_here") else there] for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return Active([self.sequences[i] for i in kept], **tensors, admitted=self.admitted)
