"""What a server needs, checked: for `perdure doctor` and the console.

Nothing here names a connection or a secret: `detail` and `fix` may be shown to whoever may see the page.
"""

from __future__ import annotations

import platform
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any, LiteralString

import orjson
from psycopg import AsyncConnection

from perdure.config import Settings, has_model_key
from perdure.engine.views import workers

if TYPE_CHECKING:
    from perdure.engine.core import Engine

PACKAGES = ("perdure", "langgraph", "langgraph-checkpoint-postgres", "langchain", "fastapi", "psycopg")
OLDEST_POSTGRES = 14
WAITS_SECONDS = 60
SILENT_LEASES = 3
"""A worker that has not been seen for so many lease times is stuck or cut off."""
SPARE_CONNECTIONS = 40
"""A process uses about that many."""


def check(name: str, ok: bool | None, detail: str, fix: str | None = None) -> dict[str, Any]:
    """One line of the report; `ok` None: nothing wrong, but worth knowing. `fix`: what to do about it."""
    return {"name": name, "ok": ok, "detail": detail, "fix": fix}


async def checks(engine: Engine) -> list[dict[str, Any]]:
    """All that can be checked from a running server, in the order in which one thing needs another."""
    async with engine.pool.connection() as conn:
        return [*local(engine.settings), *await database(engine.settings, conn)]


def local(settings: Settings) -> list[dict[str, Any]]:
    """What needs no database: versions, langgraph.json, the model, who may use the API."""
    found = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    versions = check("versions", True, f"Python {platform.python_version()}, {found}")
    return [versions, _graphs(settings), _model(settings), _traces(settings), *_open_doors(settings)]


def _graphs(settings: Settings) -> dict[str, Any]:
    try:
        graphs = orjson.loads(settings.config.read_bytes())["graphs"]
        return check("graphs", True, f"{settings.config} defines {', '.join(graphs) or 'none'}")
    except FileNotFoundError:
        return check(
            "graphs", False, f"{settings.config} not found", "start where it is, or name it with PERDURE_CONFIG"
        )
    except (ValueError, KeyError, TypeError) as exc:
        usable = '{"graphs": {"name": "./file.py:attribute"}}'
        return check("graphs", False, f"{settings.config} has no usable 'graphs' object: {exc!r}", f"write {usable}")


def _model(settings: Settings) -> dict[str, Any]:
    if settings.simulated:
        return check("model", None, "answers are made up by rules: no model key was found", "set OPENAI_API_KEY")
    if has_model_key():
        return check("model", True, "a model is named in the environment")
    detail = "no model key in the environment: `serve` would use the simulator"
    return check("model", None, detail, "set OPENAI_API_KEY, or PERDURE_MODEL and that provider's key")


def _traces(settings: Settings) -> dict[str, Any]:
    if settings.traces_to is not None:
        return check("traces", True, f"go to {settings.traces_to}")
    why = "OTEL_SDK_DISABLED is set" if settings.otlp_endpoint else "OTEL_EXPORTER_OTLP_ENDPOINT is not set"
    return check("traces", True, f"are off: {why}")


def _open_doors(settings: Settings) -> list[dict[str, Any]]:
    """Only where there is something to say: everybody who reaches the server may do everything."""
    if settings.auth != "none" or settings.host in ("127.0.0.1", "::1", "localhost"):
        return []
    try:
        if orjson.loads(settings.config.read_bytes()).get("auth"):
            return []
    except (OSError, ValueError, AttributeError):
        return []
    detail = f"the API listens on {settings.host} and asks nobody who they are"
    return [check("access", None, detail, "set PERDURE_AUTH=keys, or let only trusted networks reach it")]


async def database(settings: Settings, conn: AsyncConnection[Any]) -> list[dict[str, Any]]:
    """What a connection to the database tells. Reads only. `conn` gives rows as dicts.

    Before all migrations are applied no more than that is checked.
    """
    version = conn.info.server_version // 10000
    new_enough = version >= OLDEST_POSTGRES
    fix = None if new_enough else f"use PostgreSQL {OLDEST_POSTGRES} or newer"
    kind = "PostgreSQL" if settings.database_url else "embedded PostgreSQL"
    server = check("database", new_enough, f"{kind}, version {version}", fix)
    missing = await _missing(conn)
    if missing:
        return [server, check("migrations", None, f"to apply: {', '.join(missing)}", "run `perdure migrate`")]
    found = [server, check("migrations", True, "all applied")]
    for look in (_connections, _workers, _waiting, _paused, _webhooks):
        found += await look(settings, conn)
    return found


APPLIED = "SELECT name FROM perdure_migrations"


async def _missing(conn: AsyncConnection[Any]) -> list[str]:
    known = await (await conn.execute("SELECT to_regclass('perdure_migrations') IS NOT NULL AS yes")).fetchone()
    rows = await (await conn.execute(APPLIED)).fetchall() if known and known["yes"] else []
    files = resources.files("perdure.engine") / "schema"
    return sorted({f.name for f in files.iterdir() if f.name.endswith(".sql")} - {row["name"] for row in rows})


async def _one(conn: AsyncConnection[Any], query: LiteralString, **params: Any) -> dict[str, Any]:
    row = await (await conn.execute(query, params)).fetchone()
    assert row is not None
    return row


CONNECTIONS = """
SELECT current_setting('max_connections')::int - count(*) AS free, current_setting('max_connections')::int AS most
  FROM pg_stat_activity WHERE backend_type = 'client backend'
"""


async def _connections(settings: Settings, conn: AsyncConnection[Any]) -> list[dict[str, Any]]:
    row = await _one(conn, CONNECTIONS)
    enough = row["free"] >= SPARE_CONNECTIONS
    detail = f"{row['free']} of {row['most']} are free; another process takes up to {SPARE_CONNECTIONS}"
    return [check("connections", True if enough else None, detail, None if enough else "raise max_connections")]


async def _workers(settings: Settings, conn: AsyncConnection[Any]) -> list[dict[str, Any]]:
    found = await workers.fleet(conn)
    if not found:
        fix = "start `perdure worker`, or `perdure serve` with slots"
        return [check("workers", None, "there are none: nothing would be executed", fix)]
    silent = [one["name"] for one in found if one["seen_seconds"] > SILENT_LEASES * settings.lease_seconds]
    if silent:
        fix = "look at its log; a node that blocks, or a lost network, keeps a worker from its leases"
        return [check("workers", None, f"not seen for long: {', '.join(silent)}", fix)]
    slots, used = (sum(one[key] for one in found) for key in ("slots", "used"))
    return [check("workers", True, f"{len(found)} with {slots} slots, {used} in use")]


OLDEST = "SELECT extract(epoch FROM now() - min(ready_at))::float8 AS seconds FROM runs WHERE ready_at <= now()"


async def _waiting(settings: Settings, conn: AsyncConnection[Any]) -> list[dict[str, Any]]:
    seconds = (await _one(conn, OLDEST))["seconds"] or 0.0
    if seconds <= WAITS_SECONDS:
        return [check("queue", True, "no run waits long for a slot")]
    detail = f"a run has waited {seconds:.0f} s for a slot"
    return [check("queue", None, detail, "start more workers, or raise PERDURE_SLOTS; see the workers")]


PAUSED = "SELECT count(*) AS n FROM (SELECT 1 FROM runs WHERE status = 'paused' LIMIT 1000) paused"


async def _paused(settings: Settings, conn: AsyncConnection[Any]) -> list[dict[str, Any]]:
    n = (await _one(conn, PAUSED))["n"]
    if not n:
        return []
    many = "1,000 or more runs are" if n == 1000 else f"{n} run is" if n == 1 else f"{n} runs are"
    return [check("paused", None, f"{many} paused and wait for a person", "look at the errors; resume or cancel them")]


WEBHOOKS = """
SELECT count(*) AS n FROM (SELECT 1 FROM webhooks WHERE settled_at > now() - interval '1 day' AND status = 'failed'
                            LIMIT 1000) failed
"""


async def _webhooks(settings: Settings, conn: AsyncConnection[Any]) -> list[dict[str, Any]]:
    n = (await _one(conn, WEBHOOKS))["n"]
    if not n:
        return []
    fix = "SELECT url, error FROM webhooks WHERE status = 'failed' says why"
    return [check("webhooks", None, f"{n} of the last day could not be delivered", fix)]
