"""The server engine: rollouts by engines in other processes, on this host or others, which may die and return."""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

import aiohttp
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.models.shape import ModelShape
from dirl.ranges import positive
from dirl.rollout.engine import RolloutEngine, next_result
from dirl.rollout.memory import NO_ENGINE, EngineMemory, RolloutSize
from dirl.rollout.remote.api_key import authorization, read_api_key
from dirl.rollout.remote.dispatch import Dispatch, engines_lost
from dirl.rollout.remote.lease import run_name
from dirl.rollout.remote.link import ServerLink, ServerLostError, check_url, common_dtype
from dirl.rollout.remote.ranks import everyones, rank_of_ranks
from dirl.rollout.remote.tls import client_tls
from dirl.rollout.remote.update import ServerUpdate, Verdict
from dirl.rollout.remote.waiting import wait_for
from dirl.rollout.remote.weight_messages import Transport
from dirl.rollout.remote.weight_transfer import Staging, buckets, entries_of
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

log = logging.getLogger(__name__)

T = TypeVar("T")
LISTEN_S = 0.25
"""How often the silence of servers is added up."""


class ServerEngine(RolloutEngine):
    """Spreads requests over servers that `lightning run serve` started.

    Weights are sent in the dtype that all servers' engines have, in the trainer's where they differ.

    A server is lost when its connection breaks, when what it answers is wrong, or when it has made no progress for a
    while; its unfinished requests go to the others. It is tried again at the next weight update, and works again when
    it has the weights. All ranks of a trainer share all servers; rank i pushes to every server i, i + ranks, ...

    Args:
        urls: of the servers, e.g. http://127.0.0.1:8100.
        api_key_env: environment variable with the servers' key; not set: they have none.
        api_key_file: file with the key, instead.
        tls_ca: file with the certificate that vouches for servers whose url says https; none: the system's.
        transport: of the weights. http: by CPU memory, to any server; nccl: from GPU to another GPU, not encrypted;
            cuda_ipc: within one GPU or host. auto: cuda_ipc where the server sees the trainer's GPU, else nccl where
            both have one and the url does not say https, else http.
        requests_in_flight: requests that this process gives to one server at a time.
        stall_timeout_s: a server that makes no progress for so long is lost.
        connect_timeout_s: of connections and health checks.
        start_timeout_s: how long `setup` waits for servers that are not there yet.
        push_timeout_s: of each bucket of weights, and of the wait for the end of other calls.
        bucket_mb: weights that are on their way at a time; a larger tensor travels alone.
    """

    concurrent = True

    def __init__(
        self,
        urls: list[str],
        api_key_env: str = "DIRL_API_KEY",
        api_key_file: str | None = None,
        tls_ca: str | None = None,
        transport: Literal["auto", "http", "nccl", "cuda_ipc"] = "auto",
        requests_in_flight: int = 256,
        stall_timeout_s: float = 120,
        connect_timeout_s: float = 10,
        start_timeout_s: float = 300,
        push_timeout_s: float = 300,
        bucket_mb: int = 256,
    ) -> None:
        self.urls = [check_url(url) for url in urls]
        if not urls or len(set(self.urls)) < len(urls):
            raise ValueError(f"engine.urls={urls}: name one or more servers, each once")
        numbers = {"requests_in_flight": requests_in_flight, "bucket_mb": bucket_mb, "push_timeout_s": push_timeout_s}
        numbers |= {"stall_timeout_s": stall_timeout_s, "connect_timeout_s": connect_timeout_s}
        positive("engine", start_timeout_s=start_timeout_s, **numbers)
        self.api_key_env, self.api_key_file = api_key_env, api_key_file
        self.tls = client_tls(tls_ca, self.urls)
        self.transport: Transport | Literal["auto"] = transport
        self.requests_in_flight, self.bucket_bytes = requests_in_flight, bucket_mb << 20
        self.stall_timeout_s, self.connect_timeout_s = stall_timeout_s, connect_timeout_s
        self.start_timeout_s, self.push_timeout_s = start_timeout_s, push_timeout_s
        self.links: list[ServerLink] = []
        self.run: str | None = None
        """The name of this run, which servers are held by; the same on all ranks, from the first push on."""
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def memory(cls, options: Mapping[str, Any], shape: ModelShape, rollout: RolloutSize) -> EngineMemory:
        return NO_ENGINE

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        """Wait for the servers; go on without some of them, with a warning, but not without all."""
        self.close()
        self.spec, self.policy_version, self.run = spec, -1, None
        key = read_api_key(self.api_key_env, self.api_key_file)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=run_loop, args=[self._loop], name="rollout servers", daemon=True).start()
        try:
            self._await(self._connect(key))
            self.dtype = common_dtype(self.links)
        except BaseException:
            self.close()
            raise

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Push to all servers, the lost ones included. Call it on all ranks: weights may be gathered from shards."""
        self.policy_version = -1
        rank, ranks = rank_of_ranks()
        self._agree_on_the_run(ranks)
        own = self.links[rank::ranks]
        update = ServerUpdate(own, policy_version, self.transport, self.push_timeout_s, self.dtype)
        staging, begun = Staging(), False
        try:
            for bucket in buckets(weights, self.bucket_bytes):
                if not begun:
                    self._await(update.begin(bucket[0][1].device))
                    begun = True
                if update.open:  # all weights are taken from the iterator in any case: the other ranks gather too
                    self._await(update.send(entries_of(bucket), staging.flatten(bucket)))
            if not begun:
                raise ValueError("a weight update without weights")
            verdicts = self._await(update.end())
        except BaseException:
            self._await(update.abort())
            raise
        self._settle(everyones(verdicts, ranks))
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        if self.policy_version < 0:
            raise ValueError("the servers have no weights yet: call update_weights before generate")
        results: SimpleQueue[Trajectory | None] = SimpleQueue()
        dispatch = Dispatch(self.links, requests, decoding, self.policy_version, self.requests_in_flight, results.put)
        assert self._loop is not None, "`setup` has made it"
        running = asyncio.run_coroutine_threadsafe(dispatch.run(), self._loop)
        running.add_done_callback(lambda _: results.put(None))
        try:
            while (trajectory := next_result(results, self.still_wanted)) is not None:
                yield trajectory
            running.result()
        finally:
            running.cancel()

    def sleep(self) -> None:
        """Put the servers to sleep when all ranks have their trajectories; call it on all ranks."""
        rank, ranks = rank_of_ranks()
        if ranks > 1:
            dist.barrier()
        asleep = everyones(self._await(self._sleep(self.links[rank::ranks])), ranks)
        self._await(self._lose({url: verdict.lost for url, verdict in asleep.items() if verdict.lost is not None}))
        if any(v.health is not None and v.health.policy_version != self.policy_version for v in asleep.values()):
            self.policy_version = -1  # an engine gave its weights back

    def close(self) -> None:
        """Leave the servers; they wait for the next trainer."""
        if self._loop is None:
            return
        self._await(self._disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop, self.links = None, []

    @property
    def heartbeat(self) -> int:  # type: ignore[override]  # it is read, and only the engines that keep it write it
        return sum(link.signs for link in self.links)

    def _await(self, work: Coroutine[None, None, T]) -> T:
        assert self._loop is not None, "`setup` has made it"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _agree_on_the_run(self, ranks: int) -> None:
        """Agree before the first push: until then all ranks wait for servers that no run holds."""
        if self.run is None:
            names = [run_name()] * ranks
            if ranks > 1:
                dist.all_gather_object(names, names[0])
            self.run = names[0]
        for link in self.links:
            link.run = self.run

    async def _connect(self, key: str | None) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=self.tls)
        self._session = aiohttp.ClientSession(connector=connector, headers=authorization(key))
        self._listening = asyncio.create_task(self._listen())
        limits = self.connect_timeout_s, self.stall_timeout_s
        self.links = [ServerLink(url, self._session, self.spec, *limits) for url in self.urls]
        await wait_for(self.links, self.start_timeout_s)
        if not any(link.alive for link in self.links):
            raise engines_lost(self.links)
        for link in self.links:
            if not link.alive:
                log.warning("rollout server %s is not there, going on without it: %s", link.url, link.reason)

    async def _listen(self) -> None:
        """Add up the silence of servers; a pause of this very process counts as one tick."""
        while True:
            await asyncio.sleep(LISTEN_S)
            for link in self.links:
                link.listen(LISTEN_S)

    async def _sleep(self, links: Sequence[ServerLink]) -> dict[str, Verdict]:
        async def sleep(link: ServerLink) -> tuple[str, Verdict]:
            try:
                return link.url, Verdict(await link.sleep(self.push_timeout_s))
            except ServerLostError as error:
                return link.url, Verdict(None, lost=str(error))

        return dict(await asyncio.gather(*(sleep(link) for link in links if link.alive)))

    def _settle(self, verdicts: dict[str, Verdict]) -> None:
        """Take over what the pushing ranks found about all servers."""
        refused = [verdict.refused for verdict in verdicts.values() if verdict.refused is not None]
        if refused:
            raise ValueError(refused[0])
        self._await(self._adopt(verdicts))
        if not any(link.alive for link in self.links):
            raise engines_lost(self.links)

    async def _adopt(self, verdicts: dict[str, Verdict]) -> None:
        await self._lose({url: verdict.lost for url, verdict in verdicts.items() if verdict.lost is not None})
        for link in self.links:
            health = verdicts[link.url].health
            if health is not None:
                if not link.alive:
                    log.warning("rollout server %s is back and has the current weights", link.url)
                link.health, link.alive = health, True

    async def _lose(self, reasons: dict[str, str]) -> None:
        for link in self.links:
            if link.url in reasons:
                link.lose(reasons[link.url])

    async def _disconnect(self) -> None:
        self._listening.cancel()
        for link in self.links:
            await link.drop_sender()
        await self._session.close()


def run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop of the connections until it is stopped."""
    try:
        loop.run_forever()
    finally:
        loop.close()
