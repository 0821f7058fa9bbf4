"""Crons: runs that the clock starts. Table `crons`; `perdure.engine.ticks` starts what is due.

Records have the fields of the wire's cron: cron_id, assistant_id, thread_id, user_id, end_time,
schedule, timezone, payload, next_run_date, metadata, on_run_completed, enabled, created_at, updated_at;
and `error`, why the last tick has started no run.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, LiteralString
from uuid import UUID, uuid4

from psycopg import sql
from psycopg.errors import ForeignKeyViolation

from perdure.engine import access, assistants, threads
from perdure.engine.access import Actor, Within
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import CronNotFound, InvalidInput, ThreadNotFound
from perdure.engine.schedule import next_tick

if TYPE_CHECKING:
    from perdure.engine.core import Engine

COLUMNS: LiteralString = (
    "cron_id, assistant_id, thread_id, user_id, end_time, schedule, timezone, payload, next_run_at AS next_run_date, "
    "metadata, on_run_completed, enabled, created_at, updated_at, error"
)
SORT = ("cron_id", "assistant_id", "thread_id", "created_at", "updated_at", "next_run_date", "end_time")

TIMING = {"schedule", "timezone", "end_time", "enabled"}
RUN_OPTIONS = (
    *("input", "webhook", "interrupt_before", "interrupt_after", "stream_mode", "stream_subgraphs"),
    *("stream_resumable", "durability", "multitask_strategy"),
)
"""Fields of a payload that go into each run as they are."""

NOW = "SELECT now() AS now"

CREATE: LiteralString = (
    """
INSERT INTO crons (cron_id, assistant_id, thread_id, user_id, schedule, timezone, end_time, enabled,
                   on_run_completed, metadata, payload, next_run_at, actor)
VALUES (%(cron_id)s, %(assistant_id)s, %(thread_id)s, %(user_id)s, %(schedule)s, %(timezone)s, %(end_time)s,
        %(enabled)s, %(on_run_completed)s, %(metadata)s, %(payload)s, %(next_run_at)s, %(actor)s)
RETURNING """
    + COLUMNS
)


async def create(
    engine: Engine,
    thread_id: UUID | None,
    *,
    assistant: str,
    payload: dict[str, Any],
    schedule: str,
    timezone: str | None = None,
    end_time: datetime | None = None,
    enabled: bool = True,
    on_run_completed: Literal["delete", "keep"] = "delete",
    metadata: dict[str, Any] | None = None,
    actor: Actor | None = None,
) -> dict[str, Any]:
    """A new cron, for a thread or (None) with a thread of its own for each run.

    `payload` is what the client sent, see `RUN_OPTIONS`, `config` and `context`; it is kept with
    the cron's id in `config.configurable`. An `end_time` that has passed is accepted: such a cron
    has no next run. Its runs act for `actor`.

    Raises AssistantNotFound, GraphNotFound, ThreadNotFound, and InvalidInput for the schedule or
    the time zone.
    """
    cron_id = uuid4()
    if thread_id is not None:
        await threads.get(engine, thread_id)
    try:
        async with engine.pool.connection() as conn, conn.transaction():
            found = await assistants.resolve(engine, conn, assistant, within=actor.assistants if actor else None)
            now = await (await conn.execute(NOW)).fetchone()
            assert now is not None
            params = {
                "cron_id": cron_id,
                "assistant_id": found["assistant_id"],
                "thread_id": thread_id,
                "user_id": actor.identity if actor else None,
                "actor": jsonb(actor.stored()) if actor else None,
                "schedule": schedule,
                "timezone": timezone,
                "end_time": end_time,
                "enabled": enabled,
                "on_run_completed": None if thread_id else on_run_completed,
                "metadata": jsonb(metadata or {}),
                "payload": jsonb(_named(payload, cron_id)),
                "next_run_at": next_tick(schedule, timezone, now["now"], until=end_time),
            }
            row = await (await conn.execute(CREATE, params)).fetchone()
    except ForeignKeyViolation as exc:  # deleted just now
        raise ThreadNotFound("Thread or assistant not found") from exc
    assert row is not None
    return row


def _named(payload: dict[str, Any], cron_id: UUID) -> dict[str, Any]:
    """The payload with the cron's id, which each of its runs finds in its config."""
    config: dict[str, Any] = payload.get("config") or {}
    configurable: dict[str, Any] = {**config.get("configurable", {}), "cron_id": str(cron_id)}
    return {**payload, "config": {**config, "configurable": configurable}}


PERMITTED = "SELECT 1 FROM crons WHERE cron_id = %(cron_id)s AND metadata @> %(within)s"


async def permitted(conn: Conn, cron_id: UUID, within: Within) -> bool:
    """Whether there is such a cron within a filter; without a filter True, and nothing is asked."""
    if within is None:
        return True
    params = {"cron_id": cron_id, "within": jsonb(within)}
    return await (await conn.execute(PERMITTED, params)).fetchone() is not None


GET: LiteralString = "SELECT " + COLUMNS + " FROM crons WHERE cron_id = %(cron_id)s"


async def get(engine: Engine, cron_id: UUID) -> dict[str, Any]:
    """Raises CronNotFound."""
    async with engine.pool.connection() as conn:
        return _found(await (await conn.execute(GET, {"cron_id": cron_id})).fetchone(), cron_id)


def _found(row: dict[str, Any] | None, cron_id: UUID) -> dict[str, Any]:
    if row is None:
        raise CronNotFound(f"Cron with ID {cron_id} not found")
    return row


LOCK: LiteralString = "SELECT " + COLUMNS + ", now() AS now FROM crons WHERE cron_id = %(cron_id)s FOR UPDATE"
PATCH: LiteralString = (
    """
UPDATE crons
   SET schedule = %(schedule)s, timezone = %(timezone)s, end_time = %(end_time)s, enabled = %(enabled)s,
       on_run_completed = %(on_run_completed)s, metadata = %(metadata)s, payload = %(payload)s,
       next_run_at = %(next_run_date)s, updated_at = now()
 WHERE cron_id = %(cron_id)s
RETURNING """
    + COLUMNS
)


async def patch(engine: Engine, cron_id: UUID, changes: dict[str, Any]) -> dict[str, Any]:
    """Change what `changes` names; runs that have been started stay as they are.

    `metadata` is merged at the top level, everything else replaced; `end_time` None takes the end
    away; `config.configurable` and `context` mean the same, so each replaces the other. The next
    run is computed anew from now on, except that a tick which is overdue (no worker lives) is kept
    when the change is about something other than the timing.

    Raises CronNotFound, InvalidInput.
    """
    async with engine.pool.connection() as conn, conn.transaction():
        old = _found(await (await conn.execute(LOCK, {"cron_id": cron_id})).fetchone(), cron_id)
        if old["thread_id"] is not None:  # its runs have no thread of their own
            changes = {key: value for key, value in changes.items() if key != "on_run_completed"}
        metadata = {**old["metadata"], **changes.get("metadata", {})}
        new = {**old, **changes}
        payload = _changed(old["payload"], {**changes, "metadata": metadata} if metadata else changes)
        due = old["next_run_date"]
        if TIMING & changes.keys() or not old["enabled"] or due is None or due > old["now"]:
            due = next_tick(new["schedule"], new["timezone"], old["now"], until=new["end_time"])
        new |= {"metadata": jsonb(metadata), "payload": jsonb(_named(payload, cron_id)), "next_run_date": due}
        row = await (await conn.execute(PATCH, new)).fetchone()
    return _found(row, cron_id)


def _changed(payload: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    payload = {key: value for key, value in {**payload, **changes}.items() if value is not None}
    if changes.get("context") and "config" not in changes:
        payload["config"] = {**payload["config"], "configurable": {}}
    elif changes.get("config", {}).get("configurable") and "context" not in changes:
        payload.pop("context", None)
    return payload


DELETE = "DELETE FROM crons WHERE cron_id = %(cron_id)s RETURNING cron_id"


async def delete(engine: Engine, cron_id: UUID) -> None:
    """Delete a cron; runs that it has started go on. Raises CronNotFound."""
    async with engine.pool.connection() as conn:
        _found(await (await conn.execute(DELETE, {"cron_id": cron_id})).fetchone(), cron_id)


MATCHING: LiteralString = """
  FROM crons
 WHERE (%(assistant_id)s::uuid IS NULL OR assistant_id = %(assistant_id)s)
   AND (%(thread_id)s::uuid IS NULL OR thread_id = %(thread_id)s)
   AND (%(enabled)s::boolean IS NULL OR enabled = %(enabled)s)
   AND metadata @> %(metadata)s
   AND (%(within)s::jsonb IS NULL OR metadata @> %(within)s)
"""
SEARCH: LiteralString = (
    "SELECT "
    + COLUMNS
    + ", now() AS now"
    + MATCHING
    + "ORDER BY {by} {way} NULLS LAST, cron_id LIMIT %(limit)s OFFSET %(offset)s"
)
COUNT: LiteralString = "SELECT count(*) AS n" + MATCHING


async def search(
    engine: Engine,
    *,
    assistant: str | None = None,
    thread_id: UUID | None = None,
    enabled: bool | None = None,
    metadata: dict[str, Any] | None = None,
    limit: int = 10,
    offset: int = 0,
    sort_by: str = "created_at",
    sort_order: str = "desc",
    within: Within = None,
) -> tuple[list[dict[str, Any]], int]:
    """Crons that match every filter given, each with `now`, and how many match in all.

    `assistant` is a UUID or the name of a graph, which means its default assistant. Raises
    GraphNotFound for any other text, and InvalidInput for an unknown sort field.
    """
    if sort_by not in SORT:
        raise InvalidInput("sort_by", f"must be one of {', '.join(SORT)}")
    way = sql.SQL("ASC" if sort_order == "asc" else "DESC")
    query = sql.SQL(SEARCH).format(by=sql.Identifier(sort_by), way=way)
    params = _filter(engine, assistant, thread_id, enabled, metadata, within)
    async with engine.pool.connection() as conn:
        page = {"limit": limit, "offset": min(offset, assistants.MAX_OFFSET)}
        rows = await (await conn.execute(query, {**params, **page})).fetchall()
        return rows, await _count(conn, params)


async def count(
    engine: Engine,
    *,
    assistant: str | None = None,
    thread_id: UUID | None = None,
    enabled: bool | None = None,
    metadata: dict[str, Any] | None = None,
    within: Within = None,
) -> int:
    """How many crons match, see `search`."""
    params = _filter(engine, assistant, thread_id, enabled, metadata, within)
    async with engine.pool.connection() as conn:
        return await _count(conn, params)


async def _count(conn: Conn, params: dict[str, Any]) -> int:
    row = await (await conn.execute(COUNT, params)).fetchone()
    return row["n"] if row else 0


def _filter(
    engine: Engine,
    assistant: str | None,
    thread_id: UUID | None,
    enabled: bool | None,
    metadata: dict[str, Any] | None,
    within: Within,
) -> dict[str, Any]:
    assistant_id: UUID | None = None
    if assistant is not None and assistant in engine.registry.graphs:
        assistant_id = engine.registry.default_assistant_id(assistant)
    elif assistant is not None:
        try:
            assistant_id = UUID(assistant)
        except ValueError:
            engine.registry.entry(assistant)
            raise
    filters = {"assistant_id": assistant_id, "thread_id": thread_id, "enabled": enabled}
    return {**filters, "metadata": jsonb(metadata or {}), "within": access.parameter(within)}


RUNS = """
SELECT r.thread_id, r.run_id, r.graph_id AS agent, r.status, r.created_at, r.started_at, r.ended_at,
       extract(epoch FROM coalesce(r.ended_at, now()) - r.created_at)::float8 AS seconds,
       left(r.error ->> 'error' || ': ' || (r.error ->> 'message'), 300) AS error
  FROM runs r
 WHERE r.metadata ? 'cron_id' AND r.metadata ->> 'cron_id' = %(cron_id)s
   AND (%(within)s::jsonb IS NULL
        OR EXISTS (SELECT 1 FROM threads t WHERE t.thread_id = r.thread_id AND t.metadata @> %(within)s))
 ORDER BY r.created_at DESC
 LIMIT %(limit)s
"""


async def runs_of(engine: Engine, cron_id: UUID, *, limit: int = 20, within: Within = None) -> list[dict[str, Any]]:
    """The newest runs that a cron has started, as far as they are there: many are deleted when they end."""
    params = {"cron_id": str(cron_id), "limit": limit, "within": access.parameter(within)}
    async with engine.pool.connection() as conn:
        return await (await conn.execute(RUNS, params)).fetchall()
