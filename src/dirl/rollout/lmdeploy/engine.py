"""LMDeploy's own PyTorch engine, in this process: paged KV cache, CUDA graphs, continuous batching, exact traces.

It runs on an event loop in a thread of its own; requests go in and trajectories come out through a queue. New
weights are copied into the running engine on its loop, device to device.
"""

import asyncio
import gc
import itertools
import queue
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.diffusion.drawing import Drawing, check_drawing
from dirl.models.families import family_of
from dirl.models.families.weights import empty_backbone, weight_shapes
from dirl.models.shape import ModelShape
from dirl.rollout.engine import RolloutEngine, broken_logits, next_result
from dirl.rollout.lmdeploy import checks
from dirl.rollout.lmdeploy import weights as in_place
from dirl.rollout.lmdeploy.device_memory import engine_memory
from dirl.rollout.lmdeploy.guard import check_lmdeploy
from dirl.rollout.lmdeploy.logging import warnings_alone
from dirl.rollout.lmdeploy.loop_thread import LoopThread, SharedLock
from dirl.rollout.lmdeploy.model import check_served, write_model_folder
from dirl.rollout.lmdeploy.rank_group import Seat, first_device
from dirl.rollout.memory import EngineMemory, RolloutSize
from dirl.rollout.remote.weight_transfer import buckets
from dirl.rollout.response import finished_trajectory, response_end
from dirl.rollout.stop_strings import StopStrings
from dirl.rollout.weights import checked
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

if TYPE_CHECKING:
    from lmdeploy.pytorch.engine.engine import Engine

    from dirl.rollout.lmdeploy.sequences import Tracing


class LMDeployEngine(RolloutEngine):
    """One engine per process and GPU. Needs CUDA and `pip install dirl[lmdeploy]`.

    Args:
        max_batch_size: sequences that are decoded at a time.
        kv_blocks: pages of the KV cache, `page_tokens` tokens each; 0: as many as fit into `kv_memory_share`.
        kv_memory_share: of the memory that is free at the first weight update, when the trainer's model is there, but
            not yet its optimizer's state and activations. `kv_blocks` says it outright.
        page_tokens: tokens per page.
        prefill_tokens: tokens of prompts per forward; longer prompts are prefilled in pieces.
        cuda_graphs: run the decoding forward from CUDA graphs, captured for batch sizes as LMDeploy chooses.
        sleep: give weights and cache back while the trainer works; they return with the next weight update. Costs
            their allocation, and the capture of the CUDA graphs, in every epoch.
        bucket_mb: weights are copied in pieces of this size.
        dtype: of weights and cache.
        tp: GPUs that share each layer (tensor parallelism): this process's, and those behind it on this host, each with
            a process of its own. For models that one GPU does not hold; a training run of several processes has it by
            a server.
        drawing: `auto` draws by kernels, once they have been seen to draw what torch's functions draw; `kernel` does
            not look first, `torch` does without them.
        check: decode a group of 8 equal prompts after the first weight update and demand 8 different samples.
    """

    concurrent = True
    libraries = ("lmdeploy",)

    def __init__(
        self,
        max_batch_size: int = 256,
        kv_blocks: int = 0,
        kv_memory_share: float = 0.8,
        page_tokens: int = 64,
        prefill_tokens: int = 8192,
        cuda_graphs: bool = True,
        sleep: bool = False,
        bucket_mb: int = 512,
        dtype: Literal["bfloat16", "float16"] = "bfloat16",
        check: bool = True,
        tp: int = 1,
        drawing: Drawing = "auto",
    ) -> None:
        counts = {"max_batch_size": max_batch_size, "bucket_mb": bucket_mb, "prefill_tokens": prefill_tokens, "tp": tp}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"engine.{name}={value}: use at least 1")
        if kv_blocks and kv_blocks < 16:
            raise ValueError(f"engine.kv_blocks={kv_blocks}: use 0, or 16 and more")
        if not 0 < kv_memory_share < 1:
            raise ValueError(f"engine.kv_memory_share={kv_memory_share}: use a share between 0 and 1")
        if page_tokens < 16 or page_tokens & (page_tokens - 1):
            raise ValueError(f"engine.page_tokens={page_tokens}: use a power of two, 16 or more")
        self.max_batch_size, self.kv_blocks, self.kv_memory_share = max_batch_size, kv_blocks, kv_memory_share
        self.page_tokens, self.prefill_tokens, self.cuda_graphs = page_tokens, prefill_tokens, cuda_graphs
        self.sleeps, self.bucket_mb, self.dtype_name, self.check, self.tp = sleep, bucket_mb, dtype, check, tp
        check_drawing(drawing)
        self.drawing = drawing
        self.room = (kv_blocks - 2) * page_tokens if kv_blocks else None  # LMDeploy keeps two for itself
        self._loop: LoopThread | None = None
        self.engine: Engine | None = None
        self.tracing: Tracing | None = None

    @property
    def heartbeat(self) -> int:  # type: ignore[override]  # it is read, and only the engines that keep it write it
        return 0 if self.tracing is None else self.tracing.forwards

    @classmethod
    def memory(cls, options: Mapping[str, Any], shape: ModelShape, rollout: RolloutSize) -> EngineMemory:
        return engine_memory(options, shape, rollout)

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        checks.check_settings(spec, device, self.page_tokens, self.prefill_tokens, self.max_batch_size)
        check_lmdeploy()
        check_drawing(self.drawing, torch.device(device))
        family = family_of(config)
        checks.check_parallel(self.tp, family.shape(config), device)
        with warnings_alone():
            from dirl.rollout.lmdeploy.sequences import Tracing

            check_served(config)

        self.spec, self.tokenizer, self.device = spec, tokenizer, torch.device(device)
        self.dtype = getattr(torch, self.dtype_name)
        self.shapes = weight_shapes(family, empty_backbone(family, config, self.dtype))
        self.tracing = Tracing(spec, self.drawing)
        self.policy_version = -1
        self._sessions = itertools.count(1)
        self._lock = SharedLock()
        self._checked = not self.check
        self._folder = tempfile.TemporaryDirectory()
        write_model_folder(Path(self._folder.name), config, tokenizer, self.dtype_name)
        self._loop = LoopThread(self.device)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Copies them in place, in buckets, when no request is under way. The first update starts the engine."""
        with self._lock.exclusive():
            self.policy_version = -1
            if self.engine is None:
                self._loop.call(self._start, self._folder.name, self.spec.block_size)
                self._loop.call(self._patch_loop)
            self._loop.call(self._wake, "weights")
            for bucket in buckets(checked(weights, self.shapes, policy_version), self.bucket_mb << 20):
                ready = torch.cuda.Event()
                ready.record(torch.cuda.current_stream(self.device))  # the engine copies on a stream of its own
                self._loop.call(self._load, bucket, ready)
            self._loop.call(self._finish_update)
            self.policy_version = policy_version
        if not self._checked:
            try:
                checks.check_groups(partial(self._stream, stop_tokens=()), self.spec)
            except checks.NotIndependentError:
                self.close()
                raise
            self._checked = True

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        checks.check_lengths(requests, decoding, self.spec.block_size, self.engine.max_session_len)
        yield from self._stream(requests, decoding, self.spec.stop_token_ids)

    def _stream(
        self, requests: Sequence[GenerationRequest], decoding: DecodingParams, stop_tokens: tuple[int, ...]
    ) -> Iterator[Trajectory]:
        with self._lock.shared(decoding):
            if self.policy_version < 0:
                raise ValueError("the engine has no weights: call update_weights before generate")
            self.tracing.decoding = decoding
            self.tracing.strings = StopStrings.of(decoding.stop_strings, self.tokenizer)
            self._loop.call(self._wake, "kv_cache")
            done: queue.SimpleQueue[Trajectory | BaseException] = queue.SimpleQueue()
            stop = asyncio.Event()
            work = self._loop.start(self._run_all(requests, decoding, stop_tokens, done, stop))
            try:
                for _ in requests:
                    result = next_result(done, self.still_wanted)
                    if isinstance(result, BaseException):
                        raise result
                    yield result
            finally:
                self._loop.loop.call_soon_threadsafe(stop.set)
                work.result()

    def sleep(self) -> None:
        if not self.sleeps:
            return
        with self._lock.exclusive():
            if self.policy_version >= 0:
                self.policy_version = -1
                self._loop.run(self.engine.sleep(level=2))

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close(self._stop)
            self._loop = self.engine = None
            self._folder.cleanup()

    # What follows runs on the loop's thread.

    def _start(self, folder: str, block_size: int) -> None:
        from lmdeploy.pytorch.engine.engine import Engine

        from dirl.rollout.lmdeploy.changes import changed, trace_samples
        from dirl.rollout.lmdeploy.config import engine_config

        sizes = (self.max_batch_size, self.kv_memory_share, self.kv_blocks, self.page_tokens, self.prefill_tokens)
        config = engine_config(block_size, self.dtype_name, self.cuda_graphs, *sizes, self.tp)
        assert self.tracing is not None, "`setup` has made it"
        build = None
        if self.tp > 1:
            from dirl.rollout.lmdeploy.parallel import parallel_executor

            build = parallel_executor(Seat(0, self.tp, first_device(self.device), folder, self.spec), self.tracing)
        collection = gc.get_threshold()
        with changed(self.tracing, build):
            self.engine = Engine(folder, config)
        gc.set_threshold(*collection)  # LMDeploy changes it for the whole process
        trace_samples(self.engine, self.tracing)
        self.engine._sleeping_tags.discard("weights")  # allocated; their values are awaited
        self.engine.start()

    def _patch_loop(self) -> None:
        from dirl.rollout.lmdeploy.loop import patch_engine_loop

        patch_engine_loop(self.engine)

    def _wake(self, what: Literal["weights", "kv_cache"]) -> None:
        if what in self.engine._sleeping_tags:
            self.engine.wakeup([what])

    def _load(self, bucket: list[tuple[str, Tensor]], ready: torch.cuda.Event) -> None:
        ready.wait()
        executor: Any = self.engine.executor
        executor.load(bucket) if self.tp > 1 else in_place.load(executor.model_agent, bucket)

    def _finish_update(self) -> None:
        executor: Any = self.engine.executor
        executor.finish() if self.tp > 1 else in_place.finish(executor.model_agent)
        self.engine.complete_weights_update()

    def _stop(self) -> None:
        if self.engine is not None:
            self.engine.close()

    async def _run_all(
        self,
        requests: Sequence[GenerationRequest],
        decoding: DecodingParams,
        stop_tokens: tuple[int, ...],
        done: queue.SimpleQueue,
        stop: asyncio.Event,
    ) -> None:
        """All requests, until `stop` is set: who asked has got everything, or has lost interest."""
        tasks = [asyncio.create_task(self._run(r, decoding, stop_tokens, done)) for r in requests]
        await stop.wait()  # the consumer sets it when it has them all, too
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self,
        request: GenerationRequest,
        decoding: DecodingParams,
        stop_tokens: tuple[int, ...],
        done: queue.SimpleQueue,
    ) -> None:
        """One request through the engine; its trajectory, or what went wrong, into the queue."""
        from lmdeploy.messages import ResponseType

        from dirl.rollout.lmdeploy.config import generation_config

        settings = generation_config(decoding.max_response_tokens, stop_tokens, request.seed)
        session = next(self._sessions)
        instance = self.engine.create_instance()
        try:
            status = None
            async for output in instance.async_stream_infer(session, list(request.prompt_ids), settings):
                status = output.status
            if status != ResponseType.FINISH:
                raise checks.ended_by_itself(request, status, self.engine._loop_main)
            if session in self.tracing.broken:
                raise broken_logits(request, self.policy_version)
            trace = self.tracing.traces.pop(session)
            end = response_end(
                trace.response_ids, self.spec.stop_token_ids, decoding.max_response_tokens, strings=self.tracing.strings
            )
            assert end is not None, "LMDeploy ended a response that goes on"
            made = (trace.response_ids, trace.step_map, trace.logprobs)
            done.put(finished_trajectory(request, *made, end, self.policy_version))
        except Exception as error:  # raised again where the trajectories are awaited
            done.put(error)
        finally:
            self.tracing.traces.pop(session, None)
            self.tracing.broken.discard(session)
