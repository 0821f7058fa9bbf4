"""Threads: table `threads`, apart from what belongs to the queue.

A thread's values are not stored here: they are read from its newest checkpoint
(`perdure.engine.state`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, LiteralString, cast
from uuid import UUID, uuid4

from psycopg import sql

from perdure.engine import children, webhooks
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import InvalidInput, ThreadExists, ThreadNotFound

if TYPE_CHECKING:
    from perdure.engine.core import Engine

Strategy = Literal["delete", "keep_latest"]

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
    "INSERT INTO threads (thread_id, metadata, temporary) VALUES (%(thread_id)s, %(metadata)s, %(temporary)s) "
    "ON CONFLICT (thread_id) DO NOTHING RETURNING " + COLUMNS
)


async def create(
    engine: Engine,
    *,
    thread_id: UUID | None = None,
    metadata: dict[str, Any] | None = None,
    if_exists: Literal["raise", "do_nothing"] = "raise",
    ttl: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A new thread; with `do_nothing` an existing one is returned unchanged.

    Raises ThreadExists.
    """
    thread_id = thread_id or uuid4()
    async with engine.pool.connection() as conn, conn.transaction():
        row = await insert(conn, thread_id, metadata or {}, temporary=False)
        if row is not None and ttl:
            await conn.execute(SET_TTL, {"thread_id": thread_id, "minutes": ttl.get("ttl")})
    if row is None:
        if if_exists == "raise":
            raise ThreadExists(f"Thread with ID {thread_id} already exists")
        return await get(engine, thread_id)
    return row


async def insert(conn: Conn, thread_id: UUID, metadata: dict[str, Any], *, temporary: bool) -> dict[str, Any] | None:
    """The new row, or None when the id is taken. Part of the caller's transaction."""
    params = {"thread_id": thread_id, "metadata": jsonb(metadata), "temporary": temporary}
    row = await (await conn.execute(CREATE, params)).fetchone()
    return _record(row) if row else None


GET: LiteralString = "SELECT " + COLUMNS + " FROM threads WHERE thread_id = %(thread_id)s AND " + VISIBLE


async def get(engine: Engine, thread_id: UUID) -> dict[str, Any]:
    """Raises ThreadNotFound."""
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(GET, {"thread_id": thread_id})).fetchone()
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return _record(row)


# A thread's time to live starts anew with each change of it.
SET_TTL = """
UPDATE threads SET expires_at = now() + make_interval(secs => %(minutes)s::float8 * 60) WHERE thread_id = %(thread_id)s
"""

PATCH: LiteralString = (
    "UPDATE threads SET metadata = metadata || %(metadata)s, updated_at = now() WHERE thread_id = %(thread_id)s AND "
    + VISIBLE
    + " RETURNING "
    + COLUMNS
)


async def patch(
    engine: Engine,
    thread_id: UUID,
    *,
    metadata: dict[str, Any] | None = None,
    ttl: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Merge `metadata` at the top level. Raises ThreadNotFound."""
    async with engine.pool.connection() as conn, conn.transaction():
        params = {"thread_id": thread_id, "metadata": jsonb(metadata or {})}
        row = await (await conn.execute(PATCH, params)).fetchone()
        if row is None:
            raise ThreadNotFound(f"Thread with ID {thread_id} not found")
        if ttl:
            await conn.execute(SET_TTL, {"thread_id": thread_id, "minutes": ttl.get("ttl")})
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


async def prune(engine: Engine, thread_ids: list[UUID], strategy: Strategy) -> int:
    """Delete threads, or all their checkpoints but the newest; returns how many existed.

    Threads with an active run keep everything under `keep_latest`.
    """
    if strategy == "delete":
        async with engine.pool.connection() as conn, conn.transaction():
            return len(await delete_rows(conn, sorted(thread_ids)))
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    found = 0
    for thread_id in sorted(set(thread_ids)):
        async with engine.pool.connection() as conn:
            row = await (await conn.execute(IDLE, {"thread_id": thread_id})).fetchone()
            if row is None:
                continue
            found += 1
            if row["idle"]:
                await AsyncPostgresSaver(conn=conn).aprune([str(thread_id)], strategy="keep_latest")
    return found


IDLE = "SELECT run_id IS NULL AND status <> 'busy' AS idle FROM threads WHERE thread_id = %(thread_id)s"

COPY_THREAD = """
INSERT INTO threads (thread_id, metadata, config, interrupts)
SELECT %(copy)s, metadata, config, CASE WHEN interrupts IS NOT NULL THEN '{}'::jsonb END
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


async def copy(engine: Engine, thread_id: UUID) -> dict[str, Any]:
    """A new idle thread with the same metadata and checkpoints (one snapshot). Raises ThreadNotFound."""
    new = uuid4()
    async with engine.pool.connection() as conn, conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        if not await (await conn.execute(COPY_THREAD, {"copy": new, "thread_id": thread_id})).fetchone():
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
) -> tuple[list[dict[str, Any]], int]:
    """Threads that match every filter given, and how many match in all.

    `values` matches top-level state values that LangGraph keeps in the newest checkpoint
    itself: text, numbers, booleans, null. Raises InvalidInput for an unknown sort field.
    """
    if sort_by not in SORT:
        raise InvalidInput("sort_by", f"must be one of {', '.join(SORT)}")
    where, params = _where(ids, metadata, values, status)
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


async def count(
    engine: Engine,
    *,
    metadata: dict[str, Any] | None = None,
    values: dict[str, Any] | None = None,
    status: str | None = None,
) -> int:
    """How many threads match."""
    where, params = _where(None, metadata, values, status)
    async with engine.pool.connection() as conn:
        return await _count(conn, where, params)


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
    ids: list[UUID] | None, metadata: dict[str, Any] | None, values: dict[str, Any] | None, status: str | None
) -> tuple[sql.Composed, dict[str, Any]]:
    parts: list[LiteralString] = [VISIBLE]
    params: dict[str, Any] = {}
    if ids is not None:
        parts.append("thread_id = ANY(%(ids)s)")
        params["ids"] = ids
    if metadata:
        parts.append("metadata @> %(metadata)s")
        params["metadata"] = jsonb(metadata)
    if values:
        parts.append(VALUES_MATCH)
        params["values"] = jsonb(values)
    if status:
        parts.append("status = %(status)s")
        params["status"] = status
    return sql.SQL(" AND ").join([sql.SQL(part) for part in parts]), params
