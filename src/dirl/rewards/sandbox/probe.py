"""Tries, in a sandbox, what a sandbox must not allow, and writes what it could do all the same to descriptor 3."""

import json
import os
import socket
import threading
from collections.abc import Callable

HIDDEN = ("/proc/self", "/sys/kernel", "/home", "/var", "/etc/passwd")


def main() -> None:
    tries: dict[str, Callable[[], object]] = {
        "it can open a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "it can write outside of its folder": lambda: open("/file", "w"),  # noqa: SIM115
        "it can start processes without a limit": start_many,
        "it can use memory without a limit": lambda: bytearray(4 << 30),
    }
    found = [f"{path} can be seen" for path in HIDDEN if os.path.exists(path)]
    for name, attempt in tries.items():
        try:
            attempt()
            found.append(name)
        except (OSError, MemoryError, RuntimeError):
            pass  # refused, as it should be
    with open("/tmp/file", "w", encoding="utf-8") as file:
        file.write("what may be written")
    os.write(3, json.dumps(found).encode())


def start_many(count: int = 64) -> None:
    """Start many threads; RuntimeError where these, which count as processes, are limited."""
    over = threading.Event()
    try:
        for _ in range(count):
            threading.Thread(target=over.wait, daemon=True).start()
    finally:
        over.set()
