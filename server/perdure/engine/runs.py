"""Runs: accepting, reading, cancelling and deleting them (table `runs`, apart from the queue).

`enqueue` is the one way in. Its transaction locks (or makes) the thread, applies the
multitask rule, accepts an answer, stores the run with its whole input and the first event,
and wakes the workers: when the caller has its answer, the run is never lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, LiteralString, cast
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from perdure.engine import assistants, children, events, idempotency, interrupts, queue, state, threads
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import InvalidInput, RunFinished, RunNotFound, RunRejected, ThreadNotFound
from perdure.engine.hub import Event
from perdure.engine.wake import NOTIFY_WORK, wake

if TYPE_CHECKING:
    from perdure.engine.core import Engine

Action = Literal["interrupt", "rollback"]

MAX_DELAY = timedelta(days=3660)
ACTIVE = ("pending", "running", "suspended", "paused")

COLUMNS: LiteralString = (
    "run_id, thread_id, assistant_id, created_at, updated_at, status, metadata, kwargs, multitask_strategy, "
    "attempt, failures, error, ready_at"
)


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a client asks for; see WIRE: `POST /threads/{id}/runs`. `assistant` is a UUID or a graph name.

    `behind_question`: wait while the thread has an open question, instead of superseding it.
    `protocol`: record every channel of the event protocol (`channels`), whatever `stream_mode` says.
    """

    assistant: str
    input: Any = None
    command: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    context: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    checkpoint_id: str | None = None
    stream_mode: list[str] = field(default_factory=lambda: ["values"])
    stream_subgraphs: bool = False
    stream_resumable: bool = False
    interrupt_before: list[str] | Literal["*"] | None = None
    interrupt_after: list[str] | Literal["*"] | None = None
    multitask_strategy: Literal["enqueue", "reject", "interrupt", "rollback"] = "enqueue"
    if_not_exists: Literal["reject", "create"] = "reject"
    on_disconnect: Literal["continue", "cancel"] = "continue"
    on_completion: Literal["delete", "keep"] = "delete"
    after_seconds: float = 0
    webhook: str | None = None
    durability: str = "sync"
    idempotency_key: str | None = None
    behind_question: bool = False
    protocol: bool = False


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
        "durability": kwargs.get("durability") or "sync",
        "protocol": bool(kwargs.get("protocol")),
    }
    return NewRun(**{**same, **changes})


LOCK_THREAD = """
SELECT thread_id, run_id, status, metadata, config, event_seq, interrupts
  FROM threads WHERE thread_id = %(thread_id)s FOR UPDATE
"""

INSERT: LiteralString = (
    """
INSERT INTO runs (thread_id, run_id, assistant_id, graph_id, ready_at, available_at, priority, behind_question,
                  multitask_strategy, metadata, kwargs, first_seq)
SELECT %(thread_id)s, %(run_id)s, %(assistant_id)s, %(graph_id)s,
       CASE WHEN %(ready)s THEN now() + %(delay)s END, now() + %(delay)s, %(priority)s, %(behind_question)s,
       %(multitask_strategy)s, %(metadata)s, %(kwargs)s, %(first_seq)s
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

    Raises ThreadNotFound, AssistantNotFound, GraphNotFound, RunRejected, QuestionClosed,
    InvalidInput, IdempotencyMismatch; nothing is stored then.
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
) -> tuple[dict[str, Any], list[Event]]:
    """As `enqueue`, part of the caller's transaction; the events may be given to the hub when it is committed.

    The transaction (or a savepoint around this call) must be rolled back if it raises.
    """
    delay = _delay(new.after_seconds)
    stateless = thread_id is None
    temporary = stateless and new.on_completion == "delete"
    assistant = await assistants.resolve(engine, conn, new.assistant)
    run_id = uuid7()
    if new.idempotency_key:
        first = await idempotency.claim(conn, new.idempotency_key, (thread_id, new), run_id)
        if first is not None:
            return await get_in(conn, *first), []
    thread_id = thread_id or uuid4()
    thread = await lock(conn, thread_id, create=stateless or new.if_not_exists == "create", temporary=temporary)
    if new.idempotency_key:
        await idempotency.settle(conn, new.idempotency_key, thread_id)
    active = await _active(conn, thread_id)
    if active and new.multitask_strategy == "reject":
        raise RunRejected(
            "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."
        )
    if new.multitask_strategy in ("interrupt", "rollback"):
        for run in active:
            action: Action = "rollback" if new.multitask_strategy == "rollback" else "interrupt"
            _, stopped = await _stop(engine, conn, thread, run, action, successor=True)
            if stopped and thread["run_id"] == run["run_id"]:
                thread = {**thread, "run_id": None}
    command, answered = new.command, None
    if command and command.get("resume") is not None:
        answered = await interrupts.accept(conn, thread_id, command["resume"], status=answered_as, by=by, token=token)
    if answered is not None and thread["run_id"] is not None:
        await wake(conn, thread_id, thread["run_id"])  # it waits for something else as well
    moves = bool(command and (command.get("update") is not None or command.get("goto") is not None))
    if (new.input is not None or moves) and not new.behind_question and answered is None:
        await interrupts.supersede(conn, thread_id)
    queued = await (await conn.execute(QUEUED, {"thread_id": thread_id})).fetchone()
    assert queued is not None
    held = new.behind_question and queued["question"]
    priority = answered is not None
    metadata = _merge(assistant["metadata"], thread["metadata"], new.metadata)
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
            "kwargs": jsonb(_kwargs(new, config, assistant["context"], temporary, answered)),
            "first_seq": thread["event_seq"],
        },
    )
    row = await cursor.fetchone()
    assert row is not None
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


def _delay(seconds: float) -> timedelta:
    if not 0 <= seconds <= MAX_DELAY.total_seconds():
        raise InvalidInput("after_seconds", f"must be between 0 and {int(MAX_DELAY.total_seconds())}")
    return timedelta(seconds=seconds)


async def lock(conn: Conn, thread_id: UUID, *, create: bool = False, temporary: bool = False) -> dict[str, Any]:
    """The thread's row, locked until the caller's transaction ends. Raises ThreadNotFound."""
    if create:
        await threads.insert(conn, thread_id, {}, temporary=temporary)
    row = await (await conn.execute(LOCK_THREAD, {"thread_id": thread_id})).fetchone()
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return row


ACTIVE_RUNS = """
SELECT run_id, status, graph_id, base_checkpoint_id, base_tasks, cancelling, kwargs FROM runs
 WHERE thread_id = %(thread_id)s AND status IN ('pending', 'running', 'suspended', 'paused') ORDER BY queue_no
"""


async def _active(conn: Conn, thread_id: UUID) -> list[dict[str, Any]]:
    return await (await conn.execute(ACTIVE_RUNS, {"thread_id": thread_id})).fetchall()


def _merge(*parts: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for part in parts if part for key, value in part.items()}


def merge_config(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; `configurable` and `metadata` are merged key by key."""
    merged = {**base, **over}
    for key in ("configurable", "metadata"):
        if base.get(key) or over.get(key):
            merged[key] = _merge(base.get(key), over.get(key))
    return merged


def _kwargs(
    new: NewRun, config: dict[str, Any], context: dict[str, Any], temporary: bool, answered: list[str] | None
) -> dict[str, Any]:
    """What the attempts need and the wire echoes. `answered`: the answer stands in the checkpoint already."""
    return {
        "input": new.input,
        "command": new.command,
        "config": config,
        "context": _merge(context, new.context),
        "checkpoint": new.checkpoint,
        "checkpoint_id": new.checkpoint_id,
        "stream_mode": new.stream_mode,
        "interrupt_before": new.interrupt_before,
        "interrupt_after": new.interrupt_after,
        "webhook": new.webhook,
        "temporary": temporary,
        "subgraphs": new.stream_subgraphs,
        "resumable": new.stream_resumable,
        "durability": new.durability,
        "on_disconnect": new.on_disconnect,
        **({"protocol": True} if new.protocol else {}),
        **({"answered": answered} if answered is not None else {}),
    }


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


THREAD_OF = "SELECT thread_id FROM runs WHERE run_id = %(run_id)s"


async def thread_of(engine: Engine, run_id: UUID) -> UUID:
    """The thread that a run belongs to. Raises RunNotFound."""
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(THREAD_OF, {"run_id": run_id})).fetchone()
    if row is None:
        raise RunNotFound(f"Run with ID {run_id} not found")
    return row["thread_id"]


LIST: LiteralString = (
    "SELECT "
    + COLUMNS
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
        return [record(row) for row in await (await conn.execute(LIST, params)).fetchall()]


DELETE = """
WITH gone AS (
    DELETE FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s RETURNING thread_id, run_id
)
INSERT INTO purges (thread_id, run_id) SELECT thread_id, run_id FROM gone
ON CONFLICT (thread_id, run_id) DO UPDATE SET purge_at = excluded.purge_at
"""


async def delete(engine: Engine, thread_id: UUID, run_id: UUID) -> None:
    """Forget a run that has ended. Raises RunNotFound, and RunFinished while it is active."""
    async with engine.pool.connection() as conn, conn.transaction():
        await lock(conn, thread_id)
        run = await get_in(conn, thread_id, run_id)
        if run["status"] in ACTIVE or run.get("paused"):
            raise RunFinished(f"Run {run_id} is {run['status']}; cancel it before you delete it")
        await conn.execute(DELETE, {"thread_id": thread_id, "run_id": run_id})


async def cancel(
    engine: Engine, thread_id: UUID, run_id: UUID, action: Action = "interrupt", *, compensate: bool = True
) -> None:
    """Stop a run. `interrupt` keeps its finished steps, `rollback` deletes it and its checkpoints.

    Ownership is taken away in this transaction, so nothing more can be written; the worker
    learns of it afterwards. A run with an open saga undoes it first, unless `compensate` is
    False. Raises RunNotFound when there is no such active run.
    """
    await stop(engine, thread_id, run_id, action, compensate=compensate)
    await children.cancel_orphans(engine)


async def stop(engine: Engine, thread_id: UUID, run_id: UUID, action: Action, *, compensate: bool = True) -> None:
    """As `cancel`, without looking after the run's children."""
    async with engine.pool.connection() as conn, conn.transaction():
        thread = await lock(conn, thread_id)
        run = next((r for r in await _active(conn, thread_id) if r["run_id"] == run_id), None)
        if run is None:
            raise RunNotFound(f"Run with ID {run_id} not found or not active")
        published, _ = await _stop(engine, conn, thread, run, action, compensate=compensate)
    engine.hub.publish(thread_id, published)


CANDIDATES = """
SELECT thread_id, run_id FROM runs
 WHERE status IN ('pending', 'running', 'suspended', 'paused')
   AND (%(thread_id)s::uuid IS NULL OR thread_id = %(thread_id)s)
   AND (%(run_ids)s::uuid[] IS NULL OR run_id = ANY(%(run_ids)s))
   AND (%(status)s::text IS NULL OR %(status)s = 'all' OR status = %(status)s
        OR (%(status)s = 'running' AND status = 'suspended'))
 ORDER BY queue_no
"""


async def cancel_many(
    engine: Engine,
    *,
    thread_id: UUID | None = None,
    run_ids: list[UUID] | None = None,
    status: Literal["pending", "running", "all"] | None = None,
    action: Action = "interrupt",
) -> int:
    """Cancel runs one by one, each in its own transaction; returns how many were stopped."""
    async with engine.pool.connection() as conn:
        params = {"thread_id": thread_id, "run_ids": run_ids, "status": status}
        rows = await (await conn.execute(CANDIDATES, params)).fetchall()
    count = 0
    for row in rows:
        try:
            await cancel(engine, row["thread_id"], row["run_id"], action)
        except (RunNotFound, ThreadNotFound):
            continue  # ended just now
        count += 1
    return count


DELETE_CHECKPOINTS = """
WITH own AS (
    DELETE FROM checkpoints WHERE thread_id = %(thread)s AND metadata ->> 'run_id' = %(run)s
    RETURNING checkpoint_ns, checkpoint_id
), answers AS (
    DELETE FROM checkpoint_writes
     WHERE thread_id = %(thread)s AND checkpoint_id = %(base)s AND NOT task_id = ANY(%(base_tasks)s)
       AND (idx >= 0 OR channel = '__error__')
)
DELETE FROM checkpoint_writes w USING own
 WHERE w.thread_id = %(thread)s AND w.checkpoint_ns = own.checkpoint_ns AND w.checkpoint_id = own.checkpoint_id
"""


DELETE_STEPS = "DELETE FROM steps WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s"

OPEN_SAGA = """
SELECT 1 FROM steps WHERE thread_id = %(thread_id)s AND name = 'saga' AND status = 'open' LIMIT 1
"""

COMPENSATE = """
UPDATE runs SET status = 'pending', cancelling = %(action)s, ready_at = now(), worker_id = NULL, lease_until = NULL,
                failures = 0, updated_at = now()
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
"""

TAKE_AWAY = "UPDATE threads SET fence = fence + 1 WHERE thread_id = %(thread_id)s"


async def _stop(
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
    thread_id, run_id = thread["thread_id"], run["run_id"]
    owner = thread["run_id"] == run_id
    if owner:
        if run["cancelling"] and compensate and run["status"] != "paused":
            return [], False  # its undos are running
        await conn.execute(threads.CANCEL_NOTICE, {"run_id": str(run_id)})
        if compensate and await (await conn.execute(OPEN_SAGA, {"thread_id": thread_id})).fetchone():
            await conn.execute(TAKE_AWAY, {"thread_id": thread_id})
            await conn.execute(COMPENSATE, {"thread_id": thread_id, "run_id": run_id, "action": action})
            await conn.execute(NOTIFY_WORK)
            frame = events.Frame.of("lifecycle", {"event": "cancelling", "action": action})
            return await events.append(conn, thread_id, run_id, [frame]), False
    last = events.Frame.of("lifecycle", {"event": "cancelled", "action": action, "final": True})
    published = await events.append(conn, thread_id, run_id, [last])
    if owner:
        await interrupts.supersede(conn, thread_id)
        if not compensate:
            await conn.execute(CLOSE_SAGAS, {"thread_id": thread_id})
    await _end_stopped(conn, thread_id, run_id, action, run)
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
        if not owner:  # the input that superseded them has never started
            await interrupts.reopen(
                conn, thread_id, [one["id"] for asked in _asked(snapshot).values() for one in asked]
            )
    if not successor:
        await queue.promote(conn, thread_id)
    return published, True


async def _end_stopped(conn: Conn, thread_id: UUID, run_id: UUID, action: str, run: dict[str, Any]) -> None:
    """`interrupt`: the run's status is final; `rollback`: the run and what it wrote are gone, answers too."""
    if action == "rollback":
        base: dict[str, Any] = {"base": run["base_checkpoint_id"], "base_tasks": run["base_tasks"] or []}
        await conn.execute(DELETE_CHECKPOINTS, {"thread": str(thread_id), "run": str(run_id), **base})
        await conn.execute(DELETE_STEPS, {"thread_id": thread_id, "run_id": run_id})
        await conn.execute(DELETE, {"thread_id": thread_id, "run_id": run_id})
        if run["kwargs"].get("answered"):
            await interrupts.take_back(conn, thread_id, run["kwargs"]["answered"])
    else:
        await queue.end_run(conn, thread_id, run_id, "interrupted", None)


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
    await _end_stopped(conn, run.thread_id, run.run_id, action, row)
    await conn.execute(CLOSE_SAGAS, {"thread_id": run.thread_id})
    await interrupts.supersede(conn, run.thread_id)
    await queue.promote(conn, run.thread_id)
    return published


async def outcome(engine: Engine, thread_id: UUID, run_id: UUID) -> Any:
    """What wait and join answer once a run has ended: the thread's present values.

    After a question they hold `__interrupt__`; of a failed run it is `{"__error__": …}`.
    Raises RunNotFound.
    """
    run, thread = await _ended(engine, thread_id, run_id)
    if run["status"] in ("error", "timeout"):
        return _failure(run)
    values = await state.values(engine, thread)
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
