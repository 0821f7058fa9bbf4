"""Webhooks: table `webhooks`, the outbox of what receivers must be told.

    pending --claim--> pending (being sent) --settle--> delivered | failed
       ^                      |
       +-- postpone, crash ---+

A row is written together with the run's final status and is sent at least once
(`perdure.engine.delivery`). While it is being sent its `next_at` is the end of a lease: when
the sender dies, the row is due again then, with the same id.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from perdure.engine.db import Conn, Pool

HOST_SLOTS = 8  # deliveries of one process to one receiver at a time

# The run's row goes in as it is: the run may be deleted, or its thread, before it has been sent.
ADD = """
WITH added AS (
    INSERT INTO webhooks (thread_id, run_id, url, host, run, checkpoint_id, temporary)
    SELECT r.thread_id, r.run_id, r.kwargs ->> 'webhook',
           lower(coalesce(substring(r.kwargs ->> 'webhook' FROM '//(?:[^/?#]*@)?([^/?#@]*)'), '')), to_jsonb(r),
           (SELECT c.checkpoint_id FROM checkpoints c
             WHERE c.thread_id = r.thread_id::text AND c.checkpoint_ns = '' ORDER BY c.checkpoint_id DESC LIMIT 1),
           coalesce((r.kwargs ->> 'temporary')::bool, false)
      FROM runs r WHERE r.thread_id = %(thread_id)s AND r.run_id = %(run_id)s
    RETURNING webhook_id
)
SELECT pg_notify('perdure_webhook', '') FROM added
"""


async def add(conn: Conn, thread_id: UUID, run_id: UUID) -> None:
    """Tell the receiver that this run has ended. Part of the transaction that ends it."""
    await conn.execute(ADD, {"thread_id": thread_id, "run_id": run_id})


@dataclass(frozen=True, kw_only=True)
class Due:
    """A webhook that this process sends now; `now` is the database's clock."""

    thread_id: UUID
    webhook_id: UUID
    run_id: UUID
    url: str
    host: str
    attempt: int
    checkpoint_id: str | None
    temporary: bool
    now: datetime
    push_id: UUID | None = None
    """It is a notification of a task: what is sent is made then (`perdure.engine.push`)."""


# `next_at <= now()` stands twice: a row that another process has just claimed is seen as it
# was when the statement began, and checked again when it is locked.
CLAIM = """
WITH ranked AS (
    SELECT thread_id, webhook_id, row_number() OVER (PARTITION BY host ORDER BY next_at) AS place
      FROM (SELECT thread_id, webhook_id, host, next_at FROM webhooks
             WHERE next_at <= now() AND host <> ALL(%(busy)s) ORDER BY next_at LIMIT 1000) candidates
), due AS (
    SELECT w.thread_id, w.webhook_id
      FROM ranked JOIN webhooks w USING (thread_id, webhook_id)
     WHERE ranked.place <= %(per_host)s AND w.next_at <= now()
     ORDER BY w.next_at LIMIT %(limit)s
       FOR UPDATE OF w SKIP LOCKED
)
UPDATE webhooks w SET attempt = attempt + 1, next_at = now() + make_interval(secs => %(lease_seconds)s)
  FROM due WHERE w.thread_id = due.thread_id AND w.webhook_id = due.webhook_id
RETURNING w.thread_id, w.webhook_id, w.run_id, w.url, w.host, w.attempt, w.checkpoint_id, w.temporary, w.push_id,
          now() AS now
"""


async def claim(pool: Pool, *, limit: int, busy: list[str], lease_seconds: float) -> list[Due]:
    """Take up to `limit` due webhooks, none to the hosts in `busy`, to send them within the lease.

    One statement; any number of processes may claim at once, and each row goes to one of them.
    """
    params = {"limit": limit, "busy": busy, "lease_seconds": lease_seconds, "per_host": HOST_SLOTS}
    async with pool.connection() as conn:
        return [Due(**row) for row in await (await conn.execute(CLAIM, params)).fetchall()]


NEXT_DUE = """
SELECT extract(epoch FROM min(next_at) - now())::float8 AS seconds FROM webhooks
 WHERE next_at IS NOT NULL AND host <> ALL(%(busy)s)
"""


async def next_due(pool: Pool, *, busy: list[str]) -> float | None:
    """Seconds until the next webhook is due (negative: already); None when there is none."""
    async with pool.connection() as conn:
        row = await (await conn.execute(NEXT_DUE, {"busy": busy})).fetchone()
    return row["seconds"] if row else None


async def ended_run(pool: Pool, due: Due) -> dict[str, Any] | None:
    """The run as the wire shows it, as it was when it ended, with `run_started_at` and `run_ended_at`.

    `error` is there exactly if it failed. None when the webhook is gone or delivered.
    """
    from perdure.engine import runs

    # the subquery gives the stored row the types of the table that it came from
    statement: LiteralString = (
        "SELECT "
        + runs.COLUMNS
        + """, started_at, ended_at FROM (
            SELECT ended.* FROM webhooks w CROSS JOIN LATERAL jsonb_populate_record(NULL::runs, w.run) ended
             WHERE w.thread_id = %(thread_id)s AND w.webhook_id = %(webhook_id)s AND w.run IS NOT NULL) run"""
    )
    async with pool.connection() as conn:
        key = {"thread_id": due.thread_id, "webhook_id": due.webhook_id}
        row = await (await conn.execute(statement, key)).fetchone()
    if row is None:
        return None
    times = {"run_started_at": row.pop("started_at"), "run_ended_at": row.pop("ended_at")}
    error = row["error"]
    shown = {**runs.record(row), **times}
    shown.pop("error", None)
    if shown["status"] in ("error", "timeout"):
        shown["error"] = error or {"error": "TimeoutError", "message": "The run took too long"}
    return shown


# Only the try that was claimed last may say how it went.
SETTLE = """
UPDATE webhooks
   SET status = %(status)s, next_at = NULL, settled_at = now(), http_status = %(http_status)s, error = %(error)s,
       run = CASE WHEN %(status)s = 'delivered' THEN NULL ELSE run END
 WHERE thread_id = %(thread_id)s AND webhook_id = %(webhook_id)s AND attempt = %(attempt)s AND status = 'pending'
"""


async def settle(pool: Pool, due: Due, status: str, *, http_status: int | None, error: str | None) -> None:
    """The last word on a webhook: `delivered`, or `failed` for good. A stale try changes nothing."""
    await _update(pool, due, SETTLE, status=status, http_status=http_status, error=error)


POSTPONE = """
UPDATE webhooks
   SET next_at = now() + make_interval(secs => %(delay)s), http_status = %(http_status)s, error = %(error)s
 WHERE thread_id = %(thread_id)s AND webhook_id = %(webhook_id)s AND attempt = %(attempt)s AND status = 'pending'
"""


async def postpone(pool: Pool, due: Due, *, delay: float, http_status: int | None, error: str | None) -> None:
    """Try again in `delay` seconds. A stale try changes nothing."""
    await _update(pool, due, POSTPONE, delay=delay, http_status=http_status, error=error)


async def _update(pool: Pool, due: Due, statement: Any, **params: Any) -> None:
    key = {"thread_id": due.thread_id, "webhook_id": due.webhook_id, "attempt": due.attempt}
    async with pool.connection() as conn:
        await conn.execute(statement, {**key, **params})


FORGET = """
DELETE FROM webhooks WHERE thread_id = ANY(%(thread_ids)s) AND status <> 'pending' AND NOT temporary
"""


async def forget(conn: Conn, thread_ids: list[UUID]) -> None:
    """Threads are deleted: so is what has been sent of them. What has not is sent first, without values."""
    await conn.execute(FORGET, {"thread_ids": thread_ids})


EXPIRE = """
DELETE FROM webhooks
 WHERE settled_at < now() - interval '1 day' AND (status = 'delivered' OR settled_at < now() - interval '30 days')
"""


async def expire(conn: Conn) -> None:
    """Forget delivered webhooks after a day, failed ones after 30 days."""
    await conn.execute(EXPIRE)
