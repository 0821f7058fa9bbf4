"""The queue: every change of who owns a run, and nothing else.

    pending --claim--> running --finish--> success | error | timeout | interrupted
       ^                  |
       +-- hand back, lost worker, retry (ready again after a back-off, or paused),
           suspended (ready again when what it waits for has happened)

The truth is the `runs` row. Claiming takes the thread's row with SKIP LOCKED, raises its
fence and thereby shuts out whoever owned the thread before. All functions here lock the
thread first and the run second.

A run that is paused before it starts is not the head of its queue. It keeps its place there, and
what comes behind it waits; an answer comes before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from perdure.engine import children, events, push, webhooks
from perdure.engine.db import Conn, Pool, jsonb
from perdure.engine.errors import LeaseLost
from perdure.engine.hub import Event
from perdure.engine.tracing import rows as traces
from perdure.engine.wake import NOTIFY_WORK

LOST_FREE = 3  # a lost worker costs no back-off the first times: takeover is at once


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A run that this worker owns now, and what the thread looked like at that moment.

    `head_run_id` is the run that made the newest checkpoint; `head_commanded` says that the
    writes of this run's command are stored on it already. `abandons_saga`: its input has not
    been applied yet, and would leave a saga open (`stop.compensate_first`). `actor`: see `access.Actor`.
    """

    thread_id: UUID
    run_id: UUID
    fence: int
    attempt: int
    failures: int
    graph_id: str
    assistant_id: UUID
    kwargs: dict[str, Any]
    metadata: dict[str, Any]
    cancelling: str | None
    base_checkpoint_id: str
    head: str | None
    head_run_id: str | None
    head_commanded: bool
    abandons_saga: bool
    actor: dict[str, Any] | None = None
    trace: str | None = None  # see `tracing.ids`


CLAIM = """
WITH ready AS (
    SELECT r.thread_id, r.run_id, r.priority, r.queue_no
      FROM runs r JOIN threads t ON t.thread_id = r.thread_id
     WHERE r.ready_at <= now() AND r.status IN ('pending', 'suspended') AND r.graph_id = ANY(%(graphs)s)
       AND (t.run_id = r.run_id OR t.run_id IS NULL AND NOT EXISTS (
                SELECT 1 FROM runs a WHERE a.thread_id = r.thread_id
                   AND CASE a.status WHEN 'pending' THEN a.priority AND NOT r.priority AND a.ready_at <= now()
                                     WHEN 'paused' THEN a.available_at <= now()
                                          AND (NOT a.priority, a.queue_no) < (NOT r.priority, r.queue_no) END))
       AND NOT (r.behind_question AND r.attempt = 0 AND EXISTS (
                SELECT 1 FROM interrupts i WHERE i.thread_id = r.thread_id AND i.status = 'open'))
     ORDER BY r.ready_at, r.queue_no
     LIMIT %(slots)s
       FOR UPDATE OF t, r SKIP LOCKED
), first AS (
    SELECT DISTINCT ON (thread_id) thread_id, run_id FROM ready ORDER BY thread_id, priority DESC, queue_no
), me AS (  -- only when there is something to claim: locking a row is a write
    SELECT worker_id FROM workers WHERE worker_id = %(worker_id)s AND EXISTS (SELECT 1 FROM first)
       FOR KEY SHARE SKIP LOCKED  -- locked: this worker is handing back its runs, or was found dead
), owned AS (
    UPDATE threads t SET fence = t.fence + 1, run_id = first.run_id, status = 'busy', updated_at = now()
      FROM first, me WHERE t.thread_id = first.thread_id
    RETURNING t.thread_id, t.fence, first.run_id
), superseded AS (  -- input that was accepted before the question was asked overtakes it now
    UPDATE interrupts i SET status = 'superseded'
      FROM owned JOIN runs r ON r.thread_id = owned.thread_id AND r.run_id = owned.run_id
     WHERE i.thread_id = owned.thread_id AND i.status = 'open'
       AND r.attempt = 0 AND r.kwargs -> 'input' <> 'null'::jsonb AND r.kwargs -> 'answered' IS NULL
), head AS (
    SELECT owned.thread_id, c.checkpoint_id, c.metadata ->> 'run_id' AS run_id, w.commands, w.tasks
      FROM owned CROSS JOIN LATERAL (
           SELECT checkpoint_id, metadata FROM checkpoints
            WHERE thread_id = owned.thread_id::text AND checkpoint_ns = ''
            ORDER BY checkpoint_id DESC LIMIT 1) c
       CROSS JOIN LATERAL (
           SELECT count(*) FILTER (WHERE task_id = '00000000-0000-0000-0000-000000000000')::int AS commands,
                  array_agg(DISTINCT task_id) AS tasks
             FROM checkpoint_writes
            WHERE thread_id = owned.thread_id::text AND checkpoint_ns = '' AND checkpoint_id = c.checkpoint_id
              AND idx >= 0) w
)
UPDATE runs r
   SET status = 'running', attempt = r.attempt + 1, ready_at = NULL, woken = false, worker_id = %(worker_id)s,
       lease_until = now() + make_interval(secs => %(lease_seconds)s),
       started_at = coalesce(r.started_at, now()), claimed_at = now(), updated_at = now(),
       overdue_at = coalesce(r.overdue_at, now() + make_interval(secs => r.max_seconds)),
       base_checkpoint_id = coalesce(r.base_checkpoint_id, head.checkpoint_id, ''),
       base_commands = coalesce(r.base_commands, head.commands, 0),
       base_tasks = coalesce(r.base_tasks, head.tasks, '{}')
  FROM owned LEFT JOIN head ON head.thread_id = owned.thread_id
 WHERE r.thread_id = owned.thread_id AND r.run_id = owned.run_id
RETURNING r.thread_id, r.run_id, owned.fence, r.attempt, r.failures, r.graph_id, r.assistant_id, r.kwargs, r.metadata,
          r.actor, r.trace, r.cancelling, r.base_checkpoint_id, head.checkpoint_id AS head, head.run_id AS head_run_id,
          coalesce(head.commands, 0) > r.base_commands AS head_commanded,
          r.kwargs -> 'input' <> 'null'::jsonb AND r.kwargs -> 'command' = 'null'::jsonb
          AND head.run_id IS DISTINCT FROM r.run_id::text AND EXISTS (
              SELECT 1 FROM steps s WHERE s.thread_id = r.thread_id AND s.name = 'saga' AND s.status = 'open'
          ) AS abandons_saga
"""


async def claim(pool: Pool, *, worker_id: UUID, graphs: list[str], slots: int, lease_seconds: float) -> list[Claimed]:
    """Take up to `slots` runs that may start now, oldest first, one per thread. One statement.

    Nothing is claimed for a worker that is not registered any more: `unregister` waits for a claim in
    flight, and gives back what that has taken.
    """
    params = {"worker_id": worker_id, "graphs": graphs, "slots": slots, "lease_seconds": lease_seconds}
    async with pool.connection() as conn:
        cursor = await conn.execute(CLAIM, params)
        return [Claimed(**row) for row in await cursor.fetchall()]


NEXT_READY = """
SELECT extract(epoch FROM min(r.ready_at) - now())::float8 AS seconds
  FROM runs r JOIN threads t ON t.thread_id = r.thread_id
 WHERE r.ready_at IS NOT NULL AND r.status IN ('pending', 'suspended') AND r.graph_id = ANY(%(graphs)s)
   AND (t.run_id = r.run_id OR t.run_id IS NULL AND NOT EXISTS (
            SELECT 1 FROM runs a WHERE a.thread_id = r.thread_id AND a.status = 'paused'
               AND a.available_at <= greatest(r.ready_at, now())
               AND (NOT a.priority, a.queue_no) < (NOT r.priority, r.queue_no)))
   AND NOT (r.behind_question AND r.attempt = 0 AND EXISTS (
            SELECT 1 FROM interrupts i WHERE i.thread_id = r.thread_id AND i.status = 'open'))
"""


async def next_ready(pool: Pool, graphs: list[str]) -> float | None:
    """Seconds until the next run may be claimed; None when there is none.

    Not above 0: one is ready now, but its thread's row was locked by somebody for a moment.
    """
    async with pool.connection() as conn:
        row = await (await conn.execute(NEXT_READY, {"graphs": graphs})).fetchone()
    return row["seconds"] if row else None


RENEW = """
UPDATE runs SET lease_until = now() + make_interval(secs => %(lease_seconds)s)
 WHERE worker_id = %(worker_id)s AND status = 'running' AND run_id = ANY(%(run_ids)s)
"""


async def renew(conn: Conn, *, worker_id: UUID, run_ids: list[UUID], lease_seconds: float) -> None:
    """Extend the leases of the runs that a worker is executing, by the database's clock."""
    await conn.execute(RENEW, {"worker_id": worker_id, "run_ids": run_ids, "lease_seconds": lease_seconds})


# Only what still has the fence that was read is taken: two sweepers at work, or a worker that
# claimed the run anew meanwhile, are left alone.
RELEASE = """
WITH held AS (
    SELECT r.thread_id, r.run_id, t.fence, w.name AS worker
      FROM runs r JOIN threads t ON t.thread_id = r.thread_id LEFT JOIN workers w ON w.worker_id = r.worker_id
     WHERE r.status = 'running'
       AND (r.worker_id = %(worker_id)s::uuid OR (%(worker_id)s::uuid IS NULL AND r.lease_until < now()))
), freed AS (
    UPDATE threads t SET fence = t.fence + 1 FROM held
     WHERE t.thread_id = held.thread_id AND t.fence = held.fence
    RETURNING held.thread_id, held.run_id, held.worker
)
UPDATE runs r
   SET status = CASE WHEN %(lost)s AND r.failures + 1 >= %(max_attempts)s THEN 'paused' ELSE 'pending' END,
       failures = r.failures + CASE WHEN %(lost)s THEN 1 ELSE 0 END,
       ready_at = CASE WHEN %(lost)s AND r.failures + 1 >= %(max_attempts)s THEN NULL
                       WHEN NOT %(lost)s OR r.failures < %(free)s THEN now()
                       ELSE now() + make_interval(secs => least(%(cap)s, %(initial)s * 2 ^ (r.failures - %(free)s)))
                  END,
       error = CASE WHEN %(lost)s THEN %(error)s ELSE r.error END,
       worker_id = NULL, lease_until = NULL, updated_at = now()
  FROM freed
 WHERE r.thread_id = freed.thread_id AND r.run_id = freed.run_id AND r.status = 'running'
RETURNING r.thread_id, r.run_id, r.graph_id, r.attempt, r.status, r.trace, r.claimed_at, r.updated_at AS at,
          freed.worker
"""


async def release(
    conn: Conn,
    *,
    worker_id: UUID | None,
    lost: bool,
    max_attempts: int,
    initial: float,
    cap: float,
    worker: str | None = None,
) -> list[dict[str, Any]]:
    """Give back the runs of a worker, or (`worker_id` None) all whose lease has ended. One transaction.

    `worker`: its name, if it is not registered any more.

    `lost`: their worker died, which counts against the run's retries; a worker that hands
    them back by itself costs nothing. Any number of callers may try at once; each run is
    released once.
    """
    error = {"error": "WorkerLost", "message": "The worker that ran this attempt died or was stuck"}
    params: dict[str, Any] = {"worker_id": worker_id, "lost": lost, "max_attempts": max_attempts, "free": LOST_FREE}
    params["error"] = jsonb(error)
    async with conn.transaction():
        cursor = await conn.execute(RELEASE, {**params, "initial": initial, "cap": cap})
        rows = await cursor.fetchall()
        for row in rows:
            paused = row["status"] == "paused"
            name = "paused" if paused else "lost" if lost else "handed back"
            frame: dict[str, Any] = {"event": name, "graph_name": row["graph_id"], "attempt": row["attempt"]}
            if paused:
                frame |= {"error": error["message"], "final": True}
            frames = [events.Frame.of("error", error)] if paused else []
            frames.append(events.Frame.of("lifecycle", frame))
            await events.append(conn, row["thread_id"], row["run_id"], frames)
            told = {**row, "worker": worker or row["worker"]}
            traces.released(conn, told, "worker lost" if lost else "handed back", error if lost else None)
        if rows:
            await conn.execute(NOTIFY_WORK)
    return rows


FORGET = "DELETE FROM workers WHERE worker_id = %(worker_id)s RETURNING name"


async def unregister(conn: Conn, worker_id: UUID, **policy: Any) -> list[dict[str, Any]]:
    """A worker ends, or has died: give back its runs, see `release`; it claims nothing any more. One transaction.

    Its row goes first. That waits for a claim in flight, whose runs the release then sees.
    """
    async with conn.transaction():
        gone = await (await conn.execute(FORGET, {"worker_id": worker_id})).fetchone()
        return await release(conn, worker_id=worker_id, worker=gone["name"] if gone else None, **policy)


RETRY_THREAD = """
UPDATE threads SET fence = fence + 1 WHERE thread_id = %(thread_id)s AND fence = %(fence)s RETURNING fence
"""

RETRY_RUN = """
UPDATE runs
   SET status = %(status)s, failures = failures + 1, error = %(error)s, worker_id = NULL, lease_until = NULL,
       ready_at = CASE WHEN %(status)s = 'pending' THEN now() + make_interval(secs => %(delay)s) END,
       updated_at = now()
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
"""


async def retry(
    conn: Conn, run: Claimed, *, error: dict[str, Any], delay: float, paused: bool, frames: list[events.Frame]
) -> list[Event]:
    """End an attempt that may be tried again: after `delay` seconds, or (`paused`) when a person says so.

    The run stays the head of its thread's queue. One transaction; raises LeaseLost when the
    run has another owner.
    """
    keys = {"thread_id": run.thread_id, "run_id": run.run_id}
    async with conn.transaction():
        if await (await conn.execute(RETRY_THREAD, {**keys, "fence": run.fence})).fetchone() is None:
            raise LeaseLost(f"Run {run.run_id} has another owner")
        status = "paused" if paused else "pending"
        await conn.execute(RETRY_RUN, {**keys, "status": status, "error": jsonb(error), "delay": delay})
        added = await events.append(conn, run.thread_id, run.run_id, frames)
        await conn.execute(NOTIFY_WORK)
    return added


SUSPEND_RUN = """
UPDATE runs
   SET status = 'suspended', worker_id = NULL, lease_until = NULL, updated_at = now(), woken = false,
       ready_at = CASE WHEN woken THEN now() ELSE to_timestamp(%(until)s::float8) END
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
"""


async def suspend(conn: Conn, run: Claimed, *, until: float | None, frames: list[events.Frame]) -> list[Event]:
    """End an attempt that waits: until a time (Unix seconds), or until somebody wakes it.

    It costs a row while it waits, and stays the head of its thread's queue. What happened
    since the attempt looked is not missed: `woken` says so. One transaction; raises LeaseLost.
    """
    keys = {"thread_id": run.thread_id, "run_id": run.run_id}
    async with conn.transaction():
        if await (await conn.execute(RETRY_THREAD, {**keys, "fence": run.fence})).fetchone() is None:
            raise LeaseLost(f"Run {run.run_id} has another owner")
        await conn.execute(SUSPEND_RUN, {**keys, "until": until})
        added = await events.append(conn, run.thread_id, run.run_id, frames)
        await conn.execute(NOTIFY_WORK)
    return added


SETTLE_THREAD = """
UPDATE threads t
   SET fence = t.fence + 1, run_id = NULL,
       status = CASE WHEN EXISTS (SELECT 1 FROM runs r
                                   WHERE r.thread_id = t.thread_id AND r.status IN ('pending', 'paused')
                                     AND (NOT r.behind_question OR %(status)s <> 'interrupted')
                                     AND r.run_id <> %(run_id)s)
                     THEN 'busy' ELSE %(status)s END,
       error = %(error)s, interrupts = %(interrupts)s, updated_at = now(), state_updated_at = now(),
       expires_at = CASE WHEN NOT t.temporary THEN t.expires_at
                         WHEN EXISTS (SELECT 1 FROM idempotency_keys k WHERE k.thread_id = t.thread_id)
                         THEN now() + interval '24 hours'  -- the same request gets the same answer
                         ELSE now() + interval '10 s' END
 WHERE t.thread_id = %(thread_id)s AND (%(fence)s::bigint IS NULL OR t.fence = %(fence)s)
RETURNING t.fence
"""

END_RUN = """
WITH ended AS (
    UPDATE runs SET status = %(status)s, error = %(error)s, ready_at = NULL, worker_id = NULL, lease_until = NULL,
                    ended_at = now(), updated_at = now()
     WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
    RETURNING thread_id, run_id, kwargs
), purge AS (
    INSERT INTO purges (thread_id, run_id)
    SELECT thread_id, run_id FROM ended
     WHERE NOT coalesce((kwargs ->> 'resumable')::bool, false) AND NOT coalesce((kwargs ->> 'protocol')::bool, false)
    ON CONFLICT DO NOTHING
)
SELECT kwargs ->> 'webhook' AS webhook,
       EXISTS (SELECT 1 FROM push_configs p WHERE p.thread_id = ended.thread_id) AS pushed
  FROM ended
"""

PROMOTE = """
UPDATE runs SET ready_at = greatest(available_at, now())
 WHERE thread_id = %(thread_id)s AND run_id = (
       SELECT r.run_id FROM runs r
        WHERE r.thread_id = %(thread_id)s AND r.status = 'pending' AND r.ready_at IS NULL
          AND NOT (r.behind_question AND EXISTS (
                   SELECT 1 FROM interrupts i WHERE i.thread_id = r.thread_id AND i.status = 'open'))
          AND NOT EXISTS (SELECT 1 FROM runs a WHERE a.thread_id = r.thread_id AND a.status = 'paused'
                             AND a.available_at <= now()
                             AND (NOT a.priority, a.queue_no) < (NOT r.priority, r.queue_no))
        ORDER BY r.priority DESC, r.queue_no LIMIT 1)
RETURNING run_id
"""


async def settle_thread(
    conn: Conn,
    thread_id: UUID,
    run_id: UUID,
    *,
    fence: int | None,
    status: str,
    error: dict[str, Any] | None,
    interrupts: dict[str, Any],
) -> None:
    """The thread has no owner any more: its status, and the next run of its queue may start.

    Part of the caller's transaction. `fence` None: the caller holds the thread's row and
    takes ownership away. Raises LeaseLost when the fence is stale.
    """
    params = {"thread_id": thread_id, "run_id": run_id, "fence": fence, "status": status}
    values = {"error": jsonb(error) if error else None, "interrupts": jsonb(interrupts)}
    if await (await conn.execute(SETTLE_THREAD, {**params, **values})).fetchone() is None:
        raise LeaseLost(f"Run {run_id} has another owner")


async def end_run(conn: Conn, thread_id: UUID, run_id: UUID, status: str, error: dict[str, Any] | None) -> None:
    """The run's status is final, and its webhook is due. Part of the caller's transaction, which holds the thread."""
    params = {"thread_id": thread_id, "run_id": run_id, "status": status}
    cursor = await conn.execute(END_RUN, {**params, "error": jsonb(error) if error else None})
    row = await cursor.fetchone()
    await traces.ended(conn, thread_id, run_id)
    if row and row["webhook"]:
        await webhooks.add(conn, thread_id, run_id)
    if row and row["pushed"]:
        await push.tell(conn, thread_id, run_id)


async def promote(conn: Conn, thread_id: UUID) -> None:
    """Let the next run of the thread's queue be claimed, and whoever waits for an ended run go on.

    Comes last in the caller's transaction, when all statuses are what they will be.
    """
    await children.done(conn, thread_id)
    if await (await conn.execute(PROMOTE, {"thread_id": thread_id})).fetchone():
        await conn.execute(NOTIFY_WORK)
