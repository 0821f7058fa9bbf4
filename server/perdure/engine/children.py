"""Child runs: runs that a run starts with `agent()`, and who waits for them (table `child_waits`).

Those on other servers stand in `perdure.engine.remote`; here their calls take the same ways. Children
that nobody waits for any more are cancelled by `perdure.engine.orphans`.

A parent notes that it waits before it looks whether the child is done, and a child that ends
wakes whoever has noted it, in the same transaction: neither can miss the other. A child that
asks a person is not done; the run that takes the answer goes on for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from perdure.engine import remote, tracing
from perdure.engine.access import Actor
from perdure.engine.db import Conn
from perdure.engine.errors import InvalidInput, LeaseLost, RunNotFound
from perdure.engine.newrun import NewRun
from perdure.engine.wake import wake

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.queue import Claimed

MAX_CALLERS = 100  # of a child, one above the other, over all servers

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
    server: str | None = None,
) -> dict[str, str]:
    """Start a run of another assistant, or find the one that this call has started before.

    One transaction, in which the parent must still own its run. `bound`: the child is
    cancelled with it. `server`: see `remote.start`. Raises LeaseLost, what `runs.enqueue` raises,
    and InvalidInput for a call that would wait for itself.
    """
    from perdure.engine import assistants, runs

    waiting = callers(parent) if bound else []
    if server is not None:
        return await remote.start(
            *(engine, parent, server, agent, given),
            key=key,
            callers=waiting,
            idempotency_key=idempotency_key,
            delay=delay,
            bound=bound,
        )
    actor = Actor.of(parent.actor)
    thread_id = None
    if key is not None:
        async with engine.pool.connection() as conn:
            allowed = actor.assistants if actor else None
            assistant = await assistants.resolve(engine, conn, agent, within=allowed)
        thread_id = session_thread(assistant["assistant_id"], key, actor.identity if actor else "")
        refuse_cycle(thread_id, waiting, agent, key)
    new = NewRun(
        assistant=agent,
        input=given,
        if_not_exists="create",
        on_completion="keep",
        after_seconds=delay,
        idempotency_key=f"{parent.thread_id}/{idempotency_key}",
        behind_question=key is not None,
        actor=actor,
        metadata={
            "parent_thread_id": str(parent.thread_id),
            "parent_run_id": str(parent.run_id),
            **({"callers": waiting} if waiting else {}),
        },
    )
    async with engine.pool.connection() as conn, conn.transaction():
        run, _ = await runs.enqueue_in(engine, conn, thread_id, new, trace=tracing.child_of(parent))
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


INHERIT = """
UPDATE runs r
   SET parent_thread_id = a.parent_thread_id, parent_run_id = a.parent_run_id, bound = a.bound,
       trace = coalesce(a.trace, r.trace),
       metadata = r.metadata || jsonb_strip_nulls(jsonb_build_object('callers', a.metadata -> 'callers'))
  FROM interrupts i JOIN runs a ON a.thread_id = i.thread_id AND a.run_id = i.run_id
 WHERE r.thread_id = %(thread_id)s AND r.run_id = %(run_id)s AND a.parent_run_id IS NOT NULL
   AND i.thread_id = %(thread_id)s AND i.interrupt_id = ANY(%(answered)s)
"""


async def inherit(conn: Conn, thread_id: UUID, run_id: UUID, answered: list[str]) -> None:
    """A run that takes answers goes on for the run that asked: it has the same parent, and its trace.

    Part of the caller's transaction.
    """
    await conn.execute(INHERIT, {"thread_id": thread_id, "run_id": run_id, "answered": answered})


def session_thread(assistant_id: UUID, key: str, owner: str = "") -> UUID:
    """The thread of a key: the same in every process and at every call."""
    return uuid5(assistant_id, f"{owner}\x00{key}")


def callers(parent: Claimed) -> list[str]:
    """The threads that wait for a child of this run, outermost first, also those on other servers.

    Raises InvalidInput when there are too many: agents that call each other without end.
    """
    above: Any = parent.metadata.get("callers")
    known: list[str] = [str(one) for one in above] if isinstance(above, list) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] (JSON of a client)
    if len(known) >= MAX_CALLERS:
        raise InvalidInput("", f"Agents call each other more than {MAX_CALLERS} levels deep")
    return [*known, str(parent.thread_id)]


def refuse_cycle(thread_id: UUID, waiting: list[str], agent: str, key: str | None) -> None:
    """Raises InvalidInput when a thread that waits for the call would have to execute it."""
    if str(thread_id) in waiting:
        raise InvalidInput(
            "", f"Agent {agent!r} with key {key!r} would wait for itself: it called this call", status=409
        )


# A child goes on in the runs that took its answers: the last of them decides. In a session, answers to
# runs before the child stand before it in the queue, though they may be younger.
LOOK = """
SELECT c.run_id, c.status, c.error,
       EXISTS (SELECT 1 FROM interrupts i WHERE i.thread_id = c.thread_id AND i.status = 'open') AS asking,
       EXISTS (SELECT 1 FROM interrupts i WHERE i.thread_id = c.thread_id AND i.run_id = c.run_id
                  AND i.status IN ('superseded', 'timed_out')) AS dropped
  FROM runs first JOIN runs c ON c.thread_id = first.thread_id
 WHERE first.thread_id = %(thread_id)s AND first.run_id = %(run_id)s
   AND (c.run_id = first.run_id OR (c.priority AND c.queue_no > first.queue_no AND c.created_at >= first.started_at))
 ORDER BY c.queue_no DESC LIMIT 1
"""


async def last_run(conn: Conn, thread_id: UUID, run_id: UUID) -> dict[str, Any] | None:
    """What decides about a child: its run_id, status, error, whether it is `asking`, and `dropped` as unanswerable."""
    return await (await conn.execute(LOOK, {"thread_id": thread_id, "run_id": run_id})).fetchone()


def final(run: dict[str, Any]) -> bool:
    """Whether nothing more comes of what `last_run` has found."""
    return run["status"] in ("error", "timeout", "interrupted") or (run["status"] == "success" and not run["asking"])


# Who ends the child holds its thread: it either sees the note, or has ended before the next look. Both rows in
# the order in which threads are deleted.
NOTE = """
WITH locked AS (
    SELECT thread_id, fence FROM threads WHERE thread_id IN (%(parent_thread_id)s, %(thread_id)s)
     ORDER BY thread_id FOR SHARE
), held AS (
    SELECT thread_id FROM locked WHERE thread_id = %(parent_thread_id)s AND fence = %(fence)s
), noted AS (
    INSERT INTO child_waits (child_thread_id, child_run_id, parent_thread_id, parent_run_id)
    SELECT %(thread_id)s, %(run_id)s, thread_id, %(parent_run_id)s FROM held
    ON CONFLICT DO NOTHING
)
SELECT thread_id FROM held
"""


async def outcome(engine: Engine, parent: Claimed, child: dict[str, str]) -> dict[str, Any]:
    """What has become of a child: its output or error, or "running" (also while it asks a person).

    After "running" the parent will be woken when the child is done. Raises LeaseLost.
    """
    if "server" in child:
        return await remote.outcome(engine, parent, UUID(child["run_id"]))
    keys = {"thread_id": UUID(child["thread_id"]), "run_id": UUID(child["run_id"])}
    async with engine.pool.connection() as conn:
        found = await last_run(conn, **keys)
        if found and not final(found):
            note = {"parent_thread_id": parent.thread_id, "parent_run_id": parent.run_id, "fence": parent.fence}
            if await (await conn.execute(NOTE, {**keys, **note})).fetchone() is None:
                raise LeaseLost(f"Run {parent.run_id} has another owner")
            found = await last_run(conn, **keys)
    return await _told(engine, keys["thread_id"], found)


async def look(engine: Engine, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """As `outcome`, for a caller that is no run of this server and asks again by itself."""
    async with engine.pool.connection() as conn:
        found = await last_run(conn, thread_id, run_id)
    return await _told(engine, thread_id, found)


async def _told(engine: Engine, thread_id: UUID, found: dict[str, Any] | None) -> dict[str, Any]:
    from perdure.engine import runs

    if found is None:
        return {"status": "gone", "output": None, "error": None}
    if not final(found):
        return {"status": "running", "output": None, "error": None}
    if found["status"] == "success" and found["dropped"]:  # nobody can answer what it waits for any more
        return {"status": "cancelled", "output": None, "error": None}
    if found["status"] == "success":
        try:
            output = await runs.result(engine, thread_id, found["run_id"])
        except RunNotFound:
            return {"status": "gone", "output": None, "error": None}
        return {"status": "done", "output": output, "error": None}
    status = "cancelled" if found["status"] == "interrupted" else "failed"
    return {"status": status, "output": None, "error": found["error"]}


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
    await remote.forget(conn, thread_ids)
