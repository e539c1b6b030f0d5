"""Which run a rollout server works for: one at a time, as long as that run holds a connection for weights.

Two trainers on one server would both call their weights version 5, and each would sample from the other's.
"""

import os
import socket
import uuid


def run_name() -> str:
    """A name that no other run has and that tells a person where it is: `HOST:PID-DIGITS`."""
    return f"{socket.gethostname()}:{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Lease:
    """Held by a run through its connections; free when the last of them is closed."""

    def __init__(self) -> None:
        self.run: str | None = None
        """Who has it, or had it last: until another takes it, the weights are that run's."""
        self._holders: set[object] = set()

    @property
    def holder(self) -> str | None:
        """The run that the server works for, and that no other may push out."""
        return self.run if self._holders else None

    def take(self, run: str, connection: object) -> None:
        """LeaseError, which names the holder, where that is another run."""
        if refusal := self.refusal(run):
            raise LeaseError(refusal)
        self.run = run
        self._holders.add(connection)

    def refusal(self, run: str) -> str | None:
        """Why this run may not push now; None if it may."""
        return None if self.holder in (None, run) else busy(self.holder)

    def give_back(self, connection: object) -> None:
        self._holders.discard(connection)


class LeaseError(Exception):
    """Raised where the server works for another run."""


def busy(run: str) -> str:
    return f"it works for another run ({run}), and is free when that ends; give each run servers of its own"
