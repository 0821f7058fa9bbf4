"""`perdure keys`: API keys of the built-in authentication (PERDURE_AUTH=keys), made on this machine.

They go straight into the database: who may reach it may let others in.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer

from perdure.cli.output import Exit, JsonFlag, fail, print_record, print_rows
from perdure.cli.serve import guarded, settings_or_fail

app = typer.Typer(help="API keys of the built-in authentication.", no_args_is_help=True)

T = TypeVar("T")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, to tell it from others.")],
    owner: Annotated[str | None, typer.Option(help="Whose things its bearer sees; the name if not given.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="After how many days it ends.")] = None,
    rate_limit: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key. It is shown now and never again."""
    ends = None if days is None else datetime.now(UTC) + timedelta(days=days)
    from perdure.engine import keys

    made = _on_database(
        lambda conn: keys.create(conn, name=name, owner=owner or name, rate_limit=rate_limit, expires_at=ends)
    )
    print_record(made, as_json=as_json)


@app.command("list")
def list_(as_json: JsonFlag = False) -> None:
    """All keys, those that were revoked too."""
    from perdure.engine import keys

    columns = ("key_id", "hint", "name", "owner", "rate_limit", "created_at", "expires_at", "revoked_at")
    rows = _on_database(keys.list_keys)
    print_rows(rows, (*columns, "last_used_at"), as_json=as_json, empty="no keys")


@app.command()
def revoke(
    key_id: Annotated[UUID, typer.Argument(help="Its key_id, from `perdure keys list`.")], as_json: JsonFlag = False
) -> None:
    """End a key, from the next request on."""
    from perdure.engine import keys

    gone = _on_database(lambda conn: keys.revoke(conn, key_id))
    if gone is None:
        fail(f"no key with the id {key_id} is valid; `perdure keys list` shows them", Exit.REFUSED)
    print_record(gone, as_json=as_json)


def _on_database(do: Callable[[Any], Awaitable[T]]) -> T:
    """Call `do` with a connection to the migrated database; ends the command if there is none."""
    from perdure import logs
    from perdure.app import database
    from perdure.engine.db import connect, migrate

    settings = settings_or_fail()
    logs.setup(settings)  # on stderr: stdout is for the answer

    async def connected(dsn: str) -> T:
        async with await connect(dsn) as conn:
            return await do(conn)

    def work() -> T:
        with database(settings) as dsn:
            migrate(dsn)
            return asyncio.run(connected(dsn))

    return guarded(work)
