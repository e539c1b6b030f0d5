"""The further processes of a tensor-parallel engine: what they answer, and what is said when one fails or is gone."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dirl.rollout.engine import EnginesLostError
from dirl.rollout.lmdeploy.followers import Followers
from dirl.rollout.lmdeploy.rank_group import Seat
from dirl.types import ModelSpec


def obedient(seat: Seat, connection: Connection) -> None:
    """Answers as a follower does: its rank and the arguments; `fail` and `vanish` do what they say."""
    connection.send(("done", None))
    while (order := connection.recv())[0] != "end":
        if order[0] == "fail":
            connection.send(("failed", "ValueError: it has its reasons"))
            return
        if order[0] == "vanish":
            os._exit(3)
        connection.send(("done", (seat.rank, seat.device, *order[1])))


@contextmanager
def followers(folder: Path, size: int, main: Callable = obedient) -> Iterator[Followers]:
    spec = ModelSpec(4, mask_token_id=5, stop_token_ids=(), pad_token_id=0, vocab_size=6)
    made = Followers(Seat(0, size, 2, str(folder), spec), main, "fork")
    try:
        yield made
    finally:
        made.end()


def test_all_are_told_and_answer_in_the_order_of_their_ranks_and_end(tmp_path: Path) -> None:
    with followers(tmp_path, 3) as two:
        with two.told("add", "something") as found:
            assert not found
        assert found == [(1, 3, "something"), (2, 4, "something")] and two.alive()
    assert [process.exitcode for process in two.processes] == [0, 0]


@pytest.mark.parametrize(("order", "said"), [("fail", "it has its reasons"), ("vanish", "has ended .exit code 3.")])
def test_one_that_fails_or_is_gone_is_named_with_what_it_said_and_not_waited_for(
    tmp_path: Path, order: str, said: str
) -> None:
    with followers(tmp_path, 2) as one:
        began = time.monotonic()
        with pytest.raises(EnginesLostError, match=f"rank 1 of LMDeploy's engine .*(?s:.*){said}"), one.told(order):
            pass
        with pytest.raises(EnginesLostError, match="rank 1 "):
            asyncio.run(asyncio.wait_for(one.watch(), 20))
        assert time.monotonic() - began < 20 and not one.alive()


def test_what_breaks_in_the_first_rank_because_another_is_gone_is_said_to_be_that(tmp_path: Path) -> None:
    with followers(tmp_path, 2) as one:
        with pytest.raises(RuntimeError, match="its own"), one.told("add"):
            raise RuntimeError("its own")
        with pytest.raises(EnginesLostError, match=r"rank 1 .* has ended"), one.told("vanish"):
            raise RuntimeError("connection closed")
