"""Changing the state of a thread by hand.

An update runs code of the author (conditional edges), so it has a thread and an event loop of its
own. It is one transaction: nothing has changed if it fails.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command, StateUpdate

from perdure.engine import interrupts, state, threads
from perdure.engine.db import Conn, Pool, connect, jsonb
from perdure.engine.errors import (
    CheckpointNotFound,
    EngineError,
    InvalidInput,
    ThreadBusy,
)
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.saver import FencedSaver
from perdure.engine.shapes import address, question

if TYPE_CHECKING:
    from perdure.engine.core import Engine

T = TypeVar("T")
UPDATE_SECONDS = 30  # how long an update's author code may hold the thread


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
    wanted = state.place(thread_id, at.get("checkpoint_ns") or "", checkpoint_id)
    steps = [[StateUpdate(values, as_node)]]
    return await _aside(lambda: _apply(engine, thread_id, wanted, steps))


async def replay(engine: Engine, thread_id: UUID, supersteps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Make checkpoints as if a run had made them: `[{"updates": [{"values", "command", "as_node"}]}]`.

    As `update` otherwise. None when there is nothing to do.
    """
    steps = [[_update(u) for u in step.get("updates") or ()] for step in supersteps]
    if not any(steps):
        return None
    return await _aside(lambda: _apply(engine, thread_id, state.place(thread_id), steps))


def _update(given: Mapping[str, Any]) -> StateUpdate:
    command = given.get("command")
    if command:
        known = {k: command[k] for k in ("update", "goto", "resume") if command.get(k) is not None}
        return StateUpdate(cast(Any, Command(**known)), given.get("as_node"))
    return StateUpdate(given.get("values"), given.get("as_node"))


LIMITS = """
SELECT set_config('lock_timeout', %(limit)s, true),
       set_config('idle_in_transaction_session_timeout', %(limit)s, true)
"""
EXISTS = """
SELECT 1 FROM checkpoints
 WHERE thread_id = %(thread_id)s AND checkpoint_ns = %(checkpoint_ns)s AND checkpoint_id = %(checkpoint_id)s
"""
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
        graph_id = state.graph_id_of(thread)
        if not graph_id:
            raise InvalidInput(
                "", f"Thread {thread_id} has no graph yet: run it once, or set metadata.graph_id", status=400
            )
        one = cast(Pool, _OneConnection(conn))
        saver = FencedSaver(one, GroupCommit(one, origin="update"), thread_id, thread["fence"])
        try:
            async with (
                asyncio.timeout(UPDATE_SECONDS),
                engine.registry.open(graph_id, state.own_config(thread), checkpointer=saver) as graph,
            ):
                made = await graph.abulk_update_state(wanted, steps)
                head = await graph.aget_state(state.place(thread_id))
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
    """Own a thread, which has the checkpoint that is to be changed, in the caller's transaction."""
    busy = ThreadBusy(f"Thread {thread_id} has an active run; wait for it or cancel it before you update the state")
    thread = await threads.take(conn, thread_id, busy=busy)
    configurable = wanted.get("configurable", {})
    if "checkpoint_id" in configurable and (
        not state.storable(wanted) or not await (await conn.execute(EXISTS, configurable)).fetchone()
    ):
        raise CheckpointNotFound(f"Thread {thread_id} has no checkpoint {configurable['checkpoint_id']!r}")
    return thread


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
