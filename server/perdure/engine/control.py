"""What a person does to a run: pause, resume, retry now, restart, kill.

Each is one transaction that locks the thread first, as everywhere. A run in a state that does
not allow it is left alone (RunFinished).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal, LiteralString
from uuid import UUID

from perdure.engine import events, finding, queue, runs, stop, threads
from perdure.engine.access import Actor, Within
from perdure.engine.db import jsonb
from perdure.engine.errors import EngineError, RunFinished
from perdure.engine.tracing import rows as traces
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
        await traces.taken(conn, thread_id, run_id, "paused")
        if await (await conn.execute(PAUSE, params)).fetchone() is None:
            raise _forbidden(run, "paused")
        await conn.execute(TAKE_AWAY, {"thread_id": thread_id, "run_id": run_id})
        await conn.execute(threads.CANCEL_NOTICE, {"run_id": str(run_id)})
        graph = run["metadata"]["graph_id"]
        last = {"event": "paused", "graph_name": graph, "error": error["message"], "final": True}
        frames = [events.Frame.of("error", error), events.Frame.of("lifecycle", last)]
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


async def bulk(engine: Engine, command: Command, run_ids: list[UUID], *, within: Within = None) -> dict[str, int]:
    """Do one thing to many runs, each in its own transaction; how many were done and how many could not be."""
    errors = [error async for error in each(engine, command, run_ids, within=within)]
    return {"done": errors.count(None), "failed": len(errors) - errors.count(None)}


async def each(
    engine: Engine, command: Command, run_ids: list[UUID], *, within: Within = None
) -> AsyncIterator[EngineError | None]:
    """As `bulk`: for one run after the other why it was not done, or None."""
    for run_id in run_ids:
        try:
            thread_id = await finding.thread_of(engine, run_id, within=within)
            if command == "cancel":
                await stop.cancel(engine, thread_id, run_id)
            elif command == "delete":
                await runs.delete(engine, thread_id, run_id)
            else:
                await {"kill": kill, "pause": pause, "resume": resume, "retry": retry}[command](
                    engine, thread_id, run_id
                )
        except EngineError as exc:
            yield exc
        else:
            yield None
