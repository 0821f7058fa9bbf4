"""Threads: table `threads`, apart from what belongs to the queue.

A thread's values are not stored here: they are read from its newest checkpoint
(`perdure.engine.state`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, LiteralString, cast
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from perdure.engine import children, webhooks
from perdure.engine.access import Within
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import InvalidInput, ThreadBusy, ThreadExists, ThreadNotFound
from perdure.engine.tracing import rows as traces
from perdure.engine.ttl import COLUMN as TTL
from perdure.engine.ttl import Ttl, configured

if TYPE_CHECKING:
    from perdure.engine.core import Engine

COLUMNS: LiteralString = (
    "thread_id, created_at, updated_at, state_updated_at, metadata, config, status, interrupts, error"
)
SORT = ("thread_id", "status", "created_at", "updated_at", "state_updated_at")

# A stateless run's thread is there for its run only.
VISIBLE: LiteralString = "NOT (temporary AND status <> 'busy' AND expires_at IS NOT NULL)"


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """The wire's shape: `interrupts` and `error` are absent before the first run."""
    if row["interrupts"] is None:
        del row["interrupts"], row["error"]
    return row


CREATE: LiteralString = (
    """
INSERT INTO threads (thread_id, metadata, temporary, ttl, ttl_strategy)
VALUES (%(thread_id)s, %(metadata)s, %(temporary)s, make_interval(secs => %(minutes)s::float8 * 60), %(strategy)s)
ON CONFLICT (thread_id) DO NOTHING RETURNING """
    + COLUMNS
)


async def create(
    engine: Engine,
    *,
    thread_id: UUID | None = None,
    metadata: dict[str, Any] | None = None,
    if_exists: Literal["raise", "do_nothing"] = "raise",
    ttl: Ttl | None = None,
    within: Within = None,
) -> dict[str, Any]:
    """A new thread; with `do_nothing` an existing one is returned unchanged. `ttl` None: the configured one.

    Raises ThreadExists, with `do_nothing` too if the existing one is not `within`.
    """
    thread_id = thread_id or uuid4()
    async with engine.pool.connection() as conn:
        row = await insert(engine, conn, thread_id, metadata or {}, ttl=ttl)
        found = row is None and if_exists == "do_nothing" and await permitted(conn, thread_id, within)
    if row is None:
        if not found:
            raise ThreadExists(f"Thread with ID {thread_id} already exists")
        return await get(engine, thread_id)
    return row


async def insert(
    engine: Engine,
    conn: Conn,
    thread_id: UUID,
    metadata: dict[str, Any],
    *,
    temporary: bool = False,
    ttl: Ttl | None = None,
) -> dict[str, Any] | None:
    """The new row, or None when the id is taken. Part of the caller's transaction.

    A temporary thread goes with its run, any other one gets the configured time to live if none is given.
    """
    lives = None if temporary else ttl or configured(engine.registry.config)
    params = {"thread_id": thread_id, "metadata": jsonb(metadata), "temporary": temporary}
    params |= {"minutes": lives and lives.minutes, "strategy": lives and lives.strategy}
    row = await (await conn.execute(CREATE, params)).fetchone()
    return _record(row) if row else None


PERMITTED = "SELECT 1 FROM threads WHERE thread_id = %(thread_id)s AND metadata @> %(within)s"


async def permitted(conn: Conn, thread_id: UUID, within: Within) -> bool:
    """Whether there is such a thread within a filter; without a filter True, and nothing is asked."""
    if within is None:
        return True
    params = {"thread_id": thread_id, "within": jsonb(within)}
    return await (await conn.execute(PERMITTED, params)).fetchone() is not None


LOCK = """
SELECT thread_id, run_id, status, error, metadata, config, event_seq, interrupts
  FROM threads WHERE thread_id = %(thread_id)s FOR UPDATE
"""


async def lock(conn: Conn, thread_id: UUID) -> dict[str, Any]:
    """The thread's row, locked until the caller's transaction ends. Raises ThreadNotFound."""
    row = await (await conn.execute(LOCK, {"thread_id": thread_id})).fetchone()
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return row


ACTIVE = """
SELECT 1 FROM runs
 WHERE thread_id = %(thread_id)s AND status IN ('pending', 'running', 'suspended', 'paused') LIMIT 1
"""
TAKE = "UPDATE threads SET fence = fence + 1 WHERE thread_id = %(thread_id)s RETURNING fence"


async def take(conn: Conn, thread_id: UUID, *, busy: ThreadBusy) -> dict[str, Any]:
    """Own a thread that has no active run until the caller's transaction ends: its row, locked, with a new `fence`.

    Raises ThreadNotFound, and `busy` when it has an active run, or when the connection's
    `lock_timeout` has passed.
    """
    try:
        row = await lock(conn, thread_id)
    except psycopg.errors.LockNotAvailable as exc:
        raise busy from exc
    # A statement of its own: it sees the runs that came while this one waited for the lock.
    if row["run_id"] or await (await conn.execute(ACTIVE, {"thread_id": thread_id})).fetchone():
        raise busy
    taken = await (await conn.execute(TAKE, {"thread_id": thread_id})).fetchone()
    assert taken is not None  # locked above
    return {**row, "fence": taken["fence"]}


GET: LiteralString = "SELECT " + COLUMNS + ", " + TTL + " FROM threads WHERE thread_id = %(thread_id)s AND " + VISIBLE


async def get(engine: Engine, thread_id: UUID) -> dict[str, Any]:
    """A thread, with its `ttl` (None: it stays). Raises ThreadNotFound."""
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(GET, {"thread_id": thread_id})).fetchone()
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return _record(row)


PATCH: LiteralString = (
    "UPDATE threads SET metadata = metadata || %(metadata)s, updated_at = now(), "
    "ttl = coalesce(make_interval(secs => %(minutes)s::float8 * 60), ttl), "
    "ttl_strategy = coalesce(%(strategy)s, ttl_strategy) WHERE thread_id = %(thread_id)s AND "
    + VISIBLE
    + " RETURNING "
    + COLUMNS
)


async def patch(
    engine: Engine,
    thread_id: UUID,
    *,
    metadata: dict[str, Any] | None = None,
    ttl: Ttl | None = None,
) -> dict[str, Any]:
    """Merge `metadata` at the top level, and set the time to live if given. Raises ThreadNotFound."""
    params = {"thread_id": thread_id, "metadata": jsonb(metadata or {})}
    params |= {"minutes": ttl and ttl.minutes, "strategy": ttl and ttl.strategy}
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(PATCH, params)).fetchone()
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return _record(row)


DELETE = "DELETE FROM threads WHERE thread_id = ANY(%(thread_ids)s) RETURNING thread_id, run_id"
DELETE_RELATED = (
    "DELETE FROM idempotency_keys WHERE thread_id = ANY(%(ids)s)",
    "DELETE FROM checkpoint_writes WHERE thread_id = ANY(%(ids)s::text[])",
    "DELETE FROM checkpoint_blobs WHERE thread_id = ANY(%(ids)s::text[])",
    "DELETE FROM checkpoints WHERE thread_id = ANY(%(ids)s::text[])",
)
GONE_NOTICE = "SELECT pg_notify('perdure_events', %(payload)s)"  # readers look, and find nothing
CANCEL_NOTICE = "SELECT pg_notify('perdure_cancel', %(run_id)s)"


async def delete_rows(conn: Conn, thread_ids: list[UUID]) -> list[UUID]:
    """Delete threads and everything that belongs to them; returns those that existed.

    Part of the caller's transaction. Without its row a thread accepts no writes: a worker
    that still runs one is fenced off, and is told to stop.
    """
    await traces.deleted(conn, thread_ids)
    cursor = await conn.execute(DELETE, {"thread_ids": thread_ids})
    gone = await cursor.fetchall()
    ids: list[UUID] = [row["thread_id"] for row in gone]
    for statement in DELETE_RELATED:
        await conn.execute(statement, {"ids": ids})
    await children.deleted(conn, ids)
    await webhooks.forget(conn, ids)
    for row in gone:
        await conn.execute(GONE_NOTICE, {"payload": f"{row['thread_id']} 0 -"})
        if row["run_id"]:
            await conn.execute(CANCEL_NOTICE, {"run_id": str(row["run_id"])})
    return ids


async def delete(engine: Engine, thread_id: UUID) -> None:
    """Raises ThreadNotFound."""
    async with engine.pool.connection() as conn, conn.transaction():
        if not await delete_rows(conn, [thread_id]):
            raise ThreadNotFound(f"Thread with ID {thread_id} not found")


COPY_THREAD = """
INSERT INTO threads (thread_id, metadata, config, ttl, ttl_strategy, interrupts)
SELECT %(copy)s, metadata || %(metadata)s, config, ttl, ttl_strategy,
       CASE WHEN interrupts IS NOT NULL THEN '{}'::jsonb END
  FROM threads WHERE thread_id = %(thread_id)s
RETURNING thread_id
"""
COPY_CHECKPOINTS = (
    """
    INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
    SELECT %(to)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
      FROM checkpoints WHERE thread_id = %(from)s
    """,
    """
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(to)s, checkpoint_ns, channel, version, type, blob FROM checkpoint_blobs WHERE thread_id = %(from)s
    """,
    """
    INSERT INTO checkpoint_writes
           (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
    SELECT %(to)s, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path
      FROM checkpoint_writes WHERE thread_id = %(from)s
    """,
)


async def copy(engine: Engine, thread_id: UUID, *, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    """A new idle thread with the same metadata, time to live and checkpoints (one snapshot). Raises ThreadNotFound.

    `metadata` is merged into the copy's at the top level.
    """
    new = uuid4()
    async with engine.pool.connection() as conn, conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        params = {"copy": new, "thread_id": thread_id, "metadata": jsonb(metadata or {})}
        if not await (await conn.execute(COPY_THREAD, params)).fetchone():
            raise ThreadNotFound(f"Thread with ID {thread_id} not found")
        for statement in COPY_CHECKPOINTS:
            await conn.execute(statement, {"to": str(new), "from": str(thread_id)})
    return await get(engine, new)


async def search(
    engine: Engine,
    *,
    ids: list[UUID] | None = None,
    metadata: dict[str, Any] | None = None,
    values: dict[str, Any] | None = None,
    status: str | None = None,
    limit: int = 10,
    offset: int = 0,
    sort_by: str = "updated_at",
    sort_order: str = "desc",
    within: Within = None,
) -> tuple[list[dict[str, Any]], int]:
    """Threads that match every filter given, and how many match in all.

    `values` matches top-level state values that LangGraph keeps in the newest checkpoint
    itself: text, numbers, booleans, null. Raises InvalidInput for an unknown sort field.
    """
    if sort_by not in SORT:
        raise InvalidInput("sort_by", f"must be one of {', '.join(SORT)}")
    where, params = _where(ids, metadata, values, status, within)
    order = sql.SQL("ORDER BY {} {}, thread_id").format(
        sql.Identifier(sort_by), sql.SQL("ASC" if sort_order == "asc" else "DESC")
    )
    query = sql.SQL("SELECT {} FROM threads WHERE {} {} LIMIT %(limit)s OFFSET %(offset)s").format(
        sql.SQL(COLUMNS), where, order
    )
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(query, {**params, "limit": limit, "offset": offset})).fetchall()
        total = await _count(conn, where, params)
    return [_record(row) for row in rows], total


async def _count(conn: Conn, where: sql.Composed, params: dict[str, Any]) -> int:
    row = await (
        await conn.execute(sql.SQL("SELECT count(*) AS n FROM threads WHERE {}").format(where), params)
    ).fetchone()
    return cast("dict[str, Any]", row)["n"]


VALUES_MATCH: LiteralString = """
(SELECT c.checkpoint -> 'channel_values' FROM checkpoints c
  WHERE c.thread_id = threads.thread_id::text AND c.checkpoint_ns = ''
  ORDER BY c.checkpoint_id DESC LIMIT 1) @> %(values)s
"""


def _where(
    ids: list[UUID] | None,
    metadata: dict[str, Any] | None,
    values: dict[str, Any] | None,
    status: str | None,
    within: Within,
) -> tuple[sql.Composed, dict[str, Any]]:
    parts: list[LiteralString] = [VISIBLE]
    params: dict[str, Any] = {}
    if ids is not None:
        parts.append("thread_id = ANY(%(ids)s)")
        params["ids"] = ids
    if metadata:
        parts.append("metadata @> %(metadata)s")
        params["metadata"] = jsonb(metadata)
    if within is not None:
        parts.append("metadata @> %(within)s")
        params["within"] = jsonb(within)
    if values:
        parts.append(VALUES_MATCH)
        params["values"] = jsonb(values)
    if status:
        parts.append("status = %(status)s")
        params["status"] = status
    return sql.SQL(" AND ").join([sql.SQL(part) for part in parts]), params
