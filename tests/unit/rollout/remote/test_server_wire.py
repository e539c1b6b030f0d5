"""JSON between trainer and server: everything comes back as it was, and nothing else is accepted."""

import json
from collections.abc import Callable

import pytest
from tests.unit.rollout.serving import SPEC, requests, respond

from dirl.checked_json import to_json
from dirl.rollout.remote.api_key import is_authorized, read_api_key
from dirl.rollout.remote.link import check_url
from dirl.rollout.remote.wire import PROTOCOL, Call, Failure, Health, Line, loads
from dirl.types import DecodingParams

CALL = Call("x", "host:1-abc", 3, {"a": requests(1, 1)[0]}, DecodingParams("sequential", denoising_steps=2, top_p=0.5))
LINE = Line(7, "ü\n", respond(requests(1, 1)[0], 3))
HEALTH = Health(PROTOCOL, "x", "TorchEngine", True, -1, None, 5, 2, SPEC, ("GPU-1",), "float32")


@pytest.mark.parametrize(
    "value", [CALL, LINE, HEALTH, Line(1), Line(1, done=True), Line(1, failure=Failure("ValueError", "no"))]
)
def test_what_is_sent_arrives_equal_and_is_one_line(value: object) -> None:
    text = to_json(value)
    assert "\n" not in text
    assert loads(type(value), text) == value
    assert type(loads(type(value), text)) is type(value)


def test_log_probs_keep_every_bit() -> None:
    odd = (-0.1, -1e-300, -123456.789012345678, 0.0)
    line = Line(0, "a", respond(requests(1, 1)[0], 0))
    object.__setattr__(line.trajectory, "behaviour_logprobs", odd)
    assert loads(Line, to_json(line)).trajectory.behaviour_logprobs == odd


def test_numbers_that_json_does_not_have_are_refused() -> None:
    line = Line(0, "a", respond(requests(1, 1)[0], 0))
    object.__setattr__(line.trajectory, "behaviour_logprobs", (float("nan"),))
    with pytest.raises(ValueError, match=r"Line: trajectory.behaviour_logprobs\[0\] is nan"):
        to_json(line)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["behaviour_logprobs", "reward", "advantage"])
def test_numbers_that_are_not_finite_are_refused_on_arrival(name: str, number: str) -> None:
    row = json.loads(to_json(LINE))
    row["trajectory"][name] = ["?", -1.0] if name == "behaviour_logprobs" else "?"
    text = json.dumps(row).replace('"?"', number)
    with pytest.raises(ValueError, match=rf"Line: trajectory.{name}(\[0\])?: .* finite number, got -?(nan|inf)"):
        loads(Line, text)


def changed(change: Callable[[dict], None]) -> str:
    row = json.loads(to_json(CALL))
    change(row)
    return json.dumps(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(extra=1), r"Call: unknown fields \['extra'\]; its own are instance, .*version of dirl"),
        (lambda r: r.pop("decoding"), "Call: decoding is missing; .*version of dirl"),
        (lambda r: r.update(policy_version="3"), "Call: policy_version: .*integer, got '3'"),
        (lambda r: r.update(policy_version=True), "Call: policy_version: .*integer, got True"),
        (lambda r: r.update(requests=[]), r"Call: requests: .*object, got \[\]"),
        (lambda r: r["requests"]["a"].pop("seed"), "Call: requests.a.seed is missing"),
        (lambda r: r["requests"]["a"].update(prompt_ids=[1, 2.0]), r"requests.a.prompt_ids\[1\]: .*integer, got 2.0"),
        (lambda r: r["requests"]["a"].update(prompt_ids="12"), "requests.a.prompt_ids: .*array, got '12'"),
        (
            lambda r: r["decoding"].update(strategy="beam"),
            "Call: decoding.strategy: .*'low_confidence_dynamic', .*, got 'beam'",
        ),
        (lambda r: r["decoding"].update(temperature="hot"), "Call: decoding.temperature: .*number, got 'hot'"),
        (
            lambda r: r["decoding"].update(top_k=-1),
            "Call: decoding: decoding.top_k=-1: use 0 for no limit or a .*r$",
        ),
        (lambda r: r["decoding"].update(denoising_steps=0.5), "denoising_steps: .*integer, got 0.5"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_place(change: Callable[[dict], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loads(Call, changed(change))


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "3", "null"])
def test_what_is_no_object_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        loads(Health, text)


def test_addresses_are_written_in_one_way() -> None:
    assert check_url("http://host:8100/") == check_url("http://host:8100") == "http://host:8100"
    for url in ("host:8100", "ftp://host", "http://", "http://host?key=1"):
        with pytest.raises(ValueError, match="no address of a server"):
            check_url(url)


@pytest.mark.parametrize(
    ("header", "key", "allowed"),
    [
        (None, None, True),
        ("Bearer a", None, True),
        ("Bearer a", "a", True),
        (None, "a", False),
        ("a", "a", False),
        ("Bearer", "a", False),
        ("Bearer ab", "a", False),
        ("Bearer ", "a", False),
        ("Bearer ü", "ü", True),
    ],
)
def test_only_the_key_opens(header: str | None, key: str | None, allowed: bool) -> None:
    assert is_authorized(header, key) is allowed


def test_an_empty_key_is_none_and_an_empty_file_an_error(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("KEY", "")
    assert read_api_key("KEY", None) is None
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_api_key("KEY", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="no such file"):
        read_api_key("KEY", str(tmp_path / "none"))
