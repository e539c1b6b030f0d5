"""Sequences noted all at once against LMDeploy's own, updated one after the other, and the patched engine loop."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lmdeploy.pytorch import consts
from lmdeploy.pytorch.engine.inputs_maker import _tensorlize_block_offsets
from lmdeploy.pytorch.engine.model_agent.agent import BatchedOutputs
from lmdeploy.pytorch.messages import MessageStatus
from lmdeploy.pytorch.model_inputs import ModelInputsDelta
from lmdeploy.pytorch.strategies.dllm.sequence import DLLMSequenceStrategy, SchedulerSequenceDLLM
from tests.lmdeploy.cpu import lmdeploy_on_cpu
from tests.lmdeploy.strategy_oracle import make_sequence
from tests.lmdeploy.test_lmdeploy_engine import Pair, some_requests

from dirl.rollout.lmdeploy.changes import _TracedOutputs
from dirl.rollout.lmdeploy.sequences import Trace, TracedSequence, TracedSequences, Tracing
from dirl.types import DecodingParams, GenerationRequest, ModelSpec

MASK, SIZE = 9, 4
SPEC = ModelSpec(SIZE, mask_token_id=MASK, stop_token_ids=(7,), pad_token_id=0, vocab_size=10)
DECODING = ModelInputsDelta(None, None, None, SIZE, 0, 0)


class State:
    """Stands where the scheduler's lifecycle does."""

    def __init__(self, sequence: SchedulerSequenceDLLM, status: MessageStatus) -> None:
        self.sequence, self.status = sequence, status

    def finish(self) -> None:
        self.sequence.set_state(State(self.sequence, MessageStatus.STOPPED))


class Twin:
    """One request, kept by LMDeploy's own class and by ours, and a plain account of its commits."""

    def __init__(self, number: int, theirs: DLLMSequenceStrategy, ours: TracedSequences) -> None:
        request = GenerationRequest("q", number, (1,) * (1 + number % 7), seed=number)
        self.theirs, self.ours = (make_sequence(s, request, SPEC, DecodingParams()) for s in (theirs, ours))
        self.forward, self.commits = 0, {}
        self.turn(MessageStatus.RUNNING)

    def turn(self, status: MessageStatus) -> None:
        for sequence in (self.theirs, self.ours):
            sequence.set_state(State(sequence, status))

    def runs(self) -> bool:
        return self.theirs.status == MessageStatus.RUNNING

    def step(self, choose: random.Random) -> tuple[list[int], list[int], list[float]]:
        """What a forward makes of the current block: commits some positions, or writes the final keys."""
        tokens, state = self.theirs.token_ids[-SIZE:].tolist(), self.theirs.dllm_mask[-SIZE:].tolist()
        logprobs = [-choose.random() for _ in range(SIZE)]
        masked = [i for i in range(SIZE) if state[i] == consts.DLLM_MASKED]
        if not self.runs():
            return [choose.randrange(MASK)] * SIZE, [choose.randrange(3)] * SIZE, logprobs
        if not masked:
            self.forward = 0
            return tokens, [consts.DLLM_CACHED] * SIZE, logprobs
        self.forward += 1
        start = self.theirs.num_all_ids - SIZE
        for i in choose.sample(masked, choose.randrange(1, len(masked) + 1)):
            tokens[i], state[i] = choose.randrange(MASK), consts.DLLM_UNMASKED
            self.commits[start + i] = tokens[i], self.forward, float(np.float32(logprobs[i]))
        return tokens, state, logprobs

    def assert_equal(self) -> None:
        """In all that LMDeploy reads of a sequence; mid-block, the arrays hold the block of ours."""
        self.turn(MessageStatus.READY)
        for name in ("token_ids", "all_ids", "valid_ids", "generated_ids", "dllm_mask", "all_dllm_mask"):
            assert getattr(self.theirs, name).tolist() == getattr(self.ours, name).tolist(), name
        for name in ("num_history_ids", "num_token_ids", "num_valid_ids", "num_all_ids", "num_new_tokens"):
            assert getattr(self.theirs, name) == getattr(self.ours, name), name
        self.turn(MessageStatus.RUNNING)


def outputs(rows: list[tuple[list[int], list[int], list[float]]], stopped: list[bool]) -> BatchedOutputs:
    tokens, state, logprobs = (torch.tensor([row[k] for row in rows]).flatten() for k in range(3))
    position = torch.full((len(rows),), SIZE - 2)
    return BatchedOutputs(
        tokens, torch.tensor(stopped), position, extra_outputs=_TracedOutputs(state.byte(), logprobs.float())
    )


def forward(twins: list[Twin], both: tuple, choose: random.Random, prefill: bool, ends: float) -> None:
    rows = [t.step(choose) for t in twins]
    full = [set(state) == {consts.DLLM_UNMASKED} for _, state, _ in rows]
    stopped = [done and choose.random() < ends for done in full]
    inputs = SimpleNamespace(is_decoding=False) if prefill else None
    for strategy, name in zip(both, ("theirs", "ours"), strict=True):
        sequences = [getattr(t, name) for t in twins]
        strategy.update_running(sequences, outputs(rows, stopped), inputs, DECODING)


def preempt(twin: Twin) -> None:
    """Its pages are taken: it is to be prefilled again, its current block as it is."""
    twin.assert_equal()
    twin.turn(MessageStatus.WAITING)
    for sequence in (twin.theirs, twin.ours):
        sequence.set_step(0)
    twin.turn(MessageStatus.RUNNING)


@pytest.mark.parametrize("seed", range(5))
def test_sequences_noted_all_at_once_are_those_that_lmdeploy_updates_one_by_one(seed: int) -> None:
    choose = random.Random(seed)
    both = DLLMSequenceStrategy(SIZE, MASK), TracedSequences(SIZE, MASK, Tracing(SPEC))
    waiting, active, preempted = [Twin(i, *both) for i in range(30)], [], 0
    twins = list(waiting)
    while waiting or any(t.runs() for t in active):
        if waiting and (not active or choose.random() < 0.3):
            new = [waiting.pop(0) for _ in range(min(len(waiting), choose.randrange(1, 4)))]
            forward(new, both, choose, prefill=True, ends=0.2)
            active += [t for t in new if t.runs()]
            continue
        forward(active, both, choose, prefill=False, ends=0.2)
        if choose.random() < 0.5:  # else a forward was on its way when they stopped
            active = [t for t in active if t.runs()]
        for twin in [t for t in active if t.runs() and choose.random() < 0.05]:
            preempt(twin)
            active.remove(twin)
            waiting.append(twin)
            preempted += 1
    assert preempted > 3
    for twin in twins:
        assert twin.theirs.generated_ids.tolist() == twin.ours.generated_ids.tolist()
        expected = [list(column) for column in zip(*(twin.commits[i] for i in sorted(twin.commits)), strict=True)]
        assert Trace.of(twin.ours.blocks) == Trace(*expected)


@pytest.mark.usefixtures("one_thread")
def test_the_inputs_of_a_forward_are_those_that_lmdeploy_makes_and_a_request_has_one_answer() -> None:
    seen = {"forwards": 0, "preempted": 0, "answers": 0}
    with lmdeploy_on_cpu(4):
        pair = Pair(4, kv_blocks=16)
        loop = pair.engine.engine._engine_loop
        maker, scheduler = loop.inputs_maker, loop.scheduler
        ours, send = maker.create_model_inputs_delta, loop._send_resp

        def compared() -> tuple:
            running = list(maker.running_seqs)
            needless = [s.status == MessageStatus.RUNNING and not blocks_short(s) for s in running]
            delta, going, others = ours()
            assert all(s in going for s, keep in zip(running, needless, strict=True) if keep)
            assert going + others == sorted(going, key=running.index) + sorted(others, key=running.index)
            if delta is not None:
                wanted = _tensorlize_block_offsets(scheduler.get_block_tables(going), dtype=torch.int32)
                assert delta.block_offsets.equal(wanted) and delta.block_offsets.dtype == torch.int32
                assert [running[i] for i in delta.indice_cpu] == going
                lengths = [s.num_all_ids + 4 for s in going]
                assert (delta.max_kv_seqlen, delta.sum_kv_seqlen) == (max(lengths), sum(lengths))
            seen["forwards"] += 1
            seen["preempted"] += sum(s.status == MessageStatus.WAITING for s in others)
            return delta, going, others

        def blocks_short(sequence: TracedSequence) -> int:
            return scheduler.block_manager.num_required_blocks(sequence, 4)

        def count(out: object) -> None:
            seen["answers"] += 1
            send(out)

        maker.create_model_inputs_delta, loop._send_resp = compared, count
        requests = some_requests(16, 1, longest=40)
        pair.compare(requests, DecodingParams(threshold=0.7, temperature=1.2, max_response_tokens=60))
        pair.engine.close()
    assert seen["forwards"] > 20 and seen["preempted"] and seen["answers"] == len(requests), seen
