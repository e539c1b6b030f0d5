"""Rows of a JSON file, a list or one object a line, of which only the places are held."""

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\r\n]*")


class JsonRows:
    """JSON objects of one file. Only their places are held: 24 bytes a row.

    Args:
        name: of the file in messages, where it was unpacked from another.
    """

    def __init__(self, path: Path, name: Path | None = None) -> None:
        self.path, self.name = path, name or path
        self.starts, self.ends, self.lines = array("q"), array("q"), array("q")
        for start, end, line in _list_spans(path, self.name) if _is_list(path) else _line_spans(path):
            self.starts.append(start)
            self.ends.append(end)
            self.lines.append(line)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            text = file.read(self.ends[index] - self.starts[index])
        return _object(text, self.where(index))

    def where(self, index: int) -> str:
        return f"{self.name}:{self.lines[index]}"


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
                yield start, start + len(line), number
            start += len(line)


def _list_spans(path: Path, name: Path) -> Iterator[tuple[int, int, int]]:
    """Start and end of every object of one JSON list, in bytes, and the line where it starts."""
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
            raise ValueError(f"{name}:{error.lineno}: not JSON: {error.msg}; mend the line") from error
        except (ValueError, RecursionError) as error:
            place = f"{name}:{text.count(chr(10), 0, start) + 1}"
            raise ValueError(f"{place}: not JSON that can be read: {_reason(error)}; mend the line") from error
        line, counted = line + text.count("\n", counted, start), start
        yield start, end, line
        end = _skip_blank(text, end)
        more = text[end : end + 1] == ","
        start = _skip_blank(text, end + more)
    if text[start : start + 1] != "]" or text[start + 1 :].strip():
        place = f"{name}:{text.count(chr(10), 0, start) + 1}"
        raise ValueError(f"{place}: not JSON: the list must go on with ',' or end the file with ']'; mend the line")


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def _object(text: bytes, where: str) -> dict[str, Any]:
    found = f"found {text[:60].decode('utf-8', 'replace')!r}"
    try:
        value = json.loads(_strip(text).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8, {found}; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.pos + 1}, {found}; mend the line") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON that can be read: {_reason(error)}, {found}; mend the line") from error
    if _SURROGATE.search(text):
        _check_unicode(value, where)
    if not isinstance(value, dict):
        raise ValueError(f'{where}: a row is an object such as {{"question": "..."}}, {found}; mend or remove the line')
    return value


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _check_unicode(value: object, where: str) -> None:
    """Half of a surrogate pair is no character: tokenizers raise on it."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{where}: holds {half!r}, half of a character; mend or remove the text") from error


def _strip(line: bytes) -> bytes:
    return line.removeprefix(b"\xef\xbb\xbf").strip()
