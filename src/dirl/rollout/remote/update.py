"""One weight update of several servers: each bucket to all of them, a failing one left behind."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
import torch
from jaxtyping import UInt8
from torch import Tensor

from dirl.rollout.remote.cuda_ipc import visible_gpus
from dirl.rollout.remote.link import ServerLink, ServerLostError
from dirl.rollout.remote.weight_messages import Transport
from dirl.rollout.remote.weight_sender import WeightSender
from dirl.rollout.remote.weight_transfer import TensorEntry, dtype_name
from dirl.rollout.remote.wire import Health

BROKEN = (ServerLostError, aiohttp.ClientError, OSError, RuntimeError)
"""What a server that dies in the middle of a push looks like from here; a process group raises RuntimeError."""


@dataclass(frozen=True)
class Verdict:
    """What became of one server; sent to the other ranks of the trainer."""

    health: Health | None
    lost: str | None = None
    """Why it has not the new weights."""
    refused: str | None = None
    """What its engine says against these weights: no server would take them."""


class ServerUpdate:
    """Takes buckets and passes them on; servers that were lost are tried like the others.

    Args:
        links: the servers that this process pushes to.
        dtype: of the engines that the weights are cast for; None: of whichever.
    """

    def __init__(
        self,
        links: Sequence[ServerLink],
        policy_version: int,
        transport: Transport | Literal["auto"],
        timeout_s: float,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.links, self.policy_version, self.transport, self.timeout_s = links, policy_version, transport, timeout_s
        self.dtype = None if dtype is None else dtype_name(dtype)
        self.verdicts: dict[str, Verdict] = {}

    @property
    def open(self) -> list[ServerLink]:
        return [link for link in self.links if link.url not in self.verdicts]

    async def begin(self, device: torch.device) -> None:
        """Find out who is there; `device` is that of the weights."""
        await self._each(self._begin(link, device) for link in self.open)

    async def send(self, entries: list[TensorEntry], flat: UInt8[Tensor, " bytes"]) -> None:
        await self._each(self._guarded(link, link.sender.send(entries, flat)) for link in self.open)

    async def end(self) -> dict[str, Verdict]:
        await self._each(self._guarded(link, link.sender.end()) for link in self.open)
        return self.verdicts | {link.url: Verdict(link.health) for link in self.open}

    async def abort(self) -> None:
        """Give the update up, as the weights broke off on this side."""
        await self._each(link.drop_sender() for link in self.open)

    async def _each(self, steps) -> None:
        await asyncio.gather(*steps)

    async def _begin(self, link: ServerLink, device: torch.device) -> None:
        try:
            health = await link.check()
        except (ServerLostError, ValueError) as error:  # a server that returned with another model stays out
            await self._leave(link, Verdict(None, lost=str(error)))
            return
        if self.dtype is not None and health.dtype != self.dtype:
            reason = f"its engine's dtype is {health.dtype}, this run pushes {self.dtype}: start it with that dtype"
            await self._leave(link, Verdict(None, lost=reason))
            return
        transport = choose_transport(self.transport, device, link.url, health)
        await self._guarded(link, self._open(link, transport, device))

    async def _open(self, link: ServerLink, transport: Transport, device: torch.device) -> None:
        if link.sender is not None and (link.sender.closed or link.sender.transport != transport):
            await link.drop_sender()
        if link.sender is None:
            link.sender = await WeightSender.open(link.session, link.url, transport, device, self.timeout_s)
        await link.sender.begin(link.run, self.policy_version)

    async def _guarded(self, link: ServerLink, step: Awaitable[None]) -> None:
        try:
            await step
        except BROKEN as error:
            await self._leave(link, Verdict(None, lost=f"weight push: {type(error).__name__}: {error}"))
        except ValueError as error:
            await self._leave(link, Verdict(None, refused=f"{error} (says {link.url})"))

    async def _leave(self, link: ServerLink, verdict: Verdict) -> None:
        self.verdicts[link.url] = verdict
        await link.drop_sender()


def choose_transport(wanted: Transport | Literal["auto"], device: torch.device, url: str, health: Health) -> Transport:
    """The fastest way from weights on this device to that server; NCCL is not encrypted, so `auto` keeps from it where
    the url says https."""
    if wanted == "auto":
        if device.type != "cuda" or not health.cuda_devices:
            return "http"
        if visible_gpus()[device.index] in health.cuda_devices and is_local(url):
            return "cuda_ipc"
        return "http" if url.startswith("https:") else "nccl"
    if wanted != "http" and device.type != "cuda":
        raise ValueError(f"engine.transport={wanted}: the trainer's weights are on {device}; use http, or auto")
    return wanted


def is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
