"""Spans that rows tell of: runs that have ended, and attempts that were taken from their worker.

Whoever ends a run writes its span. An attempt that ends by itself writes its own (`attempt`); one that is taken away
may be dead, so whoever takes it does. Each function is part of the caller's transaction, and does nothing when traces
are off; the span is told after the commit. The times are the database's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from perdure.engine import tracing
from perdure.engine.aftercommit import Committing
from perdure.engine.db import Conn
from perdure.engine.tracing.spans import Span, attempt_span, failed, run_span

ENDED = """
SELECT thread_id, run_id, graph_id, status, error, attempt, trace, created_at, now() AS at
  FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
"""


async def ended(conn: Conn, thread_id: UUID, run_id: UUID, status: str | None = None) -> None:
    """A run ends in this transaction; `status` if its row does not say so, because it is about to be deleted."""
    if tracing.exporter is None:
        return
    row = await (await conn.execute(ENDED, {"thread_id": thread_id, "run_id": run_id})).fetchone()
    if row is not None:
        _tell_run(conn, {**row, "status": status or row["status"]})


LOCK = "SELECT 1 FROM threads WHERE thread_id = ANY(%(ids)s) ORDER BY thread_id FOR UPDATE"
DELETED = """
SELECT thread_id, run_id, graph_id, 'deleted' AS status, NULL::jsonb AS error, attempt, trace, created_at, now() AS at
  FROM runs WHERE thread_id = ANY(%(ids)s) AND status IN ('pending', 'running', 'suspended', 'paused')
"""


async def deleted(conn: Conn, thread_ids: Sequence[UUID]) -> None:
    """Threads are about to be deleted, and with them runs that have not ended."""
    if tracing.exporter is None:
        return
    await conn.execute(LOCK, {"ids": list(thread_ids)})  # whoever ends a run of theirs has done so, or cannot any more
    for row in await (await conn.execute(DELETED, {"ids": list(thread_ids)})).fetchall():
        await taken(conn, row["thread_id"], row["run_id"], "deleted")
        _tell_run(conn, row)


HELD = """
SELECT r.thread_id, r.run_id, r.attempt, r.trace, r.claimed_at, w.name AS worker, now() AS at
  FROM runs r LEFT JOIN workers w ON w.worker_id = r.worker_id
 WHERE r.thread_id = %(thread_id)s AND r.run_id = %(run_id)s AND r.status = 'running'
"""


async def taken(conn: Conn, thread_id: UUID, run_id: UUID, outcome: str) -> None:
    """A run is taken from the attempt that executes it, if one does; called before its row changes."""
    released(conn, await held(conn, thread_id, run_id), outcome)


async def held(conn: Conn, thread_id: UUID, run_id: UUID) -> Mapping[str, Any] | None:
    """The attempt that executes a run now, for `released`. The caller holds the thread's row."""
    if tracing.exporter is None:
        return None
    return await (await conn.execute(HELD, {"thread_id": thread_id, "run_id": run_id})).fetchone()


def released(conn: Conn, row: Mapping[str, Any] | None, outcome: str, error: Mapping[str, Any] | None = None) -> None:
    """The attempt that `row` tells of (the columns of `held`) was taken away."""
    if tracing.exporter is None or row is None or row["claimed_at"] is None:  # by a server that knew no traces
        return
    keys = (row["run_id"], row["thread_id"], row["attempt"], row["trace"])
    span = attempt_span(*keys, _ns(row["claimed_at"]), row["worker"])
    span.attributes["perdure.outcome"] = outcome
    if error is not None:
        failed(span, error["error"], error["message"])
    _tell(conn, span, row)


def _tell_run(conn: Conn, row: Mapping[str, Any]) -> None:
    span = run_span(row["run_id"], row["thread_id"], row["graph_id"], row["trace"], _ns(row["created_at"]))
    span.attributes |= {"perdure.status": row["status"], "perdure.attempts": row["attempt"]}
    if row["status"] in ("error", "timeout") and row["error"]:
        failed(span, row["error"]["error"], row["error"]["message"])
    _tell(conn, span, row)


def _tell(conn: Conn, span: Span, row: Mapping[str, Any]) -> None:
    exporter, at = tracing.exporter, _ns(row["at"])
    if exporter is not None and isinstance(conn, Committing) and exporter.samples(row["run_id"], row["trace"]):
        conn.after_commit(lambda: exporter.end(span, at))


def _ns(when: datetime) -> int:
    return int(when.timestamp() * 1_000_000) * 1_000
