"""Pages of the inbox and the runs of a cron are ranges of an index, among 100,000 questions and runs."""

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest

from perdure.engine import crons
from perdure.engine.views import questions

LOAD: tuple[LiteralString, ...] = (
    "SET session_replication_role = replica",
    # one in 20,000 is open, and these are the oldest; the agent `rare` has asked 10 times, long ago
    """
    INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id, graph_id,
                            assistant_id, token, question, status, created_at)
    SELECT md5('t' || n)::uuid, '', '', 0, '', '', md5('r' || n)::uuid, CASE WHEN n <= 10 THEN 'rare' ELSE 'often' END,
           md5('a')::uuid, 't' || n, '""', CASE WHEN n <= 5 THEN 'open' ELSE 'answered' END,
           now() - (100000 - n) * interval '1 s'
      FROM generate_series(1, 100000) n
    """,
    """
    INSERT INTO runs (thread_id, run_id, assistant_id, graph_id, status, kwargs, metadata, created_at)
    SELECT md5('t' || n)::uuid, md5('r' || n)::uuid, md5('a')::uuid, 'agent', 'success', '{}',
           CASE WHEN n <= 10 THEN '{"cron_id": "mine"}' WHEN n % 2 = 0 THEN '{"cron_id": "other"}' ELSE '{}' END::jsonb,
           now() - (100000 - n) * interval '1 s'
      FROM generate_series(1, 100000) n
    """,
    # of all rows, not of a sample that is another one each time, and nobody makes others meanwhile
    "ALTER TABLE interrupts SET (autovacuum_enabled = off)",
    "ALTER TABLE runs SET (autovacuum_enabled = off)",
    "SET default_statistics_target = 400",
    "ANALYZE interrupts, runs",
)
ALL = {"status": "open", "agent": "rare", "thread_id": "00000000-0000-4000-8000-000000000000"}
PAGES = [("status",), ("agent",), ("status", "agent"), ("thread_id",), (), ("before",), ("status", "before")]


@pytest.fixture(scope="module")
def loaded(database_url: str, template_database: str) -> Iterator[psycopg.Connection[Any]]:
    from tests.conftest import Database

    with Database(database_url, template_database) as (_, dsn), psycopg.connect(dsn, autocommit=True) as conn:
        for statement in LOAD:
            conn.execute(statement)
        # as after many executions, when PostgreSQL may plan without the values
        conn.execute("SET plan_cache_mode = force_generic_plan")
        yield conn


def rows_read(conn: psycopg.Connection[Any], query: LiteralString, params: dict[str, Any]) -> int:
    """How many rows of its tables a statement has looked at."""
    found = conn.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query, params, prepare=True).fetchone()
    assert found is not None

    def count(plan: dict[str, Any]) -> int:
        own = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) if "Relation Name" in plan else 0
        return int(own * plan["Actual Loops"]) + sum(map(count, plan.get("Plans", ())))

    return count(found[0][0]["Plan"])


@pytest.mark.parametrize("given", PAGES, ids=lambda names: "+".join(names) or "everything")
def test_a_page_of_the_inbox_reads_about_what_it_shows(loaded: psycopg.Connection[Any], given: tuple[str, ...]) -> None:
    row = loaded.execute("SELECT created_at AS before, token FROM interrupts WHERE token = 't50000'").fetchone()
    assert row is not None
    params = {**ALL, "before": row[0], "before_token": row[1], "limit": 51}
    wanted: list[LiteralString] = [part for name, part in questions.FILTERS.items() if name in given]
    query = questions.SEARCH + " AND ".join(["true", *wanted]) + questions.NEWEST
    assert rows_read(loaded, query, params) <= 100


def test_the_runs_of_a_cron_are_found_among_all_runs(loaded: psycopg.Connection[Any]) -> None:
    assert rows_read(loaded, crons.RUNS, {"cron_id": "mine", "within": None, "limit": 20}) <= 30
