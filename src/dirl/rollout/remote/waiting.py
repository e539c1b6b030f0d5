"""The wait for servers at the start of a run: who is there, who is missing, and why."""

import asyncio
import logging
import time
from collections.abc import Sequence

from dirl.rollout.remote.link import ServerLink, ServerLostError
from dirl.rollout.remote.ranks import rank_of_ranks

log = logging.getLogger(__name__)

FIRST_WORD_S, WORD_S = 1.0, 10.0
"""When a wait for servers says what it waits for: at first, and then every so often."""


async def wait_for(links: Sequence[ServerLink], timeout_s: float) -> None:
    """Wait until all servers are there, or the time is over; ValueError if one can never serve this run."""
    deadline = time.monotonic() + timeout_s
    telling = asyncio.create_task(tell_who_is_missing(links, timeout_s))
    try:
        await asyncio.gather(*(first_check(link, deadline) for link in links))
    finally:
        telling.cancel()


async def tell_who_is_missing(links: Sequence[ServerLink], timeout_s: float) -> None:
    """A line after a second, and then every so many, on the first rank."""
    waited = 0.0
    while True:
        pause = FIRST_WORD_S if not waited else WORD_S
        await asyncio.sleep(pause)
        waited += pause
        missing = "; ".join(f"{link.url}: {link.reason}" for link in links if not link.alive)
        if missing and rank_of_ranks()[0] == 0:
            log.warning("waiting for rollout servers, %.0f of at most %g s: %s", waited, timeout_s, missing)


async def first_check(link: ServerLink, deadline: float) -> None:
    """Wait for a server until the deadline; ValueError if it can never serve this run."""
    while True:
        try:
            await link.check()
        except ServerLostError as error:
            link.reason = str(error)
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(min(1.0, max(deadline - time.monotonic(), 0.05)))
        else:
            link.alive = True
            return
