"""What traces cost: rollouts of LMDeploy's engine with our changes beside those of LMDeploy as it is, both greedy.

One token a denoising step, so that both compute equally many forwards. LMDeploy as it is keeps no step map and no
usable log-probs, and hands tokens out block by block.

python -m benchmarks.untraced
python -m benchmarks.untraced --dry-run
"""

import argparse
import contextlib
import dataclasses
import gc
import queue
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

from benchmarks import record
from benchmarks.device_clock import Deadline, pick_device, synchronize
from benchmarks.engine import make_requests
from benchmarks.gpu_training import free
from benchmarks.rollout_gpu import RolloutPart, start
from dirl.rollout import LMDeployEngine, RolloutEngine
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

BATCHES = (64, 256)
ENGINES = ("dirl.rollout.LMDeployEngine", "benchmarks.untraced.UntracedEngine")


class UntracedEngine(LMDeployEngine):
    """LMDeploy's own strategies, sampling and loop; its answers are numbers of tokens, not trajectories."""

    def _start(self, folder: str, block_size: int) -> None:
        from lmdeploy.pytorch.engine.engine import Engine

        from dirl.rollout.lmdeploy.changes import changed
        from dirl.rollout.lmdeploy.config import engine_config

        sizes = (self.max_batch_size, self.kv_memory_share, self.kv_blocks, self.page_tokens, self.prefill_tokens)
        config = engine_config(block_size, self.dtype_name, self.cuda_graphs, *sizes, tp=1)
        config.dllm_confidence_threshold = 1.0
        collection = gc.get_threshold()
        with changed(self.tracing), _own_strategies(self.spec):
            self.engine = Engine(folder, config)
        gc.set_threshold(*collection)
        self.engine._sleeping_tags.discard("weights")
        self.engine.start()
        self._checked = True  # its groups are not independent: a fault that the changes cure

    def _patch_loop(self) -> None:
        """LMDeploy's own."""

    async def _run(
        self,
        request: GenerationRequest,
        decoding: DecodingParams,
        stop_tokens: tuple[int, ...],
        done: queue.SimpleQueue,
    ) -> None:
        from lmdeploy.messages import ResponseType

        from dirl.rollout.lmdeploy.config import generation_config

        settings = generation_config(decoding.max_response_tokens, stop_tokens, request.seed)
        try:
            status, count = None, 0
            instance = self.engine.create_instance()
            async for output in instance.async_stream_infer(next(self._sessions), list(request.prompt_ids), settings):
                status = output.status
                count += 0 if output.token_ids is None else len(output.token_ids)
            if status != ResponseType.FINISH:
                raise RuntimeError(f"LMDeploy ended a request with status {status}")
            done.put(count)
        except Exception as error:  # raised again where the answers are awaited
            done.put(error)


@contextlib.contextmanager
def _own_strategies(spec: ModelSpec) -> Iterator[None]:
    """LMDeploy's factory of strategies in place of ours; only the mask token is this model's."""
    from lmdeploy.pytorch.strategies.dllm import DLLMStrategyFactory

    def build(model_config: Any, misc_config: Any, specdecode_config: Any = None) -> DLLMStrategyFactory:
        model_config.dllm_mask_token = spec.mask_token_id
        return DLLMStrategyFactory(model_config, misc_config.dllm_config)

    base = "lmdeploy.pytorch.engine"
    with (
        patch(f"{base}.engine.build_strategy_factory", build),
        patch(f"{base}.model_agent.agent.build_strategy_factory", build),
    ):
        yield


def measure(part: RolloutPart, device: str, deadline: Deadline) -> list[dict[str, Any]]:
    """A row per engine and batch; the second rollout counts."""
    rows: list[dict[str, Any]] = []
    for path in part.engines:
        engine, spec, weights = start(part, path, part.block_sizes[0], device)
        engine.update_weights(weights.named_parameters(), 0)
        del weights
        free(device)
        for batch in part.batches:
            if not deadline.passed(f"{path} batch {batch}"):
                record.keep(rows, {"engine": path.rsplit(".", 1)[1], **_speed(part, engine, spec, batch, device)})
        engine.close()
        del engine
        free(device)
    return rows


def _speed(part: RolloutPart, engine: RolloutEngine, spec: ModelSpec, batch: int, device: str) -> dict[str, Any]:
    decoding = DecodingParams(threshold=1.0, temperature=0.0, max_response_tokens=part.response)
    requests, seconds = make_requests(spec, batch, part.prompt), []
    for _ in range(2):
        started = time.perf_counter()
        tokens = sum(map(_length, engine.generate(requests, decoding)))
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return {"batch": batch, "tokens": tokens, "seconds": seconds[1], "tokens/s": tokens / seconds[1]}


def _length(answer: Trajectory | int) -> int:
    return answer if isinstance(answer, int) else answer.response_length


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    device, deadline = pick_device(options.dry_run), Deadline(options.time_limit)
    part = RolloutPart.toy() if options.dry_run else RolloutPart(ENGINES, batches=BATCHES)
    rows = measure(part, device, deadline)
    path = record.save("gpu_traces", dataclasses.asdict(part), rows)
    columns = list(rows[0]) if rows else ["nothing measured"]
    record.show("greedy rollouts, a token a step", columns, [list(row.values()) for row in rows], deadline.note())
    print("written to", path, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.untraced", description=__doc__.splitlines()[0])
    parser.add_argument("--time-limit", type=float, default=540, help="seconds after which nothing new is started")
    parser.add_argument("--dry-run", action="store_true", help="the torch engine, which always traces, on CPU")
    return parser


if __name__ == "__main__":
    main()
