"""The server engine against servers in threads: every trajectory once, whatever the servers do."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from tests.tiny import TinyModel
from tests.unit.rollout.serving import (
    DESCRIPTION,
    PARAMS,
    SOURCE,
    SPEC,
    ScriptedEngine,
    ThreadServer,
    assert_answered,
    client,
    honest,
    lying,
    of_one_run,
    requests,
    served,
    torch_engine,
    wait_until,
    weights,
)
from torch import Tensor

from dirl.cli.serve import serve
from dirl.rollout import ServerEngine
from dirl.rollout.engine import EnginesLostError
from dirl.rollout.remote.wire import Line
from dirl.types import DecodingParams, GenerationRequest

# ----------------------------------------------------------------------------------------------- in order


def test_two_servers_give_the_trajectories_of_a_local_engine(stop) -> None:
    engine = stop(client(stop(served(torch_engine())), stop(served(torch_engine())), version=3))
    local = torch_engine()
    local.update_weights(weights(), 3)
    wanted = {t.key: t for t in local.generate(requests(4, 3), PARAMS)}
    made = list(engine.generate(requests(4, 3), PARAMS))
    assert len(made) == 12
    assert {t.key: t for t in made} == wanted
    assert engine.heartbeat > 0


def test_no_request_is_no_work(stop) -> None:
    engine = stop(client(stop(served(ScriptedEngine()))))
    assert list(engine.generate([], PARAMS)) == []


def test_a_concurrent_engine_gets_the_samples_of_a_prompt_together_and_no_more_than_agreed(stop) -> None:
    engines = [ScriptedEngine(concurrent=True, before=lambda _: time.sleep(0.002)) for _ in range(2)]
    engine = stop(client(*(stop(served(e)) for e in engines), requests_in_flight=10))
    assert_answered(engine, requests(12, 4))
    calls = [call for e in engines for call in e.calls]
    assert len(calls) == 12
    assert all(len({r.prompt_id for r in call}) == 1 and len(call) == 4 for call in calls)
    assert all(4 < e.most_at_once <= 10 for e in engines), "two calls of four at once, not three"
    assert all(len(e.calls) >= 4 for e in engines), "both have worked"


def test_a_group_larger_than_the_limit_is_cut(stop) -> None:
    scripted = ScriptedEngine(concurrent=True)
    assert_answered(stop(client(stop(served(scripted)), requests_in_flight=3)), requests(1, 8))
    assert [len(call) for call in scripted.calls] == [3, 3, 2]


def test_an_engine_that_takes_one_call_at_a_time_gets_its_share_of_all_that_is_left(stop) -> None:
    engines = [ScriptedEngine(before=lambda _: time.sleep(0.001)) for _ in range(2)]
    engine = stop(client(*(stop(served(e)) for e in engines), requests_in_flight=16))
    assert_answered(engine, requests(20, 4))
    sizes = sorted((len(call) for e in engines for call in e.calls), reverse=True)
    assert sizes[:2] == [16, 16]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 16 and len(sizes) <= 12
    assert all(e.most_at_once <= 16 for e in engines)


def test_several_rollouts_at_once_share_the_servers(stop) -> None:
    scripted = ScriptedEngine(concurrent=True, before=lambda _: time.sleep(0.001))
    engine = stop(client(stop(served(scripted)), requests_in_flight=8))
    both = requests(8, 4)
    halves = [both[:16], both[16:]]
    threads = [threading.Thread(target=assert_answered, args=(engine, half)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(len(call) for call in scripted.calls) == [4] * 8
    assert scripted.most_at_once <= 8


def test_an_engine_that_takes_one_call_at_a_time_is_called_by_two_processes_of_a_run_in_turn(stop) -> None:
    scripted = ScriptedEngine(before=lambda _: time.sleep(0.001))
    server = stop(served(scripted))
    engines = of_one_run(*(stop(client(server, version=None)) for _ in range(2)))
    threads = [threading.Thread(target=assert_answered, args=(engine, requests(4, 4))) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [len(call) for call in scripted.calls] == [16, 16]
    assert scripted.most_at_once == 16


def test_a_server_whose_weights_are_newer_does_not_work_for_a_process_that_asks_for_the_older(stop) -> None:
    scripted = ScriptedEngine()
    server = stop(served(scripted))
    first, second = of_one_run(*(stop(client(server, version=None)) for _ in range(2)), version=1)
    second.update_weights(weights(), 2)
    with pytest.raises(EnginesLostError, match="has policy_version 2, asked for is 1"):
        list(first.generate(requests(1, 2), PARAMS))
    assert scripted.calls == []
    assert_answered(second, requests(1, 2), version=2)


def test_a_rollout_that_is_given_up_stops_on_the_server(stop) -> None:
    scripted = ScriptedEngine(before=lambda _: time.sleep(0.02))
    engine = stop(client(stop(served(scripted))))
    running = engine.generate(requests(50, 4), PARAMS)
    next(running)
    running.close()
    wait_until(lambda: scripted.closed == 1)
    assert_answered(engine, requests(1, 2))


def test_rest_reaches_the_engines(stop) -> None:
    engines = [ScriptedEngine(), ScriptedEngine()]
    stop(client(*(stop(served(e)) for e in engines))).sleep()
    assert [e.rests for e in engines] == [1, 1]


def test_after_a_rest_that_gave_the_weights_back_they_are_asked_for_again(stop) -> None:
    class Sleeper(ScriptedEngine):
        def sleep(self) -> None:
            self.policy_version = -1

    engine = stop(client(stop(served(Sleeper())), stop(served(ScriptedEngine()))))
    engine.sleep()
    assert engine.policy_version == -1
    engine.update_weights(weights(), 0)
    assert_answered(engine, requests(2, 2))


# ------------------------------------------------------------------------------------------ what users do


def fail(error: Exception) -> Callable[[GenerationRequest], None]:
    def before(request: GenerationRequest) -> None:
        raise error

    return before


def test_a_value_error_of_the_engine_reaches_the_trainer_and_costs_no_server(stop, caplog) -> None:
    server = stop(served(ScriptedEngine(before=fail(ValueError("top_k=3: this engine knows none")))))
    engine = stop(client(server))
    with pytest.raises(ValueError, match=f"top_k=3: this engine knows none .*{server.url}"):
        list(engine.generate(requests(2, 2), PARAMS))
    assert engine.links[0].alive
    assert "is lost" not in caplog.text


def test_two_requests_of_one_name_are_an_error(stop) -> None:
    engine = stop(client(stop(served(ScriptedEngine()))))
    with pytest.raises(ValueError, match="same prompt_id and sample_index"):
        list(engine.generate(requests(1, 1) * 2, PARAMS))


def test_generating_before_weights_is_an_error(stop) -> None:
    engine = stop(client(stop(served(ScriptedEngine())), version=None))
    with pytest.raises(ValueError, match="call update_weights before"):
        list(engine.generate(requests(1, 1), PARAMS))


@pytest.mark.parametrize("key", [None, "wrong", "secre", "secret2"])
def test_a_wrong_key_is_an_error_that_says_what_to_do(stop, monkeypatch, key: str | None) -> None:
    server = stop(served(ScriptedEngine(), key="secret"))
    monkeypatch.delenv("DIRL_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("DIRL_API_KEY", key)
    with pytest.raises(ValueError, match=r"refuses the API key.*api_key_env"):
        client(server)


def test_the_right_key_opens_everything(stop, monkeypatch, tmp_path) -> None:
    server = stop(served(ScriptedEngine(), key="secret"))
    monkeypatch.setenv("OTHER_KEY", "secret")
    engine = client(server, api_key_env="OTHER_KEY")
    assert_answered(engine, requests(1, 2))
    engine.sleep()
    engine.close()
    (tmp_path / "key").write_text("secret\n")
    assert_answered(stop(client(server, api_key_file=str(tmp_path / "key"))), requests(1, 2))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_a_host_that_others_reach_needs_a_key(monkeypatch, host: str) -> None:
    monkeypatch.delenv("DIRL_API_KEY", raising=False)
    with pytest.raises(ValueError, match=f"host='{host}' is reached from other machines.*DIRL_API_KEY"):
        serve(SOURCE, host=host, port=0)


def test_a_taken_port_is_an_error_that_names_it(stop) -> None:
    port = stop(served(ScriptedEngine())).port
    with pytest.raises(ValueError, match=f"port={port}.*port=0 takes a free one"):
        serve(SOURCE, port=port)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 8}, "block_size is 8 there and 4 here"),
        ({"mask_token_id": 1}, "mask_token_id is 1 there"),
        ({"stop_token_ids": (0, 1)}, r"stop_token_ids is \(0, 1\) there"),
        ({"vocab_size": 99}, "vocab_size is 99 there"),
    ],
)
def test_a_server_with_another_model_is_refused(stop, change: dict, message: str) -> None:
    server = stop(served(ScriptedEngine(), spec=dataclasses.replace(SPEC, **change)))
    with pytest.raises(ValueError, match=message):
        client(server)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": []}, "one or more servers"),
        ({"urls": ["http://a:1", "http://a:1/"]}, "each once"),
        ({"urls": ["127.0.0.1:8100"]}, "no address of a server"),
        ({"urls": ["http://a:1"], "requests_in_flight": 0}, "requests_in_flight=0"),
        ({"urls": ["http://a:1"], "bucket_mb": -1}, "bucket_mb=-1"),
    ],
)
def test_options_that_make_no_sense_are_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerEngine(**options)


# ------------------------------------------------------------------------------------------- lost servers


def other_prompt(line: Line) -> Line:
    other = dataclasses.replace(line.trajectory, prompt_ids=(1, 2, 3, 4, 5))
    return dataclasses.replace(line, trajectory=other)


def older(line: Line) -> Line:
    return dataclasses.replace(line, trajectory=dataclasses.replace(line.trajectory, policy_version=-1))


def cut(line: Line) -> Line:
    trajectory = line.trajectory
    return dataclasses.replace(line, trajectory=dataclasses.replace(trajectory, step_map=trajectory.step_map[1:]))


LIES: dict[str, tuple[Callable[[list[Line]], Iterable[str]], str]] = {
    "an id twice": (lambda lines: honest([lines[0], *lines]), "not asked of it or has been answered"),
    "an unknown id": (lambda lines: honest([dataclasses.replace(lines[0], id="x"), *lines]), "request 'x'"),
    "ids exchanged": (
        lambda lines: honest([dataclasses.replace(lines[0], id=lines[1].id), *lines[1:]]),
        "with another prompt",
    ),
    "another prompt": (lambda lines: honest([other_prompt(lines[0]), *lines[1:]]), "with another prompt"),
    "old weights": (lambda lines: honest([older(lines[0]), *lines[1:]]), "policy_version -1, asked for was 0"),
    "half a trace": (lambda lines: honest([cut(lines[0]), *lines[1:]]), "must cover the same positions"),
    "one left out": (lambda lines: honest(lines[1:]), "left out 1 of"),
    "no end": (lambda lines: honest(lines[:-1]), "ended before the call was over"),
    "no JSON": (lambda lines: [*honest(lines[:2]), "<html>"], "cannot be read"),
    "text for a number": (
        lambda lines: [text.replace('"response_length":', '"response_length":"7","x":') for text in honest(lines)],
        "cannot be read",
    ),
    "nothing": (lambda lines: [], "ended before"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_server_that_lies_gets_no_more_work_and_nothing_is_lost_or_doubled(stop, caplog, name: str) -> None:
    lie, message = LIES[name]
    liar, good = stop(lying(lie)), stop(served(ScriptedEngine()))
    engine = stop(client(liar, good))
    with caplog.at_level(logging.WARNING):
        assert_answered(engine, requests(6, 4))
    warnings = [r.getMessage() for r in caplog.records if "is lost" in r.getMessage()]
    assert len(warnings) == 1 and liar.url in warnings[0] and message in warnings[0]
    assert [link.alive for link in engine.links] == [False, True]
    assert_answered(engine, requests(6, 4))


def test_an_engine_that_breaks_is_left_and_the_last_one_ends_the_run(stop) -> None:
    broken = [stop(served(ScriptedEngine(before=fail(RuntimeError(f"kernel {i}"))))) for i in range(2)]
    good = stop(served(ScriptedEngine()))
    first = client(*broken, good)
    assert_answered(first, requests(6, 4))
    first.close()
    with pytest.raises(EnginesLostError, match="no rollout server is left") as caught:
        list(stop(client(*broken)).generate(requests(6, 4), PARAMS))
    text = str(caught.value)
    for i, server in enumerate(broken):
        assert f"{server.url}: RuntimeError: kernel {i}" in text
    assert "resume the run from its last checkpoint" in text


def test_a_server_without_progress_is_left_and_a_slow_one_is_not(stop, caplog) -> None:
    hang = threading.Event()
    slow, hung = ScriptedEngine(), ScriptedEngine(before=lambda _: hang.wait(20))

    def crawl(request: GenerationRequest) -> None:
        for _ in range(8):  # no trajectory for longer than the limit, but progress
            time.sleep(0.25)
            slow.heartbeat += 1

    slow.before = lambda request: crawl(request) if request.sample_index == 1 else None
    servers = [stop(served(e)) for e in (slow, hung)]
    engine = stop(client(*servers, stall_timeout_s=1.5))
    assert_answered(engine, requests(1, 4))
    hang.set()
    assert [link.alive for link in engine.links] == [True, False]
    assert "no progress for 1.5 s (requests in work: 1)" in engine.links[1].reason


def test_idle_servers_are_not_called_silent(stop) -> None:
    engine = stop(client(stop(served(ScriptedEngine())), stall_timeout_s=0.3))
    time.sleep(1)
    assert_answered(engine, requests(1, 2))


def test_servers_that_are_not_there_at_the_start_are_named(stop, caplog) -> None:
    gone = served(ScriptedEngine())
    gone.stop()
    engine = stop(client(gone, stop(served(ScriptedEngine()))))
    assert f"{gone.url} is not there" in caplog.text
    assert_answered(engine, requests(3, 2))
    with pytest.raises(EnginesLostError, match=gone.url):
        client(gone)


def test_setup_waits_for_servers_that_are_still_starting(stop) -> None:
    first = served(ScriptedEngine())
    first.stop()
    started: list[ThreadServer] = []
    late = threading.Timer(0.7, lambda: started.append(stop(served(ScriptedEngine(), port=first.port))))
    late.start()
    assert_answered(stop(client(first, start_timeout_s=10)), requests(1, 2))
    assert started


def test_a_server_that_was_restarted_gets_weights_before_work(stop) -> None:
    """Even if the new process has a policy of the same version, and was never seen to be away."""
    first, steady = served(ScriptedEngine()), stop(served(ScriptedEngine()))
    engine = stop(client(first, steady))
    first.stop()
    again = ScriptedEngine()
    again.policy_version = 0
    stop(served(again, port=first.port))
    assert_answered(engine, requests(4, 2))
    assert again.calls == []
    assert "started anew" in engine.links[0].reason
    engine.update_weights(weights(), 1)
    assert_answered(engine, requests(4, 2), version=1)
    assert again.calls and again.names == [name for name, _ in weights()]


def test_a_server_that_returns_with_another_model_stays_out(stop, caplog) -> None:
    first, steady = served(ScriptedEngine()), stop(served(ScriptedEngine()))
    engine = stop(client(first, steady))
    first.stop()
    stop(served(ScriptedEngine(), spec=dataclasses.replace(SPEC, block_size=8), port=first.port))
    engine.update_weights(weights(), 1)
    assert "block_size is 8 there" in caplog.text
    assert_answered(engine, requests(4, 2), version=1)


# ------------------------------------------------------------------------------------------------ weights


def test_after_a_push_greedy_outputs_are_those_of_the_new_weights(stop) -> None:
    decoding = DecodingParams(temperature=0, max_response_tokens=8)
    engine = stop(client(stop(served(torch_engine())), bucket_mb=1))
    other = TinyModel(nudge=0.3).build(DESCRIPTION.config)
    local = torch_engine()
    found = []
    for version, model in enumerate([None, other]):
        if model is not None:
            engine.update_weights(weights(model), version)
        local.update_weights(weights(model) if model is not None else weights(), version)
        found.append({t.key: t for t in engine.generate(requests(6, 1), decoding)})
        assert found[-1] == {t.key: t for t in local.generate(requests(6, 1), decoding)}
        assert {t.policy_version for t in found[-1].values()} == {version}
    assert any(found[0][k].response_ids != found[1][k].response_ids for k in found[0])


def spoiled(name: str = "lm_head.weight") -> Iterator[tuple[str, Tensor]]:
    yield from weights()
    yield "model.unknown.weight", torch.zeros(3)


def test_weights_that_are_not_the_models_are_refused_and_the_next_ones_taken(stop) -> None:
    served_engine = torch_engine()
    engine = stop(client(stop(served(served_engine))))
    with pytest.raises(ValueError, match=r"'model.unknown.weight' is unknown to the engine's model \(says http"):
        engine.update_weights(spoiled(), 1)
    assert served_engine.policy_version == -1, "half an update is no version"
    with pytest.raises(ValueError, match="no weights yet"):
        list(engine.generate(requests(1, 1), PARAMS))
    engine.update_weights(weights(), 2)
    assert len(list(engine.generate(requests(2, 2), PARAMS))) == 4


def test_a_push_that_breaks_off_leaves_the_server_without_a_version_and_ready_for_the_next(stop) -> None:
    served_engine = torch_engine()
    engine = stop(client(stop(served(served_engine))))
    engine.bucket_bytes = 1000  # many buckets of this small model

    def broken() -> Iterator[tuple[str, Tensor]]:
        for count, named in enumerate(weights()):
            if count == 5:
                raise RuntimeError("out of memory")
            yield named

    with pytest.raises(RuntimeError, match="out of memory"):
        engine.update_weights(broken(), 1)
    wait_until(lambda: served_engine.policy_version == -1)
    engine.update_weights(weights(), 2)
    assert served_engine.policy_version == 2
    assert len(list(engine.generate(requests(2, 2), PARAMS))) == 4


class Dying(ScriptedEngine):
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        for count, _ in enumerate(weights):
            if count == 3 and policy_version == 1:
                raise RuntimeError("device lost")
        self.policy_version = policy_version


def test_a_server_that_fails_in_mid_push_is_left_the_others_go_on_and_all_weights_are_asked_for(stop, caplog) -> None:
    engine = stop(client(stop(served(Dying())), stop(served(ScriptedEngine()))))
    engine.bucket_bytes = 1000
    asked = []

    def counted() -> Iterator[tuple[str, Tensor]]:
        for name, value in weights():
            asked.append(name)
            yield name, value

    engine.update_weights(counted(), 1)
    assert asked == [name for name, _ in weights()]
    assert [link.alive for link in engine.links] == [False, True]
    assert "device lost" in caplog.text
    assert_answered(engine, requests(3, 2), version=1)
    asked.clear()
    engine.update_weights(counted(), 2)
    assert all(link.alive for link in engine.links)


def test_if_no_server_takes_the_weights_the_run_ends_and_all_weights_were_asked_for(stop) -> None:
    engine = stop(client(stop(served(Dying()))))
    engine.bucket_bytes = 1000
    asked = []
    with pytest.raises(EnginesLostError, match="device lost"):
        engine.update_weights(((name, asked.append(name) or value) for name, value in weights()), 1)
    assert len(asked) == len(list(weights()))


def test_an_engine_that_wants_no_weights_is_not_waited_for(stop) -> None:
    class Content(ScriptedEngine):
        def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
            super().update_weights([] if policy_version < 2 else weights, policy_version)

    content = Content()
    engine = stop(client(stop(served(content)), push_timeout_s=3))
    engine.bucket_bytes = 1000
    for version in (1, 2):
        engine.update_weights(weights(), version)
        assert_answered(engine, requests(2, 2), version)
    assert content.names == [name for name, _ in weights()]


def test_an_engine_that_fails_after_its_update_is_without_a_version(stop) -> None:
    class Unsure(ScriptedEngine):
        def update_weights(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
            super().update_weights(weights, policy_version)
            raise ValueError("8 equal prompts gave 2 different samples")

    unsure = Unsure()
    with pytest.raises(ValueError, match="2 different samples"):
        stop(client(stop(served(unsure)), version=None)).update_weights(weights(), 0)
    assert unsure.policy_version == -1


def test_a_transport_that_cannot_carry_the_weights_is_an_error(stop) -> None:
    engine = stop(client(stop(served(ScriptedEngine())), version=None, transport="cuda_ipc"))
    with pytest.raises(ValueError, match=r"transport=cuda_ipc: the trainer's weights are on cpu; use http"):
        engine.update_weights(weights(), 0)
