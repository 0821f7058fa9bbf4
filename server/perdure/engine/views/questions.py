"""Lists of questions: over all threads for the inbox, of one thread, of one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

from perdure.engine import access, interrupts, links
from perdure.engine.access import Within
from perdure.engine.db import Conn

if TYPE_CHECKING:
    from perdure.engine.core import Engine

# What is not asked for is left out: so each of these is a range of an index, however often it has been planned.
FILTERS: dict[str, LiteralString] = {
    "status": "status = %(status)s",
    "agent": "graph_id = %(agent)s",
    "thread_id": "thread_id = %(thread_id)s",
    "within": "EXISTS (SELECT 1 FROM threads t WHERE t.thread_id = interrupts.thread_id AND t.metadata @> %(within)s)",
    "before": "(created_at, token) < (%(before)s, %(before_token)s)",
}
# Of a question that is larger than what is stored in a row itself, no more than a line of a list shows.
BRIEF: LiteralString = """CASE
  WHEN pg_column_size(question) < 8000 THEN question
  WHEN jsonb_typeof(question) = 'string' THEN to_jsonb(left(question #>> '{}', 1000))
  WHEN jsonb_typeof(question -> 'question') = 'string'
    THEN jsonb_build_object('question', left(question ->> 'question', 1000))
  ELSE jsonb_build_object(
    'action_requests', (
      SELECT jsonb_agg(jsonb_build_object('name', left(name #>> '{}', 200)))
        FROM jsonb_path_query(question, '$.action_requests[0 to 9].name') name),
    'text', left(jsonb_path_query_first(question, '$.* ? (@ like_regex "[^ ]")') #>> '{}', 1000))
  END"""
SEARCH: LiteralString = "SELECT " + interrupts.RECORD + " FROM interrupts WHERE "
SEARCH_BRIEF: LiteralString = (
    "SELECT token, interrupt_id, thread_id, run_id, graph_id AS agent, deadline, created_at, status, answered_at, "
    "answered_by, " + BRIEF + " AS question FROM interrupts WHERE "
)
NEWEST: LiteralString = " ORDER BY created_at DESC, token DESC LIMIT %(limit)s"


async def search(
    engine: Engine,
    *,
    status: str | None = None,
    agent: str | None = None,
    thread_id: UUID | None = None,
    limit: int = 100,
    cursor: str | None = None,
    within: Within = None,
    brief: bool = False,
) -> list[dict[str, Any]]:
    """Questions (of threads `within`) with their `url`, newest first; `cursor` is the token of the last row
    of the page before.

    `brief`: without answers, and of large questions the words only. Raises QuestionNotFound for an unknown cursor.
    """
    last = await interrupts.get(engine, cursor, within=within) if cursor else {"created_at": None, "token": None}
    params = {"status": status, "agent": agent, "thread_id": thread_id, "limit": limit}
    params |= {"within": access.parameter(within), "before": last["created_at"], "before_token": last["token"]}
    wanted: list[LiteralString] = [part for name, part in FILTERS.items() if params[name] is not None]
    select = SEARCH_BRIEF if brief else SEARCH
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(select + " AND ".join(["true", *wanted]) + NEWEST, params)).fetchall()
    return await links.with_urls(engine, rows)


OF_RUN: LiteralString = (
    "SELECT "
    + interrupts.RECORD
    + """ FROM interrupts WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
 ORDER BY created_at, token LIMIT %(limit)s"""
)


async def of_run(conn: Conn, thread_id: UUID, run_id: UUID, *, limit: int) -> list[dict[str, Any]]:
    """The questions that a run has asked, in their order."""
    return await (await conn.execute(OF_RUN, {"thread_id": thread_id, "run_id": run_id, "limit": limit})).fetchall()
