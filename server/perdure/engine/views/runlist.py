"""Pages of runs over all threads, and how many there are, in tables of any size.

Runs come newest first, by (created_at, queue_no). A statement has one branch per status, each a range of
`runs_status_idx` or `runs_agent_idx`; PostgreSQL merges them as it reads, so a page reads about as many rows as
it shows. What no index answers (whose runs they are, the text of an error) is looked for in `SCAN` rows at a
time: such a page may have few rows, or none, and says from where to look further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

from psycopg import sql

from perdure.engine import access
from perdure.engine.access import Within
from perdure.engine.db import Conn
from perdure.engine.views import places

if TYPE_CHECKING:
    from perdure.engine.core import Engine

STATUSES = ("pending", "running", "suspended", "paused", "success", "error", "timeout", "interrupted")
SCAN = 10_000
"""Rows that one page looks at, at most."""
CAP = 1_000
"""Counts say "1,000 and more" beyond it."""
FEW_THREADS, FEW_RUNS = 200, 5_000
"""Whoever has no more than that gets all of it searched at once, wherever it lies."""

ROW: LiteralString = """
SELECT run_id, thread_id, graph_id AS agent, status, attempt, failures, created_at, started_at, ended_at,
       extract(epoch FROM coalesce(ended_at, now()) - created_at)::float8 AS seconds,
       CASE WHEN status IN ('pending', 'suspended') THEN ready_at END AS next_at,
       left(error ->> 'error' || ': ' || (error ->> 'message'), 300) AS error,
       coalesce(metadata -> 'simulated' = 'true', false) AS simulated, parent_run_id, parent_thread_id, queue_no
  FROM """

# A scalar subquery is asked once per row, by primary key. An EXISTS may become a join with all of the caller's threads.
OWN: LiteralString = "(SELECT t.metadata @> %(within)s FROM threads t WHERE t.thread_id = r.thread_id)"
"""Of rows `r` that belong to a thread: whether that is `within`."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What runs must have; None: anything. `before`: the place (created_at, queue_no) that a page begins after.

    `threads`: few threads with few runs. `ids`: from which run id to which.
    """

    status: Sequence[str] | None = None
    agent: str | None = None
    thread: UUID | None = None
    threads: Sequence[UUID] | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    ids: tuple[UUID, UUID] | None = None
    before: tuple[datetime, int] | None = None
    within: Within = None

    @property
    def statuses(self) -> tuple[str, ...]:
        """Those that can match: a success has no error."""
        known = STATUSES if self.error is None else tuple(one for one in STATUSES if one != "success")
        return tuple(one for one in known if self.status is None or one in self.status)

    @property
    def order(self) -> LiteralString:
        """Newest first; in one thread they were made in the order of its queue."""
        return "queue_no DESC" if self.thread else "created_at DESC, queue_no DESC"

    def params(self) -> dict[str, Any]:
        """For all statements that are made of this filter."""
        at, number = self.before or (None, None)
        first, last = self.ids or (None, None)
        return {
            **{f"status_{n}": status for n, status in enumerate(STATUSES)},
            "statuses": list(self.statuses),
            "agent": self.agent,
            "since": self.since,
            "until": self.until,
            "thread": self.thread,
            "threads": list(self.threads or ()),
            "first": first,
            "last": last,
            "before_at": at,
            "before_no": number,
            "error": like(self.error or ""),
            "within": access.parameter(self.within),
        }

    def found(self, most: LiteralString) -> sql.Composable:
        """The runs that an index finds, in their order; not more than the parameter of this name says."""
        cut = sql.SQL("LIMIT {}").format(sql.Placeholder(most))
        if self.ids:
            by_id = sql.SQL("SELECT * FROM runs WHERE run_id BETWEEN %(first)s AND %(last)s ORDER BY run_id DESC {}")
            return by_id.format(cut)
        newest: LiteralString = "SELECT * FROM runs WHERE {} AND {} ORDER BY {} {}"
        if self.thread:
            before: LiteralString = "queue_no < %(before_no)s" if self.before else "true"
            of_thread = sql.SQL("thread_id = %(thread)s")
            return sql.SQL(newest).format(of_thread, sql.SQL(before), sql.SQL(self.order), cut)
        if self.threads is not None:
            own = sql.SQL("thread_id = ANY(%(threads)s) AND status = ANY(%(statuses)s)")
            return sql.SQL(newest).format(own, _all(self._range()), sql.SQL(self.order), cut)
        # Each branch is one range of an index; what they have in common is merged without reading on.
        branches = [
            sql.SQL("({})").format(
                sql.SQL(newest).format(
                    sql.SQL("status = {}").format(sql.Placeholder(f"status_{STATUSES.index(status)}")),
                    _all(self._range()),
                    sql.SQL(self.order),
                    cut,
                )
            )
            for status in self.statuses
        ]
        merged = sql.SQL("SELECT * FROM ({}) merged ORDER BY {} {}")
        return merged.format(sql.SQL(" UNION ALL ").join(branches), sql.SQL(self.order), cut)

    def rest(self) -> list[LiteralString]:
        """What `found` leaves to be looked at, row by row, of a run `r`."""
        parts: list[LiteralString] = []
        if self.ids or self.thread:
            parts += self._range()
            parts.append("status = ANY(%(statuses)s)")
        if self.ids and self.thread:
            parts.append("thread_id = %(thread)s")
        if self.error is not None:
            parts.append("error ->> 'error' || ': ' || (error ->> 'message') ILIKE %(error)s")
        if self.within is not None:
            parts.append(OWN)
        return parts

    def _range(self) -> list[LiteralString]:
        parts: list[LiteralString] = []
        if self.agent is not None:
            parts.append("graph_id = %(agent)s")
        if self.since is not None:
            parts.append("created_at >= %(since)s")
        if self.until is not None:
            parts.append("created_at < %(until)s")
        if self.before is not None and not self.thread:
            parts.append("(created_at, queue_no) < (%(before_at)s, %(before_no)s)")
        elif self.before is not None and self.ids:
            parts.append("queue_no < %(before_no)s")
        return parts


def like(text: str) -> str:
    """The pattern of texts that contain this one."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _all(parts: Sequence[LiteralString]) -> sql.Composable:
    return sql.SQL(" AND ").join([sql.SQL(part) for part in parts]) if parts else sql.SQL("true")


def matching(given: Filter, limit: LiteralString) -> sql.Composable:
    """What may stand after FROM: the newest runs of the filter, in order, and WHERE, ORDER BY, LIMIT.

    Parameters beside the filter's own: `limit` names how many are wanted, `scan` is how many may be looked at.
    """
    rest = given.rest()
    return sql.SQL("({}) r WHERE {} ORDER BY {} LIMIT {}").format(
        given.found("scan" if rest else limit), _all(rest), sql.SQL(given.order), sql.Placeholder(limit)
    )


async def find_runs(
    engine: Engine,
    *,
    status: list[str] | None = None,
    agent: str | None = None,
    thread_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    error: str | None = None,
    run_id_prefix: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
    within: Within = None,
) -> dict[str, Any]:
    """A page of runs for a table: `rows`, the `cursor` of the next page (None: nothing more), `partial`.

    A row has no input and no configuration. Newest first. `error` is a part of `Class: text`. `partial`: the page
    ended after `SCAN` rows without being full; `cursor` looks further. Of a prefix that very many ids have, only
    `SCAN` are looked at. Raises InvalidInput for a cursor or a prefix that is none.
    """
    given = Filter(
        status=status,
        agent=agent,
        thread=thread_id,
        since=since,
        until=until,
        error=error or None,
        ids=places.uuid_range(run_id_prefix) if run_id_prefix else None,
        before=places.read(cursor),
        within=within,
    )
    if not given.statuses:
        return {"rows": [], "cursor": None, "partial": False}
    async with places.looking(engine) as conn:
        return await _page(conn, await narrowed(conn, given), limit)


EDGE: LiteralString = "SELECT created_at, queue_no FROM ({}) r OFFSET %(scan)s - 1 LIMIT 1"


async def _page(conn: Conn, given: Filter, limit: int) -> dict[str, Any]:
    query = sql.SQL("{} {}").format(sql.SQL(ROW), matching(given, "wanted"))
    params = {**given.params(), "wanted": limit + 1, "scan": SCAN}
    rows = await (await conn.execute(query, params)).fetchall()
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    if not more and not given.ids and given.rest():  # was that all, or all that SCAN rows hold?
        last = await (await conn.execute(sql.SQL(EDGE).format(given.found("scan")), params)).fetchone()
    cursor = places.written(last["created_at"], last["queue_no"]) if last else None
    shown = [{name: value for name, value in row.items() if name != "queue_no"} for row in rows[:limit]]
    return {"rows": shown, "cursor": cursor, "partial": cursor is not None and not more}


async def count_runs(
    engine: Engine,
    *,
    agent: str | None = None,
    thread_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    within: Within = None,
) -> dict[str, dict[str, Any]]:
    """How many runs there are of each status, each `{n, more}`: at most `CAP`, or those among the newest `SCAN`."""
    given = Filter(agent=agent, thread=thread_id, since=since, until=until, within=within)
    async with places.looking(engine) as conn:
        given = await narrowed(conn, given)
        return {status: await _count(conn, replace(given, status=[status])) for status in STATUSES}


COUNT: LiteralString = "SELECT count(*) FILTER (WHERE {}) AS n, count(*) AS looked FROM ({}) r"


async def _count(conn: Conn, given: Filter) -> dict[str, Any]:
    rest = given.rest()
    looks = SCAN if rest else CAP + 1
    query = sql.SQL(COUNT).format(_all(rest), given.found("looks"))
    row = await (await conn.execute(query, {**given.params(), "looks": looks})).fetchone()
    assert row is not None
    return {"n": min(row["n"], CAP), "more": row["n"] > CAP or (bool(rest) and row["looked"] == looks)}


OWN_THREADS = "SELECT thread_id FROM threads WHERE metadata @> %(within)s LIMIT %(limit)s"
OWN_RUNS = "SELECT count(*) AS n FROM (SELECT 1 FROM runs WHERE thread_id = ANY(%(threads)s) LIMIT %(limit)s) own"


async def narrowed(conn: Conn, given: Filter) -> Filter:
    """The same filter, by thread for a caller who has few runs: they may lie far behind everybody else's."""
    if given.within is None or given.thread or given.ids:
        return given
    params = {"within": access.parameter(given.within), "limit": FEW_THREADS + 1}
    found = await (await conn.execute(OWN_THREADS, params)).fetchall()
    own: list[UUID] = [row["thread_id"] for row in found]
    if len(own) > FEW_THREADS:
        return given
    row = await (await conn.execute(OWN_RUNS, {"threads": own, "limit": FEW_RUNS + 1})).fetchone()
    few = row is not None and row["n"] <= FEW_RUNS
    return replace(given, threads=own, within=None) if few else given
