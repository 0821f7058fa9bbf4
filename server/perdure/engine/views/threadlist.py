"""Pages of threads, in tables of any size.

Threads come last touched first, by (updated_at, thread_id). Statuses are ranges of `threads_status_idx`. Metadata
has an index that knows no order: where few threads match, all of them are read and sorted; where many do, they are
looked for among the last touched, `SCAN` at a time, and the page says from where to look further.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

from psycopg import sql

from perdure.engine.access import Within
from perdure.engine.db import Conn, jsonb
from perdure.engine.threads import VISIBLE
from perdure.engine.views import places

if TYPE_CHECKING:
    from perdure.engine.core import Engine

SCAN = 10_000
"""Rows that one page looks at, at most."""
FEW = 2_000
"""So many matches are read and sorted."""

ROW: LiteralString = """
SELECT thread_id, status, metadata ->> 'graph_id' AS agent, metadata, created_at, updated_at, error,
       (SELECT count(*) FROM interrupts i WHERE i.thread_id = t.thread_id AND i.status = 'open') AS open_questions
  FROM """
NEWEST: LiteralString = "ORDER BY updated_at DESC, thread_id DESC"


async def find_threads(
    engine: Engine,
    *,
    status: str | None = None,
    agent: str | None = None,
    metadata: dict[str, Any] | None = None,
    id_prefix: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
    within: Within = None,
) -> dict[str, Any]:
    """A page of threads for a table: `rows`, the `cursor` of the next page (None: nothing more), `partial`.

    `metadata` must be contained in theirs; `agent` is the graph that was the first to run there. `partial`: the page
    ended after `SCAN` rows without being full; `cursor` looks further. Of an id's beginning that very many have, only
    `SCAN` are looked at. Raises InvalidInput for a cursor or a beginning that is none.
    """
    before = _read(cursor)
    first, last = places.uuid_range(id_prefix) if id_prefix else (None, None)
    wanted = {**(metadata or {}), **({"graph_id": agent} if agent else {})}
    params: dict[str, Any] = {"status": status, "wanted": jsonb(wanted), "within": jsonb(within or {})}
    params |= {"before_at": before and before[0], "before_id": before and before[1]}
    params |= {"first": first, "last": last, "limit": limit + 1, "scan": SCAN, "few": FEW + 1}
    held: list[LiteralString] = []
    if wanted:
        held.append("metadata @> %(wanted)s")
    if within is not None:
        held.append("metadata @> %(within)s")
    ranged: list[LiteralString] = []
    if status:
        ranged.append("status = %(status)s")
    if before:
        ranged.append("(updated_at, thread_id) < (%(before_at)s, %(before_id)s)")
    async with places.looking(engine) as conn:
        if id_prefix:
            found = sql.SQL("SELECT * FROM threads WHERE thread_id BETWEEN %(first)s AND %(last)s LIMIT %(scan)s")
            return await _page(conn, found, [*held, *ranged], params, walks=False)
        if held and await _few(conn, held, params):
            found = sql.SQL("SELECT * FROM threads WHERE {}").format(_all(held))
            return await _page(conn, found, ranged, params, walks=False)
        found = sql.SQL("SELECT * FROM threads WHERE {} {} LIMIT %(scan)s").format(_all(ranged), sql.SQL(NEWEST))
        return await _page(conn, found, held, params, walks=True)


def _all(parts: Sequence[LiteralString]) -> sql.Composable:
    return sql.SQL(" AND ").join([sql.SQL(part) for part in parts]) if parts else sql.SQL("true")


async def _few(conn: Conn, held: Sequence[LiteralString], params: dict[str, Any]) -> bool:
    """Whether so few threads have this metadata that sorting them is nothing."""
    query = sql.SQL("SELECT count(*) AS n FROM (SELECT 1 FROM threads WHERE {} LIMIT %(few)s) few").format(_all(held))
    row = await (await conn.execute(query, params)).fetchone()
    return row is not None and row["n"] <= FEW


EDGE: LiteralString = "SELECT updated_at, thread_id FROM ({}) t OFFSET %(scan)s - 1 LIMIT 1"


async def _page(
    conn: Conn, found: sql.Composable, rest: Sequence[LiteralString], params: dict[str, Any], *, walks: bool
) -> dict[str, Any]:
    query = sql.SQL("{} (SELECT * FROM ({}) t WHERE {} AND {} {} LIMIT %(limit)s) t {}").format(
        sql.SQL(ROW), found, _all(rest), sql.SQL(VISIBLE), sql.SQL(NEWEST), sql.SQL(NEWEST)
    )
    rows = await (await conn.execute(query, params)).fetchall()
    limit: int = params["limit"] - 1
    more = len(rows) > limit
    last: Any = rows[limit - 1] if more else None
    if not more and walks:
        last = await (await conn.execute(sql.SQL(EDGE).format(found), params)).fetchone()
    cursor = places.written(last["updated_at"], last["thread_id"].int) if last else None
    return {"rows": rows[:limit], "cursor": cursor, "partial": cursor is not None and not more}


def _read(cursor: str | None) -> tuple[datetime, UUID] | None:
    place = places.read(cursor, below=2**128)
    return place and (place[0], UUID(int=place[1]))
