"""With 100,000 runs, threads, steps, questions and events no page reads a whole table.

PostgreSQL itself counts how many rows each table's scans have read; a backend reports when it ends, so the
server is stopped before the counts are read.
"""

from typing import Any

import httpx
import psycopg
import pytest

from tests.conftest import Launch
from tests.console.conftest import WAIT_SECONDS, eventually
from tests.engine.test_plans import BIG, LOAD

PAGES = (
    "/console/",
    "/console/?hours=168",
    "/console/inbox",
    "/console/inbox?status=answered",
    "/console/agents",
    "/console/runs",
    "/console/runs?status=error&error=bad+77",
    "/console/runs?agent=agent3&status=success",
    "/console/runs?status=paused",
    "/console/runs/{thread}/{run}",
    "/console/threads",
    "/console/threads?status=interrupted",
    "/console/threads?agent=agent5",
    '/console/threads?metadata={{"user":"ann"}}',
    "/console/threads/{thread}?tab=runs",
    "/console/threads/{thread}?tab=history",
    "/console/schedules",
    "/console/store",
    "/console/workers",
    "/console/doctor",
)
READ = "SELECT relname, seq_tup_read, coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = ANY(%s)"


OTHERS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def counts(dsn: str) -> dict[str, tuple[int, int]]:
    """By table: rows read by sequential scans, and by indexes, of all backends that have ended."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        eventually(lambda: conn.execute(OTHERS).fetchone(), lambda row: row == (0,))
        return {name: (int(whole), int(found)) for name, whole, found in conn.execute(READ, (sorted(BIG),)).fetchall()}


def test_no_page_reads_a_whole_table(server: Launch, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        for statement in LOAD:
            conn.execute(statement)
        found: Any = conn.execute("SELECT thread_id, run_id FROM runs WHERE status = 'error' LIMIT 1").fetchone()
    before = counts(dsn)
    process = server(slots=0)
    with httpx.Client(base_url=process.url, timeout=WAIT_SECONDS) as http:
        for path in PAGES:
            answer = http.get(path.format(thread=found[0], run=found[1]))
            assert answer.status_code == 200, (path, answer.text[-500:])
    assert process.stop() == 0
    after = counts(dsn)
    whole = {name: after[name][0] - before[name][0] for name in BIG}
    by_index = {name: after[name][1] - before[name][1] for name in BIG}
    assert whole == dict.fromkeys(BIG, 0), "rows that were read by sequential scans"
    assert max(by_index.values()) < 20_000 * len(PAGES), by_index


def test_the_counts_would_show_a_whole_table(dsn: str) -> None:
    """Otherwise the test above could not fail."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in LOAD:
            if "INTO threads" in statement:
                conn.execute(statement)
    before = counts(dsn)["threads"]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SELECT max(created_at) FROM threads")
    assert counts(dsn)["threads"][0] - before[0] == pytest.approx(100_000)
