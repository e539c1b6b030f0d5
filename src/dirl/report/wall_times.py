"""When a run was at which step, read from the times of TensorBoard's event files."""

import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

Clock = tuple[list[int], list[float]]
"""Steps in order, and at each the seconds that the run had worked until then."""

WALL_TIME, STEP = 0x09, 0x10
"""Tags of an event's first two fields: a double, and a whole number in base 128."""


def clock_of(folders: list[Path]) -> Clock:
    """The clock of one run's starts, in their order: what a killed one did beyond its checkpoint counts once."""
    steps: list[int] = []
    seconds: list[float] = []
    for folder in folders:
        first, last_at = _times(folder)
        if steps:
            last_at.pop(0, None)  # settings, which each start writes at step 0
        if not last_at:
            continue
        kept = bisect_left(steps, min(last_at))
        del steps[kept:], seconds[kept:]
        before = seconds[-1] if seconds else 0.0
        for step, time in sorted(last_at.items()):
            if steps and step <= steps[-1]:
                continue
            steps.append(step)
            seconds.append(max(before + time - first, before, *seconds[-1:]))  # an epoch's values come after its steps
    return steps, seconds


def _times(folder: Path) -> tuple[float, dict[int, float]]:
    """When the first event of a folder was written, and the last of each step."""
    first, last_at = float("inf"), dict[int, float]()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for time, step in _events(path):
            if time < first:
                first = time  # of the file's head
            else:
                last_at[step] = max(time, last_at.get(step, time))
    return first, last_at


def _events(path: Path) -> Iterator[tuple[float, int]]:
    """Time and step of each record; one that is cut off, as a killed run leaves it, is the end.

    A record is its length (8 bytes), a checksum (4), an Event of TensorBoard's protocol, and a checksum (4). Only the
    first two fields are read, and nothing of a run of hundreds of thousands of events is decoded.
    """
    data = path.read_bytes()
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        record = data[place + 12 : place + 12 + length]
        place += 16 + length
        if len(record) < length or length < 9 or record[0] != WALL_TIME:
            return
        (time,) = struct.unpack_from("<d", record, 1)
        yield time, _number(record, 10) if len(record) > 10 and record[9] == STEP else 0


def _number(record: bytes, place: int) -> int:
    value = shift = 0
    while place < len(record):
        value |= (record[place] & 0x7F) << shift
        if record[place] < 0x80:
            return value
        place, shift = place + 1, shift + 7
    return value
