"""The tasks of an agent, found by state and context, page by page: `ListTasks` of A2A.

A task is listed if a message has begun it; a run that was started otherwise can be asked for by its id (`tasks.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, LiteralString
from uuid import UUID

from perdure.engine import access
from perdure.engine.access import Within
from perdure.engine.tasks import State

if TYPE_CHECKING:
    from perdure.engine.core import Engine

Place = tuple[datetime, UUID]
"""Where a page ended: when its last task was last changed, and the run that this task began with."""

# `began` walks runs_a2a_idx; a state says what `tasks._state` says (tests/wire/test_a2a_tasks.py compares them).
LIST: LiteralString = """
WITH RECURSIVE began AS (
    SELECT r.thread_id, r.run_id, r.queue_no
      FROM runs r JOIN threads t USING (thread_id)
     WHERE r.assistant_id = %(assistant_id)s AND r.metadata ? 'a2a_message_id' AND r.kwargs ->> 'answered' IS NULL
       AND (%(thread_id)s::uuid IS NULL OR r.thread_id = %(thread_id)s)
       AND (%(within)s::jsonb IS NULL OR t.metadata @> %(within)s)
), chain AS (
    SELECT thread_id, run_id AS task, run_id, queue_no FROM began
    UNION
    SELECT c.thread_id, c.task, r.run_id, r.queue_no
      FROM chain c JOIN interrupts i ON i.thread_id = c.thread_id AND i.run_id = c.run_id
           JOIN runs r ON r.thread_id = c.thread_id AND r.priority AND r.queue_no > c.queue_no
                      AND jsonb_exists(r.kwargs -> 'answered', i.interrupt_id)
), ends AS (
    SELECT DISTINCT ON (task) thread_id, task, run_id, count(*) OVER (PARTITION BY task) AS runs
      FROM chain ORDER BY task, queue_no DESC
), states AS (
    SELECT e.thread_id, e.task, r.updated_at,
           CASE WHEN r.status = 'pending' AND e.runs = 1 AND r.attempt = 0 THEN 'submitted'
                WHEN r.status IN ('pending', 'running', 'suspended') THEN 'working'
                WHEN r.status = 'interrupted' THEN 'canceled'
                WHEN r.status <> 'success' THEN 'failed'
                WHEN EXISTS (SELECT 1 FROM chain c JOIN interrupts i USING (thread_id, run_id)
                              WHERE c.task = e.task AND i.status = 'open') THEN 'input-required'
                WHEN EXISTS (SELECT 1 FROM interrupts i
                              WHERE i.thread_id = e.thread_id AND i.run_id = e.run_id) THEN 'canceled'
                ELSE 'completed' END AS state
      FROM ends e JOIN runs r USING (thread_id, run_id)
), found AS (
    SELECT *, count(*) OVER () AS total FROM states
     WHERE (%(state)s::text IS NULL OR state = %(state)s)
       AND (%(since)s::timestamptz IS NULL OR updated_at >= %(since)s)
)
SELECT * FROM found
 WHERE %(after_time)s::timestamptz IS NULL OR (updated_at, task) < (%(after_time)s, %(after_task)s)
 ORDER BY updated_at DESC, task DESC LIMIT %(limit)s
"""


@dataclass(frozen=True)
class Found:
    """Of each task its thread and the run that it began with; `after`: where the next page begins, if there is one."""

    tasks: list[tuple[UUID, UUID]]
    total: int
    after: Place | None


async def search(
    engine: Engine,
    assistant_id: UUID,
    *,
    thread_id: UUID | None = None,
    state: State | None = None,
    since: datetime | None = None,
    after: Place | None = None,
    limit: int = 50,
    within: Within = None,
) -> Found:
    """Tasks, last changed first; one that changes while pages are read goes to the front.

    `total` counts those of all pages. Costs grow with the tasks of the agent, or of the context.
    """
    params = {
        "assistant_id": assistant_id,
        "thread_id": thread_id,
        "state": state,
        "since": since,
        "after_time": after[0] if after else None,
        "after_task": after[1] if after else None,
        "limit": limit + 1,
        "within": access.parameter(within),
    }
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(LIST, params)).fetchall()
        if not rows and after:  # the page behind the last one
            first = await (await conn.execute(LIST, {**params, "after_time": None, "limit": 1})).fetchone()
            return Found([], first["total"] if first else 0, None)
    page = rows[:limit]
    more = (page[-1]["updated_at"], page[-1]["task"]) if len(rows) > limit else None
    return Found([(row["thread_id"], row["task"]) for row in page], rows[0]["total"] if rows else 0, more)
