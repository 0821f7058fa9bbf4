"""Child runs: runs that a run starts with `agent()`, and who waits for them (table `child_waits`).

A parent notes that it waits before it looks whether the child is done, and a child that ends
wakes whoever has noted it, in the same transaction: neither can miss the other. A child that
asks a person is not done; the run that takes the answer goes on for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import structlog

from perdure.engine.db import Conn
from perdure.engine.errors import EngineError, LeaseLost, RunNotFound, ThreadNotFound
from perdure.engine.wake import wake

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.queue import Claimed
    from perdure.engine.runs import Action

log = structlog.get_logger(__name__)

GENERATIONS = 20  # of children of children that one call goes down; the next call does the rest

LINK = """
UPDATE runs SET parent_thread_id = %(parent_thread_id)s, parent_run_id = %(parent_run_id)s, bound = %(bound)s
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND parent_run_id IS NULL
"""


OWNED = "SELECT 1 FROM threads WHERE thread_id = %(thread_id)s AND fence = %(fence)s FOR SHARE"


async def start(
    engine: Engine,
    parent: Claimed,
    agent: str,
    given: Any,
    *,
    key: str | None,
    idempotency_key: str,
    delay: float,
    bound: bool,
) -> dict[str, str]:
    """Start a run of another assistant, or find the one that this call has started before.

    One transaction, in which the parent must still own its run. `bound`: the child is
    cancelled with it. Raises LeaseLost, and what `runs.enqueue` raises.
    """
    from perdure.engine import assistants, runs

    thread_id = None
    if key is not None:
        async with engine.pool.connection() as conn:
            assistant = await assistants.resolve(engine, conn, agent)
        thread_id = session_thread(engine.registry.default_assistant_id(assistant["graph_id"]), key)
    new = runs.NewRun(
        assistant=agent,
        input=given,
        if_not_exists="create",
        on_completion="keep",
        after_seconds=delay,
        idempotency_key=f"{parent.thread_id}/{idempotency_key}",
        behind_question=key is not None,
        metadata={"parent_thread_id": str(parent.thread_id), "parent_run_id": str(parent.run_id)},
    )
    async with engine.pool.connection() as conn, conn.transaction():
        run, _ = await runs.enqueue_in(engine, conn, thread_id, new)
        await conn.execute(
            LINK,
            {
                "thread_id": run["thread_id"],
                "run_id": run["run_id"],
                "parent_thread_id": parent.thread_id,
                "parent_run_id": parent.run_id,
                "bound": bound,
            },
        )
        owner = {"thread_id": parent.thread_id, "fence": parent.fence}
        if await (await conn.execute(OWNED, owner)).fetchone() is None:
            raise LeaseLost(f"Run {parent.run_id} has another owner")
    return {"thread_id": str(run["thread_id"]), "run_id": str(run["run_id"])}


def session_thread(assistant_id: UUID, key: str, owner: str = "") -> UUID:
    """The thread of a key: the same in every process and at every call."""
    return uuid5(assistant_id, f"{owner}\x00{key}")


# A child goes on in the runs that took its answers: the last of them decides.
LOOK = """
SELECT c.run_id, c.status, c.error, EXISTS (
           SELECT 1 FROM interrupts i WHERE i.thread_id = c.thread_id AND i.status = 'open') AS asking
  FROM runs c
 WHERE c.thread_id = %(thread_id)s
   AND c.queue_no >= (SELECT queue_no FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s)
   AND (c.run_id = %(run_id)s OR c.priority)
 ORDER BY c.queue_no DESC LIMIT 1
"""
NOTE = """
WITH held AS (
    SELECT thread_id FROM threads WHERE thread_id = %(parent_thread_id)s AND fence = %(fence)s FOR SHARE
), noted AS (
    INSERT INTO child_waits (child_thread_id, child_run_id, parent_thread_id, parent_run_id)
    SELECT %(thread_id)s, %(run_id)s, thread_id, %(parent_run_id)s FROM held
    ON CONFLICT DO NOTHING
)
SELECT thread_id FROM held
"""


async def outcome(engine: Engine, parent: Claimed, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """What has become of a child: its output or error, or "running" (also while it asks a person).

    After "running" the parent will be woken when the child is done. Raises LeaseLost.
    """
    from perdure.engine import runs

    keys = {"thread_id": thread_id, "run_id": run_id}
    async with engine.pool.connection() as conn:
        found = await (await conn.execute(LOOK, keys)).fetchone()
        if found and not _final(found):
            note = {"parent_thread_id": parent.thread_id, "parent_run_id": parent.run_id, "fence": parent.fence}
            if await (await conn.execute(NOTE, {**keys, **note})).fetchone() is None:
                raise LeaseLost(f"Run {parent.run_id} has another owner")
            found = await (await conn.execute(LOOK, keys)).fetchone()
    if found is None:
        return {"status": "gone", "output": None, "error": None}
    if not _final(found):
        return {"status": "running", "output": None, "error": None}
    if found["status"] == "success":
        try:
            output = await runs.result(engine, thread_id, found["run_id"])
        except RunNotFound:
            return {"status": "gone", "output": None, "error": None}
        return {"status": "done", "output": output, "error": None}
    status = "cancelled" if found["status"] == "interrupted" else "failed"
    return {"status": status, "output": None, "error": found["error"]}


def _final(run: dict[str, Any]) -> bool:
    return run["status"] in ("error", "timeout", "interrupted") or (run["status"] == "success" and not run["asking"])


WAITING = """
DELETE FROM child_waits w
 WHERE w.child_thread_id = %(thread_id)s
   AND NOT EXISTS (SELECT 1 FROM interrupts i WHERE i.thread_id = w.child_thread_id AND i.status = 'open')
   AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_id = w.child_thread_id
                      AND (r.run_id = w.child_run_id OR r.priority)
                      AND r.status IN ('pending', 'running', 'suspended', 'paused'))
RETURNING parent_thread_id, parent_run_id
"""


async def done(conn: Conn, thread_id: UUID) -> None:
    """Wake who waits for runs of this thread that have ended. Part of the transaction that ends one."""
    for row in await (await conn.execute(WAITING, {"thread_id": thread_id})).fetchall():
        await wake(conn, row["parent_thread_id"], row["parent_run_id"])


DELETED = "DELETE FROM child_waits WHERE child_thread_id = ANY(%(ids)s) RETURNING parent_thread_id, parent_run_id"


async def deleted(conn: Conn, thread_ids: list[UUID]) -> None:
    """Child threads are gone: their parents learn of it. Part of the caller's transaction."""
    for row in await (await conn.execute(DELETED, {"ids": thread_ids})).fetchall():
        await wake(conn, row["parent_thread_id"], row["parent_run_id"])


ORPHANS = """
SELECT c.thread_id, c.run_id, CASE WHEN p.run_id IS NULL THEN 'rollback' ELSE 'interrupt' END AS action
  FROM runs c LEFT JOIN runs p ON p.thread_id = c.parent_thread_id AND p.run_id = c.parent_run_id
 WHERE c.bound AND c.cancelling IS NULL AND c.status IN ('pending', 'running', 'suspended', 'paused')
   AND (p.run_id IS NULL OR p.status = 'interrupted' OR p.cancelling IS NOT NULL)
 ORDER BY c.thread_id LIMIT 100
"""


async def cancel_orphans(engine: Engine) -> int:
    """Cancel the children of runs that were cancelled or deleted, each in its own transaction; how many.

    A crash in the middle leaves the rest for the next call; any number of processes may call it.
    """
    from perdure.engine import runs

    count = 0
    for _ in range(GENERATIONS):
        async with engine.pool.connection() as conn:
            rows = await (await conn.execute(ORPHANS)).fetchall()
        done = 0
        for row in rows:
            action: Action = row["action"]
            try:
                await runs.stop(engine, row["thread_id"], row["run_id"], action)
            except (RunNotFound, ThreadNotFound):
                continue  # ended just now
            except EngineError as exc:
                log.warning("child not cancelled, will be tried again", run_id=str(row["run_id"]), error=str(exc))
                continue
            done += 1
        count += done
        if not done:
            break
    return count
