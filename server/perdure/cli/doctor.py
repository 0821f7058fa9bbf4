"""`perdure doctor`: is everything here that a server needs, and what would it use?"""

import asyncio
from typing import Any

import typer
from pydantic import SecretStr

from perdure.cli.output import JsonFlag, print_json
from perdure.cli.serve import settings_or_fail
from perdure.config import Settings


def doctor(as_json: JsonFlag = False) -> None:
    """Check settings, versions, langgraph.json, the model key, the database, its migrations, workers and queue."""
    from perdure.engine import diagnosis

    settings = settings_or_fail()
    checks = [*diagnosis.local(settings), *_database(settings)]
    failed = any(check["ok"] is False for check in checks)
    if as_json:
        print_json({"ok": not failed, "settings": _shown(settings), "checks": checks})
    else:
        for name, value in _shown(settings).items():
            typer.echo(f"  {name:<22} {value}")
        typer.echo()
        for check in checks:
            mark = {True: "ok  ", False: "FAIL", None: "note"}[check["ok"]]
            typer.echo(f"{mark}  {check['name']:<12} {check['detail']}")
            if check["fix"]:
                typer.echo(f"{'':<19}-> {check['fix']}")
    if failed:
        raise typer.Exit(1)


def _shown(settings: Settings) -> dict[str, Any]:
    from perdure.app import describe_database

    values = settings.model_dump()
    values["database_url"] = describe_database(settings)
    values["otlp_endpoint"] = settings.traces_to  # without who logs in there
    return {
        name: "***" if isinstance(value, SecretStr) else value if value is None else str(value)
        for name, value in values.items()
    }


def _database(settings: Settings) -> list[dict[str, Any]]:
    """Reads only; an embedded server is started and stopped for it."""
    import psycopg
    from psycopg.conninfo import make_conninfo

    from perdure.app import database
    from perdure.engine import diagnosis
    from perdure.engine.db import connect
    from perdure.engine.postgres import EmbeddedPostgresError

    async def look(dsn: str) -> list[dict[str, Any]]:
        async with await connect(make_conninfo(dsn, connect_timeout=5)) as conn:
            return await diagnosis.database(settings, conn)

    try:
        with database(settings) as dsn:
            return asyncio.run(look(dsn))
    except psycopg.ProgrammingError:  # its text repeats the whole URL
        return [diagnosis.check("database", False, "DATABASE_URL is not a connection string", "see the README")]
    except (psycopg.Error, EmbeddedPostgresError) as exc:
        return [diagnosis.check("database", False, str(exc).strip(), "start it, or mend DATABASE_URL")]
