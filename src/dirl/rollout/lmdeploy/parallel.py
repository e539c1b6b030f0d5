"""LMDeploy's executor over several GPUs of one host: this process is the first rank, each other rank a follower.

LMDeploy's own ones for this, by ray or multiprocessing, keep even the first rank in a process of its own, where its
samples could neither be drawn nor traced by this package, and new weights would have to come through files or handles.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from lmdeploy.pytorch.config import ModelConfig
from lmdeploy.pytorch.engine.executor.base import ExecutorBase, _WorkerCachePlanSizes
from lmdeploy.pytorch.engine.executor.uni_executor import UniExecutor
from torch import Tensor

from dirl.rollout.lmdeploy import weights
from dirl.rollout.lmdeploy.changes import ranked_agent
from dirl.rollout.lmdeploy.followers import Followers
from dirl.rollout.lmdeploy.rank_group import RankGroup, Seat, from_first
from dirl.rollout.lmdeploy.sequences import Tracing
from dirl.rollout.remote.weight_transfer import Staging, entries_of


def parallel_executor(seat: Seat, tracing: Tracing) -> Callable[..., "ParallelExecutor"]:
    """An executor of several ranks, called where LMDeploy calls its own `build_executor`."""

    def build(
        model_path: str,
        cache_config: Any,
        backend_config: Any,
        dist_config: Any,
        misc_config: Any,
        device_type: str,
        dtype: str,
        **others: Any,
    ) -> ParallelExecutor:
        model_config = ModelConfig.from_pretrained(
            model_path,
            dtype=dtype,
            hf_overrides=misc_config.hf_overrides,
            dist_config=dist_config,
            device_type=device_type,
            block_size=cache_config.block_size,
        )
        misc_config.empty_init = True
        parts = {
            "model_path": model_path,
            "model_config": model_config,
            "cache_config": cache_config,
            "backend_config": backend_config,
            "dist_config": dist_config,
            "misc_config": misc_config,
            "device_type": device_type,
        }
        return ParallelExecutor(seat, tracing, parts)

    return build


class ParallelExecutor(UniExecutor):
    """All that `UniExecutor` does, done by all ranks. Sampling and outputs are the first rank's alone."""

    def __init__(self, seat: Seat, tracing: Tracing, parts: dict[str, Any]) -> None:
        ExecutorBase.__init__(self, **parts)
        self.seat, self.staging = seat, Staging()
        self.followers = Followers(seat)
        try:
            with self.followers.told("join", parts):
                self.group = RankGroup(seat)
                self.model_agent = ranked_agent(self.group, tracing, parts)
        except BaseException:
            self.followers.end()
            raise
        self.device_ctx = self.model_agent.device_ctx

    def build_model(self) -> None:
        with self.followers.told("build_model"):
            super().build_model()

    def gather_free_mem(self) -> list[int]:
        with self.followers.told("get_free_mem") as others:
            own = super().gather_free_mem()
        return own + others

    def set_cache_config(self, *configs: Any) -> None:
        with self.followers.told("set_cache_config", *configs):
            super().set_cache_config(*configs)

    def set_model_config(self, *configs: Any) -> None:
        with self.followers.told("set_model_config", *configs):
            super().set_model_config(*configs)

    def _prepare_worker_cache_plans(self, *configs: Any) -> list[_WorkerCachePlanSizes]:
        with self.followers.told("build_cache_plans", *configs) as others:
            own = super()._prepare_worker_cache_plans(*configs)
        return own + [_WorkerCachePlanSizes(*sizes) for sizes in others]

    def build_graph_runner(self) -> None:
        with self.followers.told("build_graph_runner"):
            super().build_graph_runner()

    def build_cache_engine(self) -> None:
        with self.followers.told("build_cache_engine"):
            super().build_cache_engine()

    def warmup(self) -> None:
        with self.followers.told("warmup"):
            super().warmup()

    def start(self, forward_event: asyncio.Event) -> None:
        with self.followers.told("start"):
            super().start(forward_event)

    async def wait_tasks(self) -> None:
        """Ends with the first task that ends, or when a follower has."""
        tasks = {asyncio.ensure_future(work) for work in (super().wait_tasks(), self.followers.watch())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def forward_async(self, inputs: Any) -> None:
        self.followers.tell("forward", inputs)
        await super().forward_async(inputs)

    async def sleep(self, level: int = 1) -> None:
        self.followers.tell("sleep", level)
        await super().sleep(level)
        self.followers.answers()

    def wakeup(self, tags: list[str] | None = None) -> None:
        with self.followers.told("wakeup", tags):
            super().wakeup(tags)

    def load(self, bucket: list[tuple[str, Tensor]]) -> None:
        """Send whole tensors to all ranks, each of which keeps its part."""
        bucket = [(name, value.to("cuda")) for name, value in bucket]
        flat = self.staging.flatten(bucket)
        with self.followers.told("load", entries_of(bucket)):
            from_first(self.group.group, flat)
        weights.load(self.model_agent, bucket)

    def finish(self) -> None:
        with self.followers.told("finish"):
            weights.finish(self.model_agent)

    def release(self) -> None:
        """Ends the followers; what this rank waits for in a forward is given up if one has ended by itself."""
        if not self.followers.alive():
            self.group.abort()
        self.followers.end()
        super().release()
