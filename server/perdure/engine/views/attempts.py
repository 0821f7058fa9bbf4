"""The attempts of a run: when each began and ended, on which worker, and why it ended.

They are told by the run's lifecycle events, each written in the transaction that changed the run. The events
of a run that needed one attempt may be gone (see `sweeper.PURGE`): then its row tells of that one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from perdure.engine.db import Conn

MAX_EVENTS = 2_000
"""Lifecycle events of a run that are read, from its first; a run that waits very often has more."""

ENDS = {
    "completed": "success",
    "interrupted": "question",
    "failed": "error",
    "retrying": "failed",
    "paused": "paused",
    "suspended": "suspended",
    "lost": "lost",
    "handed back": "handed back",
    "cancelled": "cancelled",
    "cancelling": "cancelled",
}
"""What a lifecycle event says about the attempt that it ends."""

# the text is matched, not cast: an error's message may hold what JSONB refuses
LIFECYCLE = """
SELECT at, data FROM run_events
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND event = 'lifecycle'
 ORDER BY seq LIMIT %(limit)s
"""


async def of_run(conn: Conn, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The attempts of a run (a row of `runs`), in their order, at most one for each of `MAX_EVENTS` events.

    Each has `attempt`, `worker` (its name; None: not known), `started_at`, `ended_at`, `ended` (a value of `ENDS`;
    None: it is at work), `error` (text), `again_seconds` (how long the next one waits). `recovers`: it goes on
    where a lost one was. One that died before it could say anything begins and ends when that was noticed.
    """
    params = {"thread_id": run["thread_id"], "run_id": run["run_id"], "limit": MAX_EVENTS}
    rows = await (await conn.execute(LIFECYCLE, params)).fetchall()
    found = _fold([(row["at"], orjson.loads(row["data"])) for row in rows])
    if not found and run["started_at"] is not None and run["attempt"] == 1:
        found = [_begun(1, run["started_at"], None)]
        if run["ended_at"] is not None:
            error: dict[str, Any] = run["error"] or {}
            word = {"success": "success", "interrupted": "cancelled"}.get(run["status"], "error")
            found[0] |= {"ended_at": run["ended_at"], "ended": word, "error": error.get("message")}
    return found


def _begun(number: int, at: datetime, worker: str | None) -> dict[str, Any]:
    return {
        "attempt": number,
        "worker": worker,
        "started_at": at,
        "ended_at": None,
        "ended": None,
        "error": None,
        "again_seconds": None,
        "recovers": False,
    }


def _fold(told: list[tuple[datetime, dict[str, Any]]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for at, event in told:
        name: str = event.get("event", "")
        last = found[-1] if found else None
        if name == "running":
            found.append(_begun(event.get("attempt", len(found) + 1), at, event.get("worker")))
            found[-1]["recovers"] = last is not None and last["ended"] == "lost"
            continue
        if name not in ENDS:
            continue  # pending, resumed, retried: it waits for its next attempt
        number = event.get("attempt")
        if number is not None and (last is None or last["attempt"] < number):
            found.append(_begun(number, at, None))  # it died before its first word
        elif last is None or last["ended"] is not None:
            continue  # ended while no attempt was at work
        seconds = event.get("seconds")
        found[-1] |= {"ended_at": at, "ended": ENDS[name], "error": event.get("error"), "again_seconds": seconds}
    return found
