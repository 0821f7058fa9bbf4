"""Tasks as A2A means them: a run, and the runs that took the answers to what it has asked.

A task is no row of its own. Its state follows from the last of its runs, so whatever ends a run or
answers a question, by whichever way, is seen here at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, LiteralString, get_args
from uuid import UUID

from perdure.engine import interrupts, orphans, push, runs, stop
from perdure.engine.errors import RunFinished, RunNotFound

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.newrun import NewRun

State = Literal["submitted", "working", "input-required", "completed", "canceled", "failed"]
STATES: tuple[State, ...] = get_args(State)
TERMINAL = ("completed", "canceled", "failed")
MAX_QUESTIONS = 1000


@dataclass(frozen=True, kw_only=True)
class Task:
    """`runs` in their order, as records of the wire; `questions` that they have asked, in theirs.

    `output` is there once it is completed.
    """

    thread_id: UUID
    run_id: UUID
    runs: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    state: State
    output: Any = None

    @property
    def last(self) -> dict[str, Any]:
        return self.runs[-1]

    @property
    def open(self) -> list[dict[str, Any]]:
        """What a person must answer before it goes on."""
        return [question for question in self.questions if question["status"] == "open"]


async def start(engine: Engine, thread_id: UUID | None, new: NewRun, config: push.Config | None) -> dict[str, Any]:
    """Accept a task's first run, with whom to notify of it, in one transaction. Raises what `runs.enqueue` raises."""
    async with engine.pool.connection() as conn, conn.transaction():
        run, published = await runs.enqueue_in(engine, conn, thread_id, new)
        if config is not None:
            await push.put(conn, run["thread_id"], run["run_id"], config)
    if published:
        engine.hub.publish(run["thread_id"], published)
    return run


# An interrupt's id follows from its checkpoint, so no other task of the thread has the same.
CHAIN: LiteralString = (
    """
WITH RECURSIVE chain AS (
    SELECT run_id, queue_no FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
    UNION
    SELECT r.run_id, r.queue_no
      FROM chain c JOIN interrupts i ON i.thread_id = %(thread_id)s AND i.run_id = c.run_id
           JOIN runs r ON r.thread_id = %(thread_id)s AND r.priority AND r.queue_no > c.queue_no
                      AND jsonb_exists(r.kwargs -> 'answered', i.interrupt_id)
)
SELECT """
    + runs.COLUMNS
    + """ FROM runs WHERE thread_id = %(thread_id)s AND run_id IN (SELECT run_id FROM chain) ORDER BY queue_no"""
)
QUESTIONS: LiteralString = (
    "SELECT "
    + interrupts.RECORD
    + """ FROM interrupts WHERE thread_id = %(thread_id)s AND run_id = ANY(%(run_ids)s)
 ORDER BY created_at, token LIMIT %(limit)s"""
)


async def get(engine: Engine, thread_id: UUID, run_id: UUID) -> Task:
    """The task that began with this run, as it is now. Raises RunNotFound."""
    async with engine.pool.connection() as conn, conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        rows = await (await conn.execute(CHAIN, {"thread_id": thread_id, "run_id": run_id})).fetchall()
        if not rows or rows[0]["run_id"] != run_id:
            raise RunNotFound(f"Run with ID {run_id} not found")
        found = [runs.record(row) for row in rows]
        params = {"thread_id": thread_id, "run_ids": [run["run_id"] for run in found], "limit": MAX_QUESTIONS}
        questions = await (await conn.execute(QUESTIONS, params)).fetchall()
    state = _state(found, questions)
    output = await runs.result(engine, thread_id, found[-1]["run_id"]) if state == "completed" else None
    return Task(thread_id=thread_id, run_id=run_id, runs=found, questions=questions, state=state, output=output)


def _state(found: list[dict[str, Any]], questions: list[dict[str, Any]]) -> State:
    last = found[-1]
    match last["status"]:
        case "pending":
            return "submitted" if len(found) == 1 and not last["attempt"] else "working"
        case "running":
            return "working"
        case "interrupted":
            return "canceled"
        case "success":
            if any(question["status"] == "open" for question in questions):
                return "input-required"
            dropped = any(question["run_id"] == last["run_id"] for question in questions)
            return "canceled" if dropped else "completed"  # nobody can answer what it has asked
        case _:  # error, timeout; paused, which a person may resume
            return "failed"


async def cancel(engine: Engine, task: Task) -> None:
    """Stop a task: its run is cancelled, or what it asks is withdrawn; a saga is undone.

    Raises RunFinished when it has ended, also just now.
    """
    if task.state == "input-required":
        withdrawn = [
            await orphans.withdraw(engine, task.thread_id, asker) for asker in {one["run_id"] for one in task.open}
        ]
        if any(withdrawn):
            return
    elif task.state not in TERMINAL:
        try:
            await stop.cancel(engine, task.thread_id, task.last["run_id"])
            return
        except RunNotFound:
            pass  # ended just now
    raise RunFinished(f"The task is {task.state} and cannot be canceled")
