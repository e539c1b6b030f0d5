"""LMDeploy's engine loop, with its work for each sequence in every forward done for all at once, or left out.

The forward is short: what the host does meanwhile for each of some hundred sequences can take longer, and then the GPU
waits. Import this module only after `check_lmdeploy`.
"""

from types import MethodType
from typing import Any

import numpy as np
import torch
from lmdeploy.pytorch.engine.engine import Engine, InferOutput
from lmdeploy.pytorch.engine.engine_loop import EngineLoop
from lmdeploy.pytorch.engine.inputs_maker import InputsMakerAsync
from lmdeploy.pytorch.model_inputs import ModelInputsDelta
from torch import Tensor

from dirl.rollout.lmdeploy.sequences import TracedSequence

NO_TOKENS = np.empty(0, dtype=np.int64)


def patch_engine_loop(engine: Engine) -> None:
    """Put the methods below in place of an engine's own, after its start: its loop exists from the next task on."""
    loop = engine._engine_loop
    assert loop is not None, "the engine has been started in an earlier call"
    loop._make_infer_outputs = MethodType(outputs_of_finished, loop)
    if loop.inputs_maker.config.window_size <= 0:
        loop.inputs_maker.create_model_inputs_delta = MethodType(decoding_inputs, loop.inputs_maker)


def outputs_of_finished(
    self: EngineLoop, batched_outputs: Any, running: list[TracedSequence], model_inputs: Any, delta: Any
) -> dict[int, InferOutput]:
    """Answers to the requests that this forward finished: nobody reads tokens before, and then they are traces."""
    if model_inputs is not None and model_inputs.is_chunk and not model_inputs.is_last_chunk:
        return {}
    finished = self.seq_strategy.update_running(
        running=running, batched_outputs=batched_outputs, model_inputs=model_inputs, delta=delta
    )
    return {s.session_id: InferOutput(s.session_id, s.resp, NO_TOKENS, finish=True) for s in finished}


@torch.inference_mode()
def decoding_inputs(
    self: InputsMakerAsync,
) -> tuple[ModelInputsDelta | None, list[TracedSequence], list[TracedSequence]]:
    """Which sequences go on, and their pages: the scheduler is asked about those alone that it could say no to.

    These are the ones that need a page, do not run any longer, or have not been decoded yet.
    """
    size, running = self.engine_strategy.get_num_decode_tokens(), self.running_seqs
    required = self.engine_strategy.get_num_required_tokens()
    lengths = np.array([s.num_all_ids for s in running])
    room = np.array([len(s.logical_blocks) for s in running]) * self.config.block_size
    valid = np.array([s.row for s in running]) >= 0
    asked = np.flatnonzero(~valid | (lengths + required > room))
    if len(asked):
        valid[asked] = self.scheduler.schedule_running(
            [running[i] for i in asked],
            num_required_tokens=required,
            prealloc_size=self.engine_strategy.get_prealloc_size(True),
        )
    going = [running[i] for i in np.flatnonzero(valid)]
    others = [running[i] for i in np.flatnonzero(~valid)]
    if not going:
        return None, going, others
    lengths = lengths[valid] + size  # of a forward ago, whose outputs are awaited
    delta = ModelInputsDelta(
        indices=None,
        block_offsets=self._map_to_kernel_block_offsets(_pages(self, going)),
        indice_cpu=np.flatnonzero(valid),
        max_q_seqlen=size,
        max_kv_seqlen=int(lengths.max()),
        sum_kv_seqlen=int(lengths.sum()),
        num_ignored_history=torch.zeros(len(going), dtype=torch.long),
    )
    return delta, going, others


def _pages(maker: InputsMakerAsync, sequences: list[TracedSequence]) -> Tensor:
    """The physical pages of each sequence, [N, most], filled up with 0."""
    blocks = [s.logical_blocks.get_real_blocks() for s in sequences]
    counts = np.array([len(b) for b in blocks])
    pages = np.zeros((len(blocks), counts.max()), dtype=np.int64)
    allocator = maker.scheduler.block_manager.allocator
    pages[np.arange(pages.shape[1]) < counts[:, None]] = allocator.get_physical_blocks(np.concatenate(blocks))
    return torch.as_tensor(pages, dtype=maker.torch_int_dtype)
