"""The overview in numbers: what has run lately, how it went, what it cost, and what waits.

Read from ranges of indexes with a limit each, so it is as quick after a million runs as after ten. Where more has
ended in the window than `NEWEST`, the newest of it stands for the whole, and `cut` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from perdure.engine import access, prices
from perdure.engine.access import Within
from perdure.engine.prices import Prices
from perdure.engine.runs import ACTIVE, ENDED
from perdure.engine.views import places, runlist, workers

if TYPE_CHECKING:
    from perdure.engine.core import Engine

NEWEST = 20_000
"""Ended runs, and steps that called a model, that are looked at."""
CAP = 1_000
"""Counts of what waits say "1,000 and more" beyond it."""
LOOKED = 10_000
"""Rows that are looked at to find those `within`; and of each status, to see which agents they belong to."""
BUCKETS = 120
MAX_HOURS = 24 * 90

CALLS = ("calls", "input_tokens", "output_tokens")

OWN: LiteralString = "(%(within)s::jsonb IS NULL OR " + runlist.OWN + ")"

MOMENT = """
SELECT now() AS now, to_timestamp(floor(extract(epoch FROM now() - make_interval(secs => %(hours)s * 3600))
                                        / %(width)s) * %(width)s) AS since
"""


async def overview(engine: Engine, *, within: Within = None, hours: float = 1) -> dict[str, Any]:
    """Everything that the first page of the console shows, of the last `hours` (at most 90 days), as of one moment.

    `agents` and `total`: runs that are `active` now, by status; those that `ended` in the window, by status, their
    `success_rate` (0..1, without those that were cancelled) and seconds from creation to end (`p50`, `p99`); calls
    of models with tokens, `cost` in USD (None: unknown) and `first_token_p50`. `buckets`: ends over time. `queue`
    and `questions`: what waits, each `{n, more}`. `workers`: see `workers.fleet`.
    """
    hours = min(max(hours, 1 / 60), MAX_HOURS)
    width = max(60, math.ceil(hours * 60 / BUCKETS) * 60)
    params: dict[str, Any] = {"hours": hours, "width": width, "within": access.parameter(within), "newest": NEWEST}
    params |= {"cap": CAP + 1, "looked": LOOKED, "bound": CAP + 1 if within is None else LOOKED}
    async with places.looking(engine) as conn:
        moment = await (await conn.execute(MOMENT, params)).fetchone()
        assert moment is not None
        since: datetime = moment["since"]
        params |= {"since": since, "since_text": since.astimezone(UTC).isoformat()}
        active = await (await conn.execute(ACTIVE_RUNS, params)).fetchall()
        ended = await (await conn.execute(ENDED_RUNS, params)).fetchall()
        called = await (await conn.execute(CALLED, params)).fetchall()
        queue = await (await conn.execute(QUEUE, params)).fetchone()
        questions = await (await conn.execute(QUESTIONS, params)).fetchone()
        fleet = await workers.fleet(conn)
    assert queue is not None
    assert questions is not None
    of_agents = [row for row in ended if row["bucket"] is None]
    known = {row["graph_id"] for row in (*active, *of_agents, *called)} - {None}
    agents = list(engine.registry.graphs)
    agents += sorted(known - set(agents))
    priced = prices.prices_of(engine)
    return {
        "since": since,
        "hours": hours,
        "cut": any(row["looked"] >= NEWEST for row in (*of_agents, *called)),
        "agents": [{"agent": agent, **_figures(agent, active, of_agents, called, priced)} for agent in agents],
        "total": _figures(None, active, of_agents, called, priced),
        "bucket_seconds": width,
        "buckets": _buckets(since, moment["now"], width, [row for row in ended if row["bucket"] is not None]),
        "queue": {
            **{name: _capped(queue[name]) for name in ("ready", "delayed", "running", "suspended", "paused")},
            "oldest_seconds": queue["oldest_seconds"],
        },
        "questions": {"open": _capped(questions["open"]), "next_deadline": questions["next_deadline"]},
        "workers": fleet,
    }


ACTIVE_RUNS: LiteralString = (
    """
SELECT r.graph_id, s.status, count(*) AS n
  FROM unnest('{pending,running,suspended,paused}'::text[]) AS s(status)
 CROSS JOIN LATERAL (SELECT graph_id, thread_id FROM runs WHERE status = s.status
                      ORDER BY created_at DESC, queue_no DESC LIMIT %(looked)s) r
 WHERE """
    + OWN
    + " GROUP BY r.graph_id, s.status"
)

# A row per agent, one per bucket, and one for all.
ENDED_RUNS: LiteralString = (
    """
WITH newest AS MATERIALIZED (
    SELECT graph_id, thread_id, status, created_at, ended_at FROM runs WHERE ended_at >= %(since)s
     ORDER BY ended_at DESC LIMIT %(newest)s
), own AS (
    SELECT graph_id, status, extract(epoch FROM ended_at - created_at)::float8 AS seconds,
           floor(extract(epoch FROM ended_at - %(since)s) / %(width)s)::int AS bucket
      FROM newest r WHERE """
    + OWN
    + """
)
SELECT graph_id, bucket, (SELECT count(*) FROM newest) AS looked,
       count(*) FILTER (WHERE status = 'success') AS success, count(*) FILTER (WHERE status = 'error') AS error,
       count(*) FILTER (WHERE status = 'timeout') AS timeout,
       count(*) FILTER (WHERE status = 'interrupted') AS interrupted,
       percentile_cont('{0.5, 0.99}'::float8[]) WITHIN GROUP (ORDER BY seconds) AS seconds
  FROM own GROUP BY GROUPING SETS ((graph_id), (bucket), ())
"""
)

# A row per agent and model, one per agent, and one for all. Attempts from before the window do not count; their
# times are all written in UTC, so they compare as texts.
CALLED: LiteralString = (
    """
WITH newest AS MATERIALIZED (
    SELECT thread_id, run_id, attempts FROM steps WHERE attempts @? '$[*].model' AND updated_at >= %(since)s
     ORDER BY updated_at DESC LIMIT %(newest)s
), own AS (
    SELECT r.graph_id, a.attempt -> 'model' AS model
      FROM newest
     CROSS JOIN LATERAL (SELECT thread_id, graph_id FROM runs
                          WHERE thread_id = newest.thread_id AND run_id = newest.run_id LIMIT 1) r
     CROSS JOIN LATERAL jsonb_array_elements(newest.attempts) AS a(attempt)
     WHERE a.attempt ? 'model' AND a.attempt ->> 'started_at' COLLATE "C" >= %(since_text)s AND """
    + OWN
    + """
)
SELECT graph_id, name, (SELECT count(*) FROM newest) AS looked, sum((part -> 'calls')::bigint) AS calls,
       sum((part -> 'input_tokens')::bigint) AS input_tokens, sum((part -> 'output_tokens')::bigint) AS output_tokens,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY (model -> 'first_token_seconds')::float8) AS first_token
  FROM own CROSS JOIN LATERAL jsonb_each(CASE WHEN model ? 'names' THEN model -> 'names'
                                              ELSE jsonb_build_object('unnamed', model) END) AS n(name, part)
 GROUP BY GROUPING SETS ((graph_id, name), (graph_id), ())
"""
)

QUEUE: LiteralString = (
    """
SELECT (SELECT count(*) FROM (SELECT 1 FROM (
            SELECT thread_id FROM runs WHERE ready_at <= now() ORDER BY ready_at LIMIT %(bound)s) r WHERE """
    + OWN
    + """ LIMIT %(cap)s) c) AS ready,
       (SELECT extract(epoch FROM now() - ready_at)::float8 FROM (
            SELECT thread_id, ready_at FROM runs WHERE ready_at <= now() ORDER BY ready_at LIMIT %(bound)s) r WHERE """
    + OWN
    + """ ORDER BY ready_at LIMIT 1) AS oldest_seconds,
       (SELECT count(*) FROM (SELECT 1 FROM (
            SELECT thread_id, status FROM runs WHERE ready_at > now() ORDER BY ready_at LIMIT %(looked)s) r
         WHERE status = 'pending' AND """
    + OWN
    + """ LIMIT %(cap)s) c) AS delayed,
       counts.*
  FROM (SELECT max(n) FILTER (WHERE status = 'running') AS running,
               max(n) FILTER (WHERE status = 'suspended') AS suspended,
               max(n) FILTER (WHERE status = 'paused') AS paused
          FROM unnest('{running,suspended,paused}'::text[]) AS s(status)
         CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT 1 FROM (
                SELECT thread_id FROM runs WHERE status = s.status
                 ORDER BY created_at DESC, queue_no DESC LIMIT %(bound)s) r WHERE """
    + OWN
    + """ LIMIT %(cap)s) c) counted) counts
"""
)

QUESTIONS: LiteralString = (
    """
SELECT (SELECT count(*) FROM (SELECT 1 FROM (
            SELECT thread_id FROM interrupts WHERE status = 'open' LIMIT %(bound)s) r WHERE """
    + OWN
    + """ LIMIT %(cap)s) c) AS open,
       (SELECT deadline FROM (
            SELECT thread_id, deadline FROM interrupts WHERE status = 'open' AND deadline IS NOT NULL
             ORDER BY deadline LIMIT %(bound)s) r WHERE """
    + OWN
    + """ ORDER BY deadline LIMIT 1) AS next_deadline
"""
)


def _figures(
    agent: str | None,
    active: Iterable[Mapping[str, Any]],
    ended: Iterable[Mapping[str, Any]],
    called: Iterable[Mapping[str, Any]],
    priced: Prices,
) -> dict[str, Any]:
    """Of one agent; None: of all."""
    now = dict.fromkeys(ACTIVE, 0)
    for row in active:
        if agent in (None, row["graph_id"]):
            now[row["status"]] += row["n"]
    end = next((row for row in ended if row["graph_id"] == agent), None)
    ends: dict[str, int] = {status: end[status] if end else 0 for status in ENDED}
    decided = ends["success"] + ends["error"] + ends["timeout"]
    p50, p99 = (end["seconds"] if end else None) or (None, None)
    used = next((row for row in called if row["graph_id"] == agent and row["name"] is None), None)
    models = _models((row for row in called if row["name"] is not None and agent in (None, row["graph_id"])), priced)
    costs = [model["cost"] for model in models]
    return {
        "active": now,
        "ended": ends,
        "success_rate": ends["success"] / decided if decided else None,
        "p50": p50,
        "p99": p99,
        "model_calls": sum(model["calls"] for model in models),
        "input_tokens": sum(model["input_tokens"] for model in models),
        "output_tokens": sum(model["output_tokens"] for model in models),
        "cost": sum(costs) if costs and None not in costs else None,
        "first_token_p50": used["first_token"] if used else None,
        "models": models,
    }


def _models(called: Iterable[Mapping[str, Any]], priced: Prices) -> list[dict[str, Any]]:
    sums: dict[str, dict[str, int]] = {}
    for row in called:
        before = sums.get(row["name"], dict.fromkeys(CALLS, 0))
        sums[row["name"]] = {key: before[key] + int(row[key]) for key in CALLS}
    return [
        {"name": name, **used, "cost": priced.cost(name, used["input_tokens"], used["output_tokens"])}
        for name, used in sorted(sums.items())
    ]


def _buckets(since: datetime, now: datetime, width: int, ended: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = {row["bucket"]: row for row in ended}
    buckets: list[dict[str, Any]] = []
    for n in range(math.ceil((now - since).total_seconds() / width)):
        row = found.get(n) or dict.fromkeys(ENDED, 0)
        failed = row["error"] + row["timeout"]
        at = since + timedelta(seconds=n * width)
        buckets.append({"at": at, "success": row["success"], "error": failed, "other": row["interrupted"]})
    return buckets


def _capped(n: int) -> dict[str, Any]:
    return {"n": min(n, CAP), "more": n > CAP}
