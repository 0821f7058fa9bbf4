"""The state of a thread: reading it, its history, and changing it by hand.

State lives in LangGraph's checkpoints and is understood by the thread's graph; this module asks
LangGraph (`aget_state`, `aget_state_history`, `abulk_update_state`) and answers in the wire's
shape (ThreadState of langgraph-api 0.16). Reading runs no nodes. Updating runs code of the author
(conditional edges), so it has a thread and an event loop of its own, and is one transaction.

`values` stay as they are (messages are objects): `perdure.engine.jsonable` makes JSON of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import psycopg
import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.types import Command, StateSnapshot, StateUpdate

from perdure.engine import interrupts
from perdure.engine.db import Conn, Pool, connect, jsonb
from perdure.engine.errors import (
    CheckpointNotFound,
    EngineError,
    GraphNotFound,
    InvalidInput,
    ThreadBusy,
    ThreadNotFound,
)
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.saver import FencedSaver
from perdure.engine.shapes import address, empty_state, question, thread_state

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

T = TypeVar("T")
UPDATE_SECONDS = 30  # how long an update's author code may hold the thread


async def read(
    engine: Engine,
    thread_id: UUID,
    *,
    checkpoint_id: str | None = None,
    checkpoint_ns: str = "",
    checkpoint_map: Mapping[str, str] | None = None,
    subgraphs: bool = False,
    conn: Conn | None = None,
) -> dict[str, Any]:
    """The ThreadState of the newest checkpoint, or of the one named; of a subgraph with its `checkpoint_ns`.

    The newest one shows the present: answered questions and finished tasks are left out. An older
    one is a record of its step. With `subgraphs` the tasks hold the states of their subgraphs.
    A thread without state, and an unknown checkpoint, give the empty state. With `conn` the reading
    is part of the caller's transaction. Raises ThreadNotFound.
    """
    thread = await _thread(engine, thread_id, conn)
    checkpoint_id = checkpoint_id or (checkpoint_map or {}).get(checkpoint_ns)
    wanted = _address(thread_id, checkpoint_ns, checkpoint_id)
    snapshot = await _snapshot(engine, thread, wanted, subgraphs=subgraphs, conn=conn)
    if snapshot is None:
        return empty_state(wanted.get("configurable") if checkpoint_id or checkpoint_ns else None)
    return thread_state(snapshot)


async def values(engine: Engine, thread: Mapping[str, Any], conn: Conn | None = None) -> Any:
    """The present values of a thread (a record of `threads`); None before it has any. One query.

    With `conn` the query is part of the caller's transaction.
    """
    snapshot = await _snapshot(engine, thread, _address(thread["thread_id"]), conn=conn)
    return None if snapshot is None else snapshot.values


async def output(engine: Engine, thread: Mapping[str, Any], checkpoint_id: str | None = None) -> Any:
    """What the thread's graph gives back: its output channels, now or at a checkpoint; None before there are any."""
    snapshot = await _snapshot(engine, thread, _address(thread["thread_id"], checkpoint_id=checkpoint_id))
    found: Any = None if snapshot is None else snapshot.values
    if not isinstance(found, dict):
        return found
    present = cast("dict[str, Any]", found)
    entry = engine.registry.open(thread["metadata"]["graph_id"], _own_config(thread), checkpointer=None)
    async with entry as graph:
        wanted = graph.output_channels
    if isinstance(wanted, str):
        return present.get(wanted)
    return {name: present[name] for name in wanted if name in present}


async def history(
    engine: Engine,
    thread_id: UUID,
    *,
    limit: int = 10,
    before: str | None = None,
    metadata: dict[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """ThreadStates, newest first, from those older than the checkpoint id `before`.

    `metadata` is contained in theirs; `checkpoint` names a subgraph by `checkpoint_ns`.
    Raises ThreadNotFound.
    """
    thread = await _thread(engine, thread_id)
    at = checkpoint or {}
    wanted = _address(thread_id, at.get("checkpoint_ns") or "", at.get("checkpoint_id"))
    graph_id = _graph_id(thread)
    if not graph_id or not _storable(wanted) or (before and "\x00" in before):
        return []
    options: dict[str, Any] = {
        "filter": metadata or None,
        "before": {"configurable": {"checkpoint_id": before}} if before else None,
        "limit": limit,
    }
    saver = _reader(engine.pool)
    try:
        async with engine.registry.open(graph_id, _own_config(thread), checkpointer=saver) as graph:
            return [thread_state(snapshot) async for snapshot in graph.aget_state_history(wanted, **options)]
    except psycopg.DataError:  # a filter with NUL: PostgreSQL cannot store what would match it
        return []
    except psycopg.Error:
        raise
    except Exception as exc:  # see `_snapshot`
        _unreadable(thread, exc)
        return [thread_state(_bare(saved)) async for saved in saver.alist(wanted, **options)]


async def update(
    engine: Engine,
    thread_id: UUID,
    *,
    values: Any = None,
    as_node: str | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    checkpoint_id: str | None = None,
) -> dict[str, Any]:
    """Write `values` into the state as if node `as_node` had returned them; answers with the new checkpoint.

    With a checkpoint id the new checkpoint is a fork of that one, and becomes the newest. Open
    questions are superseded. One transaction: nothing has changed if it fails.

    Raises ThreadNotFound, ThreadBusy while a run is active, GraphNotFound, CheckpointNotFound,
    and InvalidInput (400) for an unknown node or values that do not fit the state.
    """
    at = checkpoint or {}
    checkpoint_id = checkpoint_id or at.get("checkpoint_id")
    wanted = _address(thread_id, at.get("checkpoint_ns") or "", checkpoint_id)
    steps = [[StateUpdate(values, as_node)]]
    return await _aside(lambda: _apply(engine, thread_id, wanted, steps))


async def replay(engine: Engine, thread_id: UUID, supersteps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Make checkpoints as if a run had made them: `[{"updates": [{"values", "command", "as_node"}]}]`.

    As `update` otherwise. None when there is nothing to do.
    """
    steps = [[_update(u) for u in step.get("updates") or ()] for step in supersteps]
    if not any(steps):
        return None
    return await _aside(lambda: _apply(engine, thread_id, _address(thread_id), steps))


def _update(given: Mapping[str, Any]) -> StateUpdate:
    command = given.get("command")
    if command:
        known = {k: command[k] for k in ("update", "goto", "resume") if command.get(k) is not None}
        return StateUpdate(cast(Any, Command(**known)), given.get("as_node"))
    return StateUpdate(given.get("values"), given.get("as_node"))


# --- reading ---------------------------------------------------------------------------------

THREAD = "SELECT thread_id, metadata, config FROM threads WHERE thread_id = %(thread_id)s"


async def _thread(engine: Engine, thread_id: UUID, conn: Conn | None = None) -> dict[str, Any]:
    async with nullcontext(conn) if conn else engine.pool.connection() as conn:
        row = await (await conn.execute(THREAD, {"thread_id": thread_id})).fetchone()
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    return row


async def _snapshot(
    engine: Engine,
    thread: Mapping[str, Any],
    wanted: RunnableConfig,
    *,
    subgraphs: bool = False,
    conn: Conn | None = None,
) -> StateSnapshot | None:
    """What LangGraph says about a checkpoint; None if there is none.

    Where the graph is gone, or cannot take the state any more (its schema refuses it), the stored
    values are still shown, without tasks: a client must be able to look at such a thread.
    """
    graph_id = _graph_id(thread)
    if not graph_id or not _storable(wanted):
        return None
    saver = _reader(conn or engine.pool)
    try:
        async with engine.registry.open(graph_id, _own_config(thread), checkpointer=saver) as graph:
            # Reading the channels without preparing tasks would save 0.1 of 0.7 ms, but needs
            # private functions of langgraph and misses what finished tasks have written.
            snapshot = await graph.aget_state(wanted, subgraphs=subgraphs)
    except psycopg.Error:
        raise
    except Exception as exc:
        _unreadable(thread, exc)
        saved = await saver.aget_tuple(wanted)
        return _bare(saved) if saved else None
    return snapshot if snapshot.metadata is not None else None


def _reader(conn: Conn | Pool) -> AsyncPostgresSaver:
    """A saver for one call (6 µs): an instance runs one statement at a time, whoever uses it."""
    return AsyncPostgresSaver(cast(Any, conn))


def _own_config(thread: Mapping[str, Any]) -> RunnableConfig:
    """What a graph factory sees when a thread is read: the config its runs had."""
    config: dict[str, Any] = thread.get("config") or {}
    return {"configurable": {**(config.get("configurable") or {}), "thread_id": str(thread["thread_id"])}}


def _graph_id(thread: Mapping[str, Any]) -> str | None:
    """Set by the thread's first run, or by a client, who may have put anything there."""
    graph_id = thread["metadata"].get("graph_id")
    return graph_id if isinstance(graph_id, str) else None


def _unreadable(thread: Mapping[str, Any], exc: Exception) -> None:
    gone = isinstance(exc, GraphNotFound)  # said at every read of such a thread
    write = log.debug if gone else log.warning
    write(
        "state read without its graph",
        thread_id=str(thread["thread_id"]),
        graph=_graph_id(thread),
        error=type(exc).__name__ if gone else repr(exc),
    )


def _bare(saved: CheckpointTuple) -> StateSnapshot:
    channels = saved.checkpoint["channel_values"]
    own = {k: v for k, v in channels.items() if not k.startswith(("__", "branch:"))}
    return StateSnapshot(
        values=channels.get("__root__", own),
        next=(),
        config=saved.config,
        metadata=saved.metadata,
        created_at=saved.checkpoint["ts"],
        parent_config=saved.parent_config,
        tasks=(),
        interrupts=(),
    )


def _address(thread_id: UUID, ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": str(thread_id), "checkpoint_ns": ns}
    if checkpoint_id:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def _storable(wanted: RunnableConfig) -> bool:
    """PostgreSQL refuses NUL in text, so nothing can have such a name."""
    return not any("\x00" in part for part in wanted.get("configurable", {}).values())


# --- changing --------------------------------------------------------------------------------

LIMITS = """
SELECT set_config('lock_timeout', %(limit)s, true),
       set_config('idle_in_transaction_session_timeout', %(limit)s, true)
"""
LOCK = "SELECT thread_id, metadata, config, run_id FROM threads WHERE thread_id = %(thread_id)s FOR UPDATE"
ACTIVE = """
SELECT 1 FROM runs WHERE thread_id = %(thread_id)s AND status IN ('pending', 'running', 'paused') LIMIT 1
"""
EXISTS = """
SELECT 1 FROM checkpoints
 WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s AND checkpoint_id = %(checkpoint_id)s
"""
TAKE = "UPDATE threads SET fence = fence + 1 WHERE thread_id = %(thread_id)s RETURNING fence"
GIVE_BACK = """
UPDATE threads
   SET status = %(status)s, interrupts = %(interrupts)s, error = NULL,
       updated_at = now(), state_updated_at = now()
 WHERE thread_id = %(thread_id)s
"""


async def _apply(
    engine: Engine, thread_id: UUID, wanted: RunnableConfig, steps: list[list[StateUpdate]]
) -> dict[str, Any]:
    """The whole update in one transaction, on a connection of its own.

    The database ends a transaction in which author code blocks for longer than UPDATE_SECONDS, so
    the thread's row is never held longer than that.
    """
    async with await connect(engine.dsn) as conn, conn.transaction():
        await conn.execute(LIMITS, {"limit": f"{UPDATE_SECONDS}s"})
        thread = await _take(conn, thread_id, wanted)
        graph_id = _graph_id(thread)
        if not graph_id:
            raise InvalidInput(
                "", f"Thread {thread_id} has no graph yet: run it once, or set metadata.graph_id", status=400
            )
        one = cast(Pool, _OneConnection(conn))
        saver = FencedSaver(one, GroupCommit(one, origin="update"), thread_id, thread["fence"])
        try:
            async with (
                asyncio.timeout(UPDATE_SECONDS),
                engine.registry.open(graph_id, _own_config(thread), checkpointer=saver) as graph,
            ):
                made = await graph.abulk_update_state(wanted, steps)
                head = await graph.aget_state(_address(thread_id))
        except (EngineError, psycopg.OperationalError):
            raise
        except TimeoutError as exc:
            raise InvalidInput("", f"The update took longer than {UPDATE_SECONDS} s", status=400) from exc
        except Exception as exc:  # the graph's answer to values or a node that do not fit it
            raise InvalidInput("", _problem(exc), status=400) from exc
        tasks = {task.id: [question(i) for i in task.interrupts] for task in head.tasks if task.interrupts}
        params = {
            "thread_id": thread_id,
            "status": "interrupted" if head.next else "idle",
            "interrupts": jsonb(tasks),
        }
        await conn.execute(GIVE_BACK, params)
        await interrupts.supersede(conn, thread_id)
    checkpoint = address(made.get("configurable", {}))
    return {
        "checkpoint": checkpoint,
        "configurable": checkpoint,
        "checkpoint_id": checkpoint["checkpoint_id"],
    }


async def _take(conn: Conn, thread_id: UUID, wanted: RunnableConfig) -> dict[str, Any]:
    """Lock a thread that nobody owns and raise its fence, part of the caller's transaction."""
    busy = ThreadBusy(f"Thread {thread_id} has an active run; wait for it or cancel it before you update the state")
    configurable = wanted.get("configurable", {})
    try:
        row = await (await conn.execute(LOCK, {"thread_id": thread_id})).fetchone()
    except psycopg.errors.LockNotAvailable as exc:  # another update's author code
        raise busy from exc
    if row is None:
        raise ThreadNotFound(f"Thread with ID {thread_id} not found")
    # A statement of its own: it sees the runs that came while this one waited for the lock.
    if row["run_id"] or await (await conn.execute(ACTIVE, {"thread_id": thread_id})).fetchone():
        raise busy
    if "checkpoint_id" in configurable and (
        not _storable(wanted) or not await (await conn.execute(EXISTS, configurable)).fetchone()
    ):
        raise CheckpointNotFound(f"Thread {thread_id} has no checkpoint {configurable['checkpoint_id']!r}")
    fence = await (await conn.execute(TAKE, {"thread_id": thread_id})).fetchone()
    assert fence is not None  # locked above
    return {**row, "fence": fence["fence"]}


class _OneConnection:
    """Stands in for a pool, so that the fenced saver works inside our transaction."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Conn]:
        yield self._conn


def _problem(exc: Exception) -> str:
    text = str(exc).split("\nFor troubleshooting", 1)[0]
    return text if type(exc).__name__ == "InvalidUpdateError" else f"{type(exc).__name__}: {text}"


async def _aside(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` in a new thread with an event loop of its own.

    Not in asyncio's default executor: author code that never returns would use up its few threads.
    A caller that is cancelled stops waiting; the work goes on and is finished or undone as a whole.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(work()))
        except BaseException as exc:
            done.set_exception(exc)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="state-update", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(done))
