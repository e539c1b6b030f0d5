"""Weights and requests come from those alone who hold the key, and can be encrypted."""

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp
import pytest
import torch
from aiohttp import web
from tests.unit.rollout.serving import (
    SPEC,
    ScriptedEngine,
    ThreadServer,
    assert_answered,
    client,
    requests,
    served,
    torch_engine,
    weights,
)
from torch import Tensor

from dirl.checked_json import to_json
from dirl.rollout.remote import update as server_update
from dirl.rollout.remote.app import EngineServer
from dirl.rollout.remote.pair_group import PairGroup
from dirl.rollout.remote.tls import client_tls, server_tls
from dirl.rollout.remote.weight_messages import Order
from dirl.rollout.remote.weight_receiver import WeightReceiver
from dirl.rollout.remote.weight_sender import WeightSender
from dirl.rollout.remote.weight_transfer import TensorEntry

KEY = "a-key"


def ask(work: Callable[[aiohttp.ClientSession], object], key: str | None = KEY):
    """What comes of some requests with this key."""

    async def run():
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            return await work(session)

    return asyncio.run(run())


@pytest.mark.parametrize("key", [None, "", "a-ke", "a-key2"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/weights"), ("POST", "/weights/x"), ("POST", "/sleep")])
def test_without_the_key_no_way_to_the_weights_is_open(stop, key: str | None, method: str, path: str) -> None:
    server = stop(served(ScriptedEngine(), KEY))

    async def status(session: aiohttp.ClientSession) -> int:
        async with session.request(method, server.url + path, data=b"x") as response:
            return response.status

    assert ask(status, key) == 401


def test_a_push_opens_no_port_of_its_own(stop, monkeypatch) -> None:
    """torch's store and gloo take whoever comes to theirs."""
    monkeypatch.setattr(torch.distributed, "TCPStore", None)
    monkeypatch.setattr("dirl.rollout.remote.pair_group.ProcessGroupGloo", None)
    scripted = ScriptedEngine()
    assert_answered(stop(client(stop(served(scripted)))), requests(1, 2))
    assert scripted.names == [name for name, _ in weights()]


def test_bytes_that_nobody_asked_for_are_refused(stop) -> None:
    server = stop(served(ScriptedEngine(), KEY))

    async def status(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{server.url}/weights/guessed", data=b"1234") as response:
            return response.status

    assert ask(status) == 404


@pytest.mark.parametrize("size", [8, 32])
def test_a_bucket_of_another_size_than_announced_breaks_the_push(stop, monkeypatch, size: int) -> None:
    served_engine = torch_engine()
    engine = stop(client(stop(served(served_engine)), push_timeout_s=5))
    honest = WeightSender._send_bytes
    monkeypatch.setattr(
        WeightSender,
        "_send_bytes",
        lambda self, flat, token: honest(self, flat.new_zeros(len(flat) + size - 16), token),
    )
    with pytest.raises(RuntimeError, match=r"no rollout server is left.*was announced"):
        engine.update_weights(weights(), 1)
    assert served_engine.policy_version in (-1, 0)


def test_a_trainer_that_leaves_in_mid_bucket_leaves_no_version_and_a_free_server(stop) -> None:
    served_engine = torch_engine()
    server = stop(served(served_engine, KEY))

    async def leave(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{server.url}/weights") as socket:
            sender = WeightSender(session, server.url, socket, "http", 5)
            await sender.begin("host:2-leaver", 7)
            reply = await sender._ask(Order("bucket", tensors=[TensorEntry("a", "float32", (1 << 20,))]))
            assert reply.kind == "send"

    ask(leave)

    async def health(session: aiohttp.ClientSession) -> dict:
        for _ in range(100):
            async with session.get(f"{server.url}/health") as response:
                found = await response.json()
            if found["run"] is None and not found["busy"]:
                return found
            await asyncio.sleep(0.05)
        return found

    found = ask(health)
    assert (found["run"], found["busy"], found["policy_version"]) == (None, 0, -1)


def test_a_server_is_free_again_whatever_became_of_a_push(stop, monkeypatch) -> None:
    """Also where the trainer left while the engine was at work, and cannot even be told."""
    working, left = threading.Event(), threading.Event()

    class Slow(ScriptedEngine):
        def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
            if policy_version == 1:
                working.set()
                left.wait(10)
                raise RuntimeError("device lost")
            super().update_weights(weights, policy_version)

    async def cannot(self: WeightReceiver, error: Exception) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(WeightReceiver, "_fail", cannot)
    server = stop(served(Slow()))

    async def leave(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{server.url}/weights") as socket:
            await socket.send_str(to_json(Order("begin", run="host:2-leaver", policy_version=1)))
            while not working.is_set():
                await asyncio.sleep(0.01)

    ask(leave, None)
    left.set()
    assert_answered(stop(client(server, start_timeout_s=5)), requests(1, 2))


# ------------------------------------------------------------------- the group of two of GPUs, by gloo here


def test_a_group_finds_its_two_ends_over_the_connection_that_they_have(stop, monkeypatch) -> None:
    """What NCCL does on GPUs: keys of the group's store travel by the authenticated WebSocket."""
    monkeypatch.setattr(WeightReceiver, "backend", "gloo")
    monkeypatch.setattr("dirl.rollout.remote.update.choose_transport", lambda *_: "nccl")
    opening = WeightSender._open_group
    monkeypatch.setattr(WeightSender, "_open_group", lambda self, _, device: opening(self, "gloo", device))
    received: list[int] = []
    receiving = PairGroup.receive
    monkeypatch.setattr(PairGroup, "receive", lambda self, size: received.append(size) or receiving(self, size))
    served_engine = torch_engine()
    engine = stop(client(stop(served(served_engine)), version=None))
    engine.bucket_bytes = 1000
    for version in range(3):
        engine.update_weights(weights(), version)
        assert served_engine.policy_version == version
    taken: dict[str, Tensor] = dict(served_engine.model.named_parameters())
    assert all(torch.equal(taken[name], value) for name, value in weights())
    assert len(received) > 10, "the bytes went through the group"


# --------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, which vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "server.pem", folder / "server.key"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", made], check=True, capture_output=True)
    return made, key


class TLSServer(ThreadServer):
    """One that shows a certificate."""

    def __init__(self, app: Callable[[], web.Application], certificate: tuple[Path, Path]) -> None:
        self.tls = server_tls(*map(str, certificate))
        super().__init__(app)
        self.url = self.url.replace("http:", "https:")

    async def _start(self, app: Callable[[], web.Application], port: int) -> int:
        self.runner = web.AppRunner(app(), shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port, ssl_context=self.tls).start()
        return self.runner.addresses[0][1]


def test_requests_and_weights_go_by_https_to_a_server_that_is_known(stop, certificate) -> None:
    scripted = ScriptedEngine()
    server = stop(TLSServer(EngineServer(scripted, SPEC, torch.device("cpu"), None).app, certificate))
    engine = stop(client(server, tls_ca=str(certificate[0])))
    engine.bucket_bytes = 1000
    engine.update_weights(weights(), 1)
    assert_answered(engine, requests(2, 2), version=1)
    assert engine.links[0].sender.transport == "http"


def test_a_server_that_nobody_vouches_for_is_not_spoken_to(stop, certificate) -> None:
    server = stop(TLSServer(EngineServer(ScriptedEngine(), SPEC, torch.device("cpu"), None).app, certificate))
    with pytest.raises(RuntimeError, match=r"certificate verify failed"):
        client(server)


def test_nccl_is_not_taken_by_itself_where_the_url_asks_for_encryption() -> None:
    health = type("Health", (), {"cuda_devices": ("GPU-far",)})()
    cuda = torch.device("cuda", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_update, "visible_gpus", lambda: ["GPU-here"])
        assert server_update.choose_transport("auto", cuda, "http://far:1", health) == "nccl"
        assert server_update.choose_transport("auto", cuda, "https://far:1", health) == "http"
        assert server_update.choose_transport("nccl", cuda, "https://far:1", health) == "nccl"


def test_certificates_that_are_none_are_errors_that_name_the_option(tmp_path: Path, certificate) -> None:
    none = tmp_path / "none.pem"
    none.write_text("nothing")
    urls = ["https://127.0.0.1:1"]
    with pytest.raises(ValueError, match=r"engine.tls_ca='.*gone' *: no such file"):
        client_tls(str(tmp_path / "gone"), urls)
    with pytest.raises(ValueError, match=r"engine.tls_ca='.*none.pem' is no certificate"):
        client_tls(str(none), urls)
    with pytest.raises(ValueError, match="without a server by https"):
        client_tls(str(certificate[0]), ["http://127.0.0.1:1"])
    with pytest.raises(ValueError, match="give both, or none"):
        server_tls(str(certificate[0]), None)
    with pytest.raises(ValueError, match="no certificate and its key"):
        server_tls(str(certificate[0]), str(none))
