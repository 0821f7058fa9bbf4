"""Crons: runs that the clock starts. Table `crons`.

Any number of sweepers may fire; each tick starts one run. One transaction takes the cron's row,
creates the run as any other run is created, and moves `next_run_at` on: a crash leaves both or
neither. Time is the database's.

Ticks that are missed while no worker lives are not made up one by one: the newest of them is
fired when a worker is there again, then the cron goes on with the next one.

Records have the fields of the wire's cron: cron_id, assistant_id, thread_id, user_id, end_time,
schedule, timezone, payload, next_run_date, metadata, on_run_completed, enabled, created_at, updated_at;
and `error`, why the last tick has started no run. Such a tick is not tried again: the next one comes by the
schedule.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, LiteralString
from uuid import UUID, uuid4

import psycopg
import structlog
from psycopg import sql
from psycopg.errors import ForeignKeyViolation

from perdure.engine import access, assistants, runs, threads
from perdure.engine.access import Actor, Within
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import CronNotFound, EngineError, InvalidInput, ThreadNotFound
from perdure.engine.hub import Event
from perdure.engine.schedule import next_tick

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

SECONDS_PER_SWEEP = 0.5  # the sweeper has other duties; what is left is due again in its next round

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
                "next_run_at": _next(schedule, timezone, end_time, now["now"]),
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


def _next(schedule: str, timezone: str | None, end_time: datetime | None, after: datetime) -> datetime | None:
    """The next tick, None if it does not come before the end."""
    tick = next_tick(schedule, timezone, after)
    return None if tick is None or (end_time is not None and tick >= end_time) else tick


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
            due = _next(new["schedule"], new["timezone"], new["end_time"], old["now"])
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


# The row stays locked until its tick is dealt with; who comes second finds it moved on.
NEXT_DUE: LiteralString = (
    "SELECT "
    + COLUMNS
    + """, actor, now() AS now FROM crons
 WHERE enabled AND next_run_at <= now() AND (next_run_at, cron_id) > (%(at)s, %(cron_id)s)
 ORDER BY next_run_at, cron_id LIMIT 1
   FOR UPDATE SKIP LOCKED"""
)
MOVE_ON = "UPDATE crons SET next_run_at = %(next_run_at)s, error = %(error)s WHERE cron_id = %(cron_id)s"
GIVE_UP_TICK = """
UPDATE crons SET next_run_at = %(next_run_at)s, error = %(error)s
 WHERE cron_id = %(cron_id)s AND next_run_at = %(due)s  -- nobody has moved it on meanwhile
"""

# Whoever deletes a thread locks it before its crons, here it is the other way round: never wait for it.
THREAD_IS_FREE = "SELECT thread_id FROM threads WHERE thread_id = %(thread_id)s FOR UPDATE SKIP LOCKED"


async def fire_due(engine: Engine) -> int:
    """Start the runs of the crons that are due, for about half a second a call; returns how many runs.

    Each cron has a transaction of its own, so one that cannot be fired does not hold up the rest.
    """
    fired = 0
    place: dict[str, Any] = {"at": datetime.min.replace(tzinfo=UTC), "cron_id": UUID(int=0)}
    end = time.monotonic() + SECONDS_PER_SWEEP
    looked = False
    while not looked or time.monotonic() < end:
        looked = True
        cron = None
        try:
            async with engine.pool.connection() as conn, conn.transaction():
                cron = await (await conn.execute(NEXT_DUE, place)).fetchone()
                if cron is None:
                    break
                place = {"at": cron["next_run_date"], "cron_id": cron["cron_id"]}
                started = await _fire(engine, conn, cron)
        except psycopg.OperationalError:
            raise
        except Exception as exc:  # the edge of a background loop; nothing was stored
            if cron is None:
                raise
            log.exception("cron failed", cron_id=str(cron["cron_id"]))
            await _give_up_tick(engine, cron, exc)
            continue
        if started is not None:
            run, published = started
            fired += 1
            engine.hub.publish(run["thread_id"], published)
            late = round((cron["now"] - cron["next_run_date"]).total_seconds(), 1)
            ids = {name: str(run[name]) for name in ("thread_id", "run_id")}
            log.info("cron fired", cron_id=str(cron["cron_id"]), **ids, seconds_late=late)
    return fired


async def _fire(engine: Engine, conn: Conn, cron: dict[str, Any]) -> tuple[dict[str, Any], list[Event]] | None:
    """Deal with one tick, in the caller's transaction, which holds the cron's row."""
    cron_id, thread_id, now = cron["cron_id"], cron["thread_id"], cron["now"]
    if thread_id and not await (await conn.execute(THREAD_IS_FREE, {"thread_id": thread_id})).fetchone():
        return None  # due again in the next round
    started, error = None, None
    if cron["end_time"] is None or cron["end_time"] > now:
        try:
            async with conn.transaction():
                started = await runs.enqueue_in(engine, conn, thread_id, _run_of(cron))
        except EngineError as exc:  # for instance: the thread is busy, and the cron says `reject`
            ids = {"cron_id": str(cron_id), "thread_id": str(thread_id)}
            log.warning("cron tick skipped", **ids, due=cron["next_run_date"].isoformat(), reason=str(exc))
            error = _described(exc, now)
    upcoming = _next(cron["schedule"], cron["timezone"], cron["end_time"], now)
    await conn.execute(MOVE_ON, {"cron_id": cron_id, "next_run_at": upcoming, "error": error and jsonb(error)})
    return started


def _described(exc: Exception, at: datetime) -> dict[str, Any]:
    return {"error": type(exc).__name__, "message": str(exc), "at": at.isoformat()}


async def _give_up_tick(engine: Engine, cron: dict[str, Any], exc: Exception) -> None:
    """Go on with the next tick, in a transaction of its own; a cron that has no next one any more rests."""
    try:
        upcoming = _next(cron["schedule"], cron["timezone"], cron["end_time"], cron["now"])
    except EngineError:  # its time zone is gone
        upcoming = None
    params = {"cron_id": cron["cron_id"], "due": cron["next_run_date"], "next_run_at": upcoming}
    async with engine.pool.connection() as conn:
        await conn.execute(GIVE_UP_TICK, {**params, "error": jsonb(_described(exc, cron["now"]))})


def _run_of(cron: dict[str, Any]) -> runs.NewRun:
    """The run of one tick. `config.configurable` and `context` fill each other, as when a client starts a run."""
    payload, cron_id = cron["payload"], str(cron["cron_id"])
    config: dict[str, Any] = payload["config"]
    context: dict[str, Any] = payload.get("context") or {}
    configurable: dict[str, Any] = {**config["configurable"], **context, "cron_id": cron_id}
    authors = {key: value for key, value in configurable.items() if key != "cron_id"}
    return runs.NewRun(
        assistant=str(cron["assistant_id"]),
        metadata={**cron["metadata"], "cron_id": cron_id},
        config={**config, "configurable": configurable},
        context=context or authors or None,
        on_completion=cron["on_run_completed"] or "delete",
        actor=Actor.of(cron["actor"]),
        **{name: payload[name] for name in RUN_OPTIONS if name in payload},
    )
