"""`perdure sql`: one statement that reads, on this machine's database, by a role that may do nothing else."""

import asyncio
from typing import Annotated, Any

import typer

from perdure.cli.output import Exit, JsonFlag, fail, print_json, print_rows
from perdure.cli.serve import guarded, settings_or_fail
from perdure.config import Settings


def sql(
    statement: Annotated[str, typer.Argument(help="SELECT, WITH, VALUES, TABLE, EXPLAIN or SHOW.")],
    as_json: JsonFlag = False,
) -> None:
    """Read the database: at most 1,000 rows, and 5 seconds. Keys and secrets cannot be seen."""
    settings = settings_or_fail()
    found = guarded(lambda: _read(settings, statement))
    if as_json:
        print_json(found)
        return
    names = [column["name"] for column in found["columns"]]
    # two columns may have the same name
    rows = [{str(n): value for n, value in enumerate(row)} for row in found["rows"]]
    print_rows(rows, [str(n) for n in range(len(names))], as_json=False, empty="no rows", titles=names)
    if found["truncated"]:
        typer.echo("cut: there are more rows, or longer values", err=True)


def _read(settings: Settings, statement: str) -> dict[str, Any]:
    from perdure import logs
    from perdure.app import database
    from perdure.engine.core import Engine
    from perdure.engine.db import migrate
    from perdure.engine.errors import EngineError
    from perdure.engine.registry import Registry
    from perdure.engine.views import reading

    async def read(dsn: str) -> dict[str, Any]:
        async with Engine.open(settings, Registry({}, {}), dsn, background=True) as engine:
            return await reading.run(engine, statement)

    logs.setup(settings)  # on stderr: stdout is for the answer
    with database(settings) as dsn:
        migrate(dsn)
        try:
            return asyncio.run(read(dsn))
        except EngineError as exc:
            fail(str(exc), Exit.REFUSED)
