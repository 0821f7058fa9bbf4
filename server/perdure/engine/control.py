"""What a person does to a run: pause, resume, retry now, restart, kill; and finding runs over all threads.

Each is one transaction that locks the thread first, as everywhere. A run in a state that does
not allow it is left alone (RunFinished).
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, LiteralString
from uuid import UUID

from perdure.engine import access, events, queue, runs, stop, threads
from perdure.engine.access import Actor, Within
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import EngineError, RunFinished, RunNotFound
from perdure.engine.wake import NOTIFY_WORK

if TYPE_CHECKING:
    from perdure.engine.core import Engine

Command = Literal["cancel", "kill", "pause", "resume", "retry", "delete"]

PAUSE = """
UPDATE runs SET status = 'paused', ready_at = NULL, worker_id = NULL, lease_until = NULL, error = %(error)s,
                updated_at = now()
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND status IN ('pending', 'running', 'suspended')
RETURNING run_id
"""


# of the head of the queue, which it remains; one that has not started only keeps its place (`queue`)
TAKE_AWAY = "UPDATE threads SET fence = fence + 1 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s"


async def pause(engine: Engine, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """Stop executing a run until it is resumed; its finished steps stay, the queue behind it waits.

    One that has not started keeps its place in the queue; answers to questions go before it. Raises
    RunNotFound, RunFinished.
    """
    error = {"error": "RunPaused", "message": "The run was paused by a client"}
    async with engine.pool.connection() as conn, conn.transaction():
        await threads.lock(conn, thread_id)
        run = await runs.get_in(conn, thread_id, run_id)
        params = {"thread_id": thread_id, "run_id": run_id, "error": jsonb(error)}
        if await (await conn.execute(PAUSE, params)).fetchone() is None:
            raise _forbidden(run, "paused")
        await conn.execute(TAKE_AWAY, {"thread_id": thread_id, "run_id": run_id})
        await conn.execute(threads.CANCEL_NOTICE, {"run_id": str(run_id)})
        frames = [
            events.Frame.of("error", error),
            events.Frame.of("lifecycle", {"event": "paused", "error": error["message"], "final": True}),
        ]
        published = await events.append(conn, thread_id, run_id, frames)
        run = await runs.get_in(conn, thread_id, run_id)
    engine.hub.publish(thread_id, published)
    return run


RESUME = """
UPDATE runs SET status = 'pending', failures = 0, error = NULL, updated_at = now(), overdue_at = NULL,
                ready_at = CASE WHEN available_at > now() THEN available_at WHEN %(head)s THEN now() END
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND status = 'paused'
RETURNING run_id
"""


async def resume(engine: Engine, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """Let a paused run go on, with the code that is there now and all its retries. Raises RunNotFound, RunFinished."""
    return await _again(engine, thread_id, run_id, RESUME, "resumed")


RETRY = """
UPDATE runs SET ready_at = now(), updated_at = now()
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND status = 'pending' AND failures > 0 AND %(head)s
RETURNING run_id
"""


async def retry(engine: Engine, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """Try a failed attempt again now instead of when its back-off is over. Raises RunNotFound, RunFinished."""
    return await _again(engine, thread_id, run_id, RETRY, "retried")


async def _again(engine: Engine, thread_id: UUID, run_id: UUID, statement: LiteralString, word: str) -> dict[str, Any]:
    async with engine.pool.connection() as conn, conn.transaction():
        thread = await threads.lock(conn, thread_id)
        run = await runs.get_in(conn, thread_id, run_id)
        params = {"thread_id": thread_id, "run_id": run_id, "head": thread["run_id"] == run_id}
        if await (await conn.execute(statement, params)).fetchone() is None:
            raise _forbidden(run, word)
        published = await events.append(conn, thread_id, run_id, [events.Frame.of("lifecycle", {"event": word})])
        if thread["run_id"] is None:
            await queue.promote(conn, thread_id)
        await conn.execute(NOTIFY_WORK)
        run = await runs.get_in(conn, thread_id, run_id)
    engine.hub.publish(thread_id, published)
    return run


async def restart(
    engine: Engine,
    thread_id: UUID,
    run_id: UUID,
    *,
    checkpoint_id: str | None = None,
    actor: Actor | None = None,
) -> dict[str, Any]:
    """A new run with the input, configuration and modes of an ended one; or from a checkpoint on, without input.

    It acts for `actor`; None: for whom the ended one did. Raises RunNotFound, RunFinished while the run has not ended.
    """
    run = await runs.get(engine, thread_id, run_id)
    if run["status"] in runs.ACTIVE or run.get("paused"):
        raise _forbidden(run, "restarted")
    kwargs: dict[str, Any] = run["kwargs"]
    new = runs.again(
        run,
        input=None if checkpoint_id else kwargs.get("input"),
        command=None if checkpoint_id or kwargs.get("answered") else kwargs.get("command"),
        checkpoint_id=checkpoint_id or kwargs.get("checkpoint_id"),
        checkpoint=None if checkpoint_id else kwargs.get("checkpoint"),
        actor=actor,
        metadata={**run["metadata"], "restart_of": str(run_id)},
    )
    return await runs.enqueue(engine, thread_id, new)


async def kill(engine: Engine, thread_id: UUID, run_id: UUID) -> None:
    """Cancel without compensation, also a run that is compensating already, and so its children. Raises RunNotFound."""
    await stop.cancel(engine, thread_id, run_id, compensate=False)


def _forbidden(run: dict[str, Any], word: str) -> RunFinished:
    status = "paused" if run.get("paused") else "suspended" if run.get("suspended") else run["status"]
    return RunFinished(f"Run {run['run_id']} is {status}: it cannot be {word}")


FIND: LiteralString = (
    "SELECT graph_id AS agent, started_at, ended_at, "
    + runs.COLUMNS
    + """ FROM runs
 WHERE (%(status)s::text[] IS NULL OR status = ANY(%(status)s))
   AND (%(agent)s::text IS NULL OR graph_id = %(agent)s)
   AND (%(thread_id)s::uuid IS NULL OR thread_id = %(thread_id)s)
   AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR created_at < %(until)s)
   AND (%(error)s::text IS NULL OR error ->> 'error' || ': ' || (error ->> 'message') ILIKE %(error)s)
   AND (%(before)s::bigint IS NULL OR queue_no < %(before)s)
   AND """
    + runs.PERMITTED
    + """
 ORDER BY queue_no DESC LIMIT %(limit)s"""
)
NUMBER: LiteralString = "SELECT queue_no FROM runs WHERE run_id = %(run_id)s AND " + runs.PERMITTED


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

    `error` is a part of `Class: text`. Raises RunNotFound for an unknown cursor.
    """
    params = {"status": status, "agent": agent, "thread_id": thread_id, "since": since, "until": until}
    params |= {"error": _like(error) if error else None, "limit": limit, "within": access.parameter(within)}
    async with engine.pool.connection() as conn:
        before = await _number(conn, cursor, within) if cursor else None
        rows = await (await conn.execute(FIND, {**params, "before": before})).fetchall()
    return [runs.record(row) for row in rows]


async def _number(conn: Conn, run_id: UUID, within: Within) -> int:
    row = await (await conn.execute(NUMBER, {"run_id": run_id, "within": access.parameter(within)})).fetchone()
    if row is None:
        raise RunNotFound(f"Run with ID {run_id} not found")
    return row["queue_no"]


def _like(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


async def bulk(engine: Engine, command: Command, run_ids: list[UUID], *, within: Within = None) -> dict[str, int]:
    """Do one thing to many runs, each in its own transaction; how many were done and how many could not be."""
    done = 0
    for run_id in run_ids:
        try:
            thread_id = await runs.thread_of(engine, run_id, within=within)
            if command == "cancel":
                await stop.cancel(engine, thread_id, run_id)
            elif command == "delete":
                await runs.delete(engine, thread_id, run_id)
            else:
                await {"kill": kill, "pause": pause, "resume": resume, "retry": retry}[command](
                    engine, thread_id, run_id
                )
        except EngineError:
            continue  # counted as not done
        done += 1
    return {"done": done, "failed": len(run_ids) - done}
