"""Stopping runs: cancel, rollback, kill; and what a saga has done is undone first.

Ownership is taken away in one transaction that holds the thread's row, so nothing more can be
written; the worker learns of it afterwards. A run with an open saga is not over then: it becomes
a compensating attempt (`runs.cancelling`), which any worker may take and which stays the head of
the queue. New input that begins over an abandoned saga waits for such an attempt as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import structlog
from uuid_utils.compat import uuid7

from perdure.engine import access, beginning, events, interrupts, queue, state, threads
from perdure.engine.access import Within
from perdure.engine.db import Conn
from perdure.engine.errors import LeaseLost, RunNotFound, ThreadNotFound
from perdure.engine.hub import Event
from perdure.engine.tracing import rows as traces
from perdure.engine.wake import NOTIFY_WORK

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

Action = Literal["interrupt", "rollback"]


async def cancel(
    engine: Engine, thread_id: UUID, run_id: UUID, action: Action = "interrupt", *, compensate: bool = True
) -> None:
    """Stop a run and, down the tree, its children. `interrupt` keeps its finished steps, `rollback`
    deletes it and its checkpoints.

    A run with an open saga undoes it first, unless `compensate` is False; so do its children.
    Raises RunNotFound when there is no such active run.
    """
    from perdure.engine import orphans

    await cancel_alone(engine, thread_id, run_id, action, compensate=compensate)
    await orphans.cancel_orphans(engine)


async def cancel_alone(
    engine: Engine, thread_id: UUID, run_id: UUID, action: Action, *, compensate: bool = True
) -> None:
    """As `cancel`, without looking after the run's children."""
    async with engine.pool.connection() as conn, conn.transaction():
        thread = await threads.lock(conn, thread_id)
        run = next((r for r in await active(conn, thread_id) if r["run_id"] == run_id), None)
        if run is None:
            raise RunNotFound(f"Run with ID {run_id} not found or not active")
        published, _ = await cancel_in(engine, conn, thread, run, action, compensate=compensate)
    engine.hub.publish(thread_id, published)


CANDIDATES = """
SELECT thread_id, run_id FROM runs
 WHERE status IN ('pending', 'running', 'suspended', 'paused')
   AND (%(thread_id)s::uuid IS NULL OR thread_id = %(thread_id)s)
   AND (%(run_ids)s::uuid[] IS NULL OR run_id = ANY(%(run_ids)s))
   AND (%(status)s::text IS NULL OR %(status)s = 'all' OR status = %(status)s
        OR (%(status)s = 'running' AND status = 'suspended'))
   AND (%(within)s::jsonb IS NULL OR EXISTS (
        SELECT 1 FROM threads t WHERE t.thread_id = runs.thread_id AND t.metadata @> %(within)s))
 ORDER BY queue_no
"""


async def cancel_many(
    engine: Engine,
    *,
    thread_id: UUID | None = None,
    run_ids: list[UUID] | None = None,
    status: Literal["pending", "running", "all"] | None = None,
    action: Action = "interrupt",
    within: Within = None,
) -> int:
    """Cancel runs (of threads `within`) one by one, each in its own transaction; returns how many were stopped."""
    async with engine.pool.connection() as conn:
        params = {"thread_id": thread_id, "run_ids": run_ids, "status": status}
        params |= {"within": access.parameter(within)}
        rows = await (await conn.execute(CANDIDATES, params)).fetchall()
    count = 0
    for row in rows:
        try:
            await cancel(engine, row["thread_id"], row["run_id"], action)
        except (RunNotFound, ThreadNotFound):
            continue  # ended just now
        count += 1
    return count


ACTIVE = """
SELECT run_id, status, graph_id, base_checkpoint_id, base_tasks, cancelling, kwargs FROM runs
 WHERE thread_id = %(thread_id)s AND status IN ('pending', 'running', 'suspended', 'paused') ORDER BY queue_no
"""


async def active(conn: Conn, thread_id: UUID) -> list[dict[str, Any]]:
    """What `cancel_in` needs to know of the runs of a thread that have not ended, in the order of their creation."""
    return await (await conn.execute(ACTIVE, {"thread_id": thread_id})).fetchall()


# The scope of a step does not tell its run: an answer to a question goes on with the saga of the run that asked.
OPEN_SAGA = """
SELECT 1 FROM steps WHERE thread_id = %(thread_id)s AND name = 'saga' AND status = 'open' LIMIT 1
"""

COMPENSATE = """
UPDATE runs SET status = 'pending', cancelling = %(action)s, ready_at = now(), worker_id = NULL, lease_until = NULL,
                failures = 0, updated_at = now()
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
"""

TAKE_AWAY = "UPDATE threads SET fence = fence + 1 WHERE thread_id = %(thread_id)s"

# Children of a killed run are killed, too, by whoever looks after them (`orphans.cancel_orphans`).
KILLED = "UPDATE runs SET cancelling = 'kill' WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s"

COMPENSATING = """
SELECT 1 FROM runs
 WHERE thread_id = %(thread_id)s AND cancelling IS NOT NULL AND status IN ('pending', 'running', 'suspended', 'paused')
 LIMIT 1
"""


async def cancel_in(
    engine: Engine,
    conn: Conn,
    thread: dict[str, Any],
    run: dict[str, Any],
    action: Action,
    *,
    successor: bool = False,
    compensate: bool = True,
) -> tuple[list[Event], bool]:
    """Take a run from its queue or its worker, in the caller's transaction, which holds the thread's row.

    False: it has an open saga, so its worker stops now, but the run goes on to compensate and
    stays the head of the queue until then. `successor`: another run follows in the same
    transaction, so the thread stays busy.
    """
    keys = {"thread_id": thread["thread_id"], "run_id": run["run_id"]}
    thread_id, run_id = keys["thread_id"], keys["run_id"]
    owner = thread["run_id"] == run_id
    if compensate and run["cancelling"] and run["status"] != "paused":
        return [], False  # its undos are running, or will be
    await traces.taken(conn, thread_id, run_id, "cancelled")
    if owner or run["cancelling"]:
        await conn.execute(threads.CANCEL_NOTICE, {"run_id": str(run_id)})
        if compensate and await (await conn.execute(OPEN_SAGA, {"thread_id": thread_id})).fetchone():
            await conn.execute(TAKE_AWAY, {"thread_id": thread_id})
            await conn.execute(COMPENSATE, {**keys, "action": action})
            await conn.execute(NOTIFY_WORK)
            frame = events.Frame.of("lifecycle", {"event": "cancelling", "action": action})
            return await events.append(conn, thread_id, run_id, [frame]), False
    told = {"event": "cancelled", "action": action, "graph_name": run["graph_id"], "final": True}
    last = events.Frame.of("lifecycle", told)
    published = await events.append(conn, thread_id, run_id, [last])
    if owner:
        await interrupts.supersede(conn, thread_id)
    if not compensate:
        await conn.execute(KILLED, keys)
        if owner or run["cancelling"]:
            await give_up_sagas(conn, thread_id)
    await _end(conn, thread_id, run_id, action, run)
    if owner or thread["run_id"] is None:
        snapshot: dict[str, Any] = (
            {"next": [], "tasks": []} if successor else await state.read(engine, thread_id, conn=conn)
        )
        await queue.settle_thread(
            conn,
            thread_id,
            run_id,
            fence=None,
            status="busy" if successor else "interrupted" if snapshot["next"] else "idle",
            error=_cancelled(action) if owner and not successor else None,
            interrupts=_asked(snapshot) if action == "rollback" or not owner else {},
        )
        # the input that superseded them has never started or is forgotten, and nothing is being undone
        undoing = await (await conn.execute(COMPENSATING, {"thread_id": thread_id})).fetchone()
        if (not owner or action == "rollback") and not undoing:
            await interrupts.reopen(
                conn, thread_id, [one["id"] for asked in _asked(snapshot).values() for one in asked]
            )
    if not successor:
        await queue.promote(conn, thread_id)
    return published, True


DELETE_CHECKPOINTS = """
WITH own AS (
    DELETE FROM checkpoints WHERE thread_id = %(thread)s AND metadata ->> 'run_id' = %(run)s
    RETURNING checkpoint_ns, checkpoint_id
), answers AS (
    DELETE FROM checkpoint_writes
     WHERE thread_id = %(thread)s AND checkpoint_id = %(base)s AND NOT task_id = ANY(%(base_tasks)s)
       AND (idx >= 0 OR channel = '__error__' OR %(given)s AND channel = '__resume__')
)
DELETE FROM checkpoint_writes w USING own
 WHERE w.thread_id = %(thread)s AND w.checkpoint_ns = own.checkpoint_ns AND w.checkpoint_id = own.checkpoint_id
"""

DELETE_STEPS = "DELETE FROM steps WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s"


async def _end(conn: Conn, thread_id: UUID, run_id: UUID, action: str, run: dict[str, Any]) -> None:
    """`interrupt`: the run's status is final; `rollback`: the run and what it wrote are gone, answers too."""
    if action == "rollback":
        base: dict[str, Any] = {"base": run["base_checkpoint_id"], "base_tasks": run["base_tasks"] or []}
        base["given"] = beginning.given_by_langgraph(run["kwargs"])
        await conn.execute(DELETE_CHECKPOINTS, {"thread": str(thread_id), "run": str(run_id), **base})
        await conn.execute(DELETE_STEPS, {"thread_id": thread_id, "run_id": run_id})
        await traces.ended(conn, thread_id, run_id, "rolled back")
        await delete_row(conn, thread_id, run_id)
        if run["kwargs"].get("answered"):
            await interrupts.take_back(conn, thread_id, run["kwargs"]["answered"])
    else:
        await queue.end_run(conn, thread_id, run_id, "interrupted", None)


DELETE = """
WITH gone AS (
    DELETE FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s RETURNING thread_id, run_id
)
INSERT INTO purges (thread_id, run_id) SELECT thread_id, run_id FROM gone
ON CONFLICT (thread_id, run_id) DO UPDATE SET purge_at = excluded.purge_at
"""


async def delete_row(conn: Conn, thread_id: UUID, run_id: UUID) -> None:
    """Forget a run; its events go a little later, so that readers see its end. Part of the caller's transaction."""
    await conn.execute(DELETE, {"thread_id": thread_id, "run_id": run_id})


def _asked(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {task["id"]: task["interrupts"] for task in snapshot["tasks"] if task["interrupts"]}


def _cancelled(action: str) -> dict[str, str]:
    name = "UserRollback" if action == "rollback" else "UserInterrupt"
    return {"error": name, "message": f"The run was cancelled by a client ({action})"}


CLOSE_SAGAS = """
UPDATE steps SET status = 'failed', updated_at = now()
 WHERE thread_id = %(thread_id)s AND name = 'saga' AND status = 'open'
"""

BASE_OF = """
SELECT base_checkpoint_id, base_tasks, kwargs FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
"""


async def end_compensated(conn: Conn, run: queue.Claimed, frames: list[events.Frame]) -> list[Event]:
    """Carry out a cancel whose undos have run, in the caller's transaction. Raises LeaseLost."""
    action = run.cancelling or "interrupt"
    await queue.settle_thread(
        conn, run.thread_id, run.run_id, fence=run.fence, status="idle", error=_cancelled(action), interrupts={}
    )
    published = await events.append(conn, run.thread_id, run.run_id, frames)
    row = await (await conn.execute(BASE_OF, {"thread_id": run.thread_id, "run_id": run.run_id})).fetchone()
    assert row is not None
    await _end(conn, run.thread_id, run.run_id, action, row)
    await give_up_sagas(conn, run.thread_id)
    await interrupts.supersede(conn, run.thread_id)
    await queue.promote(conn, run.thread_id)
    return published


async def give_up_sagas(conn: Conn, thread_id: UUID) -> None:
    """What is open now will not be undone any more. Part of the transaction that ends a compensating run."""
    await conn.execute(CLOSE_SAGAS, {"thread_id": thread_id})


# Like an answer without an answer: it goes on from the head, before whatever is queued.
INSERT_COMPENSATION = """
INSERT INTO runs (thread_id, run_id, assistant_id, graph_id, ready_at, priority, cancelling, metadata, kwargs,
                  first_seq, parent_thread_id, parent_run_id, bound, actor, trace)
SELECT r.thread_id, %(new_id)s, r.assistant_id, r.graph_id, now(), true, 'interrupt',
       r.metadata || jsonb_build_object('compensates', r.run_id),
       (r.kwargs - 'answered' || '{"input": null, "command": null, "checkpoint": null, "checkpoint_id": null,
                                   "webhook": null}') #- '{config,configurable,checkpoint_id}',
       t.event_seq, r.parent_thread_id, r.parent_run_id, r.bound, r.actor,
       -- below the span of the run that it undoes, see tracing/ids.py
       format('00-%%s-%%s-%%s', coalesce(split_part(r.trace, '-', 2), replace(r.run_id::text, '-', '')),
              right(replace(r.run_id::text, '-', ''), 16), coalesce(split_part(r.trace, '-', 4), '01'))
  FROM steps s JOIN runs r ON r.thread_id = s.thread_id AND r.run_id = s.run_id
       JOIN threads t ON t.thread_id = s.thread_id
 WHERE s.thread_id = %(thread_id)s AND s.name = 'saga' AND s.status = 'open'
 ORDER BY s.created_at DESC LIMIT 1
RETURNING run_id
"""
BUSY = "UPDATE threads SET status = 'busy', updated_at = now() WHERE thread_id = %(thread_id)s"


async def undo_abandoned(conn: Conn, thread_id: UUID) -> list[Event]:
    """Undo the saga at whose question nobody will go on, if there is one: a new run does it, the next of the thread.

    It goes on where the asking run has stopped, and like a cancelled one it does nothing new; what has
    ended stays as it has ended. Part of the caller's transaction, which holds the thread's row; the
    thread has no owner.
    """
    new = {"thread_id": thread_id, "new_id": uuid7()}
    made = await (await conn.execute(INSERT_COMPENSATION, new)).fetchone()
    if made is None:
        if await (await conn.execute(OPEN_SAGA, {"thread_id": thread_id})).fetchone():
            log.error("a saga stays as it is: the run that opened it was deleted", thread_id=str(thread_id))
            await give_up_sagas(conn, thread_id)
        return []
    await conn.execute(BUSY, {"thread_id": thread_id})
    await conn.execute(NOTIFY_WORK)
    frame = events.Frame.of("lifecycle", {"event": "pending", "compensates": True})
    return await events.append(conn, thread_id, made["run_id"], [frame])


HAND_BACK_THREAD = """
UPDATE threads SET fence = fence + 1, run_id = NULL, updated_at = now()
 WHERE thread_id = %(thread_id)s AND fence = %(fence)s
RETURNING fence
"""

HAND_BACK_RUN = """
UPDATE runs
   SET status = 'pending', attempt = attempt - 1, ready_at = NULL, worker_id = NULL, lease_until = NULL,
       base_checkpoint_id = NULL, base_commands = NULL, base_tasks = NULL, updated_at = now(),
       started_at = CASE WHEN attempt > 1 THEN started_at END, overdue_at = CASE WHEN attempt > 1 THEN overdue_at END
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
"""


async def compensate_first(conn: Conn, run: queue.Claimed) -> list[Event]:
    """Give a run that was to begin over an open saga back to its queue, behind a run that undoes it.

    Its input has superseded the question at which the saga waits. Part of the caller's transaction.
    Raises LeaseLost.
    """
    keys = {"thread_id": run.thread_id, "run_id": run.run_id}
    if await (await conn.execute(HAND_BACK_THREAD, {**keys, "fence": run.fence})).fetchone() is None:
        raise LeaseLost(f"Run {run.run_id} has another owner")
    await conn.execute(HAND_BACK_RUN, keys)
    published = await undo_abandoned(conn, run.thread_id)
    if not published:
        await queue.promote(conn, run.thread_id)
    return published
