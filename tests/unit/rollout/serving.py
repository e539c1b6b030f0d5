"""Rollout servers in threads of this process, engines with scripted answers for them, and servers that lie."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from aiohttp import web
from tests.tiny import TinyModel, prompt
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dirl.checked_json import to_json
from dirl.rollout import RolloutEngine, ServerEngine, TorchEngine
from dirl.rollout.remote.app import EngineServer
from dirl.rollout.remote.wire import Call, Line, loads
from dirl.types import DecodingParams, GenerationRequest, ModelSpec, Trajectory

SOURCE = TinyModel()
DESCRIPTION = SOURCE.describe()
SPEC = DESCRIPTION.spec
WEIGHTS = SOURCE.build(DESCRIPTION.config)
PARAMS = DecodingParams(threshold=0.5, max_response_tokens=8)


def requests(prompts: int, group: int) -> list[GenerationRequest]:
    return [GenerationRequest(f"p{k}", i, prompt(5, k), seed=100 * k + i) for k in range(prompts) for i in range(group)]


def respond(request: GenerationRequest, version: int) -> Trajectory:
    """Whole blocks of zeros, whatever the weights."""
    length = 4 + -len(request.prompt_ids) % SPEC.block_size
    return Trajectory(
        request.prompt_id,
        request.sample_index,
        request.prompt_ids,
        response_ids=(0,) * length,
        response_length=length,
        step_map=(1,) * length,
        behaviour_logprobs=(-0.5 - request.seed,) * length,
        finish_reason="length",
        policy_version=version,
    )


class ScriptedEngine(RolloutEngine):
    """Answers at once. `before` is called in the engine's thread before each answer, and may wait or raise."""

    def __init__(self, concurrent: bool = False, before: Callable[[GenerationRequest], None] | None = None) -> None:
        self.concurrent, self.before = concurrent, before
        self.calls: list[list[GenerationRequest]] = []
        self.at_once = self.most_at_once = self.closed = self.rests = 0
        self.lock = threading.Lock()

    def setup(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec, device: str) -> None:
        pass

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        self.names = [name for name, _ in weights]
        self.policy_version = policy_version

    def generate(self, requests: Sequence[GenerationRequest], decoding: DecodingParams) -> Iterator[Trajectory]:
        with self.lock:
            self.calls.append(list(requests))
            self.at_once += len(requests)
            self.most_at_once = max(self.most_at_once, self.at_once)
        left = len(requests)
        try:
            for request in requests:
                if self.before is not None:
                    self.before(request)
                with self.lock:
                    self.at_once -= 1
                left -= 1
                yield respond(request, self.policy_version)
        except GeneratorExit:
            self.closed += 1
            raise
        finally:
            with self.lock:
                self.at_once -= left

    def sleep(self) -> None:
        self.rests += 1


def torch_engine(max_batch_size: int = 1) -> TorchEngine:
    """One sequence at a time: bitwise the same whatever the company."""
    engine = TorchEngine(max_batch_size)
    engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, SPEC, "cpu")
    return engine


class ThreadServer:
    """An app on a loop in a thread; `port` may be that of a server which was stopped."""

    def __init__(self, app: Callable[[], web.Application], port: int = 0) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = self._await(self._start(app, port))
        self.url = f"http://127.0.0.1:{self.port}"

    async def _start(self, app: Callable[[], web.Application], port: int) -> int:
        self.runner = web.AppRunner(app(), shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        return self.runner.addresses[0][1]

    def stop(self) -> None:
        self._await(self.runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def _await(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)


def served(engine: RolloutEngine, key: str | None = None, spec: ModelSpec = SPEC, port: int = 0) -> ThreadServer:
    return ThreadServer(lambda: EngineServer(engine, spec, torch.device("cpu"), key).app(), port)


def lying(lie: Callable[[list[Line]], Iterable[str]]) -> ThreadServer:
    """In order but for its answers to `generate`: `lie` turns honest lines into what is sent."""

    class Liar(EngineServer):
        async def _generate(self, request: web.Request) -> web.StreamResponse:
            call = loads(Call, await request.read())
            made = [(i, respond(r, self.engine.policy_version)) for i, r in call.requests.items()]
            honest = [Line(1, i, trajectory) for i, trajectory in made]
            return web.Response(text="".join(f"{text}\n" for text in lie([*honest, Line(1, done=True)])))

    return ThreadServer(lambda: Liar(ScriptedEngine(), SPEC, torch.device("cpu"), None).app())


def honest(lines: Iterable[Line]) -> list[str]:
    return [to_json(line) for line in lines]


def client(*servers: ThreadServer, version: int | None = 0, **options) -> ServerEngine:
    """Set up and, unless `version` is None, with weights."""
    engine = ServerEngine([server.url for server in servers], **{"start_timeout_s": 0.1} | options)
    engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, SPEC, "cpu")
    if version is not None:
        engine.update_weights(weights(), version)
    return engine


def weights(model: torch.nn.Module = WEIGHTS) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter.detach()) for name, parameter in model.named_parameters())


def assert_answered(engine: ServerEngine, wanted: list[GenerationRequest], version: int = 0) -> None:
    made = list(engine.generate(wanted, PARAMS))
    assert sorted(t.key for t in made) == sorted((r.prompt_id, r.sample_index) for r in wanted)
    by_key = {t.key: t for t in made}
    assert all(by_key[r.prompt_id, r.sample_index] == respond(r, version) for r in wanted)


def of_one_run(*engines: ServerEngine, version: int = 0) -> tuple[ServerEngine, ...]:
    """Engines that were set up without weights, as processes of one trainer."""
    for engine in engines:
        engine.run = "host:1-abc"
        engine.update_weights(weights(), version)
    return engines


def wait_until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
