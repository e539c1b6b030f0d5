"""The sequences that LMDeploy's scheduler keeps, with exact traces, at a cost that hardly grows with their number.

A forward is noted for all running sequences at once, in arrays; a sequence itself is touched when its block is
complete, when its final keys are written, and when it leaves the batch.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lmdeploy.pytorch import consts
from lmdeploy.pytorch.messages import MessageStatus
from lmdeploy.pytorch.strategies.dllm.sequence import DLLMSequenceStrategy, SchedulerSequenceDLLM

from dirl.diffusion.drawing import Drawing
from dirl.rollout.stop_strings import StopStrings
from dirl.types import DecodingParams, ModelSpec

Block = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens, steps (0: of the prompt) and log-probs of a complete block, [B] each."""


@dataclass
class Trace:
    """How one response came about: every position of every block decoded, prompt tokens left out."""

    response_ids: list[int]
    step_map: list[int]
    logprobs: list[float]

    @classmethod
    def of(cls, blocks: list[Block]) -> "Trace":
        tokens, steps, logprobs = (np.concatenate(column) for column in zip(*blocks, strict=True))
        response = steps > 0
        return cls(tokens[response].tolist(), steps[response].tolist(), logprobs[response].tolist())


@dataclass
class Tracing:
    """What the changed parts share with the engine that runs them."""

    spec: ModelSpec
    drawing: Drawing = "auto"
    decoding: DecodingParams = DecodingParams()
    strings: StopStrings | None = None
    """The stop strings of `decoding`."""
    traces: dict[int, Trace] = field(default_factory=dict)
    """Finished ones by session id."""
    broken: set[int] = field(default_factory=set)
    """Session ids of those that ended because their logits were not finite."""
    forwards: int = 0
    """Forwards of the model since the start."""


class TracedSequence(SchedulerSequenceDLLM):
    """A sequence that remembers which denoising step committed each token.

    While it runs, its current block is kept in `RunningBlocks`, and `row` is its place there.
    """

    _num_token_ids: int  # LMDeploy's

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocks: list[Block] = []
        """Blocks that are complete."""
        self.response_ids: list[int] = []
        """The ids of the blocks that were looked at for stop strings."""
        self.looked_at = 0
        self.row = -1
        self.forward = 0
        """Denoising forwards of the current block."""
        self.steps = np.zeros(self.dllm_block_length, dtype=np.int64)
        self.step_logprobs = np.zeros(self.dllm_block_length, dtype=np.float32)

    def set_state(self, state: Any) -> None:
        if self.row >= 0 and state.status != MessageStatus.RUNNING:
            self._strategy.running.give_back(self)
        super().set_state(state)

    def record(self, tokens: np.ndarray, state: np.ndarray, logprobs: np.ndarray) -> bool:
        """Take note of what a prefill changed in the first block, [B] each; call it before the block is updated.

        Returns whether its logits were finite.
        """
        masked = self.dllm_mask[-self.dllm_block_length :] == consts.DLLM_MASKED
        chosen = masked & (state != consts.DLLM_MASKED)
        if chosen.any():
            self.forward += 1
            self.steps[chosen] = self.forward
            self.step_logprobs[chosen] = logprobs[chosen]
            if (state == consts.DLLM_UNMASKED).all():
                self.blocks.append((tokens.copy(), self.steps.copy(), self.step_logprobs.copy()))
        if (state == consts.DLLM_CACHED).all():
            self.forward = 0
            self.steps[:] = 0
        return not np.isnan(logprobs[masked]).any()

    def ends_by(self, strings: StopStrings) -> bool:
        """Whether the blocks that are complete since the last time complete a stop string."""
        begin = len(self.response_ids)
        for tokens, steps, _ in self.blocks[self.looked_at :]:
            self.response_ids += tokens[steps > 0].tolist()
        self.looked_at = len(self.blocks)
        return len(self.response_ids) > begin and strings.end(self.response_ids, begin) is not None

    def complete_block(self) -> None:
        """Count a block whose last token has been committed, as LMDeploy does."""
        size = self.dllm_block_length
        new = size - self._num_valid_ids % size
        self._num_valid_ids += new
        self.num_new_tokens += new

    def open_block(self, tokens: np.ndarray) -> None:
        """Go on to the next block, as LMDeploy does when the final keys of this one, `tokens` [B], are written."""
        strategy, start = self._strategy, self._num_history_ids
        self.history_cache[start:], self.history_dllm_mask[start:] = tokens, consts.DLLM_CACHED
        self.history_cache.append(strategy.new_tokens)
        self.history_dllm_mask.append(strategy.new_mask)
        self._num_history_ids += self._num_token_ids
        self._num_token_ids = len(tokens)
        self.arrive_time = time.perf_counter()  # of those that wait, the scheduler takes the earliest first


class RunningBlocks:
    """The current blocks of the N sequences of the last decoding forward, row by row."""

    def __init__(self, block_size: int, mask_token: int) -> None:
        self.mask_token = mask_token
        self.taken = 0
        """Sequences that have a row."""
        self.tokens = np.empty((0, block_size), dtype=np.int64)
        self.state = np.empty((0, block_size), dtype=np.uint8)
        self.steps = np.empty((0, block_size), dtype=np.int64)
        self.logprobs = np.empty((0, block_size), dtype=np.float32)
        self.forward = np.empty(0, dtype=np.int64)

    def arrange(self, sequences: list[TracedSequence]) -> np.ndarray:
        """Make row i that of sequences[i]; returns which of them run, [N] bool. The rows of others mean nothing."""
        rows = np.array([s.row for s in sequences])
        if len(rows) != len(self.forward) or (rows != np.arange(len(rows))).any():
            assert (rows >= 0).sum() == self.taken, "a sequence that runs was left out of a forward"
            for name in ("tokens", "state", "steps", "logprobs", "forward"):
                old = getattr(self, name)
                setattr(self, name, old[rows] if len(old) else np.zeros((len(rows), *old.shape[1:]), old.dtype))
            for row, sequence in enumerate(sequences):
                if sequence.status == MessageStatus.RUNNING:
                    if sequence.row < 0:
                        self._take(sequence, row)
                    sequence.row = rows[row] = row
        return rows >= 0

    def note(self, tokens: np.ndarray, state: np.ndarray, logprobs: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """What a forward left of each block, [N, B]; returns whose block it completed, [N] bool."""
        chosen = (self.state == consts.DLLM_MASKED) & (state != consts.DLLM_MASKED)
        committed = chosen.any(1)
        self.forward += committed
        np.copyto(self.tokens, tokens, where=chosen)
        np.copyto(self.steps, self.forward[:, None], where=chosen)
        np.copyto(self.logprobs, logprobs, where=chosen)
        self.state[:] = state
        return committed & runs & (state == consts.DLLM_UNMASKED).all(1)

    def broken(self, logprobs: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """Which sequences have logits that are not finite at a masked position, [N]; ask it before `note`."""
        return np.flatnonzero(runs & (np.isnan(logprobs) & (self.state == consts.DLLM_MASKED)).any(1))

    def renew(self, rows: np.ndarray) -> None:
        """Begin the next block in these rows."""
        self.tokens[rows], self.state[rows], self.steps[rows] = self.mask_token, consts.DLLM_MASKED, 0
        self.forward[rows] = 0

    def give_back(self, sequence: TracedSequence) -> None:
        """It runs no longer: what is known of its block goes to itself."""
        row, start = sequence.row, sequence.num_history_ids
        sequence.history_cache[start:] = self.tokens[row]
        sequence.history_dllm_mask[start:] = self.state[row]
        sequence.steps[:], sequence.step_logprobs[:] = self.steps[row], self.logprobs[row]
        sequence.forward, sequence.row = int(self.forward[row]), -1
        self.taken -= 1

    def _take(self, sequence: TracedSequence, row: int) -> None:
        self.tokens[row], self.state[row] = sequence.token_ids, sequence.dllm_mask
        self.steps[row], self.logprobs[row] = sequence.steps, sequence.step_logprobs
        self.forward[row] = sequence.forward
        self.taken += 1


class TracedSequences(DLLMSequenceStrategy):
    """Makes traced sequences, and puts the traces of finished ones where the engine finds them."""

    def __init__(self, block_size: int, dllm_mask_token: int, tracing: Tracing) -> None:
        super().__init__(block_size, dllm_mask_token)
        self.tracing = tracing
        self.running = RunningBlocks(block_size, dllm_mask_token)
        self.new_tokens = np.full(block_size, dllm_mask_token, dtype=np.int64)
        self.new_mask = np.full(block_size, consts.DLLM_MASKED, dtype=np.uint8)

    def make_sequence(self, seq_id: int, session: Any, **kwargs: Any) -> TracedSequence:
        return TracedSequence(seq_id=seq_id, session=session, **kwargs)

    def update_running(
        self, running: list[TracedSequence], batched_outputs: Any, model_inputs: Any, delta: Any, **kwargs: Any
    ) -> list[TracedSequence]:
        """Returns the sequences that this forward finished."""
        extra, shape = batched_outputs.extra_outputs, (len(running), self.block_size)
        outputs = (batched_outputs.next_token_ids, extra.dllm_mask, extra.logprobs)
        tokens, state, logprobs = (x.view(shape).numpy() for x in outputs)
        if model_inputs is None or model_inputs.is_decoding:
            finished = self._decoded(running, tokens, state, logprobs, batched_outputs)
        else:
            active = [s for s in running if s.status == MessageStatus.RUNNING]
            broken = []
            for sequence, *row in zip(running, tokens, state, logprobs, strict=True):
                if sequence.status == MessageStatus.RUNNING and not sequence.record(*row):
                    broken.append(sequence)
            super().update_running(running, batched_outputs, model_inputs, delta, **kwargs)
            self._end_broken(broken)
            self._end_by_strings(active)
            finished = [s for s in active if s.status == MessageStatus.STOPPED]
        whole = (s for s in finished if s.session_id not in self.tracing.broken)
        self.tracing.traces |= {s.session_id: Trace.of(s.blocks) for s in whole}
        return finished

    def _end_broken(self, sequences: list[TracedSequence]) -> None:
        """End these, without a token more: their logits are not finite."""
        for sequence in sequences:
            self.tracing.broken.add(sequence.session_id)
            if sequence.status == MessageStatus.RUNNING:
                sequence.finish()

    def _end_by_strings(self, sequences: list[TracedSequence]) -> list[TracedSequence]:
        """Those that went on and whose text now holds a string that ends it; the device hears of it a forward later."""
        strings = self.tracing.strings
        if strings is None:
            return []
        ended = [s for s in sequences if s.status == MessageStatus.RUNNING and s.ends_by(strings)]
        for sequence in ended:
            sequence.finish()
        return ended

    def _decoded(
        self,
        running: list[TracedSequence],
        tokens: np.ndarray,
        state: np.ndarray,
        logprobs: np.ndarray,
        batched_outputs: Any,
    ) -> list[TracedSequence]:
        """What `update_running` of the base class does, and the traces, for arrays [N, B]."""
        blocks = self.running
        runs = blocks.arrange(running)
        broken = blocks.broken(logprobs, runs)
        complete = np.flatnonzero(blocks.note(tokens, state, logprobs, runs))
        for i, *block in zip(
            complete, blocks.tokens[complete], blocks.steps[complete], blocks.logprobs[complete], strict=True
        ):
            running[i].blocks.append(tuple(block))
            running[i].complete_block()
        cached = np.flatnonzero(runs & (state == consts.DLLM_CACHED).all(1))
        for i in cached:
            running[i].open_block(blocks.tokens[i])
        blocks.renew(cached)
        stopped = np.flatnonzero(runs & batched_outputs.stopped.numpy())
        for i, position in zip(stopped, batched_outputs.stop_pos.numpy()[stopped], strict=True):
            running[i].set_stop_pos(int(position))
            running[i].finish()
        self._end_broken([running[i] for i in broken])
        ended = self._end_by_strings([running[i] for i in complete])
        return [running[i] for i in sorted({*stopped, *broken})] + ended
