"""What a run has done so far, as a list to read: its steps, waits, child runs and questions.

Read from the journal and the questions, in the order in which they began. A step that is executed for the
first time right now has no row yet, so it is not there; neither is what a replay has found finished, for that
belongs to the run which did it. What kind an entry is of is told from how the words write their rows.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from perdure.engine import jsonable, prices, runs, steps
from perdure.engine.db import Conn
from perdure.engine.prices import Prices
from perdure.engine.views import questions

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_ROWS = 10_000
"""Entries of one run that can be reached by paging."""
MAX_VALUE_BYTES = 65_536
"""Values that take more in the database are not read."""
MAX_VALUE_TEXT = 2_000
"""Characters of a value's JSON that are shown."""

_SERDE = JsonPlusSerializer()
_TASK = re.compile(r":[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INSIDE = re.compile(r"/([^/:]*):[^/]*:\d+")
_WORDS = {"saga": "saga", "mailbox": "messages", "race": "race"}
TOKENS = ("input_tokens", "output_tokens")
UNNAMED = "unnamed"  # a model whose name nobody has told
_TOOLS = "tools"  # what create_agent calls the node that executes tools
_UNREAD: Any = object()


async def read(
    engine: Engine, thread_id: UUID, run_id: UUID, *, limit: int = 100, offset: int = 0, values: bool = False
) -> tuple[list[dict[str, Any]], bool]:
    """Entries of a run from `offset` on, and whether there are more.

    Each has `kind`, `name`, `status`, `scope` (the task that it belongs to), `path` (nodes, then the steps
    around it), `n`, `call`, `key`, `attempts`, `started_at`, `ended_at`, `seconds`, `error`, `next_at`. A `child`
    names its thread and run; a `wait` has `until`; a `question` its `interrupt_id` and `deadline`; a `model` tells
    which `model`, `model_calls`, `input_tokens`, `output_tokens`, `first_token_seconds` and `cost` (USD), of all its
    attempts. With `values` also `value` and `input` (what it was given, in short; of models the newest messages),
    and of a question `question`; a `value` that is too long is a text that begins like its JSON, with `truncated`.

    Raises RunNotFound.
    """
    end = min(offset + limit, MAX_ROWS) + 1
    async with engine.pool.connection() as conn:
        await runs.get_in(conn, thread_id, run_id)
        rows = await steps.of_run(conn, thread_id, run_id, limit=end, max_bytes=MAX_VALUE_BYTES)
        asked = await questions.of_run(conn, thread_id, run_id, limit=end)
        found = [*(_step(row) for row in rows), *(_question(row) for row in asked)]
        found.sort(key=lambda entry: entry["started_at"])
        page = found[offset : end - 1]
        await _finish_children(conn, thread_id, page)
    known = prices.prices_of(engine)
    for entry in page:
        if entry["kind"] == "model":
            entry |= _model(entry["attempts"], known)
        value, given = entry.pop("value"), entry.pop("input")
        if values:
            entry["input"] = given
            entry |= _shown("question" if entry["kind"] == "question" else "value", value)
    return page, len(found) >= end and end <= MAX_ROWS


def _step(row: dict[str, Any]) -> dict[str, Any]:
    attempts: list[dict[str, Any]] = row["attempts"]
    given = next((attempt.pop("input") for attempt in attempts if "input" in attempt), None)
    value: Any = None
    if row["value_type"]:
        value = _UNREAD if row["value"] is None else _SERDE.loads_typed((row["value_type"], row["value"]))
    started, ended = row["created_at"], row["updated_at"]
    if attempts:
        started = datetime.fromisoformat(attempts[0]["started_at"])
        ended = datetime.fromisoformat(attempts[-1]["started_at"]) + timedelta(seconds=attempts[-1]["seconds"])
    over = row["status"] in ("done", "failed")
    path = _path(row["scope"])
    entry = {
        "name": row["name"],
        "kind": "step",
        "status": row["status"],
        "scope": row["scope"],
        "path": path,
        "n": row["n"],
        "call": row["call"],
        "key": row["identity"] if row["keyed"] else None,
        "attempts": [{"error": None, **attempt} for attempt in attempts],
        "started_at": started,
        "ended_at": ended if over else None,
        "seconds": (ended - started).total_seconds() if over else None,
        "error": row["error"],
        "next_at": row["next_at"],
        "value": value,
        "input": given,
    }
    if any("model" in attempt for attempt in attempts):
        entry["kind"] = "model"
    elif _is_child(row["name"], value):
        child = cast("dict[str, Any]", value)
        entry |= {"kind": "child", "name": row["name"].removeprefix("agent "), "status": "started", "child": child}
        entry |= {"ended_at": None, "seconds": None}
    elif row["name"] == "sleep" and isinstance(value, float):
        entry |= {"kind": "wait", "until": datetime.fromtimestamp(value, started.tzinfo)}
    elif not attempts and row["name"] in _WORDS:
        entry["kind"] = _WORDS[row["name"]]
    elif path[-1:] == [_TOOLS]:
        entry["kind"] = "tool"
    return entry


def _model(attempts: list[dict[str, Any]], known: Prices) -> dict[str, Any]:
    """What an entry says about models: the sum of its attempts, since a failed one costs too."""
    used = [attempt["model"] for attempt in attempts if "model" in attempt]
    # who wrote it before names were recorded has only the sums
    parts = [part for one in used for part in (one.get("names") or {UNNAMED: one}).items()]
    names: dict[str, dict[str, int]] = {}
    for name, part in parts:
        before = names.setdefault(name, dict.fromkeys(TOKENS, 0))
        names[name] = {key: before[key] + part[key] for key in TOKENS}
    first = next((one["first_token_seconds"] for one in reversed(used) if "first_token_seconds" in one), None)
    return {
        "model": ", ".join(name for name in names if name != UNNAMED) or None,
        "model_calls": sum(one["calls"] for one in used),
        **{key: sum(one[key] for one in used) for key in TOKENS},
        "first_token_seconds": first,
        "cost": known.total(names),
    }


def _is_child(name: str, value: Any) -> bool:
    """Whether this is the row of `agent(…)`: its value says where the child is."""
    return name.startswith("agent ") and isinstance(value, dict) and {"thread_id", "run_id"} <= value.keys()


async def _finish_children(conn: Conn, thread_id: UUID, page: list[dict[str, Any]]) -> None:
    """Give the children among the entries the end that was recorded of them."""
    children = {(entry["scope"], entry["child"]["run_id"]): entry for entry in page if entry["kind"] == "child"}
    if not children:
        return
    for row in await steps.of_children(conn, thread_id, list(children)):
        entry = children.get((row["scope"], row["identity"]))
        if entry is None or (row["name"] == "cancel" and entry["ended_at"]):
            continue
        entry["status"] = "cancelled" if row["name"] == "cancel" else row["status"]
        entry["error"] = row["error"] if row["name"] == "outcome" else entry["error"]
        entry["ended_at"] = row["created_at"]
        entry["seconds"] = (row["created_at"] - entry["started_at"]).total_seconds()


def _question(row: dict[str, Any]) -> dict[str, Any]:
    started, ended = row["created_at"], row["answered_at"]
    return {
        "name": "question",
        "kind": "question",
        "status": row["status"],
        "scope": None,
        "path": [],
        "n": 0,
        "call": 0,
        "key": None,
        "attempts": [],
        "started_at": started,
        "ended_at": ended,
        "seconds": (ended - started).total_seconds() if ended else None,
        "error": None,
        "next_at": None,
        "interrupt_id": row["interrupt_id"],
        "deadline": row["deadline"],
        "value": {"question": row["question"], "answer": row["answer"]},
        "input": None,
    }


def _path(scope: str) -> list[str]:
    """Node names from the outside in, then the names of the steps around: `a:<task>|b:<task>/step:<call>:0`."""
    nodes: list[str] = []
    inside: list[str] = []
    for part in scope.split("|"):
        name, *rest = _TASK.split(part, maxsplit=1)
        nodes.append(name)
        inside += _INSIDE.findall(rest[0]) if rest else []
    return [name for name in nodes if name] + inside


def _shown(name: str, value: Any) -> dict[str, Any]:
    if value is _UNREAD:
        return {name: None, "truncated": True}
    text = jsonable.dumps(value).decode()
    if len(text) > MAX_VALUE_TEXT:
        return {name: text[:MAX_VALUE_TEXT], "truncated": True}
    return {name: value}
