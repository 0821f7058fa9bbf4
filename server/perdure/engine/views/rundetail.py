"""One run as a person looks at it: its row and worker, what it has used, what it did in which attempt.

Nothing here reads a state, and every statement is bounded, so a page may ask again every second while the run works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.engine import prices
from perdure.engine.db import Conn
from perdure.engine.errors import RunNotFound
from perdure.engine.views import attempts, questions, supersteps, timeline

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_MODEL_STEPS = 20_000
EVENTS_SCAN = 5_000
"""Events of a thread that one page of a run's events looks through."""
EVENT_TEXT = 2_000
"""Characters of an event's data on such a page."""

# what it was asked to do is read apart from this: it may be large
RUN = """
SELECT r.run_id, r.thread_id, r.assistant_id, r.graph_id, r.graph_id AS agent, r.status, r.attempt, r.failures,
       r.error, r.cancelling, r.created_at, r.available_at, r.started_at, r.ended_at, r.updated_at, r.worker_id,
       w.name AS worker, r.lease_until, r.parent_thread_id, r.parent_run_id, r.base_checkpoint_id, r.first_seq,
       r.trace, r.metadata, coalesce(r.metadata -> 'simulated' = 'true', false) AS simulated, r.multitask_strategy,
       CASE WHEN r.status IN ('pending', 'suspended') THEN r.ready_at END AS next_at,
       coalesce(r.kwargs -> 'input' <> 'null'::jsonb, false) AS has_input,
       r.kwargs ->> 'checkpoint_id' AS checkpoint_id,
       extract(epoch FROM coalesce(r.ended_at, now()) - r.created_at)::float8 AS seconds, now() AS now,
       t.run_id = r.run_id AS is_head, p.graph_id AS parent_agent
  FROM runs r JOIN threads t ON t.thread_id = r.thread_id
  LEFT JOIN workers w ON w.worker_id = r.worker_id
  LEFT JOIN runs p ON p.thread_id = r.parent_thread_id AND p.run_id = r.parent_run_id
 WHERE r.thread_id = %(thread_id)s AND r.run_id = %(run_id)s
"""


async def describe(engine: Engine, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    """The row of a run with its worker's name, its parent's agent and `usage`. Raises RunNotFound.

    `usage`: model_calls, input_tokens, output_tokens, cost (USD; None: some model has no price).
    """
    async with engine.pool.connection() as conn:
        run = await _row(conn, thread_id, run_id)
        run["usage"] = await _usage(engine, conn, run)
    return run


async def _row(conn: Conn, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    row = await (await conn.execute(RUN, {"thread_id": thread_id, "run_id": run_id})).fetchone()
    if row is None:
        raise RunNotFound(f"Run with ID {run_id} not found")
    return row


# who wrote an attempt before models had names has only the sums
USAGE = """
SELECT n.name, sum((n.used ->> 'calls')::int)::int AS calls, sum((n.used ->> 'input_tokens')::bigint)::bigint
           AS input_tokens, sum((n.used ->> 'output_tokens')::bigint)::bigint AS output_tokens
  FROM (SELECT attempts FROM steps WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s LIMIT %(limit)s) s
 CROSS JOIN jsonb_array_elements(s.attempts) a(tried)
 CROSS JOIN LATERAL jsonb_each(coalesce(tried -> 'model' -> 'names',
                                        jsonb_build_object(%(unnamed)s::text, tried -> 'model'))) n(name, used)
 WHERE tried ? 'model'
 GROUP BY n.name
"""


async def _usage(engine: Engine, conn: Conn, run: dict[str, Any]) -> dict[str, Any]:
    keys = {"thread_id": run["thread_id"], "run_id": run["run_id"]}
    params = {**keys, "limit": MAX_MODEL_STEPS, "unnamed": timeline.UNNAMED}
    names = {row["name"]: row for row in await (await conn.execute(USAGE, params)).fetchall()}
    return {
        "model_calls": sum(row["calls"] for row in names.values()),
        **{key: sum(row[key] for row in names.values()) for key in timeline.TOKENS},
        "cost": prices.prices_of(engine).total(names),
        "models": sorted(name for name in names if name != timeline.UNNAMED),
    }


async def story(engine: Engine, run: dict[str, Any], *, limit: int, offset: int) -> dict[str, Any]:
    """What a run (from `describe`) did, a page at a time: `attempts`, `nodes`, `entries` (see `timeline`), `more`.

    The entries make the page; of attempts and nodes it has those that began meanwhile, on the first page also
    those before, on the last all that came after. Questions have `token`, `answered_by` and `asked`. `cut`: it has more
    supersteps than are looked at.
    """
    thread_id, run_id = run["thread_id"], run["run_id"]
    entries, more = await timeline.read(engine, thread_id, run_id, limit=limit + 1, offset=offset)
    after = entries[limit]["started_at"] if len(entries) > limit else None
    entries = entries[:limit]
    async with engine.pool.connection() as conn:
        tried = await attempts.of_run(conn, run)
        nodes, cut = await supersteps.of_run(conn, run, [entry["scope"] for entry in entries if entry["scope"]])
        asked = {row["interrupt_id"]: row for row in await questions.of_run(conn, thread_id, run_id, limit=1000)}
    for entry in entries:
        if entry["kind"] == "question":
            row = asked.get(entry["interrupt_id"], {})
            entry |= {name: row.get(name) for name in ("token", "answered_by")} | {"asked": row.get("question")}
    before = entries[0]["started_at"] if offset and entries else None

    def here(thing: dict[str, Any]) -> bool:
        at = thing["started_at"]
        return (before is None or at >= before) and (after is None or at < after)

    supersteps.ended_with(run, nodes, run["ended_at"])
    return {
        "attempts": [one for one in tried if here(one)],
        "nodes": [one for one in nodes if here(one)],
        "entries": entries,
        "more": more or after is not None,
        "cut": cut,
        "first": offset == 0,
    }


async def nodes(engine: Engine, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a run, see `supersteps`; `ended` is None of those that are at work."""
    async with engine.pool.connection() as conn:
        found, _ = await supersteps.of_run(conn, run, [])
    supersteps.ended_with(run, found, run["ended_at"])
    return found


EVENTS = """
SELECT seq, at, event, left(data, %(text)s) AS data, length(data) AS length, checkpoint_id, run_id
  FROM (SELECT * FROM run_events WHERE thread_id = %(thread_id)s AND seq > %(after)s
         ORDER BY seq LIMIT %(scan)s) near
 WHERE run_id = %(run_id)s ORDER BY seq LIMIT %(limit)s
"""
REACHED = """
SELECT seq FROM run_events WHERE thread_id = %(thread_id)s AND seq > %(after)s ORDER BY seq OFFSET %(scan)s - 1 LIMIT 1
"""


async def events_of(
    engine: Engine, run: dict[str, Any], *, after: int = 0, limit: int = 100
) -> tuple[list[dict[str, Any]], int | None]:
    """Stored events of a run (from `describe`) with `seq > after`, and after which one to go on; None: no more.

    Data is cut after `EVENT_TEXT` characters (`length` tells them all), a state that stands in a checkpoint is not
    read. A page looks through `EVENTS_SCAN` events of the thread, so it may have few, and there may be more.
    """
    after = max(after, run["first_seq"])
    params = {"thread_id": run["thread_id"], "run_id": run["run_id"], "after": after, "scan": EVENTS_SCAN}
    async with engine.pool.connection() as conn:
        found = await conn.execute(EVENTS, {**params, "text": EVENT_TEXT, "limit": limit + 1})
        rows = await found.fetchall()
        if len(rows) > limit:
            return rows[:limit], rows[limit - 1]["seq"]
        reached = await (await conn.execute(REACHED, params)).fetchone()
    return rows, reached["seq"] if reached else None
