"""Connections and migrations: how the engine reaches PostgreSQL.

Connections are in autocommit mode and return dicts; a transaction is always an explicit
`async with conn.transaction()`. Statements are prepared at once, because the engine runs
the same few dozen of them all the time.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any, LiteralString, TypeAlias, cast

import psycopg
import structlog
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.store.postgres import PostgresStore
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Json, Jsonb
from psycopg_pool import AsyncConnectionPool

from perdure.engine import meters, tracing
from perdure.engine.aftercommit import Committing
from perdure.engine.jsonable import dumps

log = structlog.get_logger(__name__)

Conn: TypeAlias = AsyncConnection[DictRow]
Pool: TypeAlias = AsyncConnectionPool[AsyncConnection[DictRow]]

CONNECT: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}

MIGRATION_LOCK = 7_263_581_004  # any number, the same in every version of perdure
MIGRATION_WAIT_SECONDS = 120

LEDGER = """
CREATE TABLE IF NOT EXISTS perdure_migrations (
    name       text PRIMARY KEY,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


# LangGraph makes it an integer: an item that lives for 0.4 minutes would be gone when its first use extends its life.
EXACT_TTL = """
DO $$ BEGIN
    IF EXISTS (SELECT 1 FROM pg_attribute
                WHERE attrelid = 'store'::regclass AND attname = 'ttl_minutes' AND atttypid = 'int'::regtype) THEN
        ALTER TABLE store ALTER COLUMN ttl_minutes TYPE numeric;
    END IF;
END $$
"""


class MigrationError(Exception):
    """The database cannot become what this version, or langgraph.json, asks for; the text says what to do."""


async def open_pool(dsn: str, *, size: int, name: str, short_locks: bool = False) -> Pool:
    """A pool of at most `size` connections, opened; belongs to the running event loop.

    `short_locks`: waiting for a lock for more than a second is an error there.
    """

    async def configure(conn: Conn) -> None:
        if short_locks:
            await conn.execute("SET lock_timeout = '1s'")

    pool: Pool = AsyncConnectionPool(
        dsn,
        connection_class=_class(),
        kwargs=CONNECT,
        min_size=min(2, size),
        max_size=size,
        open=False,
        name=name,
        timeout=30,
        configure=configure,
    )
    await pool.open(wait=True, timeout=30)
    meters.pools[name] = pool
    return pool


async def connect(dsn: str) -> Conn:
    """One connection of its own, outside any pool (listening, leases)."""
    return await _class().connect(dsn, **CONNECT)


def _class() -> type[Conn]:
    """Spans are told after the commit, so connections notice it where there are traces."""
    return AsyncConnection[DictRow] if tracing.exporter is None else Committing


def plain_json(value: Any) -> Json:
    """A JSON parameter for anything, which the database keeps to the letter, NUL too."""
    return Json(value, dumps=lambda given: dumps(given).decode())


def jsonb(value: Any) -> Jsonb:
    """A JSONB parameter for anything; characters that PostgreSQL cannot store (NUL) are dropped."""
    return Jsonb(value, dumps=storable)


# an escaped NUL, not the text of one: an odd number of backslashes before the u
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def storable(value: Any) -> str:
    """JSON text that JSONB takes."""
    text = dumps(value).decode()
    while "\\u0000" in text:
        text, dropped = _NUL.subn(r"\1", text)
        if not dropped:
            break
    return text


def migrate(dsn: str, *, dims: int | None = None) -> list[str]:
    """Bring the database up to date; returns the names of the migrations applied now.

    Each file of `engine/schema/` runs in a transaction of its own, under one advisory lock
    that LangGraph's own migrations share, so any number of processes may start at once.
    With `dims` the store gets a table for vectors of so many numbers.

    Raises MigrationError if a file that has been applied differs from the one shipped here, if there is no
    pgvector for the vectors, and if those that are there have another size.
    """
    with psycopg.Connection[DictRow].connect(dsn, autocommit=True, row_factory=dict_row) as conn:
        _lock(conn)
        try:
            conn.execute(LEDGER)
            applied = {r["name"]: r["checksum"] for r in conn.execute("SELECT name, checksum FROM perdure_migrations")}
            new: list[str] = []
            for name, sql in _files():
                checksum = hashlib.sha256(sql.encode()).hexdigest()
                if name in applied:
                    if applied[name] != checksum:
                        raise MigrationError(
                            f"Migration {name} has changed since it was applied; install the version of perdure "
                            "that made this database, or start with an empty one"
                        )
                    continue
                with conn.transaction():
                    conn.execute(cast(LiteralString, sql))
                    conn.execute(
                        "INSERT INTO perdure_migrations (name, checksum) VALUES (%(name)s, %(checksum)s)",
                        {"name": name, "checksum": checksum},
                    )
                new.append(name)
            PostgresSaver(conn).setup()
            PostgresStore(conn).setup()
            conn.execute(EXACT_TTL)
            if dims is not None:
                _make_vectors(conn, dims)
        finally:
            conn.execute("SELECT pg_advisory_unlock(%(lock)s)", {"lock": MIGRATION_LOCK})
    if new:
        log.info("migrated", applied=new)
    return new


class _Vectors(PostgresStore):
    """Makes LangGraph's extension and table, not its index over all vectors: see `vectors.py`."""

    VECTOR_MIGRATIONS = PostgresStore.VECTOR_MIGRATIONS[:2]


def _make_vectors(conn: psycopg.Connection[DictRow], dims: int) -> None:
    if not conn.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone():
        raise MigrationError(
            "store.index in langgraph.json needs the PostgreSQL extension pgvector, which this database server does "
            "not have: install it there, or take store.index out"
        )
    try:
        _Vectors(conn, index={"dims": dims, "embed": _no_embedding}).setup()
    except psycopg.errors.InsufficientPrivilege as exc:
        raise MigrationError(
            "store.index in langgraph.json needs the PostgreSQL extension pgvector: let an administrator of the "
            "database execute CREATE EXTENSION vector"
        ) from exc
    there = conn.execute(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'store_vectors'::regclass AND attname = 'embedding'"
    ).fetchone()
    if there and there["atttypmod"] != dims:
        raise MigrationError(
            f"store.index.dims in langgraph.json is {dims}, but the vectors in the database have "
            f"{there['atttypmod']} numbers: put the old number back, or execute DROP TABLE store_vectors, "
            "vector_migrations and write the items again"
        )


def _no_embedding(texts: Sequence[str]) -> list[list[float]]:
    raise NotImplementedError  # migrations embed nothing


def _lock(conn: psycopg.Connection[DictRow]) -> None:
    """Take the migration lock by asking again and again.

    A session that waits inside `pg_advisory_lock` keeps a transaction open, and LangGraph's
    CREATE INDEX CONCURRENTLY waits for every open transaction: a deadlock.
    """
    end = time.monotonic() + MIGRATION_WAIT_SECONDS
    while True:
        row = conn.execute("SELECT pg_try_advisory_lock(%(lock)s) AS got", {"lock": MIGRATION_LOCK}).fetchone()
        if row and row["got"]:
            return
        if time.monotonic() > end:
            raise MigrationError(f"Another process has been migrating for {MIGRATION_WAIT_SECONDS} s")
        time.sleep(0.05)


def _files() -> list[tuple[str, str]]:
    folder = resources.files("perdure.engine") / "schema"
    return sorted((f.name, f.read_text(encoding="utf-8")) for f in folder.iterdir() if f.name.endswith(".sql"))


APPLIED = "SELECT name, checksum, applied_at FROM perdure_migrations ORDER BY name"


async def applied(conn: Conn) -> list[dict[str, Any]]:
    """The migrations of ours that the database has, in their order."""
    return await (await conn.execute(APPLIED)).fetchall()
