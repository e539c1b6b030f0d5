"""A log folder for each start of a run, also where two start at once."""

import re
from pathlib import Path


def claim(logs: Path) -> int:
    """Make `logs/version_N` with the next free N, which is returned; nobody else gets the same.

    Making a folder that must not exist is atomic, on network file systems too.
    """
    logs.mkdir(parents=True, exist_ok=True)
    taken = (re.fullmatch(r"version_(\d+)", path.name) for path in logs.iterdir())
    number = max((int(found[1]) for found in taken if found), default=-1) + 1
    while True:
        try:
            (logs / f"version_{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return number
