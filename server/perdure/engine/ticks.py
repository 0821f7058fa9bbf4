"""Ticks of crons: starting the runs that are due. Table `crons`, of which this writes `next_run_at` and `error`.

Any number of sweepers may fire; each tick starts one run. One transaction takes the cron's row,
creates the run as any other run is created, and moves `next_run_at` on: a crash leaves both or
neither. Time is the database's.

Ticks that are missed while no worker lives are not made up one by one: the newest of them is
fired when a worker is there again, then the cron goes on with the next one. A tick that cannot start
its run says why in `error` and is not tried again: the next one comes by the schedule.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

import psycopg
import structlog

from perdure.engine import crons, runs
from perdure.engine.access import Actor
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import EngineError
from perdure.engine.hub import Event
from perdure.engine.newrun import NewRun
from perdure.engine.schedule import next_tick

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

SECONDS_PER_SWEEP = 0.5  # the sweeper has other duties; what is left is due again in its next round

# The row stays locked until its tick is dealt with; who comes second finds it moved on.
NEXT_DUE: LiteralString = (
    "SELECT "
    + crons.COLUMNS
    + """, actor, now() AS now FROM crons
 WHERE enabled AND next_run_at <= now() AND (next_run_at, cron_id) > (%(at)s, %(cron_id)s)
 ORDER BY next_run_at, cron_id LIMIT 1
   FOR UPDATE SKIP LOCKED"""
)
ANY_DUE = "SELECT 1 FROM crons WHERE enabled AND next_run_at <= now() LIMIT 1"
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
    async with engine.pool.connection() as conn:
        if await (await conn.execute(ANY_DUE)).fetchone() is None:
            return 0
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
    upcoming = next_tick(cron["schedule"], cron["timezone"], now, until=cron["end_time"])
    await conn.execute(MOVE_ON, {"cron_id": cron_id, "next_run_at": upcoming, "error": error and jsonb(error)})
    return started


def _described(exc: Exception, at: datetime) -> dict[str, Any]:
    return {"error": type(exc).__name__, "message": str(exc), "at": at.isoformat()}


async def _give_up_tick(engine: Engine, cron: dict[str, Any], exc: Exception) -> None:
    """Go on with the next tick, in a transaction of its own; a cron that has no next one any more rests."""
    try:
        upcoming = next_tick(cron["schedule"], cron["timezone"], cron["now"], until=cron["end_time"])
    except EngineError:  # its time zone is gone
        upcoming = None
    params = {"cron_id": cron["cron_id"], "due": cron["next_run_date"], "next_run_at": upcoming}
    async with engine.pool.connection() as conn:
        await conn.execute(GIVE_UP_TICK, {**params, "error": jsonb(_described(exc, cron["now"]))})


def _run_of(cron: dict[str, Any]) -> NewRun:
    """The run of one tick. `config.configurable` and `context` fill each other, as when a client starts a run."""
    payload, cron_id = cron["payload"], str(cron["cron_id"])
    config: dict[str, Any] = payload["config"]
    context: dict[str, Any] = payload.get("context") or {}
    configurable: dict[str, Any] = {**config["configurable"], **context, "cron_id": cron_id}
    authors = {key: value for key, value in configurable.items() if key != "cron_id"}
    return NewRun(
        assistant=str(cron["assistant_id"]),
        metadata={**cron["metadata"], "cron_id": cron_id},
        config={**config, "configurable": configurable},
        context=context or authors or None,
        on_completion=cron["on_run_completed"] or "delete",
        actor=Actor.of(cron["actor"]),
        **{name: payload[name] for name in crons.RUN_OPTIONS if name in payload},
    )
