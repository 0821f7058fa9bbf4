"""The state of the queue and of this process in numbers: what `/metrics` shows.

Only what is active is counted, by partial indexes: a table of finished runs may grow as it likes.
The answer of the database is kept for a moment, so that asking often costs nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Gauge, Metric, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from perdure.engine import meters

if TYPE_CHECKING:
    from perdure.engine.core import Engine

KEPT_SECONDS = 2.0
LAG_SECONDS = 0.5
ACTIVE = ("pending", "running", "suspended", "paused")

# the condition of `runs_active_idx`, word for word
BY_STATUS = """
SELECT status, count(*) AS n FROM runs WHERE status IN ('pending', 'running', 'suspended', 'paused') GROUP BY status
"""
QUEUE = """
SELECT (SELECT count(*) FROM runs WHERE ready_at <= now()) AS ready,
       (SELECT extract(epoch FROM now() - min(ready_at))::float8 FROM runs WHERE ready_at <= now()) AS oldest_seconds,
       (SELECT count(*) FROM runs WHERE ready_at > now()) AS scheduled,
       (SELECT count(*) FROM interrupts WHERE status = 'open') AS questions,
       (SELECT count(*) FROM webhooks WHERE next_at IS NOT NULL) AS webhooks,
       (SELECT count(*) FROM workers) AS workers,
       (SELECT coalesce(sum(slots), 0) FROM workers) AS slots
"""

_kept: WeakKeyDictionary[Any, tuple[float, dict[str, Any]]] = WeakKeyDictionary()
_asking: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()


async def queue(engine: Engine) -> dict[str, Any]:
    """Runs by status (active ones), how many may start now and since when the first one may; questions, workers.

    The same for all servers of a database, up to `KEPT_SECONDS` old.
    """
    async with _asking.setdefault(engine.pool, asyncio.Lock()):
        kept = _kept.get(engine.pool)
        if kept is None or time.monotonic() - kept[0] > KEPT_SECONDS:
            async with engine.pool.connection() as conn:
                rows = await (await conn.execute(BY_STATUS)).fetchall()
                row = await (await conn.execute(QUEUE)).fetchone()
            assert row is not None
            counts = dict.fromkeys(ACTIVE, 0) | {one["status"]: one["n"] for one in rows}
            found = {"runs": counts, **row, "oldest_seconds": max(0.0, row["oldest_seconds"] or 0.0)}
            kept = _kept[engine.pool] = (time.monotonic(), found)
        return kept[1]


def process() -> dict[str, Any]:
    """What this process has counted since it began, as JSON: totals over all labels, and its pools."""
    totals: dict[str, float] = {}
    for metric in meters.registry.collect():
        for sample in metric.samples:
            if sample.name.endswith(("_total", "_count")):
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    lag = {sample.labels["loop"]: sample.value for metric in meters.loop_lag.collect() for sample in metric.samples}
    return {**totals, "loop_lag_seconds": lag, "pools": {name: _pool(pool) for name, pool in meters.pools.items()}}


def text(state: dict[str, Any]) -> bytes:
    """All of it in Prometheus' text format."""
    asked = CollectorRegistry()
    runs = Gauge("perdure_runs", "Runs that have not ended, by status.", ("status",), registry=asked)
    for status, count in state["runs"].items():
        runs.labels(status).set(count)
    for name, about, value in (
        ("perdure_queue_ready", "Runs that a worker may start now.", state["ready"]),
        ("perdure_queue_oldest_seconds", "Since when the first of them may be started.", state["oldest_seconds"]),
        ("perdure_queue_scheduled", "Runs that may start later: delayed, sleeping, to be retried.", state["scheduled"]),
        ("perdure_questions_open", "Questions that wait for a person.", state["questions"]),
        ("perdure_webhooks_pending", "Webhooks that are still to be sent.", state["webhooks"]),
        ("perdure_workers", "Processes that execute runs.", state["workers"]),
        ("perdure_slots", "Runs that they execute at a time.", state["slots"]),
    ):
        Gauge(name, about, registry=asked).set(value)
    return generate_latest(asked) + generate_latest(meters.registry)


class _Pools(Collector):
    """The connection pools of this process, as they are when somebody asks."""

    def collect(self) -> Iterator[Metric]:
        pool = GaugeMetricFamily("perdure_pool_connections", "Connections of a pool.", labels=("pool", "state"))
        waiting = GaugeMetricFamily("perdure_pool_waiting", "Who waits for a connection of a pool.", labels=("pool",))
        for name, one in list(meters.pools.items()):
            numbers = _pool(one)
            pool.add_metric((name, "used"), numbers["used"])
            pool.add_metric((name, "idle"), numbers["idle"])
            waiting.add_metric((name,), numbers["waiting"])
        yield from (pool, waiting)


meters.registry.register(_Pools())


@contextmanager
def served(host: str, port: int) -> Iterator[int]:
    """This process's own numbers over HTTP, for a process without an API; gives the port. Raises OSError.

    In a thread of its own, which asks no database: it answers also when the loops of the process are stuck.
    """
    server, thread = start_http_server(port, addr=host, registry=meters.registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _pool(pool: Any) -> dict[str, int]:
    stats: dict[str, int] = pool.get_stats()
    idle = stats.get("pool_available", 0)
    return {"used": stats.get("pool_size", 0) - idle, "idle": idle, "waiting": stats.get("requests_waiting", 0)}


async def watch_loop(name: str) -> None:
    """Measure, until cancelled, how late the running event loop is."""
    while True:
        asked = time.monotonic()
        await asyncio.sleep(LAG_SECONDS)
        meters.loop_lag.labels(name).set(max(0.0, time.monotonic() - asked - LAG_SECONDS))
