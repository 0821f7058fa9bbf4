"""SQL for people: one statement that reads, by a role that may do nothing else.

A read-only transaction is not enough: a superuser in it may still read files and run programs, and any role may
`set_config('role', …)`. So the statement is executed by a login of its own, which has no other role to become.
With the embedded PostgreSQL that is `perdure_reader`, made when it is first needed; it may read the engine's tables,
apart from `HIDDEN`. With a server of yours it is whoever PERDURE_SQL_URL names, who is refused if that role could
do more than read. In either case the transaction is read only, ends after `SECONDS`, and is rolled back.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, LiteralString
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from perdure.engine.access import Within
from perdure.engine.errors import Forbidden, InvalidInput, SqlOff

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_ROWS = 1_000
MAX_CELL = 2_000
"""Characters of one value."""
MAX_TOTAL = 1_000_000
"""Characters of all values, and of a plan."""
CELL = 8
"""Characters that an empty value counts for: a page of a million of them is large, too."""
MAX_SQL = 20_000
SECONDS = 5
AT_ONCE = 4
"""Statements of one process; the role `ROLE` has twice as many connections in all."""

ROLE = "perdure_reader"
READABLE = (
    *("assistants", "assistant_versions", "threads", "runs", "run_events", "purges", "steps", "interrupts", "workers"),
    *("idempotency_keys", "crons", "webhooks", "child_waits", "limit_places", "limit_waiters", "messages"),
    *("remote_calls", "api_keys", "rate_limits", "push_configs", "saved_queries", "perdure_migrations"),
    *("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations", "store", "store_migrations"),
)
HIDDEN: dict[str, tuple[str, ...]] = {
    "api_keys": ("hash",),
    "runs": ("actor",),  # may hold what a user has logged in with
    "crons": ("actor",),
    "interrupts": ("token",),  # whoever has it may answer
    "remote_calls": ("token",),
    "push_configs": ("token", "credentials"),
    "workers": ("lock_key",),  # whoever holds that lock makes a dead worker look alive
}
UNREADABLE = ("secrets",)

_OFF = (
    "SQL is off: this server uses a database of yours, and has no role for it that may only read. Name one by "
    "PERDURE_SQL_URL=postgresql://reader:password@host/database"
)
# nothing is matched in a second way: that would take exponential time for a row of comments
_FIRST = re.compile(r"(?>\s|--[^\n]*(?:\n|$)|/\*.*?\*/|\()*+([a-zA-Z]+)", re.DOTALL)

_prepared: WeakKeyDictionary[Any, asyncio.Lock] = WeakKeyDictionary()
_ready: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_slots: WeakKeyDictionary[Any, asyncio.Semaphore] = WeakKeyDictionary()


async def available(engine: Engine) -> str | None:
    """Why there is no SQL here, in a sentence that says what to set; None if there is."""
    if engine.settings.sql_url or engine.settings.database_url is None:
        return None
    return _OFF


async def run(engine: Engine, statement: str, *, within: Within = None) -> dict[str, Any]:
    """Execute one statement that reads: SELECT, WITH, VALUES, TABLE, EXPLAIN or SHOW.

    Gives `columns` ({name, type}), `rows` of texts (None is NULL), `truncated` if there were more than `MAX_ROWS`
    rows, `MAX_CELL` characters in a value or `MAX_TOTAL` in all, and `seconds`. Nothing that it does outlives it.

    Raises SqlOff where it is not available, Forbidden for a caller who may not see everything, and InvalidInput with
    what the database says.
    """
    if within is not None:
        raise Forbidden("SQL shows everything: it is for callers who may see everything")
    if why := await available(engine):
        raise SqlOff(why)
    text = statement.strip().removesuffix(";").strip()
    kind = _kind(text)
    started = time.monotonic()
    async with _slots.setdefault(engine.pool, asyncio.Semaphore(AT_ONCE)):
        try:
            async with asyncio.timeout(SECONDS * 2), await _connected(engine) as conn:
                await _confined(engine, conn)
                columns, rows, cut = await _READ[kind](conn, text)
                await conn.rollback()  # nothing it has set or announced stays
        except TimeoutError:
            raise InvalidInput("", f"The statement took longer than {SECONDS} s") from None
        except psycopg.errors.QueryCanceled as exc:
            raise InvalidInput("", f"The statement took longer than {SECONDS} s") from exc
        except psycopg.Error as exc:
            raise InvalidInput("", _said(exc)) from exc
    return {"columns": columns, "rows": rows, "truncated": cut, "seconds": time.monotonic() - started}


def _kind(text: str) -> str:
    if not text or len(text) > MAX_SQL or "\x00" in text:
        raise InvalidInput("", f"Give one statement of at most {MAX_SQL} characters")
    match = _FIRST.match(text)
    kind = match[1].upper() if match else ""
    if kind not in _READ:
        raise InvalidInput("", "Only SELECT, WITH, VALUES, TABLE, EXPLAIN and SHOW can be executed here")
    return kind


# -- who reads

ROLE_OF: LiteralString = """
SELECT r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
       OR EXISTS (SELECT 1 FROM pg_roles m WHERE m.oid <> r.oid AND pg_has_role(r.oid, m.oid, 'MEMBER')
                     AND (m.rolsuper OR m.rolcreaterole OR m.rolname IN ('pg_read_server_files',
                          'pg_write_server_files', 'pg_execute_server_program', 'pg_signal_backend', 'pg_maintain',
                          'pg_write_all_data', 'pg_read_all_data', 'pg_checkpoint', 'pg_create_subscription'))) AS more,
       EXISTS (SELECT 1 FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
                  AND (pg_has_role(r.oid, c.relowner, 'MEMBER')
                       OR has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))) AS writes,
       EXISTS (SELECT 1 FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
                  JOIN unnest(%(tables)s::text[], %(columns)s::text[]) AS h(tab, col)
                    ON c.relname = h.tab AND a.attname = h.col
                WHERE c.relnamespace = 'public'::regnamespace
                  AND has_column_privilege(r.oid, c.oid, a.attnum, 'SELECT')) AS secrets
  FROM pg_roles r WHERE r.rolname = session_user
"""
_SECRET = [("secrets", "value"), ("api_keys", "hash")]
"""What no role that SQL is executed by may read; the rest of `HIDDEN` is up to whoever made the role."""


async def _connected(engine: Engine) -> AsyncConnection[Any]:
    """A new connection; the caller closes it. Raises SqlOff if the role may do too much."""
    if (given := engine.settings.sql_url) is None:
        await _prepare(engine)
        # the embedded server trusts who reaches its socket, which is whoever may read its files
        return await _open(make_conninfo(engine.dsn, user=ROLE))
    conn = await _open(given.get_secret_value())
    try:
        tables, columns = ([pair[n] for pair in _SECRET] for n in (0, 1))
        row = await (await conn.execute(ROLE_OF, {"tables": tables, "columns": columns})).fetchone()
        assert row is not None
        await conn.rollback()
        problems = [
            text for bad, text in zip(row, ("do more than read", "write", "read keys and secrets"), strict=True) if bad
        ]
        if problems:
            raise SqlOff(
                f"SQL is off: the role of PERDURE_SQL_URL may {problems[0]}. Make one with LOGIN and nothing but "
                "SELECT on what people may see"
            )
    except BaseException:
        await conn.close()
        raise
    return conn


async def _open(dsn: str) -> AsyncConnection[Any]:
    try:
        return await AsyncConnection.connect(
            dsn, row_factory=tuple_row, prepare_threshold=None, connect_timeout=5, application_name="perdure sql"
        )
    except (psycopg.OperationalError, psycopg.ProgrammingError) as exc:
        raise SqlOff("SQL is off: the database cannot be reached by PERDURE_SQL_URL, or as perdure_reader") from exc


CREATE_ROLE: LiteralString = """
DO $$ BEGIN
    CREATE ROLE perdure_reader;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- roles are of the server, locks of the database
END $$
"""
CONFINE_ROLE: tuple[LiteralString, ...] = (
    "ALTER ROLE perdure_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS "
    "CONNECTION LIMIT 8",
    "ALTER ROLE perdure_reader SET default_transaction_read_only = on",
    "ALTER ROLE perdure_reader SET temp_file_limit = '256MB'",
)
COLUMNS_OF = """
SELECT attname FROM pg_attribute
 WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


async def _prepare(engine: Engine) -> None:
    """Make the role of the embedded server, and let it read what is there; once per process."""
    async with _prepared.setdefault(engine.pool, asyncio.Lock()):
        if engine.pool in _ready:
            return
        async with engine.pool.connection() as conn, conn.transaction():
            await conn.execute("SELECT pg_advisory_xact_lock(hashtext('perdure_reader'))")
            await conn.execute(CREATE_ROLE)
            for change in CONFINE_ROLE:
                await conn.execute(change)
            await conn.execute("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM perdure_reader")
            for table in READABLE:
                rows = await (await conn.execute(COLUMNS_OF, {"table": f"public.{table}"})).fetchall()
                names = [sql.Identifier(row["attname"]) for row in rows if row["attname"] not in HIDDEN.get(table, ())]
                if names:
                    grant = sql.SQL("GRANT SELECT ({}) ON {} TO perdure_reader")
                    await conn.execute(grant.format(sql.SQL(", ").join(names), sql.Identifier("public", table)))
        _ready[engine.pool] = True


async def _confined(engine: Engine, conn: AsyncConnection[Any]) -> None:
    """Begin the transaction that the statement is executed in."""
    if engine.settings.sql_url is None:
        await conn.execute("SET TRANSACTION READ WRITE")  # for these views only, which are gone with it
    await conn.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(f"{SECONDS}s")))
    await conn.execute("SET LOCAL idle_in_transaction_session_timeout = '10s'")
    await conn.execute("SET LOCAL max_parallel_workers_per_gather = 0")
    if engine.settings.sql_url is None:
        for table in HIDDEN:
            # so that `SELECT * FROM runs` shows what may be seen, instead of nothing
            found = await conn.execute(COLUMNS_OF, {"table": f"public.{table}"})
            names = [name for (name,) in await found.fetchall() if name not in HIDDEN[table]]
            view = sql.SQL("CREATE TEMP VIEW {} AS SELECT {} FROM {}").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, names)),
                sql.Identifier("public", table),
            )
            await conn.execute(view)
    await conn.execute("SET TRANSACTION READ ONLY")


# -- what is read

Answer = tuple[list[dict[str, Any]], list[list[str | None]], bool]


async def _rows(conn: AsyncConnection[Any], text: str) -> Answer:
    """Rows of a query: it becomes a subquery, so that its values can be cut before they leave the database.

    A first look without rows tells the columns. Sent by the extended protocol, which takes one statement only.
    """
    inner = sql.SQL("(\n{}\n)").format(sql.SQL(text))  # pyright: ignore[reportArgumentType] (a person's own SQL, that is the point)
    look = await conn.execute(sql.SQL("SELECT * FROM {} q LIMIT 0").format(inner), prepare=True)
    columns = [{"name": one.name, "type": _type(conn, one.type_code)} for one in look.description or ()]
    if not columns:
        return [], [], False
    names = [sql.Identifier(f"c{n}") for n in range(len(columns))]
    cells = sql.SQL(", ").join(sql.SQL("left({}::text, {})").format(name, sql.Literal(MAX_CELL + 1)) for name in names)
    query = sql.SQL("SELECT {} FROM {} AS q({})").format(cells, inner, sql.SQL(", ").join(names))
    rows: list[list[str | None]] = []
    total, cut = 0, False
    async with conn.cursor(name="perdure_sql") as cursor:
        await cursor.execute(query)
        batch = max(1, MAX_TOTAL // ((MAX_CELL + CELL) * len(columns)))
        while found := await cursor.fetchmany(batch):
            for row in found:
                if len(rows) == MAX_ROWS or total > MAX_TOTAL:
                    return columns, rows, True
                cut = cut or any(value is not None and len(value) > MAX_CELL for value in row)
                rows.append([None if value is None else value[:MAX_CELL] for value in row])
                total += sum(len(value or "") + CELL for value in rows[-1])
    return columns, rows, cut


# A plan may show a constant of any size. The statement is read from a setting: DO takes no parameters.
EXPLAIN: LiteralString = """
DO $$
DECLARE line text; plan text := '';
BEGIN
    FOR line IN EXECUTE current_setting('perdure.statement') LOOP
        plan := left(plan || line || E'\\n', 1000000);
        EXIT WHEN length(plan) = 1000000;
    END LOOP;
    PERFORM set_config('perdure.plan', plan, true);
END $$
"""


async def _explain(conn: AsyncConnection[Any], text: str) -> Answer:
    await conn.execute("SELECT set_config('perdure.statement', %(text)s, true)", {"text": text})
    await conn.execute(EXPLAIN)
    found = await (await conn.execute("SELECT current_setting('perdure.plan')")).fetchone()
    lines: list[str] = found[0].splitlines() if found else []
    return [{"name": "QUERY PLAN", "type": "text"}], [[line] for line in lines[:MAX_ROWS]], len(lines) > MAX_ROWS


async def _show(conn: AsyncConnection[Any], text: str) -> Answer:
    found = await conn.execute(sql.SQL(text), prepare=True)  # pyright: ignore[reportArgumentType] (as above)
    columns = [{"name": one.name, "type": _type(conn, one.type_code)} for one in found.description or ()]
    rows = await found.fetchall()
    shown = [[None if value is None else str(value)[:MAX_CELL] for value in row] for row in rows[:MAX_ROWS]]
    return columns, shown, len(rows) > MAX_ROWS


_READ = {"SELECT": _rows, "WITH": _rows, "VALUES": _rows, "TABLE": _rows, "EXPLAIN": _explain, "SHOW": _show}


def _type(conn: AsyncConnection[Any], oid: int) -> str:
    known = conn.adapters.types.get(oid)
    return known.name if known else str(oid)


def _said(exc: psycopg.Error) -> str:
    """The database's message, with its hint; of a lost connection nothing that names it."""
    if exc.diag.message_primary is None:
        return "The connection to the database was lost"
    parts = (exc.diag.message_primary, exc.diag.message_detail, exc.diag.message_hint)
    return ". ".join(part.rstrip(".") for part in parts if part)
