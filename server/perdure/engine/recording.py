"""The frames of a running attempt on their way into the event log, in batches.

A frame is shown to readers only when it is durable. What is left when the attempt ends goes with
the transaction that ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

from perdure.engine.db import Pool
from perdure.engine.errors import StorageError
from perdure.engine.events import Frame
from perdure.engine.groupcommit import GroupCommit, Write
from perdure.engine.hub import Event, Hub

# The first batch of an attempt begins with its `metadata` frame, which names run and attempt.
STORED_AFTER = """
SELECT seq FROM run_events
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND seq > %(after)s
   AND (%(after)s > 0 OR (event = 'metadata' AND data = %(data)s))
 LIMIT 1
"""


class Recording:
    """The frames of one running attempt, on their way into the log.

    The first frame after silence goes at once, later ones at most `flush_seconds` after they
    were made. A frame is shown to readers only when it is durable.
    """

    def __init__(
        self,
        group: GroupCommit,
        hub: Hub | None,
        thread_id: UUID,
        run_id: UUID,
        fence: int,
        *,
        flush_seconds: float,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._on_broken = on_broken  # called once when no frame can be written any more
        self._group = group
        self._hub = hub
        self._thread_id = thread_id
        self._run_id = run_id
        self._fence = fence
        self._flush_seconds = flush_seconds
        self._frames: list[tuple[int, Frame]] = []
        self._sending: list[tuple[int, Frame]] = []
        self._last_seq = 0
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def add(self, frame: Frame) -> None:
        """Queue a frame."""
        self._frames.append((time.time_ns() // 1_000_000, frame))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"recording {self._run_id}")
            self._task.add_done_callback(self._done)

    async def close(self, pool: Pool) -> list[Frame]:
        """Wait for what is under way; returns the frames that are not stored, for the transaction that ends
        the attempt.

        When the database was lost under a batch, nobody told whether it was stored: this looks.
        Raises LeaseLost, and psycopg.OperationalError while the database cannot be reached.
        """
        self._closing.set()
        if self._task is not None:
            try:
                await self._task
            except StorageError:
                async with pool.connection() as conn:
                    keys = {"thread_id": self._thread_id, "run_id": self._run_id, "after": self._last_seq}
                    row = await (
                        await conn.execute(STORED_AFTER, {**keys, "data": self._sending[0][1].stored()[0]})
                    ).fetchone()
                if row is None:
                    self._frames[:0] = self._sending
                self._sending, self._task = [], None
        left = [frame for _, frame in self._frames]
        self._frames.clear()
        return left

    def _done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._closing.is_set():  # who closes hears of it there
            self._on_broken(error)
        elif self._task is task:
            self._task = None

    async def _run(self) -> None:
        while self._frames and not self._closing.is_set():  # those made last go with the end of the attempt
            await self._flush()
            if self._frames:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), self._flush_seconds)
        self._task = None

    async def _flush(self) -> None:
        self._sending, self._frames = self._frames, []
        rows = [(self._run_id, ms, frame.event, *frame.stored()) for ms, frame in self._sending]
        size = sum(len(row[3] or "") for row in rows)
        base = await self._group.submit(Write(self._thread_id, self._fence, events=rows, size=size))
        self._last_seq = base + len(rows)
        if self._hub is not None:
            numbered = enumerate(self._sending, base + 1)
            events = [Event(seq, ms, self._run_id, frame.event, frame.data) for seq, (ms, frame) in numbered]
            self._hub.publish(self._thread_id, events)
        self._sending = []
