"""`lightning run serve`: an engine as a process of its own, which trainers reach by HTTP."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys

import torch
from aiohttp import web

from dirl.models import ModelSource
from dirl.rollout import RolloutEngine, TorchEngine
from dirl.rollout.remote.api_key import read_api_key
from dirl.rollout.remote.app import EngineServer
from dirl.rollout.remote.tls import server_tls

log = logging.getLogger(__name__)

GRACE_S = 5
"""How long open calls may take to end when the server is told to stop."""
READ_BYTES = 1 << 20
"""Bytes of weights that are read from a connection at once."""


def serve(
    source: ModelSource,
    engine: RolloutEngine = TorchEngine(),  # noqa: B008 - not set up until used
    host: str = "127.0.0.1",
    port: int = 8100,
    device: str = "auto",
    api_key_env: str = "DIRL_API_KEY",
    api_key_file: str | None = None,
    tls_certificate: str | None = None,
    tls_key: str | None = None,
    load_weights: bool = False,
) -> None:
    """Serve a rollout engine to trainers by HTTP (dirl.rollout.ServerEngine), until SIGTERM.

    Args:
        source: the model: a folder, hub name or a class with its options; config and tokenizer are read, the weights
            come from the trainer.
        engine: what generates.
        host: address to listen on; off loopback an API key is required.
        port: 0 takes a free one; the address is printed.
        device: of the engine; auto: CUDA where there is one.
        api_key_env: environment variable with the key that trainers must send.
        api_key_file: file with the key, instead.
        tls_certificate: file with this server's certificate (PEM); trainers then use https.
        tls_key: file with the certificate's key.
        load_weights: start with the source's weights, as policy_version 0.
    """
    key = read_api_key(api_key_env, api_key_file)
    tls = server_tls(tls_certificate, tls_key)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    check_exposure(host, port, api_key_env, key, tls)
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    description = source.describe()
    engine.setup(description.config, description.tokenizer, description.spec, str(where))
    if load_weights:
        backbone = source.build(description.config)
        engine.update_weights(description.family.weights(backbone, engine.dtype), 0)
    server = EngineServer(engine, description.spec, where, key)
    asyncio.run(run_until_told(server, host, port, tls))
    if server.queue.busy:
        # Its thread cannot be stopped from outside, and torch does not survive the interpreter's end in mid-call.
        print("stopped; a call of the engine had not ended", file=sys.stderr, flush=True)
        os._exit(0)
    engine.close()


def check_exposure(host: str, port: int, api_key_env: str, key: str | None, tls: ssl.SSLContext | None) -> None:
    """Raise ValueError for a server without a key that other machines reach; a warning for one without encryption."""
    if is_loopback(host):
        return
    if key is None:
        raise ValueError(
            f"host={host!r} is reached from other machines, and there is no API key: set the environment variable "
            f"{api_key_env}, or api_key_file, here and for the trainer, or use host=127.0.0.1"
        )
    if tls is None:
        log.warning(
            "the API key, requests and weights are not encrypted on their way: outside of a private network give "
            "tls_certificate and tls_key, or listen on 127.0.0.1 and let trainers come by ssh -L %d:127.0.0.1:%d",
            port,
            port,
        )


async def run_until_told(server: EngineServer, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Listen until SIGTERM or SIGINT, then tell the clients and wait a little for the engine."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=GRACE_S, read_bufsize=READ_BYTES)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError as error:
        raise ValueError(f"cannot listen on host={host!r}, port={port}: {error}; port=0 takes a free one") from error
    print(f"serving {type(server.engine).__name__} at {url_of(host, runner.addresses[0][1], tls)}", flush=True)
    await told.wait()
    await runner.cleanup()
    if server.calls:
        await asyncio.wait(server.calls, timeout=GRACE_S)


def is_loopback(host: str) -> bool:
    """Whether every address that this name stands for stays on this machine."""
    if not host:
        return False  # all interfaces
    try:
        found = socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        raise ValueError(f"host={host!r}: {error}; use an address of this machine") from error
    return all(ipaddress.ip_address(entry[4][0].split("%")[0]).is_loopback for entry in found)


def url_of(host: str, port: int, tls: ssl.SSLContext | None = None) -> str:
    """What trainers write into `urls`; for a wildcard address, this machine's name."""
    name = socket.gethostname() if host in ("", "0.0.0.0", "::") else host
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"
