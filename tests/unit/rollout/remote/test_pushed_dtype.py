"""Weights go to servers in the dtype of their engines: half the bytes for bf16, the same bits as a cast over there."""

import pytest
import torch
from tests.unit.rollout.serving import (
    DESCRIPTION,
    PARAMS,
    SPEC,
    WEIGHTS,
    ThreadServer,
    requests,
    served,
)

from dirl.rollout import ServerEngine, TorchEngine
from dirl.rollout.engine import EnginesLostError
from dirl.rollout.remote.weight_sender import WeightSender


def engine_in(dtype: str) -> TorchEngine:
    engine = TorchEngine(1, dtype=dtype)
    engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, SPEC, "cpu")
    return engine


def served_in(dtype: str, port: int = 0) -> ThreadServer:
    return served(engine_in(dtype), port=port)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each bucket that a server was sent."""
    found: list[int] = []
    plain = WeightSender._send_bytes

    async def counted(self, flat: torch.Tensor, token: str) -> None:
        found.append(flat.nbytes)
        await plain(self, flat, token)

    monkeypatch.setattr(WeightSender, "_send_bytes", counted)
    return found


def client(stop, *servers: ThreadServer) -> ServerEngine:
    engine = stop(ServerEngine([server.url for server in servers], start_timeout_s=5))
    engine.setup(DESCRIPTION.config, DESCRIPTION.tokenizer, SPEC, "cpu")
    return engine


def push(engine: ServerEngine, version: int = 0) -> None:
    engine.update_weights(DESCRIPTION.family.weights(WEIGHTS, engine.dtype), version)


def test_an_engine_in_bf16_is_sent_half_the_bytes(stop, sent: list[int]) -> None:
    sums = {}
    for dtype in ("float32", "bfloat16"):
        engine = client(stop, stop(served_in(dtype)))
        assert engine.dtype == getattr(torch, dtype)
        push(engine)
        sums[dtype] = sum(sent)
        sent.clear()
    assert sums["float32"] == 4 * sum(p.numel() for p in WEIGHTS.parameters())
    assert sums["bfloat16"] * 2 == sums["float32"]


def test_what_was_cast_before_is_what_the_engine_would_have_made_of_it(stop) -> None:
    engine = client(stop, stop(served_in("bfloat16")))
    push(engine)
    local = engine_in("bfloat16")
    local.update_weights(WEIGHTS.named_parameters(), 0)  # in fp32: the engine casts
    made = {t.key: t for t in engine.generate(requests(3, 2), PARAMS)}
    assert made == {t.key: t for t in local.generate(requests(3, 2), PARAMS)}


def test_servers_that_differ_get_the_trainers_own(stop, sent: list[int]) -> None:
    engine = client(stop, stop(served_in("float32")), stop(served_in("bfloat16")))
    assert engine.dtype is None
    push(engine)
    assert sum(sent) == 2 * 4 * sum(p.numel() for p in WEIGHTS.parameters())
    assert len(list(engine.generate(requests(3, 2), PARAMS))) == 6


def test_a_server_that_returns_with_more_bits_than_it_would_get_stays_out(stop) -> None:
    first = served_in("bfloat16")
    engine = client(stop, first)
    push(engine)
    first.stop()
    stop(served_in("float32", port=first.port))
    with pytest.raises(EnginesLostError, match="dtype is float32, this run pushes bfloat16: start it with"):
        push(engine, 1)
