"""Finding runs: those of a thread, the thread of one, and over all threads."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

from psycopg import sql

from perdure.engine import access, runs, threads
from perdure.engine.access import Within
from perdure.engine.errors import RunNotFound
from perdure.engine.views import runlist

if TYPE_CHECKING:
    from perdure.engine.core import Engine

PERMITTED: LiteralString = """(%(within)s::jsonb IS NULL OR EXISTS (
        SELECT 1 FROM threads t WHERE t.thread_id = runs.thread_id AND t.metadata @> %(within)s))"""
THREAD_OF: LiteralString = "SELECT thread_id FROM runs WHERE run_id = %(run_id)s AND " + PERMITTED


async def thread_of(engine: Engine, run_id: UUID, *, within: Within = None) -> UUID:
    """The thread that a run belongs to. Raises RunNotFound, also when that thread is not `within`."""
    async with engine.pool.connection() as conn:
        params = {"run_id": run_id, "within": access.parameter(within)}
        row = await (await conn.execute(THREAD_OF, params)).fetchone()
    if row is None:
        raise RunNotFound(f"Run with ID {run_id} not found")
    return row["thread_id"]


LIST: LiteralString = (
    "SELECT "
    + runs.COLUMNS
    + """ FROM runs
 WHERE thread_id = %(thread_id)s
   AND (%(status)s::text IS NULL
        OR CASE status WHEN 'paused' THEN 'error' WHEN 'suspended' THEN 'running' ELSE status END = %(status)s)
 ORDER BY queue_no DESC LIMIT %(limit)s OFFSET %(offset)s"""
)


async def list_runs(
    engine: Engine, thread_id: UUID, *, status: str | None = None, limit: int = 10, offset: int = 0
) -> list[dict[str, Any]]:
    """Newest first. Raises ThreadNotFound."""
    await threads.get(engine, thread_id)
    async with engine.pool.connection() as conn:
        params = {"thread_id": thread_id, "status": status, "limit": limit, "offset": offset}
        return [runs.record(row) for row in await (await conn.execute(LIST, params)).fetchall()]


EVERYTHING = 2**62
PLACE: LiteralString = "SELECT created_at, queue_no FROM runs WHERE run_id = %(run_id)s AND " + PERMITTED


async def search(
    engine: Engine,
    *,
    status: list[str] | None = None,
    agent: str | None = None,
    thread_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    error: str | None = None,
    cursor: UUID | None = None,
    limit: int = 100,
    within: Within = None,
) -> list[dict[str, Any]]:
    """Runs over all threads, newest first; `cursor` is the id of the last run of the page before.

    Looks as far as it takes to fill the page (`runlist` does not), so clients may ask until one is empty. `error`
    is a part of `Class: text`. Raises RunNotFound for an unknown cursor.
    """
    async with engine.pool.connection() as conn:
        before = None
        if cursor is not None:
            params = {"run_id": cursor, "within": access.parameter(within)}
            row = await (await conn.execute(PLACE, params)).fetchone()
            if row is None:
                raise RunNotFound(f"Run with ID {cursor} not found")
            before = (row["created_at"], row["queue_no"])
        given = runlist.Filter(
            status=status,
            agent=agent,
            thread=thread_id,
            since=since,
            until=until,
            error=error,
            before=before,
            within=within,
        )
        if not given.statuses:
            return []
        given = await runlist.narrowed(conn, given)
        query = sql.SQL("SELECT graph_id AS agent, started_at, ended_at, {} FROM {}").format(
            sql.SQL(runs.COLUMNS), runlist.matching(given, "wanted")
        )
        rows = await (await conn.execute(query, {**given.params(), "wanted": limit, "scan": EVERYTHING})).fetchall()
    return [runs.record(row) for row in rows]
