"""Who is waiting for the events of which thread, in this process.

The process that runs a graph hands its events to its own readers from memory; other
processes learn by NOTIFY that there is something to read. Both only wake readers up: what
is true stands in `run_events`, and a reader that was fed with a gap reads it from there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

BACKLOG = 1000  # events kept for a slow reader; beyond that it reads from the table


@dataclass(frozen=True, slots=True)
class Event:
    """One frame of a stream. `data` is JSON without line breaks; `ms` is when it was made (Unix time)."""

    seq: int
    ms: int
    run_id: UUID
    event: str
    data: bytes

    @property
    def id(self) -> str:
        """The id on the wire, unique and increasing within a thread."""
        return f"{self.ms}-{self.seq}"


class Subscription:
    """The mailbox of one reader. Used on the hub's event loop only."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._events: deque[Event] = deque()
        self.must_read = True  # something may stand in the table that was not handed over

    def put(self, events: list[Event]) -> None:
        if len(self._events) + len(events) > BACKLOG:
            self._events.clear()
            self.must_read = True
        else:
            self._events.extend(events)
        self._wake.set()

    def poke(self) -> None:
        self.must_read = True
        self._wake.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for news, at most `seconds`; False if there was none."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def take(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events


class Hub:
    """Readers by thread; belongs to the event loop that made it, `publish` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._readers: dict[UUID, set[Subscription]] = {}
        self._watchers: set[Subscription] = set()
        self.changed_at = 0.0  # Unix time of the last news

    @contextmanager
    def subscribe(self, thread_id: UUID) -> Iterator[Subscription]:
        reader = Subscription()
        readers = self._readers.setdefault(thread_id, set())
        readers.add(reader)
        try:
            yield reader
        finally:
            readers.discard(reader)
            if not readers:
                self._readers.pop(thread_id, None)

    @contextmanager
    def watch(self, thread_id: UUID | None = None) -> Iterator[Subscription]:
        """Whether anything happens, on one thread or on any; such a reader is woken and handed no events."""
        if thread_id is not None:
            with self.subscribe(thread_id) as reader:
                yield reader
            return
        reader = Subscription()
        self._watchers.add(reader)
        try:
            yield reader
        finally:
            self._watchers.discard(reader)

    def publish(self, thread_id: UUID, events: list[Event]) -> None:
        """Hand committed events to the readers of this process."""
        try:
            self._loop.call_soon_threadsafe(self._put, thread_id, events)
        except RuntimeError:  # the loop has been closed: nobody reads any more
            return

    def poke(self, thread_id: UUID) -> None:
        """There is something in the table for the readers of this thread."""
        self.changed_at = time.time()
        for reader in (*self._readers.get(thread_id, ()), *self._watchers):
            reader.poke()

    def poke_all(self) -> None:
        """Notifications may have been lost: every reader looks for itself."""
        self.changed_at = time.time()
        for readers in self._readers.values():
            for reader in readers:
                reader.poke()
        for reader in self._watchers:
            reader.poke()

    def _put(self, thread_id: UUID, events: list[Event]) -> None:
        self.changed_at = time.time()
        for reader in self._readers.get(thread_id, ()):
            reader.put(events)
        for reader in self._watchers:
            reader.poke()
