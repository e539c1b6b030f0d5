"""A rollout server: any engine behind HTTP, with health, generate, sleep and weights.

Calls wait in order of arrival; an engine that is `concurrent` works on several at once. The answer to `generate`
is a line of JSON per trajectory, and one about every second that tells the engine's heartbeat.
"""

import asyncio
import logging
import threading
import uuid
from collections.abc import Callable, Generator

import torch
from aiohttp import web

from dirl.checked_json import to_json
from dirl.rollout.engine import RolloutEngine
from dirl.rollout.remote.api_key import is_authorized
from dirl.rollout.remote.cuda_ipc import visible_gpus
from dirl.rollout.remote.engine_queue import EngineQueue
from dirl.rollout.remote.lease import Lease
from dirl.rollout.remote.weight_messages import HEARTBEAT_S as WEIGHTS_HEARTBEAT_S
from dirl.rollout.remote.weight_messages import MESSAGE_BYTES
from dirl.rollout.remote.weight_receiver import WeightReceiver
from dirl.rollout.remote.weight_transfer import dtype_name
from dirl.rollout.remote.wire import PROTOCOL, Call, Failure, Health, Line, Sleep, loads
from dirl.types import ModelSpec

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
BODY_BYTES = 1 << 28
"""Limit of the requests of one call."""


class EngineServer:
    """Serves an engine that has been set up.

    Args:
        device: the engine's.
        api_key: what clients must know; None: nothing.
    """

    def __init__(self, engine: RolloutEngine, spec: ModelSpec, device: torch.device, api_key: str | None) -> None:
        self.engine, self.spec, self.device, self.api_key = engine, spec, device, api_key
        self.instance = uuid.uuid4().hex
        self.gpus = visible_gpus()
        self.queue = EngineQueue()
        self.calls: set[asyncio.Task] = set()
        self.stopping = threading.Event()
        self.lease = Lease()
        self.receivers: dict[str, WeightReceiver] = {}
        """The connections of trainers that push weights, by their token."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[self._guard])
        app.router.add_get("/health", self._health)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/sleep", self._sleep)
        app.router.add_get("/weights", self._weights)
        app.router.add_post("/weights/{token}", self._bucket)
        app.on_shutdown.append(self._stop)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        if not is_authorized(request.headers.get("Authorization"), self.api_key):
            raise web.HTTPUnauthorized(text="wrong API key")
        if "Origin" in request.headers:
            raise web.HTTPForbidden(text="not for web pages")  # a browser on this host reaches loopback too
        try:
            return await handler(request)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response(text=to_json(self.health()))

    def health(self) -> Health:
        engine = self.engine
        return Health(
            protocol=PROTOCOL,
            instance=self.instance,
            engine=type(engine).__name__,
            concurrent=engine.concurrent,
            policy_version=engine.policy_version,
            run=self.lease.holder,
            heartbeat=engine.heartbeat,
            busy=self.queue.busy,
            spec=self.spec,
            cuda_devices=self.gpus,
            dtype=None if engine.dtype is None else dtype_name(engine.dtype),
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        call = loads(Call, await request.read())
        keys = {(r.prompt_id, r.sample_index) for r in call.requests.values()}
        if len(keys) < len(call.requests):
            raise ValueError("two requests of one call have the same prompt_id and sample_index")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines: asyncio.Queue[Line] = asyncio.Queue()
        left = threading.Event()
        self._keep(asyncio.create_task(self._work(call, lines, left)))
        try:
            await self._answer(response, lines)
        except ConnectionError:
            log.info("a client left before its call was over")
        finally:
            left.set()
        return response

    def _keep(self, task: asyncio.Task) -> None:
        """The task goes on without its client: it has the engine until the engine's thread ends."""
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)

    async def _answer(self, response: web.StreamResponse, lines: asyncio.Queue[Line]) -> None:
        """Write lines up to the last one, and signs of life where there is none to write."""
        line = Line(self.engine.heartbeat)
        while not line.done and line.failure is None:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    line = await lines.get()
            except TimeoutError:
                line = Line(self.engine.heartbeat)
            await response.write(to_json(line).encode() + b"\n")
        await response.write_eof()

    async def _work(self, call: Call, lines: asyncio.Queue[Line], left: threading.Event) -> None:
        loop = asyncio.get_running_loop()

        def say(line: Line) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        try:
            last = await self.queue.run(lambda: self._run(call, say, left), shared=self.engine.concurrent)
        except Exception as error:  # whatever the engine raised: the trainer is told, the server lives on
            log.error("generate failed", exc_info=error)
            last = Line(self.engine.heartbeat, failure=Failure.of(error))
        lines.put_nowait(last)

    def _run(self, call: Call, say: Callable[[Line], None], left: threading.Event) -> Line:
        """Work in a thread of the engine's; returns the last line."""
        engine = self.engine
        if reason := self._refusal(call):
            return Line(engine.heartbeat, failure=Failure("refused", reason))
        ids = {(r.prompt_id, r.sample_index): i for i, r in call.requests.items()}
        trajectories = iter(engine.generate(list(call.requests.values()), call.decoding))
        try:
            while not (left.is_set() or self.stopping.is_set()):
                trajectory = next(trajectories, None)
                if trajectory is None:
                    break
                say(Line(engine.heartbeat, ids.pop(trajectory.key), trajectory))
        finally:
            if isinstance(trajectories, Generator):
                trajectories.close()
        if self.stopping.is_set():
            return Line(engine.heartbeat, failure=Failure("error", "the server stops"))
        if ids and not left.is_set():
            raise RuntimeError(f"the engine left out {len(ids)} of {len(call.requests)} trajectories")
        return Line(engine.heartbeat, done=True)

    def _refusal(self, call: Call) -> str | None:
        if call.instance != self.instance:
            return "the server was started anew and has no weights of this run yet"
        if call.run != self.lease.run:
            return "the server has the weights of another run"
        if call.policy_version != self.engine.policy_version:
            return f"the server has policy_version {self.engine.policy_version}, asked for is {call.policy_version}"
        return None

    async def _sleep(self, request: web.Request) -> web.Response:
        run = loads(Sleep, await request.read()).run
        if run == self.lease.run:  # of no concern to the engine otherwise
            await asyncio.shield(self.queue.run(self.engine.sleep))
        return web.json_response(text=to_json(self.health()))

    async def _weights(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, timeout=2.0, heartbeat=WEIGHTS_HEARTBEAT_S)
        await socket.prepare(request)
        receiver = WeightReceiver(self.engine, self.queue, self.lease, socket, self.device)
        self.receivers[receiver.token] = receiver
        try:
            await receiver.run()
        finally:
            del self.receivers[receiver.token]
        return socket

    async def _bucket(self, request: web.Request) -> web.Response:
        receiver = self.receivers.get(request.match_info["token"])
        if receiver is None:
            raise web.HTTPNotFound(text="no such connection for weights")
        await receiver.take(request.content)
        return web.Response()

    async def _stop(self, app: web.Application) -> None:
        self.stopping.set()
        for receiver in list(self.receivers.values()):
            await receiver.socket.close(message=b"the server stops")
