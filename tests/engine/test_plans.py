"""What the console reads, with 100,000 runs, threads, steps, questions and events there: ranges of indexes, no table.

Each statement of a page is executed once more by EXPLAIN ANALYZE, which tells what it has really read.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from perdure.engine.core import Engine
from perdure.engine.registry import Registry
from perdure.engine.views import figures, places, runlist, threadlist, workers

MANY = 100_000
BIG = {"runs", "threads", "steps", "interrupts", "run_events"}

LOAD: tuple[LiteralString, ...] = (
    # ann has few threads, bob a tenth of all; the last 100 are as old as the first
    """
    INSERT INTO threads (thread_id, status, metadata, created_at, updated_at)
    SELECT md5('t' || n)::uuid, CASE WHEN n % 50 = 0 THEN 'error' WHEN n % 997 = 0 THEN 'interrupted' ELSE 'idle' END,
           jsonb_build_object('graph_id', 'agent' || n % 7, 'user',
                              CASE WHEN n <= 20 THEN 'ann' WHEN n % 10 = 0 THEN 'bob' ELSE 'eve' END),
           now() - n * interval '1 s', now() - (100000 - n) * interval '1 s'
      FROM generate_series(1, 100000) n
    """,
    # one run in 40 has failed, one in 10,000 in a way of its own; 3,000 are active, 100 belong to a worker
    """
    INSERT INTO runs (thread_id, run_id, assistant_id, graph_id, status, kwargs, error, created_at, ended_at, ready_at,
                      worker_id, lease_until)
    SELECT md5('t' || n)::uuid, md5('r' || n)::uuid, md5('a')::uuid, 'agent' || n % 7, status,
           jsonb_build_object('input', repeat('x', 300)),
           CASE WHEN status = 'error'
                THEN jsonb_build_object('error', 'ValueError', 'message', 'bad ' || (n % 10000)) END,
           at, CASE WHEN status IN ('success', 'error') THEN at + n % 90 * interval '1 s' END,
           CASE status WHEN 'pending' THEN at WHEN 'suspended' THEN now() + interval '1 day' END,
           CASE WHEN status = 'running' THEN md5('w')::uuid END, CASE WHEN status = 'running' THEN now() END
      FROM (SELECT n, now() - (100000 - n) * interval '0.2 s' AS at,
                   CASE WHEN n > 99900 THEN 'running' WHEN n % 50 = 1 THEN 'pending' WHEN n % 100 = 2 THEN 'suspended'
                        WHEN n % 40 = 0 THEN 'error' ELSE 'success' END AS status
              FROM generate_series(1, 100000) n) made
    """,
    """
    INSERT INTO steps (thread_id, scope, name, identity, n, call, run_id, status, attempts, updated_at)
    SELECT md5('t' || n)::uuid, 'node:1', 'work', '', 0, 0, md5('r' || n)::uuid, 'done',
           CASE WHEN n % 5 = 0
                THEN jsonb_build_array(jsonb_build_object('started_at', at, 'seconds', 1,
                                                               'model', used || jsonb_build_object(
                     'first_token_seconds', 0.5, 'names', jsonb_build_object('m', used))))
                ELSE jsonb_build_array(jsonb_build_object('started_at', at, 'seconds', 1)) END, at
      FROM (SELECT n, now() - (100000 - n) * interval '0.2 s' AS at,
                   '{"calls": 1, "input_tokens": 100, "output_tokens": 10}'::jsonb AS used
              FROM generate_series(1, 100000) n) made
    """,
    """
    INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id, graph_id,
                            assistant_id, token, question, deadline, status, created_at)
    SELECT md5('t' || n)::uuid, '', '', 0, '', '', md5('r' || n)::uuid, 'agent' || n % 7, md5('a')::uuid, 't' || n,
           '""', now() + n * interval '1 s', CASE WHEN n % 20 = 0 THEN 'open' ELSE 'answered' END,
           now() - (100000 - n) * interval '1 s'
      FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO run_events (thread_id, seq, run_id, event)
    SELECT md5('t' || n)::uuid, 1, md5('r' || n)::uuid, 'values' FROM generate_series(1, 100000) n
    """,
    "INSERT INTO workers (worker_id, lock_key, name, slots) VALUES (md5('w')::uuid, 1, 'w', 100)",
    # of all rows, not of a sample that is another one each time, and nobody makes others meanwhile
    "ALTER TABLE runs SET (autovacuum_enabled = off)",
    "ALTER TABLE threads SET (autovacuum_enabled = off)",
    "ALTER TABLE steps SET (autovacuum_enabled = off)",
    "ALTER TABLE interrupts SET (autovacuum_enabled = off)",
    "ALTER TABLE run_events SET (autovacuum_enabled = off)",
    "ALTER TABLE workers SET (autovacuum_enabled = off)",
    "SET default_statistics_target = 400",
    "ANALYZE runs, threads, steps, interrupts, run_events, workers",
)


@pytest.fixture(scope="module")
def loaded(module_dsn: str) -> str:
    with psycopg.connect(module_dsn, autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")  # the rows fit: no need to check 400,000 references
        for statement in LOAD:
            conn.execute(statement)
    return module_dsn


class Watched:
    """A connection that also asks how each of its queries was executed."""

    def __init__(self, conn: Any, plans: list[Any]) -> None:
        self._conn, self._plans = conn, plans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    async def execute(self, query: Any, params: Any = None) -> Any:
        text = sql.SQL(query) if isinstance(query, str) else query
        if text.as_string(self._conn).lstrip(" \n(").startswith(("SELECT", "WITH")):
            explained = sql.SQL("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {}").format(text)
            (row,) = await (await self._conn.execute(explained, params)).fetchall()
            self._plans.append((text.as_string(self._conn), row["QUERY PLAN"][0]["Plan"]))
        return await self._conn.execute(query, params)


def nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def rows_read(plan: Any) -> float:
    """By all scans of tables and indexes, those that a filter has thrown away included."""
    total = 0.0
    for node in nodes(plan):
        if node["Node Type"].endswith("Scan") and "Relation Name" in node:
            removed = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
            total += (node["Actual Rows"] + removed) * node["Actual Loops"]
    return total


Ask = Callable[[Engine], Awaitable[Any]]


@pytest.fixture
async def watched(loaded: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    plans: list[Any] = []
    looking = places.looking

    @asynccontextmanager
    async def watch(engine: Engine) -> AsyncIterator[Any]:
        async with looking(engine) as conn:
            yield Watched(conn, plans)

    monkeypatch.setattr(places, "looking", watch)
    async with Engine.open(settings, Registry({}, {}), loaded) as engine:
        yield engine, plans


NOW = datetime.now(UTC)
FAR: dict[str, Any] = {"cursor": places.written(NOW - timedelta(hours=4), 2**40)}
RUNS: dict[str, dict[str, Any]] = {
    "newest": {},
    "next page": FAR,
    "of a status": {"status": ["error"]},
    "of a rare status": {"status": ["paused", "timeout"]},
    "of an agent": {"agent": "agent3"},
    "of an agent and a status, from a place on": {"agent": "agent3", "status": ["error"], **FAR},
    "of an unknown agent": {"agent": "nobody"},
    "of a time": {"since": NOW - timedelta(hours=3), "until": NOW - timedelta(hours=2)},
    "with a frequent error": {"error": "bad"},
    "with a rare error": {"error": "bad 4000"},
    "with no such error": {"error": "never seen", "status": ["error"]},
    "of a caller with little": {"within": {"user": "ann"}},
    "of a caller with much": {"within": {"user": "bob"}},
    "of a caller with nearly all": {"within": {"user": "eve"}, "error": "bad 4000"},
    "of a caller with nothing": {"within": {"user": "nobody"}},
    "of a caller with much, that failed": {"within": {"user": "bob"}, "status": ["error"]},
    "of a thread": {"thread_id": UUID("7a2e6c1d0b6e2f4d8f6c1a2b3c4d5e6f")},
    "by its id": {"run_id_prefix": "00"},
}
THREADS: dict[str, dict[str, Any]] = {
    "newest": {},
    "next page": {"cursor": places.written(NOW - timedelta(hours=4), 0)},
    "of a status": {"status": "interrupted"},
    "of a status that none has": {"status": "busy"},
    "of an agent": {"agent": "agent3"},
    "of an agent and a status": {"agent": "agent3", "status": "error"},
    "of few": {"metadata": {"user": "ann"}},
    "of nobody": {"metadata": {"user": "nobody"}},
    "of a caller with much": {"within": {"user": "bob"}, "status": "interrupted"},
    "of a caller with much, of few": {"within": {"user": "bob"}, "metadata": {"user": "ann"}},
    "by its id": {"id_prefix": "00"},
}


def check(plans: list[Any], most: int) -> None:
    assert plans
    for text, plan in plans:
        whole = [node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"]
        assert not BIG & set(whole), text
        assert rows_read(plan) <= most, text


@pytest.mark.parametrize("name", RUNS)
async def test_a_page_of_runs_reads_little(watched: Any, name: str) -> None:
    engine, plans = watched
    page = await runlist.find_runs(engine, **RUNS[name])
    assert len(page["rows"]) <= 50
    check(plans, 2 * runlist.SCAN + 1000)


@pytest.mark.parametrize("name", THREADS)
async def test_a_page_of_threads_reads_little(watched: Any, name: str) -> None:
    engine, plans = watched
    page = await threadlist.find_threads(engine, **THREADS[name])
    assert len(page["rows"]) <= 50
    check(plans, threadlist.SCAN + 200)


@pytest.mark.parametrize("within", [None, {"user": "ann"}, {"user": "bob"}, {"user": "eve"}, {"user": "nobody"}])
async def test_counting_runs_stops_early(watched: Any, within: Any) -> None:
    engine, plans = watched
    counts = await runlist.count_runs(engine, within=within)
    if within is None:
        assert counts["success"] == {"n": 1000, "more": True}
        assert counts["timeout"] == {"n": 0, "more": False}
    check(plans, 2 * runlist.SCAN + 1000)


@pytest.mark.parametrize("hours", [1, 24 * 30])
@pytest.mark.parametrize("within", [None, {"user": "bob"}, {"user": "eve"}])
async def test_the_overview_reads_a_bounded_number_of_rows(watched: Any, within: Any, hours: float) -> None:
    engine, plans = watched
    seen = await figures.overview(engine, within=within, hours=hours)
    assert seen["cut"] == (hours > 1)
    check(plans, 4 * figures.NEWEST)


async def test_the_list_of_workers_reads_their_runs(watched: Any) -> None:
    engine, plans = watched
    (worker,) = await workers.list_workers(engine)
    assert worker["used"] == len(worker["runs"]) == 100
    check(plans, 2 * 100)
