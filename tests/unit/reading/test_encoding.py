"""Encoded conversations on disk: what one loop would give, made once, never stale, never half."""

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from dirl import progress_bar
from dirl.models.special_tokens import stop_token_ids
from dirl.models.tokenizer import new_tokenizer
from dirl.packing.pieces import Encoded
from dirl.reading import encoding
from dirl.reading.chat import FitCounts, encode_conversation, fit_conversation
from dirl.reading.encoding import ConversationEncoder, keep_encoded, load_encoded

TOKENIZER = new_tokenizer()
STOPS = stop_token_ids(TOKENIZER)
BAD = {"messages": [{"role": "user", "content": "a"}]}


def conversation(index: int) -> dict[str, Any]:
    """Of 22 to 38 tokens, nearly all of them bytes; the last 2 to 18 are the answer and its end."""
    answer = {"role": "assistant", "content": "ab"[index % 2] * (1 + index % 17)}
    return {"messages": [{"role": "user", "content": f"{index % 7}"}, answer]}


def encoder(**options: Any) -> ConversationEncoder:
    return ConversationEncoder(TOKENIZER, STOPS, **{"max_tokens": 8192, "overflow": "drop"} | options)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, for data that are never small."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(encoding, "SMALL_DATA", 0)
    return tmp_path / "cache" / "dirl"


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "sft.jsonl", [conversation(index) for index in range(200)])


def reference(count: int, max_tokens: int, overflow: Any) -> tuple[list[Encoded], FitCounts]:
    """Row after row in lists, nothing stored."""
    counts = FitCounts()
    whole = [encode_conversation(TOKENIZER, conversation(index)["messages"], STOPS) for index in range(count)]
    fitted = [fit_conversation(example, max_tokens, overflow, counts) for example in whole]
    return [example for example in fitted if example is not None], counts


def assert_same(found: Any, wanted: list[Encoded]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert list(one.input_ids) == list(other.input_ids)
        assert list(one.loss_mask) == list(other.loss_mask) and np.asarray(one.loss_mask).dtype == bool
        assert one.complete is other.complete


@pytest.mark.parametrize("overflow", ["drop", "cut"])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_on_disk_is_what_one_loop_encodes(cache: Path, data: str, workers: int, overflow: str) -> None:
    options = {"max_tokens": 25, "overflow": overflow}
    keep_encoded(data, "train", encoder(**options), workers)
    (folder,) = cache.iterdir()
    assert len(list(folder.iterdir())) == workers
    examples, counts = load_encoded(data, "train", encoder(**options))
    wanted, wanted_counts = reference(200, **options)
    assert_same(examples, wanted)
    assert counts == wanted_counts and counts.kept and (counts.dropped if overflow == "drop" else counts.cut)


def test_a_process_may_be_left_with_dropped_conversations_alone(cache: Path, tmp_path: Path) -> None:
    longest, shortest = conversation(16), conversation(17)
    data = write(tmp_path / "sft.jsonl", [longest] * 100 + [shortest] * 100)
    keep_encoded(data, "train", encoder(max_tokens=25), 2)
    examples, counts = load_encoded(data, "train", encoder(max_tokens=25))
    assert (len(examples), counts) == (100, FitCounts(kept=100, dropped=100))
    keep_encoded(data, "train", encoder(max_tokens=10), 2)
    examples, counts = load_encoded(data, "train", encoder(max_tokens=10))
    assert (len(examples), counts) == (0, FitCounts(dropped=200))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_next_run_encodes_nothing(cache: Path, data: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_encoded(data, "train", encoder(), workers)
    before = {path: path.stat().st_ino for path in cache.rglob("*.arrow")}
    monkeypatch.setattr(encoding, "read_rows", lambda *_: pytest.fail("read the data again"))
    monkeypatch.setattr(ConversationEncoder, "__call__", lambda *_: pytest.fail("encoded again"))
    keep_encoded(data, "train", encoder(), 2)
    assert_same(load_encoded(data, "train", encoder())[0], reference(200, 8192, "drop")[0])
    assert {path: path.stat().st_ino for path in cache.rglob("*.arrow")} == before


def test_changed_data_are_encoded_anew(cache: Path, data: str) -> None:
    keep_encoded(data, "train", encoder())
    text = Path(data).read_text(encoding="utf-8")
    Path(data).write_text(text.replace("bbb", "ccc"), encoding="utf-8")
    with pytest.raises(ValueError, match="the first process of this host has left nothing in"):
        load_encoded(data, "train", encoder())
    keep_encoded(data, "train", encoder())
    assert TOKENIZER.decode(load_encoded(data, "train", encoder())[0][3].input_ids).endswith("ccc" + "b<|im_end|>")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_first_bad_row_is_named_whatever_the_number_of_processes(cache: Path, tmp_path: Path, workers: int) -> None:
    rows = [BAD if index in (90, 250, 1190) else conversation(index) for index in range(1200)]
    data = write(tmp_path / "sft.jsonl", rows)
    with pytest.raises(ValueError, match=rf"^{data}:91: messages: roles \['user'\]"):
        keep_encoded(data, "train", encoder(), workers)
    assert not list(cache.iterdir())


def test_an_error_stops_the_later_rows_and_not_the_earlier(tmp_path: Path) -> None:
    data = write(tmp_path / "sft.jsonl", [BAD if index == 100 else conversation(index) for index in range(200)])
    batches = encoding._Batches(encoding.read_rows(data), encoder(), tmp_path)
    with pytest.raises(ValueError, match=f"{data}:101"):
        batches(list(range(64, 128)))
    assert len(batches(list(range(64)))["input_ids"]) == 64
    with pytest.raises(RuntimeError, match="stopped at row 128"):
        batches(list(range(128, 192)))


def test_an_id_that_is_never_drawn_is_an_error_of_its_row_wherever_it_stands(data: str) -> None:
    """Its loss would be infinite. Row 1 is the first that answers with "b"; questions are digits."""
    for text, row in (("b", 2), ("0", 1)):
        index = TOKENIZER.convert_tokens_to_ids(text)
        banned = ((index, index + 1), (400, 500))
        with pytest.raises(
            ValueError, match=rf"sft.jsonl:{row}.*: holds token {index} \('{text}'\), which the model never"
        ):
            load_encoded(data, "train", encoder(banned=banned))
    assert len(load_encoded(data, "train", encoder(banned=((400, 500),)))[0]) == 200


def test_a_conversation_over_the_limit_is_an_error_of_its_row(cache: Path, data: str) -> None:
    with pytest.raises(ValueError, match=rf"^{data}:5: .* tokens, max_tokens=25; raise the limit"):
        keep_encoded(data, "train", encoder(max_tokens=25, overflow="error"), 2)


def test_a_run_that_is_overtaken_takes_the_other_ones_result(
    cache: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = datasets.Dataset.map

    def overtaken(*args: Any, **kwargs: Any) -> datasets.Dataset:
        monkeypatch.setattr(datasets.Dataset, "map", whole)
        keep_encoded(data, "train", encoder(), 2)
        return whole(*args, **kwargs)

    monkeypatch.setattr(datasets.Dataset, "map", overtaken)
    keep_encoded(data, "train", encoder(), 3)
    (folder,) = cache.iterdir()
    assert len(list(folder.iterdir())) == 2
    assert_same(load_encoded(data, "train", encoder())[0], reference(200, 8192, "drop")[0])


def test_what_a_killed_run_leaves_is_not_taken_for_complete(cache: Path, data: str) -> None:
    def killed_at_the_end() -> None:
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        keep_encoded(data, "train", encoder())

    process = multiprocessing.get_context("fork").Process(target=killed_at_the_end)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and list(cache.rglob("*.arrow"))
    with pytest.raises(ValueError, match="has left nothing"):
        load_encoded(data, "train", encoder())
    keep_encoded(data, "train", encoder())
    assert_same(load_encoded(data, "train", encoder())[0], reference(200, 8192, "drop")[0])


def test_two_runs_that_start_together_have_the_same_data(cache: Path, data: str) -> None:
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=keep_encoded, args=(data, "train", encoder(), count)) for count in (1, 2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0] and len(list(cache.iterdir())) == 1
    assert_same(load_encoded(data, "train", encoder())[0], reference(200, 8192, "drop")[0])


def test_files_that_were_deleted_or_damaged_are_not_used(cache: Path, data: str) -> None:
    keep_encoded(data, "train", encoder(), 2)
    (folder,) = cache.iterdir()
    first, second = sorted(folder.iterdir())
    second.write_bytes(second.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{folder}: .*; remove the folder"):
        load_encoded(data, "train", encoder())
    second.unlink()
    for use in (keep_encoded, load_encoded):
        with pytest.raises(ValueError, match=rf"{folder} has 1 of 2 files; remove the folder"):
            use(data, "train", encoder())
    first.unlink()
    keep_encoded(data, "train", encoder(), 1)
    assert len(load_encoded(data, "train", encoder())[0]) == 200


def test_a_place_that_cannot_be_written_is_named_with_a_remedy(
    data: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot be encoded into .*file/dirl/.*set the environment variable HF_DATA"):
        keep_encoded(data, "train", encoder())


@pytest.fixture
def full_disk(data: str) -> Iterator[None]:
    """No file may grow beyond 10,000 bytes, as if there were no more room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_an_error_that_leaves_nothing(cache: Path, data: str, workers: int) -> None:
    with pytest.raises(ValueError, match=r"cannot be encoded into .*File too large.*if that place is full"):
        keep_encoded(data, "train", encoder(), workers)
    assert not list(cache.iterdir())


def test_small_files_are_encoded_in_memory(cache: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SMALL_DATA", Path(data).stat().st_size + 1)
    keep_encoded(data, "train", encoder())
    examples, counts = load_encoded(data, "train", encoder(max_tokens=25, overflow="cut"))
    wanted, wanted_counts = reference(200, 25, "cut")
    assert_same(examples, wanted)
    assert counts == wanted_counts and not cache.exists()
    assert {examples[0].input_ids.itemsize, examples[0].loss_mask.itemsize} == {4, 1}


def test_a_hub_dataset_is_encoded_once_for_each_commit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {name: datasets.Dataset.from_list([conversation(index)] * 3) for index, name in enumerate("ab")}
    for commit, table in tables.items():
        table._fingerprint = commit
    for commit in "aba":
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, commit=commit, **__: tables[commit])
        keep_encoded("owner/name", "train", encoder())
        ids = load_encoded("owner/name", "train", encoder())[0][2].input_ids
        assert ("a<|im_end|>" in TOKENIZER.decode(ids)) == (commit == "a")
    assert len(list(cache.iterdir())) == 2


def test_processes_are_started_for_many_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, rows, workers in ((64, 1999, 1), (64, 5000, 5), (64, 100_000, 16), (4, 100_000, 4), (1, 100_000, 1)):
        monkeypatch.setattr(encoding.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert encoding._default_workers(rows) == workers


@pytest.mark.parametrize("quiet", [True, False])
def test_only_one_who_is_not_quiet_shows_a_progress_bar(
    cache: Path, data: str, quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.enable_progress_bars()
    for module in (encoding, progress_bar):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
    keep_encoded(data, "train", encoder(), 2, quiet=quiet)
    load_encoded(data, "train", encoder(), quiet=quiet)
    assert ("tokenise train" in capsys.readouterr().err) is not quiet
    assert not datasets.are_progress_bars_disabled()


def test_each_setting_of_the_encoder_has_a_folder_of_its_own(cache: Path, data: str) -> None:
    other = {
        "tokenizer": new_tokenizer(),
        "stop_token_ids": (*STOPS, 7),
        "max_tokens": 8191,
        "overflow": "cut",
        "turns": "last",
        "chat_template_kwargs": {"enable_thinking": False},
        "banned": ((500, 510),),
        "row_schema": "messages",
        "column": "messages",
        "on_bad_row": "skip",
    }
    other["tokenizer"].chat_template += "{# #}"
    assert other.keys() == {field.name for field in dataclasses.fields(ConversationEncoder)}
    for count, change in enumerate([{}, *({name: value} for name, value in other.items())], 1):
        keep_encoded(data, "train", dataclasses.replace(encoder(), **change))
        assert len(list(cache.iterdir())) == count, change


@pytest.mark.parametrize("small", [True, False])
def test_bad_rows_can_be_skipped_and_counted(
    small: bool, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [BAD if index in (3, 90) else conversation(index) for index in range(200)]
    data = write(tmp_path / "sft.jsonl", rows)
    lines = (tmp_path / "sft.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "sft.jsonl").write_text("".join([*lines[:50], "no JSON\n", *lines[50:]]))
    monkeypatch.setattr(encoding, "SMALL_DATA", 10**9 if small else 0)
    skipping = encoder(on_bad_row="skip", max_tokens=30)
    keep_encoded(data, "train", skipping, 2)
    found, counts = load_encoded(data, "train", skipping)
    wanted, expected = reference(200, 30, "drop")
    whole = [encode_conversation(TOKENIZER, conversation(i)["messages"], STOPS) for i in (3, 90)]
    fit = sum(len(example.input_ids) <= 30 for example in whole)
    assert len(found) == len(wanted) - fit
    assert (counts.bad, counts.dropped) == (3, expected.dropped - (2 - fit))


def test_a_row_may_become_several_examples(data: str, tmp_path: Path) -> None:
    from tests.unit.reading.test_chat import THINKING, tokenizer_with

    turns = [("user", "a"), ("assistant", "<think>so</think>b"), ("user", "c"), ("assistant", "d")]
    path = write(tmp_path / "turns.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    thinking = dataclasses.replace(encoder(), tokenizer=tokenizer_with(THINKING))
    found, counts = load_encoded(path, "train", thinking)
    assert len(found) == counts.kept == 2
    assert len(load_encoded(path, "train", dataclasses.replace(thinking, turns="last"))[0]) == 1
