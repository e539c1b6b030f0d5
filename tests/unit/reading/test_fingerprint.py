"""The fingerprint: the same in the next process, another after any change that could change a token."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from dirl.models.tokenizer import new_tokenizer
from dirl.reading import fingerprint as module
from dirl.reading.fingerprint import fingerprint, local_files, source_state


@pytest.fixture
def code(tmp_path: Path) -> ModuleType:
    """Code that tests may change."""
    found = ModuleType("code")
    found.__file__ = str(tmp_path / "code.py")
    Path(found.__file__).write_text("1", encoding="utf-8")
    return found


def named(tokenizer: PreTrainedTokenizerFast, code: ModuleType) -> str:
    return fingerprint(["rows"], tokenizer, {"max_tokens": 1}, [code])


def test_another_process_and_a_used_tokenizer_give_the_same_name() -> None:
    program = (
        "from dirl.reading.fingerprint import *; from dirl.models.tokenizer import new_tokenizer;"
        "import dirl.reading.chat;"
        "print(fingerprint(['a', 1], new_tokenizer(), {'b': (1, 2)}, [dirl.reading.chat]))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    import dirl.reading.chat

    tokenizer = new_tokenizer()
    tokenizer("used before", add_special_tokens=False)
    name = fingerprint(["a", 1], tokenizer, {"b": (1, 2)}, [dirl.reading.chat])
    assert name == ran.stdout.strip() and len(name) == 32


def test_each_change_gives_another_name(code: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [named(new_tokenizer(), code), fingerprint(["other"], new_tokenizer(), {"max_tokens": 1}, [code])]
    names.append(fingerprint(["rows"], new_tokenizer(), {"max_tokens": 2}, [code]))
    names.append(named(new_tokenizer("abc"), code))
    tokenizer = new_tokenizer()
    tokenizer.chat_template += "."
    names.append(named(tokenizer, code))
    tokenizer = new_tokenizer()
    tokenizer.add_tokens(["abc"])
    names.append(named(tokenizer, code))
    tokenizer = new_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    names.append(named(tokenizer, code))
    Path(code.__file__).write_text("2", encoding="utf-8")
    names.append(named(new_tokenizer(), code))
    monkeypatch.setattr(module, "version", lambda _: "next")
    names.append(named(new_tokenizer(), code))
    assert len(set(names)) == len(names)


def test_a_template_that_writes_the_date_is_good_for_one_day(code: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        day = 1

        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2030, 1, cls.day)

    class Calendar:
        date = Clock

    monkeypatch.setattr(module, "datetime", Calendar)
    dated, plain = new_tokenizer(), new_tokenizer()
    dated.chat_template += "{{ strftime_now('%d %b %Y') }}"
    before = named(dated, code), named(plain, code)
    Clock.day = 2
    assert (named(dated, code) == before[0], named(plain, code) == before[1]) == (False, True)


def test_files_are_told_apart_by_path_size_and_time_and_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (first, second):
        path.write_text('{"a": 1}\n', encoding="utf-8")
        os.utime(path, ns=(1, 1))
    monkeypatch.setattr(module, "read_rows", lambda *_: pytest.fail("read"))

    def state(source: Path | list[str], split: str = "train") -> str:
        return json.dumps(source_state(source if isinstance(source, list) else str(source), split)[0])

    states = [state(first), state(second), state(tmp_path), state(tmp_path, "test")]
    states += [state([str(first), str(second)]), state([str(second), str(first)])]
    os.utime(first, ns=(1, 2))
    states += [state(first), state(tmp_path)]
    first.write_text('{"a": 12}\n', encoding="utf-8")
    os.utime(first, ns=(1, 1))
    states.append(state(first))
    assert len(set(states)) == len(states)
    assert state(first) == states[-1]


def test_a_folder_counts_the_files_that_could_be_read(tmp_path: Path) -> None:
    for name in ("b.json", "a.parquet", "README.md"):
        (tmp_path / name).touch()
    assert [path.name for path in local_files(str(tmp_path))] == ["a.parquet", "b.json"]
    assert local_files([str(tmp_path), str(tmp_path / "missing.jsonl")]) == []
    with pytest.raises(ValueError, match=r"missing.jsonl does not exist"):
        source_state([str(tmp_path / "missing.jsonl")], "train")


def test_a_table_that_datasets_loads_twice_has_one_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub: the same loader, with files of this machine."""
    data = tmp_path / "train.jsonl"
    data.write_text('{"a": 1}\n', encoding="utf-8")
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, split: load("json", data_files=str(data), split=split, cache_dir=tmp_path)
    )
    states = [source_state("owner/name", "train")[0] for _ in range(2)]
    data.write_text('{"a": 22}\n', encoding="utf-8")
    states.append(source_state("owner/name", "train")[0])
    assert states[0] == states[1] != states[2]
    assert source_state("owner/name", "train")[1]()[0] == {"a": 22}
