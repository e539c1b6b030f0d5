"""Rows of every kind of file, and errors that name file and line."""

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest

from dirl.reading.rows import quoted, read_rows

ROWS = [
    {"question": "1+1", "ground_truth_answer": "2"},
    {"question": "Größe? 🙂", "ground_truth_answer": 3},
    {"x": [1, None]},
]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def lines(rows: list[dict[str, Any]], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.jsonl", "\ufeff" + lines(ROWS, "\r\n").rstrip()),
        ("a.json", lines(ROWS)),
        ("a.json", json.dumps(ROWS, ensure_ascii=False)),
        ("a.json", "\ufeff\n" + json.dumps(ROWS, ensure_ascii=False, indent=2) + "\n\n"),
    ],
)
def test_json_in_each_of_its_forms_gives_the_same_rows(name: str, text: str, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / name, text))
    assert [rows[i] for i in range(len(rows))] == ROWS
    assert [rows[i] for i in (-1, 0)] == [ROWS[2], ROWS[0]]
    with pytest.raises(IndexError):
        rows[3]


def test_rows_know_their_line_and_count_blank_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n  \n{"a": 2}\n')
    rows = read_rows(str(path))
    assert [rows.where(i) for i in range(2)] == [f"{path}:1", f"{path}:4"]
    listed = write(tmp_path / "b.json", '[\n{"a": "é"},\n\n{\n"a": 2\n}, {"a": 3}]')
    assert [read_rows(listed).where(i) for i in range(3)] == [f"{listed}:2", f"{listed}:4", f"{listed}:6"]


def test_parquet_rows_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = [{"messages": [{"role": "user", "content": "é"}], "n": 1.5}, {"messages": [], "n": None}]
    datasets.Dataset.from_list(table).to_parquet(path)
    rows = read_rows(path)
    assert [rows[i] for i in range(2)] == table
    assert rows.where(1) == f"{path}: row 2"


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", '{"a": 2}\n{"a": 3}\n')
    write(tmp_path / "a.json", '[{"a": 1}]')
    datasets.Dataset.from_list([{"a": 4}]).to_parquet(tmp_path / "c.parquet")
    write(tmp_path / "README.md", "# not data")
    rows = read_rows(tmp_path)
    assert [rows[i]["a"] for i in range(len(rows))] == [1, 2, 3, 4]
    assert rows.where(2) == f"{tmp_path / 'b.jsonl'}:2"


def test_a_folder_of_splits_never_mixes_them(tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", '{"a": 1}')
    write(tmp_path / "train-1.jsonl", '{"a": 2}')
    write(tmp_path / "test.jsonl", '{"a": 3}')
    assert [read_rows(tmp_path)[i]["a"] for i in range(2)] == [1, 2]
    assert len(read_rows(tmp_path)) == 2
    assert read_rows(tmp_path, "test")[0] == {"a": 3}
    with pytest.raises(ValueError, match=r"split='validation'.*test.jsonl, train-0.jsonl"):
        read_rows(tmp_path, "validation")
    write(tmp_path / "more.jsonl", '{"a": 4}')
    with pytest.raises(ValueError, match="all of them by split"):
        read_rows(tmp_path)


def test_a_list_of_files_keeps_its_order(tmp_path: Path) -> None:
    first, second = write(tmp_path / "z.jsonl", '{"a": 1}'), write(tmp_path / "a.jsonl", '{"a": 2}')
    rows = read_rows([first, str(second)])
    assert [rows[0]["a"], rows[1]["a"], rows.where(1)] == [1, 2, f"{second}:1"]


def test_rows_reach_worker_processes(tmp_path: Path) -> None:
    rows = pickle.loads(pickle.dumps(read_rows(write(tmp_path / "a.jsonl", lines(ROWS)))))
    assert rows[1] == ROWS[1]


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": }\n', 3, 'not JSON: Expecting value at column 7, found \'{"a": }'),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', 2, r"a row is an object .*found '\[1, 2\]"),
        ("a.jsonl", '{"a": 1}\n{"a": 2} {"a": 3}\n', 2, "not JSON: Extra data"),
        ("a.json", '{\n  "a": 1\n}\n', 1, "not JSON"),
        ("a.json", '[{"a": 1},\n "b"]', 2, "a row is an object"),
        ("a.json", '[{"a": 1},\n{"a": \n}]', 3, "not JSON: Expecting value"),
        ("a.json", '[{"a": 1},\n\n', 3, "not JSON: Expecting value"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', 2, "not JSON: the list must go on with ','"),
        ("a.json", '[{"a": 1}]\n\n{"a": 2}', 1, "not JSON: the list must .* end the file with ']'"),
    ],
)
def test_a_malformed_line_is_named(name: str, text: str, line: int, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=f"^{path}:{line}: {message}"):
        list(read_rows(path))


@pytest.mark.parametrize(("name", "before", "line"), [("a.jsonl", b'{"a": 1}\n', 2), ("a.json", b"[\n", 2)])
def test_text_that_is_not_utf8_is_named(name: str, before: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(before + '{"a": "é"}'.encode("latin-1") + (b"]" if name == "a.json" else b""))
    with pytest.raises(ValueError, match=f"{path}:{line}: not UTF-8"):
        list(read_rows(path))


def test_empty_data_names_its_source(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"a": []}).to_parquet(tmp_path / "c.parquet")
    write(tmp_path / "a.jsonl", "\n \n")
    write(tmp_path / "b.json", " [ ] ")
    for path in (*tmp_path.iterdir(), tmp_path):
        with pytest.raises(ValueError, match=f"^{path} holds no rows"):
            read_rows(path)
    with pytest.raises(ValueError, match=r"a.jsonl, b.json holds no rows"):
        read_rows([tmp_path / "a.jsonl", tmp_path / "b.json"])


def test_what_is_no_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no file of type .json, .jsonl, .csv, .parquet; found nothing"):
        read_rows(tmp_path)
    with pytest.raises(ValueError, match=r"unknown file type '.txt'; known are .json, .*with .gz or .zst"):
        read_rows(write(tmp_path / "a.txt", "a,b"))
    with pytest.raises(ValueError, match=r"a.parquet: not a Parquet file"):
        read_rows(write(tmp_path / "a.parquet", "no parquet at all"))
    with pytest.raises(ValueError, match=r"split='train\[:9\]': slices are for hub datasets"):
        read_rows(write(tmp_path / "a.jsonl", '{"a": 1}'), "train[:9]")


@pytest.mark.parametrize("source", ["data/train.jsonl", "./data", "/no/such/folder", "a/b/c", Path("owner/name")])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(
    source: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match=f"{source}'? does not exist"):
        read_rows(source)


def test_a_hub_name_may_name_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None, split: str) -> datasets.Dataset:
        asked.append((path, name, split))
        return datasets.Dataset.from_list([{"question": "1+1"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows("openai/gsm8k:main", "test")
    assert rows[0] == {"question": "1+1"} and rows.where(0) == "openai/gsm8k:main[test]: row 1"
    read_rows("owner/data.v1-5")
    assert asked == [("openai/gsm8k", "main", "test"), ("owner/data.v1-5", None, "train")]


def test_a_hub_that_does_not_answer_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'data/train' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match=r"'data/train' is no local file or folder, and the hub did not .*Couldn't reach"
    ):
        read_rows("data/train")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": "\\ud800"}', r"holds '\\ud800', half of a character"),
        ('{"a": ' + "9" * 5000 + "}", r"not JSON that can be read: Exceeds the limit"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_a_row_must_not_hold_is_an_error_of_its_line(name: str, text: str, found: str, tmp_path: Path) -> None:
    good = '{"a": "\\ud83d\\ude00"}\n'
    whole = f"[{good},{text}]" if name == "a.json" else good + text + "\n" + good
    path = write(tmp_path / name, whole)
    with pytest.raises(ValueError, match=f"^{path}:2: .*{found}") as caught:
        list(read_rows(path))
    assert len(str(caught.value)) < 400


def test_a_bad_line_is_read_around(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": }\n{"a": 3}\n'))
    assert [rows[0], rows[2]] == [{"a": 1}, {"a": 3}]
    with pytest.raises(ValueError, match=r"a\.jsonl:2"):
        rows[1]


@pytest.mark.parametrize(("suffix", "codec"), [(".gz", "gzip"), (".zst", "zstd")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_compressed_files_are_those_that_they_hold(
    name: str, suffix: str, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    text = {"a.jsonl": '{"a": "1"}\n{"a": "2"}\n', "a.json": '[{"a": "1"}, {"a": "2"}]', "a.csv": "a\n1\n2\n"}[name]
    path = tmp_path / "data" / f"{name}{suffix}"
    path.parent.mkdir()

    def pack(content: str) -> None:
        with pyarrow.output_stream(str(path), compression=codec) as file:
            file.write(content.encode())

    pack(text)
    for source in (path, path.parent, path):
        rows = read_rows(source)
        assert list(rows) == [{"a": "1"}, {"a": "2"}] and rows.where(1).startswith(f"{path}:")
    assert len(list((tmp_path / "cache").rglob("*-a.*"))) == 1
    pack(text.replace("2", "23"))
    assert list(read_rows(path)) == [{"a": "1"}, {"a": "23"}]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{path} cannot be unpacked"):
        read_rows(path)


def test_csv_rows_are_texts_and_know_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffquestion,answer\n"two\nlines",007\n"a, b",x\n')
    rows = read_rows(path)
    assert list(rows) == [{"question": "two\nlines", "answer": "007"}, {"question": "a, b", "answer": "x"}]
    assert [rows.where(0), rows.where(1)] == [f"{path}:2", f"{path}:4"]
    assert len(read_rows(write(tmp_path / "long.csv", "a\n" + "x" * 300_000 + "\n"))[0]["a"]) == 300_000
    rows = read_rows(write(tmp_path / "b.csv", "a,b\n1,2\n1,2,3\n1\n"))
    assert rows[0] == {"a": "1", "b": "2"}
    for index in (1, 2):
        with pytest.raises(ValueError, match=f"b.csv:{index + 2}: more or fewer values than the header"):
            rows[index]


def test_what_datasets_saves_is_read(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"a": 1}, {"a": 2}])
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "splits")
    assert list(read_rows(tmp_path / "one")) == [{"a": 1}, {"a": 2}]
    rows = read_rows(tmp_path / "splits", "test")
    assert list(rows) == [{"a": 2}] and rows.where(0) == f"{tmp_path / 'splits'}[test]: row 1"
    with pytest.raises(ValueError, match="has no split 'validation', but train, test"):
        read_rows(tmp_path / "splits", "validation")


def test_a_folder_passes_over_what_is_no_data(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"a": 1}\n')
    for name in ("._a.jsonl", ".b.jsonl", "dataset_info.json", "_c.json"):
        write(tmp_path / name, "no rows")
    write(tmp_path / "README.md", "words")
    assert list(read_rows(tmp_path)) == [{"a": 1}]


def test_values_in_errors_are_cut() -> None:
    assert quoted("a" * 10) == repr("a" * 10)
    assert quoted("a" * 1000, 20) == "'" + "a" * 19 + "... (1002 characters)"
