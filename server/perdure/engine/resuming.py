"""Where the answer of a run goes: to an open question (`interrupts`), or to what will ask one.

A thread can stand before a node without an open question of its own: its state was changed by hand, it is a
copy, it stopped at `interrupt_before`. There an answer is LangGraph's: it keeps it in the checkpoint that the
run begins at, and the node's next `interrupt()` takes it. If the process dies when the node has asked again, but before
the run has ended, that question may take the answer, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.engine import interrupts, state
from perdure.engine.db import Conn
from perdure.engine.errors import QuestionClosed

if TYPE_CHECKING:
    from perdure.engine.core import Engine


async def accept(
    engine: Engine,
    conn: Conn,
    thread: Mapping[str, Any],
    resume: Any,
    *,
    at: str | None,
    busy: bool,
    status: str = "answered",
    by: str | None = None,
    token: str | None = None,
) -> list[str] | None:
    """As `interrupts.accept` for a locked thread; None too where the answer is for LangGraph to give.

    `at` is the checkpoint that the run names, which must be the newest: a question of the past is asked again
    by a run from there without an answer. `busy`: the thread has an active run, so nothing but an open
    question can be answered. Raises QuestionClosed.
    """
    thread_id: UUID = thread["thread_id"]
    if at is not None and at != await _head(conn, thread_id):
        raise QuestionClosed(
            f"Checkpoint {at} is not the newest of thread {thread_id}: its questions are closed. "
            "A run from there without command.resume asks them again"
        )
    try:
        return await interrupts.accept(conn, thread_id, resume, status=status, by=by, token=token)
    except QuestionClosed:
        if token or busy or not await _stands_before(engine, conn, thread, interrupts.named(resume)):
            raise
        return None


HEAD = """
SELECT checkpoint_id FROM checkpoints WHERE thread_id = %(thread)s AND checkpoint_ns = ''
 ORDER BY checkpoint_id DESC LIMIT 1
"""


async def _head(conn: Conn, thread_id: UUID) -> str | None:
    row = await (await conn.execute(HEAD, {"thread": str(thread_id)})).fetchone()
    return row["checkpoint_id"] if row else None


async def _stands_before(engine: Engine, conn: Conn, thread: Mapping[str, Any], named: Mapping[str, Any]) -> bool:
    """Whether the thread waits before a node whose questions, if it shows any, nobody has answered.

    After a failure and after a cancel it does not wait: an answer that comes late would execute the node again.
    """
    if thread["error"] is not None or thread["status"] not in ("idle", "interrupted"):
        return False
    shown = await state.read(engine, thread["thread_id"], conn=conn)
    asked = {question["id"] for question in shown["interrupts"]}
    if not shown["next"] or not asked.issuperset(named):
        return False
    return not await interrupts.any_answered(conn, thread["thread_id"], list(asked))
