"""Tables of the patterns that stand in perdure's own database: made when they are first needed."""

from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import InsufficientPrivilege

from perdure import TerminalError

EXISTS = "SELECT to_regclass(%(table)s) IS NOT NULL AS there"
ALONE = "SELECT pg_advisory_xact_lock(hashtext(%(table)s))"


async def make(conn: AsyncConnection[Any], table: str, script: bytes) -> None:
    """Run the SQL script if there is no such table. `conn` is in a transaction: all of it or nothing.

    TerminalError if the database's user may not do what the script does.
    """
    found = await (await conn.execute(EXISTS, {"table": table})).fetchone()
    if found and found["there"]:
        return
    await conn.execute(ALONE, {"table": table})
    try:
        await conn.execute(script, prepare=False)  # several statements
    except InsufficientPrivilege as exc:
        name = f"graphs/tools/{table.partition('.')[2]}.sql"
        raise TerminalError(f"{table} can't be made: {exc}. Run {name} once with psql, as a user that may") from exc
