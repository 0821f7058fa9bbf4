"""A loop that says to other servers what rows ask for: claims what is due, a few at a time to each host.

It wakes when it is told that there is something new, or when the next row is due.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import psycopg
import structlog
from psycopg_pool import PoolTimeout

log = structlog.get_logger(__name__)

SLOTS = 64  # tries of one process at a time
POLL_SECONDS = 2.0  # how long a lost notification can delay a row
CONTENDED_SECONDS = 0.05  # another process is claiming what is due: look again then
GRACE_SECONDS = 1.0  # for tries under way when the worker stops


class Row(Protocol):
    """What was claimed; few are sent to one `host` at a time."""

    @property
    def host(self) -> str: ...


T = TypeVar("T", bound=Row)


class Outbox(Generic[T]):
    """The due rows of one table, on one event loop.

    `claim(limit=…, busy=hosts)` takes rows, `next_due(busy=hosts)` says in how many seconds there are some,
    and `send` tries one, bounded in time, and notes the outcome itself.
    """

    def __init__(
        self,
        name: str,
        *,
        host_slots: int,
        claim: Callable[..., Awaitable[Sequence[T]]],
        next_due: Callable[..., Awaitable[float | None]],
        send: Callable[[T], Awaitable[None]],
    ) -> None:
        self.name = name
        self._host_slots = host_slots
        self._claim_rows = claim
        self._next_due = next_due
        self._send = send
        self._tasks: dict[asyncio.Task[None], str] = {}  # and the host that each is sending to
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be something to claim, or it is time to stop; on the outbox's loop."""
        self._wake.set()

    def told(self, payload: str) -> None:
        """A notification has come; on the outbox's loop."""
        self._wake.set()

    async def serve(self, stopping: Callable[[], bool]) -> None:
        """Send what is due until `stopping`; returns when the tries under way have ended, or after a short grace."""
        while not stopping():
            wait = POLL_SECONDS
            self._wake.clear()
            try:
                wait = await self._claim()
            except (psycopg.Error, PoolTimeout) as exc:
                log.warning("cannot claim, trying again", what=self.name, error=str(exc).strip())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
        await self._finish()

    async def _claim(self) -> float:
        """Start to send what is due; returns how long to wait for news."""
        free = SLOTS - len(self._tasks)
        if free <= 0:
            return POLL_SECONDS
        busy = [host for host, n in Counter(self._tasks.values()).items() if n >= self._host_slots]
        claimed = await self._claim_rows(limit=free, busy=busy)
        for row in claimed:
            task: asyncio.Task[None] = asyncio.ensure_future(self._one(row))
            self._tasks[task] = row.host
            task.add_done_callback(self._done)
        if claimed:
            return 0.0
        seconds = await self._next_due(busy=busy)
        return POLL_SECONDS if seconds is None else min(POLL_SECONDS, max(CONTENDED_SECONDS, seconds))

    async def _one(self, row: Any) -> None:
        await self._send(row)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (exc := task.exception()):
            log.error("a try broke", what=self.name, exc_info=exc)
        self._wake.set()

    async def _finish(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_SECONDS)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
