"""SQL for people: what may be read, and that nothing else can be done, whatever is tried."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from langgraph.graph import END, START, StateGraph
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr
from typing_extensions import TypedDict

from perdure.engine import keys, queries
from perdure.engine.core import Engine
from perdure.engine.db import connect
from perdure.engine.errors import EngineError, Forbidden, InvalidInput, QueryNotFound, SqlOff
from perdure.engine.views import reading


class State(TypedDict, total=False):
    text: str


_builder = StateGraph(State).add_node("node", lambda given: {"text": "done"})
GRAPHS = {"default": _builder.add_edge(START, "node").add_edge("node", END).compile()}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that have much to do are not ended by a machine that has much to do."""
    monkeypatch.setattr(reading, "SECONDS", 60)


@pytest.fixture
def engine(lab: Any) -> Engine:
    """As with an embedded server: no database of the user's own."""
    return replace(lab.engine, settings=lab.engine.settings.model_copy(update={"database_url": None}))


async def test_rows_are_texts_with_names_and_types(engine: Engine) -> None:
    found = await reading.run(engine, "SELECT 1 AS one, 'x' AS a, NULL AS a, now() AS at -- said at the end")
    assert found["columns"][:2] == [{"name": "one", "type": "int4"}, {"name": "a", "type": "text"}]
    assert [column["name"] for column in found["columns"]] == ["one", "a", "a", "at"]
    assert found["rows"][0][:3] == ["1", "x", None]
    assert not found["truncated"]


@pytest.mark.parametrize(
    "statement",
    [
        "TABLE workers",
        "VALUES (1), (2)",
        "WITH x AS (SELECT 1) SELECT * FROM x;",
        "(SELECT 1)",
        "/* why */ SELECT '%s {}', 1 % 2",
        "SHOW statement_timeout",
        "EXPLAIN SELECT * FROM runs",
        "EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM runs",
        "SELECT pg_sleep(0)",
        "SELECT r FROM runs r",
        "SELECT ARRAY[1], '{}'::jsonb, 'x'::bytea, row(1, 2)",
    ],
)
async def test_what_reads_is_executed(engine: Engine, statement: str) -> None:
    found = await reading.run(engine, statement)
    assert found["columns"]


async def test_runs_can_be_read_and_joined(lab: Any, engine: Engine) -> None:
    run = await lab.enqueue(await lab.thread(), {"text": ""})
    found = await reading.run(
        engine, "SELECT r.run_id, t.status FROM runs r JOIN threads t USING (thread_id) ORDER BY r.created_at"
    )
    assert found["rows"] == [[str(run["run_id"]), "busy"]]


async def test_all_rows_of_a_table_show_what_may_be_seen(lab: Any, engine: Engine) -> None:
    await lab.enqueue(await lab.thread(), {"text": ""})
    names = [column["name"] for column in (await reading.run(engine, "SELECT * FROM runs"))["columns"]]
    assert "kwargs" in names
    assert "actor" not in names


async def test_the_embedded_reader_sees_every_table_except_secrets(lab: Any, engine: Engine) -> None:
    rows = await lab.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    tables = {row["tablename"] for row in rows}
    assert tables - set(reading.READABLE) == set(reading.UNREADABLE)
    for table in sorted(tables & set(reading.READABLE)):
        await reading.run(engine, f"SELECT * FROM {table} LIMIT 1")


ATTACKS = [
    # files and programs
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT pg_stat_file('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/perdure-attack')",
    "SELECT lo_from_bytea(0, 'x')",
    "COPY runs TO PROGRAM 'true'",
    "COPY (SELECT 1) TO '/tmp/perdure-attack'",
    "SELECT query_to_xml('COPY (SELECT 1) TO PROGRAM ''true''', true, true, '')",
    # other roles
    "SELECT set_config('role', 'postgres', false)",
    "SELECT set_config('role', 'none', false), secret.* FROM (SELECT value FROM secrets) secret",
    "SELECT set_config('session_authorization', 'postgres', false)",
    "SET ROLE postgres",
    "RESET ROLE",
    "RESET SESSION AUTHORIZATION",
    # secrets
    "SELECT * FROM secrets",
    "SELECT hash FROM api_keys",
    "SELECT hash FROM public.api_keys",
    "SELECT k FROM public.api_keys k",
    "SELECT * FROM public.runs",
    "SELECT actor FROM public.runs",
    "SELECT token FROM public.interrupts",
    "SELECT credentials FROM push_configs",
    "SELECT lock_key FROM workers",
    "SELECT table_to_xml('public.secrets', true, true, '')",
    "SELECT query_to_xml('SELECT * FROM secrets', true, true, '')",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_shadow",
    "SHOW data_directory",
    "SELECT pg_reload_conf()",
    # writing
    "DELETE FROM runs",
    "WITH gone AS (DELETE FROM runs RETURNING *) SELECT * FROM gone",
    "SELECT * INTO mine FROM runs",
    "CREATE TABLE mine (x int)",
    "SELECT * FROM runs FOR UPDATE",
    "EXPLAIN ANALYZE DELETE FROM runs",
    "EXPLAIN ANALYZE CREATE TABLE mine AS SELECT 1",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SELECT nextval('runs_queue_no_seq')",
    "SELECT query_to_xml('DELETE FROM saved_queries', true, true, '')",
    # several statements, and out of the brackets
    "SELECT 1; DROP TABLE runs",
    "SELECT 1; COMMIT; DELETE FROM runs",
    "EXPLAIN SELECT 1; DELETE FROM runs",
    "SHOW work_mem; DELETE FROM runs",
    "SELECT 1) q; DROP TABLE runs; --",
    "SELECT 1) q LIMIT 1; COMMIT; --",
    "SELECT 1 /*",
    "SELECT '",
    "SELECT $$",
    "COMMIT",
    "BEGIN",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CALL x()",
    "LISTEN perdure_events",
    "PREPARE x AS SELECT 1",
    "EXECUTE x",
    "-- only a comment",
    "",
    "SELECT \x00",
    "SELECT " + "1" * 30_000,
]


@pytest.mark.parametrize("statement", ATTACKS, ids=lambda text: text[:50].replace("\x00", "NUL"))
async def test_nothing_else_is_possible(lab: Any, engine: Engine, statement: str) -> None:
    await lab.enqueue(await lab.thread(), {"text": ""})
    before = await lab.everything()
    with pytest.raises(InvalidInput):
        await reading.run(engine, statement)
    assert await lab.everything() == before


async def test_a_key_does_not_show(lab: Any, engine: Engine) -> None:
    async with lab.connection() as conn:
        await keys.create(conn, name="ci", owner="ann", rate_limit=None, expires_at=None)
    found = await reading.run(engine, "SELECT * FROM api_keys")
    assert {column["name"] for column in found["columns"]} >= {"name", "owner", "hint"}
    assert "hash" not in {column["name"] for column in found["columns"]}


async def test_what_a_statement_announces_is_never_heard(lab: Any, engine: Engine) -> None:
    async with lab.connection() as listener:
        await listener.execute("LISTEN perdure_cancel")
        await reading.run(engine, "SELECT pg_notify('perdure_cancel', 'attack')")
        await lab.execute("SELECT pg_notify('perdure_cancel', 'end')")
        heard = [note.payload async for note in listener.notifies(timeout=60, stop_after=1)]
    assert heard == ["end"]


async def test_what_a_statement_sets_is_gone_with_it(engine: Engine) -> None:
    await reading.run(engine, "SELECT set_config('statement_timeout', '0', false)")
    assert (await reading.run(engine, "SHOW statement_timeout"))["rows"] == [["5s"]]
    assert (await reading.run(engine, "SELECT current_user, session_user"))["rows"] == [[reading.ROLE, reading.ROLE]]


@pytest.mark.parametrize(
    "statement",
    ["SELECT pg_sleep(60)", "SELECT set_config('statement_timeout', '0', false), pg_sleep(60)"],
)
async def test_a_statement_that_takes_long_is_ended(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.setattr(reading, "SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(InvalidInput, match="longer than 1 s"):
        await reading.run(engine, statement)
    assert time.monotonic() - started < 40


async def test_many_rows_are_cut(engine: Engine) -> None:
    found = await reading.run(engine, "SELECT n FROM generate_series(1, 5000) n ORDER BY n")
    assert (len(found["rows"]), found["rows"][0], found["truncated"]) == (1000, ["1"], True)
    assert not (await reading.run(engine, "SELECT * FROM generate_series(1, 1000)"))["truncated"]


@pytest.mark.usefixtures("patient")
async def test_long_values_are_cut(engine: Engine) -> None:
    found = await reading.run(engine, "SELECT repeat('x', 50000000), 'y'")
    assert (found["rows"], found["truncated"]) == ([["x" * reading.MAX_CELL, "y"]], True)


@pytest.mark.usefixtures("patient")
async def test_much_in_all_is_cut(engine: Engine) -> None:
    wide = ", ".join(f"repeat('x', 2000) AS c{n}" for n in range(100))
    found = await reading.run(engine, f"SELECT {wide} FROM generate_series(1, 1000)")
    assert found["truncated"]
    assert sum(len(value) for row in found["rows"] for value in row) <= reading.MAX_TOTAL + 2 * 200_000


@pytest.mark.usefixtures("patient")
async def test_a_plan_with_a_huge_constant_is_cut(engine: Engine) -> None:
    found = await reading.run(engine, "EXPLAIN (VERBOSE) SELECT repeat('x', 5000000)")
    assert sum(len(row[0]) for row in found["rows"]) <= reading.MAX_TOTAL


@pytest.mark.usefixtures("patient")
async def test_several_statements_at_once_take_turns(engine: Engine) -> None:
    found = await asyncio.gather(*(reading.run(engine, f"SELECT {n}, pg_sleep(0.05)") for n in range(12)))
    assert [one["rows"][0][0] for one in found] == [str(n) for n in range(12)]


async def test_who_sees_only_a_part_has_no_sql(engine: Engine) -> None:
    with pytest.raises(Forbidden):
        await reading.run(engine, "SELECT 1", within={"user": "ann"})


async def test_with_a_database_of_the_users_own_it_is_off_until_a_role_is_named(lab: Any) -> None:
    assert "PERDURE_SQL_URL" in (await reading.available(lab.engine) or "")
    with pytest.raises(SqlOff, match="PERDURE_SQL_URL"):
        await reading.run(lab.engine, "SELECT 1")


@pytest.fixture
async def role(lab: Any) -> AsyncIterator[Any]:
    """Makes a role with these words and grants; gives an engine whose PERDURE_SQL_URL it is."""
    name = f"reader_{uuid4().hex[:12]}"
    ident = sql.Identifier(name)

    async def make(options: str = "", *grants: str) -> Engine:
        async with await connect(lab.dsn) as conn:
            await conn.execute(sql.SQL("CREATE ROLE {} LOGIN " + options + " PASSWORD 'sesame'").format(ident))
            for grant in grants:
                await conn.execute(sql.SQL("GRANT " + grant + " TO {}").format(ident))
        url = make_conninfo(lab.dsn, user=name, password="sesame")
        settings = lab.engine.settings.model_copy(update={"sql_url": SecretStr(url)})
        return replace(lab.engine, settings=settings)

    yield make
    async with await connect(lab.dsn) as conn:
        await conn.execute(sql.SQL("DROP OWNED BY {}").format(ident))
        await conn.execute(sql.SQL("DROP ROLE {}").format(ident))


async def test_a_role_that_may_only_read_is_used(role: Any) -> None:
    engine = await role("", "SELECT ON runs, threads")
    assert await reading.available(engine) is None
    assert (await reading.run(engine, "SELECT count(*) FROM runs"))["rows"] == [["0"]]
    with pytest.raises(InvalidInput, match="permission denied"):
        await reading.run(engine, "SELECT * FROM steps")


@pytest.mark.parametrize(
    ("options", "grants"),
    [
        ("SUPERUSER", ()),
        ("CREATEROLE", ()),
        ("", ("pg_read_server_files",)),
        ("NOINHERIT", ("pg_execute_server_program",)),
        ("NOINHERIT", ("postgres",)),
        ("", ("DELETE ON runs",)),
        ("", ("SELECT ON secrets",)),
        ("", ("SELECT ON api_keys",)),
        ("", ("SELECT ON ALL TABLES IN SCHEMA public",)),
    ],
)
async def test_a_role_that_may_do_more_is_refused(role: Any, options: str, grants: tuple[str, ...]) -> None:
    engine = await role(options, *grants)
    with pytest.raises(SqlOff, match="role of PERDURE_SQL_URL may"):
        await reading.run(engine, "SELECT 1")


async def test_a_url_that_leads_nowhere_is_not_shown(lab: Any) -> None:
    url = SecretStr("postgresql://me:hunter2@127.0.0.1:9/x")
    engine = replace(lab.engine, settings=lab.engine.settings.model_copy(update={"sql_url": url}))
    with pytest.raises(SqlOff) as caught:
        await reading.run(engine, "SELECT 1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", queries.BUILTIN)
async def test_the_queries_that_come_along_can_be_executed(engine: Engine, name: str) -> None:
    assert (await reading.run(engine, queries.BUILTIN[name]))["columns"]


async def test_queries_are_saved_replaced_and_deleted(lab: Any) -> None:
    engine = lab.engine
    await lab.execute("DELETE FROM saved_queries")
    await queries.save(engine, " mine ", "SELECT 1")
    await queries.save(engine, "mine", "SELECT 2")
    own = [query for query in await queries.saved(engine) if not query["builtin"]]
    assert [(query["name"], query["sql"]) for query in own] == [("mine", "SELECT 2")]
    await queries.forget(engine, "mine")
    with pytest.raises(QueryNotFound):
        await queries.forget(engine, "mine")
    for name, text in (
        ("", "SELECT 1"),
        ("x", " "),
        (next(iter(queries.BUILTIN)), "SELECT 1"),
        ("x" * 101, "SELECT 1"),
    ):
        with pytest.raises(InvalidInput):
            await queries.save(engine, name, text)
    with pytest.raises(EngineError):
        await queries.forget(engine, next(iter(queries.BUILTIN)))
