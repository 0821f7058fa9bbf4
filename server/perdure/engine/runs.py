"""Runs: accepting, reading and deleting them (table `runs`, apart from the queue; `stop` ends them early).

What a run is asked with is a `NewRun` (`perdure.engine.newrun`); `perdure.engine.finding` looks for runs.

`enqueue` is the one way in. Its transaction locks (or makes) the thread, applies the
multitask rule, accepts an answer, stores the run with its whole input and the first event,
and wakes the workers: when the caller has its answer, the run is never lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, cast
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from perdure.engine import (
    assistants,
    children,
    events,
    idempotency,
    interrupts,
    queue,
    resuming,
    state,
    stop,
    threads,
    timelimits,
)
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import RunFinished, RunNotFound, RunRejected, ThreadNotFound
from perdure.engine.hub import Event
from perdure.engine.newrun import NewRun, delay_of, kwargs_of, merge, merge_config, start_of
from perdure.engine.tracing import ids
from perdure.engine.wake import NOTIFY_WORK, wake

if TYPE_CHECKING:
    from perdure.engine.core import Engine

ACTIVE = ("pending", "running", "suspended", "paused")
ENDED = ("success", "error", "timeout", "interrupted")

COLUMNS: LiteralString = (
    "run_id, thread_id, assistant_id, created_at, updated_at, status, metadata, kwargs, multitask_strategy, "
    "attempt, failures, error, ready_at"
)


def record(row: dict[str, Any]) -> dict[str, Any]:
    """A run as the wire shows it, plus what LangGraph has no word for.

    A paused run is an `error` with `paused`, a suspended one `running` with `suspended`; a
    retry and a timer tell when they are due (`next_at`).
    """
    failures, error, ready_at = row.pop("failures"), row.pop("error"), row.pop("ready_at")
    if row["status"] == "paused":
        row |= {"status": "error", "paused": True, "error": error}
    elif row["status"] == "suspended":
        row |= {"status": "running", "suspended": True, "next_at": ready_at}
    elif row["status"] == "pending" and failures:
        row |= {"error": error, "next_at": ready_at}
    elif row["status"] == "error":
        row["error"] = error
    return {**row, "langsmith_session_name": None}


def again(run: dict[str, Any], **changes: Any) -> NewRun:
    """A new run like a given one (its record), apart from `changes`: same assistant, configuration, modes, webhook."""
    kwargs: dict[str, Any] = run["kwargs"]
    same: dict[str, Any] = {
        "assistant": str(run["assistant_id"]),
        "config": kwargs.get("config") or {},
        "context": kwargs.get("context"),
        "stream_mode": kwargs.get("stream_mode") or ["values"],
        "stream_subgraphs": bool(kwargs.get("subgraphs")),
        "stream_resumable": bool(kwargs.get("resumable")),
        "interrupt_before": kwargs.get("interrupt_before"),
        "interrupt_after": kwargs.get("interrupt_after"),
        "webhook": kwargs.get("webhook"),
        "max_duration": kwargs.get("max_duration"),
        "durability": kwargs.get("durability") or "sync",
        "protocol": bool(kwargs.get("protocol")),
        "like": run["run_id"],
    }
    return NewRun(**{**same, **changes})


INSERT: LiteralString = (
    """
INSERT INTO runs (thread_id, run_id, assistant_id, graph_id, ready_at, available_at, priority, behind_question,
                  multitask_strategy, metadata, kwargs, first_seq, max_seconds, trace, actor)
SELECT %(thread_id)s, %(run_id)s, %(assistant_id)s, %(graph_id)s,
       CASE WHEN %(ready)s THEN now() + %(delay)s END, now() + %(delay)s, %(priority)s, %(behind_question)s,
       %(multitask_strategy)s, %(metadata)s, %(kwargs)s, %(first_seq)s, %(max_seconds)s, %(trace)s,
       coalesce(%(actor)s::jsonb, (SELECT r.actor FROM runs r
                                    WHERE r.thread_id = %(thread_id)s AND r.run_id = %(like)s))
RETURNING """
    + COLUMNS
)

TOUCH_THREAD = """
UPDATE threads
   SET status = CASE WHEN %(held)s THEN status ELSE 'busy' END, metadata = %(metadata)s, config = %(config)s,
       updated_at = now(), interrupts = coalesce(interrupts, '{}')
 WHERE thread_id = %(thread_id)s
"""

QUEUED = """
SELECT EXISTS (SELECT 1 FROM runs WHERE thread_id = %(thread_id)s AND status = 'pending'
                  AND ready_at <= now()) AS ready,
       EXISTS (SELECT 1 FROM interrupts WHERE thread_id = %(thread_id)s AND status = 'open') AS question
"""


async def enqueue(
    engine: Engine,
    thread_id: UUID | None,
    new: NewRun,
    *,
    answered_as: str = "answered",
    by: str | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    """Accept a run; it is durable when this returns. `thread_id` None: on a thread of its own.

    With an idempotency key that was used for the same request, the first run is returned.

    Raises ThreadNotFound, AssistantNotFound, GraphNotFound (also for what its actor may not use),
    RunRejected, QuestionClosed, InvalidInput, IdempotencyMismatch; nothing is stored then.
    """
    async with engine.pool.connection() as conn, conn.transaction():
        run, published = await enqueue_in(engine, conn, thread_id, new, answered_as=answered_as, by=by, token=token)
    if published:
        engine.hub.publish(run["thread_id"], published)
    return run


async def enqueue_in(
    engine: Engine,
    conn: Conn,
    thread_id: UUID | None,
    new: NewRun,
    *,
    answered_as: str = "answered",
    by: str | None = None,
    token: str | None = None,
    trace: str | None = None,
) -> tuple[dict[str, Any], list[Event]]:
    """As `enqueue`, part of the caller's transaction; the events may be given to the hub when it is committed.

    `trace`: the traceparent that it stands below, if that is not the one of the request that is being answered.

    The transaction (or a savepoint around this call) must be rolled back if it raises.
    """
    delay = delay_of(new.after_seconds)
    stateless = thread_id is None
    temporary = stateless and new.on_completion == "delete"
    actor = new.actor
    assistant = await assistants.resolve(engine, conn, new.assistant, within=actor.assistants if actor else None)
    run_id = uuid7()
    if new.idempotency_key:
        first = await idempotency.claim(conn, new.idempotency_key, (thread_id, new), run_id)
        if first is not None:
            return await get_in(conn, *first), []
    thread_id = thread_id or uuid4()
    if stateless or new.if_not_exists == "create":
        await threads.insert(engine, conn, thread_id, actor.owns if actor else {}, temporary=temporary)
    thread = await threads.lock(conn, thread_id)
    if actor and not await threads.permitted(conn, thread_id, actor.threads):
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    if new.idempotency_key:
        await idempotency.settle(conn, new.idempotency_key, thread_id)
    active = await stop.active(conn, thread_id)
    if active and new.multitask_strategy == "reject":
        raise RunRejected(
            "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."
        )
    if new.multitask_strategy in ("interrupt", "rollback"):
        for run in active:
            action: stop.Action = "rollback" if new.multitask_strategy == "rollback" else "interrupt"
            _, stopped = await stop.cancel_in(engine, conn, thread, run, action, successor=True)
            if stopped and thread["run_id"] == run["run_id"]:
                thread = {**thread, "run_id": None}
    command, answered = new.command, None
    if command and command.get("resume") is not None:
        at = start_of({"checkpoint_id": new.checkpoint_id, "checkpoint": new.checkpoint, "config": new.config})
        answered = await resuming.accept(
            *(engine, conn, thread, command["resume"]),
            at=at.root,
            busy=bool(active),
            status=answered_as,
            by=by,
            token=token,
        )
    if answered is not None and thread["run_id"] is not None:
        await wake(conn, thread_id, thread["run_id"])  # it waits for something else as well
    moves = bool(command and (command.get("update") is not None or command.get("goto") is not None))
    if (new.input is not None or moves) and not new.behind_question and answered is None:
        await interrupts.supersede(conn, thread_id)
    queued = await (await conn.execute(QUEUED, {"thread_id": thread_id})).fetchone()
    assert queued is not None
    held = new.behind_question and queued["question"]
    priority = answered is not None
    metadata = merge(assistant["metadata"], thread["metadata"], new.metadata)
    metadata |= {"graph_id": assistant["graph_id"], "assistant_id": str(assistant["assistant_id"])}
    if engine.settings.simulated:
        metadata["simulated"] = True
    config = merge_config(assistant["config"] or {}, new.config)
    cursor = await conn.execute(
        INSERT,
        {
            "thread_id": thread_id,
            "run_id": run_id,
            "assistant_id": assistant["assistant_id"],
            "graph_id": assistant["graph_id"],
            "ready": bool(delay),
            "delay": delay,
            "priority": priority,
            "behind_question": new.behind_question,
            "multitask_strategy": new.multitask_strategy,
            "metadata": jsonb(metadata),
            "kwargs": jsonb(kwargs_of(new, config, assistant["context"], temporary, answered)),
            "first_seq": thread["event_seq"],
            "actor": jsonb(actor.stored()) if actor else None,
            "like": new.like,
            "trace": trace or ids.caller.get(),
            "max_seconds": new.max_duration or timelimits.limits_of(engine, assistant["graph_id"]).max_duration,
        },
    )
    row = await cursor.fetchone()
    assert row is not None
    if answered:
        await children.inherit(conn, thread_id, run_id, answered)
    owner = {"graph_id": assistant["graph_id"], "assistant_id": str(assistant["assistant_id"])}
    await conn.execute(
        TOUCH_THREAD,
        {
            "thread_id": thread_id,
            "held": held,
            "metadata": jsonb({**owner, **(thread["metadata"] or {})}),
            "config": jsonb(merge_config(thread["config"] or {}, new.config)),
        },
    )
    published = await events.append(conn, thread_id, run_id, [events.Frame.of("lifecycle", {"event": "pending"})])
    if thread["run_id"] is None and (priority or not queued["ready"]):
        await queue.promote(conn, thread_id)
    await conn.execute(NOTIFY_WORK)  # a delayed run may be the next that is due
    return record(row), published


GET: LiteralString = "SELECT " + COLUMNS + " FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s"


async def get(engine: Engine, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """Raises RunNotFound."""
    async with engine.pool.connection() as conn:
        return await get_in(conn, thread_id, run_id)


async def get_in(conn: Conn, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """As `get`, on the caller's connection."""
    row = await (await conn.execute(GET, {"thread_id": thread_id, "run_id": run_id})).fetchone()
    if row is None:
        raise RunNotFound(f"Run with ID {run_id} not found")
    return record(row)


async def delete(engine: Engine, thread_id: UUID, run_id: UUID) -> None:
    """Forget a run that has ended. Raises RunNotFound, and RunFinished while it is active."""
    async with engine.pool.connection() as conn, conn.transaction():
        await threads.lock(conn, thread_id)
        run = await get_in(conn, thread_id, run_id)
        if run["status"] in ACTIVE or run.get("paused"):
            raise RunFinished(f"Run {run_id} is {run['status']}; cancel it before you delete it")
        await stop.delete_row(conn, thread_id, run_id)


async def outcome(engine: Engine, thread_id: UUID, run_id: UUID) -> Any:
    """What wait and join answer once a run has ended: the thread's present values.

    After a question they hold `__interrupt__`; of a failed run it is `{"__error__": …}`.
    Raises RunNotFound.
    """
    run, thread = await _ended(engine, thread_id, run_id)
    if run["status"] in ("error", "timeout"):
        return _failure(run)
    # on a thread of several graphs each run answers in the words of its own
    own = {**thread["metadata"], "graph_id": run["metadata"]["graph_id"]}
    values = await state.values(engine, {**thread, "metadata": own})
    asked: dict[str, list[dict[str, Any]]] = thread["interrupts"] or {}
    questions = [question for group in asked.values() for question in group]
    return _with_questions(values, questions) if run["status"] == "success" else values


async def result(engine: Engine, thread_id: UUID, run_id: UUID) -> Any:
    """What a call gives back once its run has ended: the graph's output as that run left it.

    Later runs of the thread do not change it, as long as its checkpoints are there. Questions
    and errors stand in it as in `outcome`. Raises RunNotFound.
    """
    run, thread = await _ended(engine, thread_id, run_id)
    if run["status"] in ("error", "timeout"):
        return _failure(run)
    async with engine.pool.connection() as conn:
        keys = {"thread": str(thread_id), "run": str(run_id), "thread_id": thread_id, "run_id": run_id}
        own = await (await conn.execute(OWN_CHECKPOINT, keys)).fetchone()
        questions = await (await conn.execute(ASKED_BY, keys)).fetchall()
    values = await state.output(engine, thread, own["checkpoint_id"] if own else None)
    return _with_questions(values, questions) if run["status"] == "success" else values


OWN_CHECKPOINT = """
SELECT checkpoint_id FROM checkpoints
 WHERE thread_id = %(thread)s AND checkpoint_ns = '' AND metadata ->> 'run_id' = %(run)s
 ORDER BY checkpoint_id DESC LIMIT 1
"""
ASKED_BY = """
SELECT interrupt_id AS id, question AS value FROM interrupts
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s ORDER BY created_at, n
"""


async def _ended(engine: Engine, thread_id: UUID, run_id: UUID) -> tuple[dict[str, Any], dict[str, Any]]:
    async with engine.pool.connection() as conn:
        run = await get_in(conn, thread_id, run_id)
        thread = await (await conn.execute(THREAD, {"thread_id": thread_id})).fetchone()
    if thread is None:
        raise RunNotFound(f"Run with ID {run_id} not found")
    return run, thread


def _failure(run: dict[str, Any]) -> dict[str, Any]:
    return {"__error__": run.get("error") or {"error": "TimeoutError", "message": "The run took too long"}}


def _with_questions(values: Any, questions: list[dict[str, Any]]) -> Any:
    if not questions or not isinstance(values, dict):
        return values
    shown = [{**question, "response_schema": question.get("response_schema")} for question in questions]
    return {**cast("dict[str, Any]", values), "__interrupt__": shown}


THREAD = "SELECT thread_id, metadata, config, interrupts FROM threads WHERE thread_id = %(thread_id)s"
