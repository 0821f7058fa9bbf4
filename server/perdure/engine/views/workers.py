"""The fleet: which workers there are, whether they live, and what each of them executes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

from perdure.engine import access
from perdure.engine.access import Within
from perdure.engine.db import Conn
from perdure.engine.views import places, runlist

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_RUNS = 1_000
"""Runs of one worker that are listed."""
MAX_WORKERS = 1_000

# A key of 64 bits stands in pg_locks as two halves; objsubid 1 tells it from two keys of 32 bits.
WORKERS = """
SELECT w.worker_id, w.name, w.slots, w.started_at, w.seen_at,
       extract(epoch FROM now() - w.seen_at)::float8 AS seen_seconds, l.granted IS NOT NULL AS alive,
       u.used, u.lease_until
  FROM (SELECT * FROM workers ORDER BY started_at LIMIT %(workers)s) w
  LEFT JOIN pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND (l.classid::bigint << 32 | l.objid::bigint) = w.lock_key
 CROSS JOIN LATERAL (
       SELECT count(*) AS used, min(lease_until) AS lease_until FROM runs WHERE worker_id = w.worker_id) u
 ORDER BY w.started_at, w.worker_id
"""


async def fleet(conn: Conn) -> list[dict[str, Any]]:
    """All workers, oldest first, with how many slots are `used` and the earliest `lease_until` among their runs.

    `alive`: the worker's session holds its lock. One that is not is given up within a second by the others;
    one that has not been seen for long while it is alive is stuck, or cut off.
    """
    return await (await conn.execute(WORKERS, {"workers": MAX_WORKERS})).fetchall()


# `worker_id` is set while a run is being executed, so this is as long as there are slots
RUNS: LiteralString = (
    """
SELECT r.worker_id, r.thread_id, r.run_id, r.graph_id AS agent, r.attempt, r.started_at, r.lease_until
  FROM unnest(%(worker_ids)s::uuid[]) AS w(worker_id)
 CROSS JOIN LATERAL (SELECT * FROM runs WHERE worker_id = w.worker_id ORDER BY started_at LIMIT %(runs)s) r
 WHERE %(within)s::jsonb IS NULL OR """
    + runlist.OWN
    + " ORDER BY r.started_at, r.run_id"
)


async def list_workers(engine: Engine, *, within: Within = None) -> list[dict[str, Any]]:
    """The `fleet`, each worker with the `runs` that it is executing now, as far as they are `within`."""
    runs: defaultdict[UUID, list[dict[str, Any]]] = defaultdict(list)
    async with places.looking(engine) as conn:
        workers = await fleet(conn)
        params = {"worker_ids": [worker["worker_id"] for worker in workers], "runs": MAX_RUNS}
        for row in await (await conn.execute(RUNS, {**params, "within": access.parameter(within)})).fetchall():
            runs[row.pop("worker_id")].append(row)
    return [{**worker, "runs": runs[worker["worker_id"]]} for worker in workers]
