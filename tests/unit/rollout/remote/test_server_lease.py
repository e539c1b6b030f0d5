"""A server works for one run at a time, and a wait for servers says what it waits for."""

import logging
import os
import threading
import time

import pytest
from tests.unit.rollout.serving import (
    PARAMS,
    ScriptedEngine,
    assert_answered,
    client,
    of_one_run,
    requests,
    served,
    weights,
)

from dirl.rollout.engine import EnginesLostError
from dirl.rollout.remote import waiting as waiting_for_servers
from dirl.rollout.remote.lease import Lease, LeaseError, run_name


def test_two_runs_at_the_same_version_never_get_answers_of_each_others_weights(stop) -> None:
    scripted = ScriptedEngine()
    server = stop(served(scripted))
    first, second = (stop(client(server, version=None)) for _ in range(2))
    first.update_weights(weights(), 5)
    with pytest.raises(EnginesLostError, match=rf"works for another run \({first.run}\), and is free when that ends"):
        second.update_weights(weights(), 5)
    assert_answered(first, requests(2, 2), version=5)


def test_a_run_that_starts_while_another_has_the_server_is_told_who(stop) -> None:
    server = stop(served(ScriptedEngine()))
    first = stop(client(server))
    with pytest.raises(EnginesLostError, match=rf"works for another run \({first.run}\)"):
        client(server)
    assert str(os.getpid()) in first.run


def test_a_server_is_free_when_its_run_ends_and_then_refuses_the_former(stop) -> None:
    scripted = ScriptedEngine()
    server = stop(served(scripted))
    first = client(server, version=5)
    first._await(first.links[0].drop_sender())  # as when its connection breaks
    second = stop(client(server, version=5, start_timeout_s=5))
    with pytest.raises(EnginesLostError, match="has the weights of another run"):
        list(first.generate(requests(1, 1), PARAMS))
    first.close()
    assert_answered(second, requests(2, 2), version=5)


def test_a_foreign_rest_does_not_reach_the_engine(stop) -> None:
    scripted = ScriptedEngine()
    server = stop(served(scripted))
    stranger = stop(client(server, version=None))
    stop(client(server)).sleep()
    assert scripted.rests == 1
    stranger.sleep()
    assert scripted.rests == 1


def test_all_processes_of_a_run_push_and_ask(stop) -> None:
    servers = [stop(served(ScriptedEngine())) for _ in range(2)]
    for engine in of_one_run(*(stop(client(*servers, version=None)) for _ in range(2)), version=3):
        assert_answered(engine, requests(2, 2), version=3)


def test_the_lease_outlives_a_pause_between_pushes(stop, monkeypatch) -> None:
    """Heartbeats are answered although nobody pushes."""
    monkeypatch.setattr("dirl.rollout.remote.weight_sender.HEARTBEAT_S", 0.2)
    monkeypatch.setattr("dirl.rollout.remote.app.WEIGHTS_HEARTBEAT_S", 0.2)
    engine = stop(client(stop(served(ScriptedEngine()))))
    time.sleep(1.0)
    assert not engine.links[0].sender.closed
    assert_answered(engine, requests(1, 1))


def test_a_wait_for_servers_says_which_are_missing_and_why(stop, caplog, monkeypatch) -> None:
    monkeypatch.setattr(waiting_for_servers, "FIRST_WORD_S", 0.05)
    server, gone = stop(served(ScriptedEngine())), served(ScriptedEngine())
    gone.stop()
    with caplog.at_level(logging.WARNING):
        stop(client(server, gone, start_timeout_s=0.5))
    waiting = [record.getMessage() for record in caplog.records if "waiting for" in record.getMessage()]
    assert len(waiting) == 1
    assert "0 of at most 0.5 s" in waiting[0] and gone.url in waiting[0] and server.url not in waiting[0]
    assert "Connect" in waiting[0]


def test_a_wait_for_a_server_of_another_run_ends_when_that_ends(stop) -> None:
    server = stop(served(ScriptedEngine()))
    first = client(server)
    threading.Timer(0.3, first.close).start()
    assert_answered(stop(client(server, start_timeout_s=20)), requests(1, 1))


def test_a_lease_is_held_by_connections_and_kept_in_mind_afterwards() -> None:
    lease = Lease()
    lease.take("a", "first")
    lease.take("a", "second")
    lease.give_back("first")
    assert lease.holder == "a"
    with pytest.raises(LeaseError, match="another run"):
        lease.take("b", "third")
    lease.give_back("second")
    assert (lease.holder, lease.run) == (None, "a"), "its weights are still there"
    lease.take("b", "third")
    assert lease.holder == lease.run == "b"


def test_no_two_runs_have_one_name() -> None:
    assert run_name() != run_name()
