"""What tests of servers share."""

from collections.abc import Callable, Iterator

import pytest
from tests.unit.rollout.serving import ThreadServer

from dirl.rollout import ServerEngine


@pytest.fixture
def stop() -> Iterator[Callable]:
    """Registers servers and clients to be closed after the test."""
    opened: list[ThreadServer | ServerEngine] = []

    def register(thing: ThreadServer | ServerEngine):
        opened.append(thing)
        return thing

    yield register
    for thing in reversed(opened):
        thing.close() if isinstance(thing, ServerEngine) else thing.stop()
