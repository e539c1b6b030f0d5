"""One rollout over several servers: results matched by id, the work of a lost server given to the others."""

import asyncio
import itertools
import math
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from dirl.rollout.engine import EnginesLostError
from dirl.rollout.remote.link import ServerLink, ServerLostError
from dirl.rollout.remote.wire import Call
from dirl.types import DecodingParams, GenerationRequest, Trajectory

TICK_S = 0.25
"""How soon room that another rollout of this process left on a server is found."""


class Dispatch:
    """Gives every request to some server and every trajectory to `deliver`, once.

    Args:
        in_flight: requests that one server may have at a time.
    """

    def __init__(
        self,
        links: Sequence[ServerLink],
        requests: Sequence[GenerationRequest],
        decoding: DecodingParams,
        policy_version: int,
        in_flight: int,
        deliver: Callable[[Trajectory], None],
    ) -> None:
        self.links, self.decoding, self.policy_version, self.in_flight = links, decoding, policy_version, in_flight
        self.deliver = deliver
        run = uuid.uuid4().hex[:12]
        self.pending = deque((f"{run}-{i}", request) for i, request in enumerate(requests))
        self.unanswered = len(requests)
        self.calls: set[asyncio.Task] = set()
        self.failure: ValueError | None = None
        self.changed = asyncio.Event()

    async def run(self) -> None:
        """Return when all is answered; EnginesLostError if no server is left, ValueError if a request is wrong."""
        try:
            while self.unanswered:
                self.changed.clear()
                self._fill()
                if not any(link.alive for link in self.links):
                    raise engines_lost(self.links)
                await self._wait()
                if self.failure is not None:
                    raise self.failure
        finally:
            for call in self.calls:
                call.cancel()
            await asyncio.gather(*self.calls, return_exceptions=True)

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self.changed.wait()

    def _fill(self) -> None:
        """Start calls, the server with the least to do first, until none has room."""
        started = True
        while self.pending and started:
            started = False
            for link in sorted((link for link in self.links if link.alive), key=lambda link: link.in_flight):
                if count := self._share(link):
                    self._start(link, dict(self.pending.popleft() for _ in range(count)))
                    started = True
                    break

    def _share(self, link: ServerLink) -> int:
        """How many of the pending requests this server gets now.

        A concurrent engine: the samples of one prompt, so that the end of the rollout is spread evenly. An engine
        that works on one call at a time: its share of all that is left, to have as large a batch as possible.
        """
        room = self.in_flight - link.in_flight
        if not link.health.concurrent:
            alive = sum(other.alive for other in self.links)
            return 0 if link.in_flight else min(room, math.ceil(len(self.pending) / alive))
        first = self.pending[0][1].prompt_id
        group = sum(1 for _ in itertools.takewhile(lambda item: item[1].prompt_id == first, self.pending))
        return min(group, room) if group <= room or not link.in_flight else 0

    def _start(self, link: ServerLink, requests: dict[str, GenerationRequest]) -> None:
        link.in_flight += len(requests)
        task = asyncio.create_task(self._call(link, requests))
        for calls in (self.calls, link.calls):
            calls.add(task)
            task.add_done_callback(calls.discard)

    async def _call(self, link: ServerLink, requests: dict[str, GenerationRequest]) -> None:
        call = Call(link.health.instance, link.run, self.policy_version, dict(requests), self.decoding)
        try:
            await link.generate(call, lambda i, trajectory: self._take(link, requests, i, trajectory))
            if requests:
                raise ServerLostError(f"it left out {len(requests)} of {len(call.requests)} trajectories")
        except ServerLostError as error:
            link.lose(str(error))
        except ValueError as error:
            self.failure = error
        finally:
            link.in_flight -= len(requests)
            self.pending.extendleft(reversed(requests.items()))
            self.changed.set()

    def _take(
        self, link: ServerLink, requests: dict[str, GenerationRequest], i: str | None, trajectory: Trajectory
    ) -> None:
        """Accept the answer to a request of this call; what is not one means that the server is out of order."""
        if i is None or (request := requests.get(i)) is None:
            raise ServerLostError(f"it answered request {i!r}, which was not asked of it or has been answered")
        if (trajectory.key, trajectory.prompt_ids) != ((request.prompt_id, request.sample_index), request.prompt_ids):
            raise ServerLostError(f"it answered {request.prompt_id}#{request.sample_index} with another prompt")
        if trajectory.policy_version != self.policy_version:
            raise ServerLostError(
                f"it sampled with policy_version {trajectory.policy_version}, asked for was {self.policy_version}"
            )
        try:
            trajectory.check(link.spec)
        except ValueError as error:
            raise ServerLostError(str(error)) from error
        del requests[i]
        link.in_flight -= 1
        self.unanswered -= 1
        self.deliver(trajectory)
        self.changed.set()


def engines_lost(links: Sequence[ServerLink]) -> EnginesLostError:
    reasons = "; ".join(f"{link.url}: {link.reason}" for link in links)
    return EnginesLostError(
        f"no rollout server is left ({reasons}). Start them again (lightning run serve), see that this host reaches "
        "them, and resume the run from its last checkpoint"
    )
