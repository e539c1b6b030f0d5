"""A push of a trainer's fp32 weights: bytes that go to the engine, and seconds, by the engine's dtype.

python -m benchmarks.push
"""

import argparse
import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from aiohttp import web
from torch import Tensor

from benchmarks import record
from benchmarks.device_clock import timed
from benchmarks.shapes import model_config, model_spec, named_shape, random_backbone
from dirl.models.families import family_of
from dirl.rollout import RolloutEngine, ServerEngine, TorchEngine
from dirl.rollout.remote.app import EngineServer
from dirl.types import ModelSpec

BLOCK_SIZE = 4
DTYPES = ("float32", "bfloat16")


class Counted:
    """Weights on their way to an engine, one at a time, and the bytes of them in the last push."""

    def __init__(self) -> None:
        self.bytes = 0

    def of(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        self.bytes = 0
        for name, value in weights:
            self.bytes += value.nbytes
            yield name, value


def push(engine: RolloutEngine, backbone: torch.nn.Module, device: str) -> dict[str, Any]:
    """A push as a trainer makes it; seconds are the median of several."""
    family, counted = family_of(backbone.config), Counted()
    timing = timed(lambda: engine.update_weights(counted.of(family.weights(backbone, engine.dtype)), 0), device)
    own = sum(parameter.nbytes for parameter in backbone.parameters())
    return {
        "weights MB": own / 1e6,
        "pushed MB": counted.bytes / 1e6,
        "bytes pushed": counted.bytes,
        "of the trainer's": counted.bytes / own,
        "push s": timing.seconds,
    }


def measure(shape_name: str, dtype: str, remote: bool) -> dict[str, Any]:
    """Into the torch engine in this process, or into one behind HTTP on this host."""
    shape = named_shape(shape_name)
    spec, config = model_spec(shape, BLOCK_SIZE), model_config(shape, BLOCK_SIZE)
    backbone = random_backbone(config)
    engine: RolloutEngine = TorchEngine(1, dtype=dtype)  # type: ignore[arg-type]
    engine.setup(config, None, spec, "cpu")
    row = {"engine": "server, http" if remote else "torch, in process", "dtype": dtype}
    if not remote:
        return row | push(engine, backbone, "cpu")
    with served(engine, spec) as url:
        client = ServerEngine([url])
        client.setup(config, None, spec, "cpu")
        found = row | push(client, backbone, "cpu")
        client.close()
    return found


@contextmanager
def served(engine: RolloutEngine, spec: ModelSpec) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def start() -> web.AppRunner:
        app = EngineServer(engine, spec, torch.device("cpu"), None).app()
        runner = web.AppRunner(app, shutdown_timeout=1.0, read_bufsize=1 << 20)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.push", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="large", help="shape of benchmarks/shapes.py")
    options = parser.parse_args(arguments)
    rows = [measure(options.model, dtype, remote) for remote in (False, True) for dtype in DTYPES]
    path = record.save("push", {"model": options.model}, rows)
    record.show("weights of an fp32 trainer into an engine", list(rows[0]), [list(row.values()) for row in rows])
    print("written to", path)


if __name__ == "__main__":
    main()
