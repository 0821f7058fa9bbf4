"""What a process counts about itself, for `/metrics`: each process has its own, and Prometheus adds them up.

Counters are bumped where things happen, after their transaction; the state of the queue is a row's
matter and is asked for when somebody looks (`perdure.engine.metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from psycopg_pool import AsyncConnectionPool

MAX_STEP_NAMES = 200
OTHER = "other"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

disable_created_metrics()
registry = CollectorRegistry()
pools: WeakValueDictionary[str, AsyncConnectionPool[Any]] = WeakValueDictionary()
"""The newest open pool of each name."""

requests = Counter("perdure_api_requests", "Requests answered.", ("method", "route", "status"), registry=registry)
answer_seconds = Histogram(
    "perdure_api_answer_seconds",
    "From a request to the beginning of its answer.",
    ("method", "route"),
    buckets=SECONDS,
    registry=registry,
)
claims = Counter("perdure_claims", "Attempts that this process has begun.", registry=registry)
attempts = Counter("perdure_attempts", "Attempts that have ended here, by how.", ("outcome",), registry=registry)
attempt_seconds = Histogram(
    "perdure_attempt_seconds", "How long attempts took.", ("graph",), buckets=SECONDS, registry=registry
)
leases_lost = Counter(
    "perdure_leases_lost", "Runs taken from workers that had died or fallen silent.", ("why",), registry=registry
)
step_seconds = Histogram(
    "perdure_step_seconds", "How long attempts of steps took.", ("step", "outcome"), buckets=SECONDS, registry=registry
)
loop_lag = Gauge(
    "perdure_loop_lag_seconds", "How late an event loop was when it was last asked.", ("loop",), registry=registry
)

_step_names: set[str] = set()


def step(name: str, status: str, tries: Sequence[Mapping[str, Any]] | None) -> None:
    """A try of a step has been recorded; the last of `tries` says how long it took."""
    seconds = tries[-1].get("seconds") if tries else None
    if not isinstance(seconds, int | float):
        return  # a word that is no call: nothing to measure
    if name not in _step_names and len(_step_names) >= MAX_STEP_NAMES:
        name = OTHER
    _step_names.add(name)
    step_seconds.labels(name, "failed" if status in ("failed", "retrying") else "done").observe(seconds)
