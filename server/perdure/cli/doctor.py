"""`perdure doctor`: is everything here that a server needs, and what would it use?"""

import platform
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

import typer
from pydantic import SecretStr

from perdure.cli.output import JsonFlag, print_json
from perdure.cli.serve import settings_or_fail
from perdure.config import Settings, has_model_key

PACKAGES = ("perdure", "langgraph", "langgraph-checkpoint-postgres", "langchain", "fastapi", "psycopg")


@dataclass
class Check:
    """One line of the report; `ok` None: nothing wrong, but worth knowing."""

    name: str
    ok: bool | None
    says: str


def doctor(as_json: JsonFlag = False) -> None:
    """Check settings, versions, langgraph.json, the model key, the database and its migrations."""
    settings = settings_or_fail()
    checks = [*_versions(), *_graphs(settings), _model(), *_database(settings)]
    failed = any(check.ok is False for check in checks)
    if as_json:
        report: dict[str, Any] = {"ok": not failed, "settings": _shown(settings)}
        print_json({**report, "checks": [vars(check) for check in checks]})
    else:
        for name, value in _shown(settings).items():
            typer.echo(f"  {name:<22} {value}")
        typer.echo()
        for check in checks:
            mark = {True: "ok  ", False: "FAIL", None: "note"}[check.ok]
            typer.echo(f"{mark}  {check.name:<12} {check.says}")
    if failed:
        raise typer.Exit(1)


def _shown(settings: Settings) -> dict[str, Any]:
    from perdure.app import describe_database

    values = settings.model_dump()
    values["database_url"] = describe_database(settings)
    return {
        name: "***" if isinstance(value, SecretStr) else value if value is None else str(value)
        for name, value in values.items()
    }


def _versions() -> list[Check]:
    found = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return [Check("versions", True, f"Python {platform.python_version()}, {found}")]


def _graphs(settings: Settings) -> list[Check]:
    import orjson

    try:
        graphs = orjson.loads(settings.config.read_bytes())["graphs"]
    except FileNotFoundError:
        return [Check("graphs", False, f"{settings.config} not found; name it with PERDURE_CONFIG")]
    except (ValueError, KeyError, TypeError) as exc:
        return [Check("graphs", False, f"{settings.config} has no usable 'graphs' object: {exc!r}")]
    return [Check("graphs", True, f"{settings.config} defines {', '.join(graphs) or 'none'}")]


def _model() -> Check:
    if has_model_key():
        return Check("model", True, "a model is named in the environment")
    return Check("model", None, "no model key in the environment: `serve` would use the simulator")


def _database(settings: Settings) -> list[Check]:
    """Reachability, version, migrations. Reads only; an embedded server is started and stopped for it."""
    import psycopg

    from perdure.app import database, describe_database
    from perdure.engine.postgres import EmbeddedPostgresError

    where = describe_database(settings)
    try:
        with database(settings) as dsn, psycopg.connect(dsn, connect_timeout=5) as conn:
            version = conn.info.server_version // 10000
            known = conn.execute("SELECT to_regclass('perdure_migrations') IS NOT NULL").fetchone()
            rows = conn.execute("SELECT name FROM perdure_migrations").fetchall() if known and known[0] else []
    except (psycopg.Error, EmbeddedPostgresError) as exc:
        return [Check("database", False, f"{where}: {exc}")]
    files = resources.files("perdure.engine") / "schema"
    missing = {f.name for f in files.iterdir() if f.name.endswith(".sql")} - {row[0] for row in rows}
    return [
        Check(
            "database",
            version >= 14,
            f"{where}, version {version}" + ("" if version >= 14 else "; 14 needed"),
        ),
        Check("migrations", None, f"to apply: {', '.join(sorted(missing))} (`perdure migrate`)")
        if missing
        else Check("migrations", True, "all applied"),
    ]
