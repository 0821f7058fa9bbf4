"""The event log of a thread: table `run_events`.

Every frame that a client may see is a row with a number (`seq`) that grows by one per
thread. `append` adds frames in the transaction that changes a status, `recording` those of a
running attempt, in batches; `follow` replays what is stored and then goes on live, so a
reader may leave and come back with its last event id, at any replica.

State is not stored twice: a large `values` frame of the root graph refers to its checkpoint
and is read from there when it is replayed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

import orjson

from perdure.engine import state
from perdure.engine.db import Conn
from perdure.engine.errors import RunNotFound, ThreadNotFound
from perdure.engine.hub import Event, Subscription
from perdure.engine.jsonable import dumps

if TYPE_CHECKING:
    from perdure.engine.core import Engine

PROTOCOL = "protocol/"  # rows for readers of the event protocol only begin so
STATE = PROTOCOL + "values"  # its state is read when somebody asks for it (`data_of`)
INLINE_BYTES = 2048  # `values` up to this size are stored as they are
PAGE = 500
POLL_SECONDS = 10.0  # how long a lost notification can delay a reader
FINAL = ("success", "error", "timeout", "interrupted")


class Frame(NamedTuple):
    """What goes to a reader. With `checkpoint_id`, `data` is that checkpoint's state (plus `__interrupt__`).

    Of a `STATE` frame `data` is empty: only its checkpoint is known.
    """

    event: str
    data: bytes
    checkpoint_id: str | None = None

    @classmethod
    def of(cls, event: str, data: Any) -> Frame:
        return cls(event, dumps(data))

    def stored(self) -> tuple[str | None, str | None]:
        """The columns `data` and `checkpoint_id`: a large state is not stored again."""
        if self.checkpoint_id and (len(self.data) > INLINE_BYTES or not self.data):
            return _interrupt_only(self.data), self.checkpoint_id
        return self.data.decode(), None


APPEND = """
WITH taken AS (
    UPDATE threads SET event_seq = event_seq + %(count)s WHERE thread_id = %(thread_id)s
    RETURNING thread_id, event_seq - %(count)s AS base, event_seq
), added AS (
    INSERT INTO run_events (thread_id, seq, run_id, at, event, data, checkpoint_id)
    SELECT taken.thread_id, taken.base + f.n, %(run_id)s, to_timestamp(%(ms)s / 1000.0),
           f.event, f.data, f.checkpoint_id
      FROM taken, unnest(%(events)s::text[], %(data)b::text[], %(checkpoint_ids)s::text[])
           WITH ORDINALITY AS f(event, data, checkpoint_id, n)
)
SELECT base, pg_notify('perdure_events', thread_id || ' ' || event_seq || ' -') FROM taken
"""


async def append(conn: Conn, thread_id: UUID, run_id: UUID, frames: list[Frame]) -> list[Event]:
    """Add frames in the caller's transaction, which owns the thread's row.

    Readers elsewhere are notified when the caller commits; the returned events may be given
    to the hub after that. Raises ThreadNotFound.
    """
    ms = time.time_ns() // 1_000_000
    columns = [frame.stored() for frame in frames]
    params = {
        "thread_id": thread_id,
        "run_id": run_id,
        "ms": ms,
        "count": len(frames),
        "events": [frame.event for frame in frames],
        "data": [data for data, _ in columns],
        "checkpoint_ids": [checkpoint_id for _, checkpoint_id in columns],
    }
    row = await (await conn.execute(APPEND, params)).fetchone()
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return [Event(row["base"] + n, ms, run_id, frame.event, frame.data) for n, frame in enumerate(frames, 1)]


def _interrupt_only(data: bytes) -> str | None:
    if b'"__interrupt__"' not in data:
        return None
    found = orjson.loads(data)
    return dumps({"__interrupt__": found["__interrupt__"]}).decode() if "__interrupt__" in found else None


async def follow(
    engine: Engine, thread_id: UUID, run_id: UUID, *, after: int | None = None
) -> AsyncIterator[Event | None]:
    """Events of a run with `seq > after`, in order; ends when the run's status is final.

    Replays what is stored, then waits for more; yields None after every
    `heartbeat_seconds` of silence. Without `after`: from the run's first event. Holds no
    connection while it waits.

    Raises RunNotFound at the first event.
    """
    with engine.hub.subscribe(thread_id) as reader:
        first, final = await _run_position(engine, thread_id, run_id)
        async for event in _tail(engine, reader, thread_id, max(first, after or 0), run_id=run_id, ended=final):
            yield event


async def follow_thread(
    engine: Engine, thread_id: UUID, *, after: int | None = None, expected: bool = False, states: bool = True
) -> AsyncIterator[Event | None]:
    """Events of all runs of a thread with `seq > after` (None: from now on); ends only when the thread is deleted.

    `expected`: the thread may not exist yet; waits for it. Otherwise raises ThreadNotFound at
    the first event. `states`: see `stored`.
    """
    with engine.hub.subscribe(thread_id) as reader:
        while (last := await _position(engine, thread_id)) is None:
            if not expected:
                raise ThreadNotFound(f"Thread with ID {thread_id} not found")
            if not await reader.wait(engine.settings.heartbeat_seconds):
                yield None
        reader.poke()
        async for event in _tail(engine, reader, thread_id, last if after is None else after, states=states):
            yield event


async def ended(engine: Engine, thread_id: UUID, run_id: UUID) -> AsyncIterator[None]:
    """Yields None after every `heartbeat_seconds` and stops when the run's status is final.

    Raises RunNotFound at once when there is no such run, and when it is deleted meanwhile.
    """
    heartbeat = engine.settings.heartbeat_seconds
    with engine.hub.subscribe(thread_id) as reader:
        beat_at = time.monotonic() + heartbeat
        look = True
        while True:
            if look and (await _run_position(engine, thread_id, run_id))[1]:
                return
            reader.must_read = False
            woken = await reader.wait(max(0.0, beat_at - time.monotonic()))
            news = reader.take()
            look = not woken or reader.must_read or any(_ends(event, run_id) for event in news)
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + heartbeat
                yield None


def _ends(event: Event, run_id: UUID | None) -> bool:
    """Whether this frame is the last one of the run: written in the transaction that ends it."""
    return event.run_id == run_id and event.event == "lifecycle" and b'"final":true' in event.data


async def _tail(
    engine: Engine,
    reader: Subscription,
    thread_id: UUID,
    last: int,
    *,
    run_id: UUID | None = None,
    ended: bool = False,
    states: bool = True,
) -> AsyncIterator[Event | None]:
    """Deliver events after `last` in order: from the table where there is a gap, else from memory.

    With `run_id`: only that run's, until its last one; `ended` says that it is stored already.
    """
    heartbeat = engine.settings.heartbeat_seconds
    silent_since = looked_at = time.monotonic()
    while True:
        live = reader.take()
        if reader.must_read or (live and live[0].seq > last + 1):
            reader.must_read = False
            looked_at = time.monotonic()
            news = False
            async for event in stored(engine, thread_id, last, states=states):
                news = True
                last = event.seq
                if run_id is None or event.run_id == run_id:
                    silent_since = time.monotonic()
                    yield event
                    if _ends(event, run_id) and await _is_over(engine, thread_id, event):
                        return
            if not news and not live and not ended:  # poked for nothing: has it all been deleted?
                try:
                    ended = await _gone_or_ended(engine, thread_id, run_id)
                except (RunNotFound, ThreadNotFound):
                    return
                if ended:
                    reader.must_read = True  # its last events have come since
                    continue
        for event in live:
            if event.seq > last + 1:
                reader.must_read = True
                break
            if event.seq <= last:
                continue
            last = event.seq
            if run_id is None or event.run_id == run_id:
                silent_since = time.monotonic()
                yield event
                if _ends(event, run_id) and await _is_over(engine, thread_id, event):
                    return
        if ended:
            return
        if reader.must_read:
            continue
        if await reader.wait(max(0.0, silent_since + heartbeat - time.monotonic())):
            continue
        silent_since = time.monotonic()
        yield None
        if time.monotonic() - looked_at >= POLL_SECONDS:
            reader.must_read = True


async def _is_over(engine: Engine, thread_id: UUID, event: Event) -> bool:
    """A paused run's stream ends, unless the run has been resumed since."""
    if b'"event":"paused"' not in event.data:
        return True
    try:
        return (await _run_position(engine, thread_id, event.run_id))[1]
    except RunNotFound:
        return True


async def _gone_or_ended(engine: Engine, thread_id: UUID, run_id: UUID | None) -> bool:
    """Whether the run has ended. Raises RunNotFound or ThreadNotFound when there is nothing to follow any more."""
    if run_id is None:
        await position(engine, thread_id)
        return False
    return (await _run_position(engine, thread_id, run_id))[1]


STORED = """
SELECT seq, run_id, (extract(epoch FROM at) * 1000)::bigint AS ms, event, data, checkpoint_id
  FROM run_events
 WHERE thread_id = %(thread_id)s AND seq > %(after)s
 ORDER BY seq
 LIMIT %(page)s
"""


async def stored(engine: Engine, thread_id: UUID, after: int, *, states: bool = True) -> AsyncIterator[Event]:
    """What the table holds after a seq, page by page; a connection is held per page only.

    Without `states`, events whose state stands in a checkpoint come as they are stored: with no data,
    or with the questions only. `data_of` reads one.
    """
    while True:
        async with engine.pool.connection() as conn:
            cursor = await conn.execute(STORED, {"thread_id": thread_id, "after": after, "page": PAGE})
            rows = await cursor.fetchall()
        for row in rows:
            after = row["seq"]
            lazy = row["event"] == STATE or (not states and row["checkpoint_id"])
            data = (row["data"] or "").encode() if lazy else await _data(engine, thread_id, row)
            yield Event(row["seq"], row["ms"], row["run_id"], row["event"], data)
        if len(rows) < PAGE:
            return


async def _data(engine: Engine, thread_id: UUID, row: dict[str, Any]) -> bytes:
    data = row["data"].encode() if row["data"] is not None else b"{}"
    if not row["checkpoint_id"]:
        return data
    snapshot = await state.read(engine, thread_id, checkpoint_id=row["checkpoint_id"])
    extra: dict[str, Any] = orjson.loads(data)
    values: Any = snapshot["values"]
    return dumps({**cast("dict[str, Any]", values), **extra} if isinstance(values, dict) else values)


ONE = "SELECT data, checkpoint_id FROM run_events WHERE thread_id = %(thread_id)s AND seq = %(seq)s"


async def data_of(engine: Engine, thread_id: UUID, seq: int) -> bytes:
    """The data of one event, read from the table; `{}` if it has been deleted."""
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(ONE, {"thread_id": thread_id, "seq": seq})).fetchone()
    return await _data(engine, thread_id, row) if row else b"{}"


NAMED = """
SELECT seq, run_id, (extract(epoch FROM at) * 1000)::bigint AS ms, event, data
  FROM run_events
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND split_part(event, '|', 1) = ANY(%(names)s)
   AND (%(before)s::bigint IS NULL OR seq < %(before)s)
 ORDER BY seq
"""


async def named(
    engine: Engine, thread_id: UUID, run_id: UUID, names: list[str], *, before: int | None = None
) -> list[Event]:
    """A run's stored events of some names, whatever their namespace."""
    async with engine.pool.connection() as conn:
        params = {"thread_id": thread_id, "run_id": run_id, "names": names, "before": before}
        rows = await (await conn.execute(NAMED, params)).fetchall()
    return [Event(row["seq"], row["ms"], row["run_id"], row["event"], (row["data"] or "{}").encode()) for row in rows]


# the text is matched, not parsed: an error's message may hold what JSONB refuses
LIFECYCLE_BEFORE = """
SELECT substring(data FROM '^{"event":"([^"]+)"') AS event FROM run_events
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND seq < %(seq)s AND event = 'lifecycle'
   AND substring(data FROM '^{"event":"([^"]+)"') = ANY(%(names)s)
 ORDER BY seq DESC LIMIT 1
"""


async def lifecycle_before(engine: Engine, thread_id: UUID, event: Event, names: list[str]) -> str | None:
    """The newest of these states that the event's run was in before it."""
    async with engine.pool.connection() as conn:
        params = {"thread_id": thread_id, "run_id": event.run_id, "seq": event.seq, "names": names}
        row = await (await conn.execute(LIFECYCLE_BEFORE, params)).fetchone()
    return row["event"] if row else None


ASKED = """
SELECT EXISTS (SELECT 1 FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
                  AND (kwargs ->> 'protocol')::bool)
    OR EXISTS (SELECT 1 FROM interrupts WHERE thread_id = %(thread_id)s AND interrupt_id = %(interrupt_id)s
                  AND status = 'open') AS asked
"""


async def is_asked(engine: Engine, thread_id: UUID, event: Event, interrupt_id: str) -> bool:
    """Whether a question is still open, or its run keeps all its events, which tell that it is not."""
    async with engine.pool.connection() as conn:
        params = {"thread_id": thread_id, "run_id": event.run_id, "interrupt_id": interrupt_id}
        row = await (await conn.execute(ASKED, params)).fetchone()
    return bool(row and row["asked"])


RUN_POSITION = "SELECT first_seq, status FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s"


async def _run_position(engine: Engine, thread_id: UUID, run_id: UUID) -> tuple[int, bool]:
    """The seq before a run's first event, and whether its status is final (paused counts)."""
    async with engine.pool.connection() as conn:
        cursor = await conn.execute(RUN_POSITION, {"thread_id": thread_id, "run_id": run_id})
        row = await cursor.fetchone()
    if row is None:
        raise RunNotFound(f"Run with ID {run_id} not found")
    return row["first_seq"], row["status"] in FINAL or row["status"] == "paused"


THREAD_POSITION = "SELECT event_seq FROM threads WHERE thread_id = %(thread_id)s"


async def position(engine: Engine, thread_id: UUID) -> int:
    """The seq of the thread's newest event. Raises ThreadNotFound."""
    seq = await _position(engine, thread_id)
    if seq is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return seq


async def _position(engine: Engine, thread_id: UUID) -> int | None:
    async with engine.pool.connection() as conn:
        cursor = await conn.execute(THREAD_POSITION, {"thread_id": thread_id})
        row = await cursor.fetchone()
    return row["event_seq"] if row else None
