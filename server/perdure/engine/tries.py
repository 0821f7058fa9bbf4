"""Tries of calls to other servers: what the thread that speaks to them takes and notes. Table `remote_calls`.

The caller's side is `perdure.engine.remote`. Each try is claimed with a lease, and only the try that was claimed
last may write, so a process that dies or hangs in the middle changes nothing any more. What ends a call wakes
its caller in the same transaction.

Locks are taken in this order: thread, run, call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from perdure.engine.db import Pool, jsonb, plain_json
from perdure.engine.wake import wake

HOST_SLOTS = 8  # requests of one process to one server at a time


@dataclass(frozen=True, kw_only=True)
class Due:
    """A call that this process has to say something about now. `delay`: seconds until it may start."""

    thread_id: UUID
    call_id: UUID
    bound: bool
    server: str
    host: str
    agent: str
    key: str | None
    input: Any
    callers: list[str]
    delay: float
    callback_url: str | None
    status: str
    cancelling: bool
    plain: bool
    remote_thread_id: str | None
    remote_run_id: str | None
    attempt: int
    tries: int
    trace: str | None


# `next_at <= now()` stands twice: see `webhooks.CLAIM`.
CLAIM = """
WITH ranked AS (
    SELECT thread_id, call_id, row_number() OVER (PARTITION BY host ORDER BY next_at) AS place
      FROM (SELECT thread_id, call_id, host, next_at FROM remote_calls
             WHERE next_at <= now() AND host <> ALL(%(busy)s) ORDER BY next_at LIMIT 1000) candidates
), due AS (
    SELECT c.thread_id, c.call_id
      FROM ranked JOIN remote_calls c USING (thread_id, call_id)
     WHERE ranked.place <= %(per_host)s AND c.next_at <= now()
     ORDER BY c.next_at LIMIT %(limit)s
       FOR UPDATE OF c SKIP LOCKED
)
UPDATE remote_calls c
   SET attempt = attempt + 1, speaking = true, nudged = false,
       next_at = now() + make_interval(secs => %(lease_seconds)s)
  FROM due WHERE c.thread_id = due.thread_id AND c.call_id = due.call_id
RETURNING c.thread_id, c.call_id, c.bound, c.server, c.host, c.agent, c.key, c.input, c.callers,
          greatest(0, extract(epoch FROM c.available_at - now()))::float8 AS delay, c.callback_url, c.status,
          c.cancelling, c.plain, c.remote_thread_id, c.remote_run_id, c.attempt, c.tries, c.trace
"""


async def claim(pool: Pool, *, limit: int, busy: list[str], lease_seconds: float) -> list[Due]:
    """Take up to `limit` calls that are due, none to the hosts in `busy`. One statement, as `webhooks.claim`."""
    params = {"limit": limit, "busy": busy, "lease_seconds": lease_seconds, "per_host": HOST_SLOTS}
    async with pool.connection() as conn:
        return [Due(**row) for row in await (await conn.execute(CLAIM, params)).fetchall()]


NEXT_DUE = """
SELECT extract(epoch FROM min(next_at) - now())::float8 AS seconds FROM remote_calls
 WHERE next_at IS NOT NULL AND host <> ALL(%(busy)s)
"""


async def next_due(pool: Pool, *, busy: list[str]) -> float | None:
    """Seconds until the next call is due (negative: already); None when there is none."""
    async with pool.connection() as conn:
        row = await (await conn.execute(NEXT_DUE, {"busy": busy})).fetchone()
    return row["seconds"] if row else None


STARTED = """
UPDATE remote_calls
   SET status = 'running', remote_thread_id = %(remote_thread_id)s, remote_run_id = %(remote_run_id)s,
       callback_url = %(callback_url)s, tries = 0, problem = NULL, speaking = false,
       next_at = CASE WHEN nudged THEN now() ELSE now() + make_interval(secs => %(delay)s) END
 WHERE thread_id = %(thread_id)s AND call_id = %(call_id)s AND attempt = %(attempt)s AND settled_at IS NULL
"""


async def started(pool: Pool, due: Due, *, thread_id: str, run_id: str, callback_url: str | None, delay: float) -> None:
    """The other server has accepted the run. A stale try changes nothing."""
    params = {"remote_thread_id": thread_id, "remote_run_id": run_id, "callback_url": callback_url, "delay": delay}
    await _write(pool, due, STARTED, **params)


LATER = """
UPDATE remote_calls
   SET tries = tries + 1, problem = %(problem)s, plain = %(plain)s, speaking = false,
       next_at = CASE WHEN nudged THEN now() ELSE now() + make_interval(secs => %(delay)s) END
 WHERE thread_id = %(thread_id)s AND call_id = %(call_id)s AND attempt = %(attempt)s AND settled_at IS NULL
"""


async def later(pool: Pool, due: Due, *, delay: float, problem: str | None, plain: bool) -> None:
    """No news: look again in `delay` seconds, or at once if something happened meanwhile."""
    await _write(pool, due, LATER, delay=delay, problem=problem, plain=plain)


async def _write(pool: Pool, due: Due, statement: Any, **params: Any) -> None:
    key = {"thread_id": due.thread_id, "call_id": due.call_id, "attempt": due.attempt}
    async with pool.connection() as conn:
        await conn.execute(statement, {**key, **params})


WAITING = "SELECT run_id FROM remote_calls WHERE thread_id = %(thread_id)s AND call_id = %(call_id)s"
SETTLE = """
UPDATE remote_calls
   SET status = %(status)s, output = %(output)s, error = %(error)s, remote_thread_id = %(remote_thread_id)s,
       remote_run_id = %(remote_run_id)s, input = NULL, next_at = NULL, speaking = false, settled_at = now()
 WHERE thread_id = %(thread_id)s AND call_id = %(call_id)s AND attempt = %(attempt)s AND settled_at IS NULL
   AND run_id = %(run_id)s
RETURNING call_id
"""


class _Stale(Exception):
    """Somebody else has claimed the call, or another run waits for it now."""


async def settle(
    pool: Pool,
    due: Due,
    status: str,
    *,
    output: Any = None,
    error: dict[str, Any] | None = None,
    thread_id: str | None = None,
    run_id: str | None = None,
) -> bool:
    """The last word on a call, and the caller goes on, in one transaction. False: the try is stale."""
    key = {"thread_id": due.thread_id, "call_id": due.call_id, "attempt": due.attempt}
    values: dict[str, Any] = {
        "status": status,
        "output": plain_json(output),
        "error": jsonb(error) if error else None,
        "remote_thread_id": thread_id or due.remote_thread_id,
        "remote_run_id": run_id or due.remote_run_id,
    }
    waiting = None
    while True:
        async with pool.connection() as conn:
            row = await (await conn.execute(WAITING, key)).fetchone()
            if row is None or row["run_id"] == waiting:
                return False
            waiting = row["run_id"]
            try:
                async with conn.transaction():
                    if due.bound:
                        await wake(conn, due.thread_id, waiting)
                    if await (await conn.execute(SETTLE, {**key, **values, "run_id": waiting})).fetchone() is None:
                        raise _Stale
            except _Stale:
                continue
            return True
