"""Rows of data from local files or the hub, checked; every row knows the file and line it came from."""

import json
import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]
Message = dict[str, str]
"""`role` and `content`."""

ROLES = ("system", "user", "assistant")
FILE_TYPES = (".json", ".jsonl", ".parquet")
_SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test|eval)(?![A-Za-z0-9])")
_BLANK = re.compile(r"[ \t\r\n]*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


class Rows(Protocol):
    """Rows by index; `where(i)` names the place of row i for error messages, e.g. `train.jsonl:17`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def where(self, index: int) -> str: ...


def read_rows(source: str | Path | Sequence[str | Path], split: str = "train") -> Rows:
    """Open data without holding it: JSON is indexed and read row by row, Parquet is memory-mapped.

    Args:
        source: a .json (list of objects, or one object a line), .jsonl or .parquet file; a folder of such
            files; a list of files and folders; or a hub dataset as `owner/name` or `owner/name:config`.
        split: of a hub dataset. In a folder whose files are named by split (`train.jsonl`,
            `test-00000.parquet`) it chooses the files; a file named directly is read whatever the split.

    Raises:
        ValueError: nothing there, no rows, or a malformed line (with file and line number).
    """
    named = source if isinstance(source, str | Path) else [str(item) for item in source]
    if isinstance(named, str) and not Path(named).expanduser().exists():
        parts: list[Rows] = [_hub_rows(named, split)]
    else:
        sources = named if isinstance(named, list) else [named]
        parts = [_file_rows(path) for item in sources for path in _files(Path(item).expanduser(), split)]
    rows = JoinedRows(parts)
    if len(rows) == 0:
        raise ValueError(f"{_shown(named)} holds no rows; name a source with data")
    return rows


class JoinedRows(Sequence[Row]):
    """The rows of several sources, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Row:
        part, offset = self._find(index)
        return part[offset]

    def where(self, index: int) -> str:
        part, offset = self._find(index)
        return part.where(offset)

    def _find(self, index: int) -> tuple[Rows, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part - 1] if part else 0)


class JsonRows:
    """JSON objects of one file. Only their places are held: 24 bytes a row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts, self.ends, self.lines = array("q"), array("q"), array("q")
        for start, end, line in _list_spans(path) if _is_list(path) else _line_spans(path):
            self.starts.append(start)
            self.ends.append(end)
            self.lines.append(line)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            text = file.read(self.ends[index] - self.starts[index])
        return _object(text, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{self.lines[index]}"


def _is_list(path: Path) -> bool:
    """A .json file may be one list; a .jsonl file is always read by lines."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        first = next((line for line in map(_strip, file) if line), b"")
    return first.startswith(b"[")


def _line_spans(path: Path) -> Iterator[tuple[int, int, int]]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if _strip(line):
                _object(line, f"{path}:{number}")
                yield start, start + len(line), number
            start += len(line)


def _list_spans(path: Path) -> Iterator[tuple[int, int, int]]:
    """Of every object of one JSON list: start and end in bytes, and the line where it starts."""
    with path.open(encoding="latin-1", newline="") as file:  # one character a byte; rows are decoded as UTF-8
        text = file.read()
    decoder = json.JSONDecoder()
    end, line, counted = text.index("["), 1, 0
    start = _skip_blank(text, end + 1)
    more = text[start : start + 1] != "]"
    while more:
        try:
            _, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}; mend the line") from error
        line, counted = line + text.count("\n", counted, start), start
        _object(text[start:end].encode("latin-1"), f"{path}:{line}")
        yield start, end, line
        end = _skip_blank(text, end)
        more = text[end : end + 1] == ","
        start = _skip_blank(text, end + more)
    if text[start : start + 1] != "]" or text[start + 1 :].strip():
        place = f"{path}:{text.count(chr(10), 0, start) + 1}"
        raise ValueError(f"{place}: not JSON: the list must go on with ',' or end the file with ']'; mend the line")


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def _object(text: bytes, where: str) -> Row:
    found = f"found {text[:60].decode('utf-8', 'replace')!r}"
    try:
        value = json.loads(_strip(text).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8, {found}; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.pos + 1}, {found}; mend the line") from error
    if not isinstance(value, dict):
        raise ValueError(f'{where}: a row is an object such as {{"question": "..."}}, {found}; mend or remove the line')
    return value


def _strip(line: bytes) -> bytes:
    return line.removeprefix(b"\xef\xbb\xbf").strip()


class TableRows:
    """Rows of a datasets.Dataset, which is memory-mapped."""

    def __init__(self, table: "datasets.Dataset", name: str) -> None:
        self.table = table
        self.name = name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Row:
        return self.table[index]

    def where(self, index: int) -> str:
        return f"{self.name}: row {index + 1}"


def _file_rows(path: Path) -> Rows:
    return _parquet_rows(path) if path.suffix == ".parquet" else JsonRows(path)


def _parquet_rows(path: Path) -> Rows:
    import datasets
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_metadata(path).num_rows
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file: {error}; write it again or change its suffix") from error
    if rows == 0:
        return JoinedRows([])
    return TableRows(datasets.Dataset.from_parquet(str(path)), str(path))


def _files(path: Path, split: str) -> list[Path]:
    if "[" in split:
        raise ValueError(
            f"split={split!r}: slices are for hub datasets, {path} is local; cut the file or use a plain name"
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a file ({', '.join(FILE_TYPES)}) or a folder of such files")
    if path.is_dir():
        return _files_of_split(path, split)
    if path.suffix not in FILE_TYPES:
        raise ValueError(f"{path}: unknown file type {path.suffix!r}; known are {', '.join(FILE_TYPES)}")
    return [path]


def _files_of_split(folder: Path, split: str) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix in FILE_TYPES)
    if not files:
        raise ValueError(f"{folder} holds no file of type {', '.join(FILE_TYPES)}; found {_names(folder.iterdir())}")
    wanted = [path for path in files if re.match(re.escape(split) + r"(?![A-Za-z0-9])", path.name)]
    neutral = [path for path in files if path not in wanted and not _SPLIT_NAME.match(path.name)]
    if len(neutral) == len(files):
        return files
    if neutral or not wanted:
        raise ValueError(
            f"{folder} cannot be read as split={split!r}: its files are {_names(files)}; "
            "name all of them by split (train.jsonl, test.jsonl) or none, or list the files to read"
        )
    return wanted


def _hub_rows(name: str, split: str) -> Rows:
    local = name.startswith((".", "/", "~")) or Path(name).suffix in (*FILE_TYPES, ".csv", ".txt", ".gz", ".arrow")
    if local or not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} does not exist here and is no hub name (owner/name or owner/name:config); "
            f"correct the path, which is relative to {Path.cwd()}"
        )
    import datasets

    path, _, config = name.partition(":")
    try:
        table = datasets.load_dataset(path, config or None, split=split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no local file or folder, and the hub did not give its split {split!r}: {error}"
        ) from error
    return TableRows(table, f"{name}[{split}]")


def _shown(source: str | Path | list[str]) -> str:
    return _names(map(Path, source)) if isinstance(source, list) else str(source)


def _names(paths: Iterator[Path] | list[Path]) -> str:
    names = sorted(str(path.name) for path in paths)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"


def check_messages(row: Row, where: str) -> list[Message]:
    """The conversation of an SFT row: a system message or none, then user and assistant in turn, assistant last."""
    return _conversation(_column(row, "messages", where), f"{where}: messages", last="assistant")


def check_prompt(
    row: Row, where: str, question_column: str = "question", answer_column: str = "ground_truth_answer"
) -> tuple[str | list[Message], str]:
    """Question (text, or messages that end with the user's) and answer of an RL row; a number becomes its text."""
    question = _column(row, question_column, where)
    if isinstance(question, list):
        question = _conversation(question, f"{where}: {question_column}", last="user")
    elif not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: {question_column}={question!r}; expected a text or a list of messages")
    answer = _column(row, answer_column, where)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f"{where}: {answer_column}={answer!r}; expected a text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"{where}: {answer_column}={answer!r}; expected a finite number or a text")
    return question, str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer)


def _column(row: Row, name: str, where: str) -> Any:
    if name not in row:
        raise ValueError(
            f"{where}: no column {name!r}; the row has {sorted(row)}; rename it or configure the column's name"
        )
    return row[name]


def _conversation(messages: object, where: str, last: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f'{where}={messages!r}; expected a list such as [{{"role": "user", "content": "..."}}, ...]')
    checked = [_message(message, f"{where}[{index}]") for index, message in enumerate(messages)]
    roles = [message["role"] for message in checked]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns[-1] != last or turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise ValueError(
            f"{where}: roles {roles}; expected system or nothing, then user and assistant in turn, "
            f"the last one {last}; reorder, merge or remove messages"
        )
    return checked


def _message(message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f'{where}={message!r}; a message is an object {{"role": ..., "content": ...}}')
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"{where}: role={role!r}; known are {', '.join(ROLES)}; rename or remove it")
    if not isinstance(content, str) or (not content.strip() and role != "system"):
        raise ValueError(f"{where}: content={content!r}; expected a text that is not blank; mend or remove the row")
    other = sorted(key for key, value in message.items() if key not in ("role", "content") and value is not None)
    if other:
        raise ValueError(f"{where}: fields {other} would not be used; put what they say into content or remove them")
    return {"role": role, "content": content}
