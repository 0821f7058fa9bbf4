"""The state of a thread, and its history, to read; `editing` changes it.

State lives in LangGraph's checkpoints and is understood by the thread's graph; this module asks
LangGraph (`aget_state`, `aget_state_history`) and answers in the wire's shape (ThreadState of
langgraph-api 0.16). Reading runs no nodes.

`values` stay as they are (messages are objects): `perdure.engine.jsonable` makes JSON of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import psycopg
import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.types import StateSnapshot

from perdure.engine.db import Conn, Pool
from perdure.engine.errors import GraphNotFound, ThreadNotFound
from perdure.engine.shapes import empty_state, thread_state

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

STATES_AT_ONCE = 8  # that one request holds in memory


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
    wanted = place(thread_id, checkpoint_ns, checkpoint_id)
    snapshot = await _snapshot(engine, thread, wanted, subgraphs=subgraphs, conn=conn)
    if snapshot is None:
        return empty_state(wanted.get("configurable") if checkpoint_id or checkpoint_ns else None)
    return thread_state(snapshot)


async def values(engine: Engine, thread: Mapping[str, Any], conn: Conn | None = None) -> Any:
    """The present values of a thread (a record of `threads`); None before it has any. One query.

    With `conn` the query is part of the caller's transaction.
    """
    snapshot = await _snapshot(engine, thread, place(thread["thread_id"]), conn=conn)
    return None if snapshot is None else snapshot.values


async def output(engine: Engine, thread: Mapping[str, Any], checkpoint_id: str | None = None) -> Any:
    """What the thread's graph gives back: its output channels, now or at a checkpoint; None before there are any."""
    snapshot = await _snapshot(engine, thread, place(thread["thread_id"], checkpoint_id=checkpoint_id))
    found: Any = None if snapshot is None else snapshot.values
    if not isinstance(found, dict):
        return found
    present = cast("dict[str, Any]", found)
    graph = await engine.registry.look(thread["metadata"]["graph_id"], own_config(thread), checkpointer=None)
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
) -> AsyncGenerator[dict[str, Any]]:
    """ThreadStates, newest first, from those older than the checkpoint id `before`; a few are in memory at a time.

    `metadata` is contained in theirs; `checkpoint` names a subgraph by `checkpoint_ns`.
    A value that several of them hold unchanged may be one object in all of them: it is for reading.
    Raises ThreadNotFound, before the first one.
    """
    thread = await _thread(engine, thread_id)
    at = checkpoint or {}
    wanted = place(thread_id, at.get("checkpoint_ns") or "", at.get("checkpoint_id"))
    if not graph_id_of(thread) or not storable(wanted) or (before and "\x00" in before):
        return
    saver = _HistoryReader(cast(Any, engine.pool))
    while limit > 0:
        some = min(limit, STATES_AT_ONCE)
        found = await _past(engine, thread, saver, wanted, before=before, metadata=metadata, limit=some)
        for one in found:
            yield one
        if len(found) < some:
            return
        limit -= some
        before = found[-1]["checkpoint_id"]
        saver.turn()


async def _past(
    engine: Engine,
    thread: Mapping[str, Any],
    saver: _HistoryReader,
    wanted: RunnableConfig,
    *,
    before: str | None,
    metadata: dict[str, Any] | None,
    limit: int,
) -> list[dict[str, Any]]:
    options: dict[str, Any] = {
        "filter": metadata or None,
        "before": {"configurable": {"checkpoint_id": before}} if before else None,
        "limit": limit,
    }
    try:
        graph = await engine.registry.look(graph_id_of(thread) or "", own_config(thread), checkpointer=saver)
        return [thread_state(snapshot) async for snapshot in graph.aget_state_history(wanted, **options)]
    except psycopg.DataError:  # a filter with NUL: PostgreSQL cannot store what would match it
        return []
    except psycopg.Error:
        raise
    except Exception as exc:  # see `_snapshot`
        _unreadable(thread, exc)
        return [thread_state(_bare(saved)) async for saved in saver.alist(wanted, **options)]


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
    graph_id = graph_id_of(thread)
    if not graph_id or not storable(wanted):
        return None
    saver = _reader(conn or engine.pool)
    try:
        graph = await engine.registry.look(graph_id, own_config(thread), checkpointer=saver)
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


class _HistoryReader(AsyncPostgresSaver):
    """For one call. A value that many checkpoints hold is decoded once: 1 MB of small objects takes 70 ms."""

    def __init__(self, conn: Any) -> None:
        super().__init__(conn)
        self._before: dict[tuple[bytes, ...], dict[str, Any]] = {}
        self._known: dict[tuple[bytes, ...], dict[str, Any]] = {}

    def turn(self) -> None:
        """Begin another page: what the last one did not hold is forgotten."""
        self._before, self._known = self._known, {}

    def _load_blobs(self, blob_values: list[tuple[bytes, bytes, bytes]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in blob_values or ():
            stored = tuple(one)
            if stored not in self._known:
                self._known[stored] = self._before.get(stored) or super()._load_blobs([one])
            found |= self._known[stored]
        return found


def own_config(thread: Mapping[str, Any]) -> RunnableConfig:
    """What a graph factory sees when a thread is read: the config its runs had."""
    config: dict[str, Any] = thread.get("config") or {}
    return {"configurable": {**(config.get("configurable") or {}), "thread_id": str(thread["thread_id"])}}


def graph_id_of(thread: Mapping[str, Any]) -> str | None:
    """Set by the thread's first run, or by a client, who may have put anything there."""
    graph_id = thread["metadata"].get("graph_id")
    return graph_id if isinstance(graph_id, str) else None


def _unreadable(thread: Mapping[str, Any], exc: Exception) -> None:
    gone = isinstance(exc, GraphNotFound)  # said at every read of such a thread
    write = log.debug if gone else log.warning
    write(
        "state read without its graph",
        thread_id=str(thread["thread_id"]),
        graph=graph_id_of(thread),
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


def place(thread_id: UUID, ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    configurable = {"thread_id": str(thread_id), "checkpoint_ns": ns}
    if checkpoint_id:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def storable(wanted: RunnableConfig) -> bool:
    """PostgreSQL refuses NUL in text, so nothing can have such a name."""
    return not any("\x00" in part for part in wanted.get("configurable", {}).values())
