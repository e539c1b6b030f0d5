"""The store of a process group of two whose ends already have a connection: no port of its own, so no stranger."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import HashStore, Store


class RelayStore(Store):
    """What this end sets is told to the other end, which puts it into its own (`arrive`).

    torch's TCPStore listens on a port and takes whoever comes; here, keys travel over the connection that the two ends
    have, which has asked for the API key.

    Args:
        tell: send a key and its value to the other end; called in the thread of the process group.
        timeout_s: limit of a wait for a key.
    """

    def __init__(self, tell: Callable[[str, bytes], None], timeout_s: float) -> None:
        super().__init__()
        self._kept = HashStore()
        self._kept.set_timeout(timedelta(seconds=timeout_s))
        self._tell = tell

    def arrive(self, key: str, value: bytes) -> None:
        """Take a value that the other end has set."""
        self._kept.set(key, value)  # type: ignore[arg-type]  # torch's stub says str; bytes are what it takes

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]  # as above
        self._kept.set(key, value)  # type: ignore[arg-type]  # as above
        self._tell(key, value)

    def get(self, key: str) -> bytes:
        return self._kept.get(key)

    def wait(self, *keys_and_timeout: Any) -> None:
        self._kept.wait(*keys_and_timeout)

    def check(self, keys: list[str]) -> bool:
        return self._kept.check(keys)

    def add(self, key: str, amount: int) -> int:
        """Add to a counter that this end alone has."""
        return self._kept.add(key, amount)
