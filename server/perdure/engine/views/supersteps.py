"""Which nodes of its graph a run has executed, and when, as its checkpoints tell.

A superstep lasts from one checkpoint of the root graph to the next; its nodes are those that have written, or
that the later checkpoint has seen for the first time. Nothing of a state is read, so its size does not matter.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, LiteralString

from perdure.engine.db import Conn

MAX_CHECKPOINTS = 1_000
"""Checkpoints of a run that are looked at, from its first."""

_OWN = ("__start__", "__input__", "__interrupt__")
_PULLED = "~__pregel_pull, "
SENT = "sent task"
"""A task that was sent (`Send`) and has no step, as long as it has not ended: nothing names its node."""
_NEXT = "branch:to:"
_TASK = re.compile(r"([^|:]+):([0-9a-f-]{36})")

CHECKPOINT: LiteralString = """checkpoint_id, parent_checkpoint_id AS parent, (checkpoint ->> 'ts')::timestamptz AS at,
       checkpoint -> 'versions_seen' AS seen, checkpoint -> 'updated_channels' AS updated,
       metadata ->> 'run_id' AS run_id, metadata ->> 'source' AS source"""

# the range of the primary key in which the run's checkpoints lie, cut before it is looked through
OWN: LiteralString = (
    "SELECT * FROM (SELECT "
    + CHECKPOINT
    + """ FROM checkpoints
        WHERE thread_id = %(thread)s AND checkpoint_ns = '' AND checkpoint_id > %(base)s
        ORDER BY checkpoint_id LIMIT %(limit)s) near"""
)
ONE: LiteralString = (
    "SELECT " + CHECKPOINT + " FROM checkpoints WHERE thread_id = %(thread)s AND checkpoint_ns = '' "
    "AND checkpoint_id = %(id)s"
)
WRITES = """
SELECT checkpoint_id, task_id, max(task_path) AS path, bool_or(channel = '__error__') AS failed,
       bool_or(channel = '__interrupt__') AS asked
  FROM checkpoint_writes
 WHERE thread_id = %(thread)s AND checkpoint_ns = '' AND checkpoint_id = ANY(%(ids)s) AND task_path <> ''
 GROUP BY checkpoint_id, task_id
"""


async def of_run(conn: Conn, run: dict[str, Any], scopes: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """The nodes that a run (a row of `runs`) has executed or executes, in order, and whether there were too many.

    Each has `node` (or `SENT`), `count` (tasks of that name in the superstep), `checkpoint_id` (from which it began),
    `started_at`, `ended_at` (None: not over), `ended` (`done`, `error`, `question`; None: it is at work, or was
    when the run was stopped). `scopes` are those of the run's steps: they name tasks that were sent.
    """
    if run["base_checkpoint_id"] is None:
        return [], False  # it has not started
    params = {"thread": str(run["thread_id"]), "run": str(run["run_id"])}
    keys = {**params, "base": run["base_checkpoint_id"], "limit": MAX_CHECKPOINTS + 1}
    rows = await (await conn.execute(OWN, keys)).fetchall()
    more = len(rows) > MAX_CHECKPOINTS
    own = [row for row in rows[:MAX_CHECKPOINTS] if row["run_id"] == params["run"]]
    if own[0]["source"] == "loop" if own else not run["has_input"]:
        # it goes on from a checkpoint that is not its own, with the nodes which that has planned
        base = own[0]["parent"] if own else run["checkpoint_id"] or run["base_checkpoint_id"]
        before = await (await conn.execute(ONE, {**params, "id": base})).fetchone()
        if before is not None:
            own.insert(0, {**before, "at": run["started_at"]})
    if not own:
        return [], False
    ids = [row["checkpoint_id"] for row in own]
    writes: dict[str, list[dict[str, Any]]] = {}
    for row in await (await conn.execute(WRITES, {**params, "ids": ids})).fetchall():
        writes.setdefault(row["checkpoint_id"], []).append(row)
    names = {task: name for scope in scopes for name, task in _TASK.findall(scope.split("|", 1)[0])}
    found: list[dict[str, Any]] = []
    for row, later in zip(own, [*own[1:], None], strict=True):
        found += _superstep(row, later, writes.get(row["checkpoint_id"], []), names)
    return found, more


def _superstep(
    row: dict[str, Any], later: dict[str, Any] | None, writes: list[dict[str, Any]], names: dict[str, str]
) -> list[dict[str, Any]]:
    counts: dict[str, int] = {}
    ends: dict[str, str] = {}
    for task in writes:
        path: str = task["path"]
        name = path.removeprefix(_PULLED) if path.startswith(_PULLED) else names.get(task["task_id"], SENT)
        if name not in _OWN:
            counts[name] = counts.get(name, 0) + 1
            if task["failed"] or task["asked"]:
                ends[name] = "error" if task["failed"] else "question"
    if later is not None:
        before: dict[str, Any] = row["seen"] or {}
        after: dict[str, Any] = later["seen"] or {}
        for name, versions in after.items():
            if name not in _OWN and before.get(name) != versions and name not in counts:
                counts[name] = counts.pop(SENT, 1)
        ends = {}  # another attempt has finished it
    else:
        updated: list[str] = row["updated"] or []
        for channel in updated:
            name = channel.removeprefix(_NEXT)
            if channel.startswith(_NEXT) and name not in counts:
                counts[name] = 1
    return [
        {
            "node": name,
            "count": count,
            "checkpoint_id": row["checkpoint_id"],
            "started_at": row["at"],
            "ended_at": later["at"] if later else None,
            "ended": "done" if later else ends.get(name),
        }
        for name, count in counts.items()
    ]


def ended_with(run: dict[str, Any], nodes: list[dict[str, Any]], at: datetime | None) -> None:
    """Give what was at work when the run ended the end that the run has had."""
    for node in nodes:
        if node["ended_at"] is None and at is not None:
            node["ended_at"] = at
            node["ended"] = node["ended"] or ("error" if run["status"] in ("error", "timeout") else "stopped")
