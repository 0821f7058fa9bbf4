"""The history of a thread: its checkpoints with what each one changed, and the branches that they form."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from perdure.console.chat import is_message, role_of, text_of
from perdure.console.shown import clip
from perdure.engine import state
from perdure.engine.core import Engine
from perdure.engine.jsonable import dumps, jsonable
from perdure.engine.views import branches

PAGE = 20
MAX_LANES = 10
KEYS = 40  # changed keys, and added messages, that one checkpoint shows


async def checkpoints(engine: Engine, thread_id: UUID, before: str | None) -> dict[str, Any]:
    """A page of checkpoints, newest first, from those older than `before`; `older` is where the next page begins.

    `newest` is the state at the first one, if that is the thread's newest.
    """
    found = [one async for one in state.history(engine, thread_id, limit=PAGE + 1, before=before)]
    outline = await branches.outline(engine, thread_id)
    head = outline[0][0] if outline else None
    children: dict[str, int] = {}
    for _, parent in outline:
        if parent:
            children[parent] = children.get(parent, 0) + 1
    known = {one["checkpoint_id"]: one for one in found}
    rows: list[dict[str, Any]] = []
    lanes = lay(outline)
    for one in found[:PAGE]:
        parent_id = one["parent_checkpoint_id"]
        if parent_id and parent_id not in known:
            known[parent_id] = await state.read(engine, thread_id, checkpoint_id=parent_id)
        parent = known.get(parent_id) if parent_id else None
        rows.append(
            {
                **about(one),
                "head": one["checkpoint_id"] == head,
                "branches": children.get(one["checkpoint_id"], 0),
                "by": _writers(one, parent),
                # beside the event loop: the values of a thread may be megabytes
                "changes": await asyncio.to_thread(changes, parent["values"] if parent else {}, one["values"]),
                "lanes": lanes.get(one["checkpoint_id"]),
            }
        )
    width = max((row["lanes"]["width"] for row in rows if row["lanes"]), default=0)
    older = rows[-1]["checkpoint_id"] if len(found) > PAGE else None
    newest = found[0] if found and before is None else None
    return {"rows": rows, "older": older, "width": width, "newest": newest}


def about(one: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint is, without its values."""
    metadata: dict[str, Any] = one["metadata"] or {}
    return {
        "checkpoint_id": one["checkpoint_id"],
        "parent_id": one["parent_checkpoint_id"],
        "made_at": _moment(one["created_at"]),
        "source": str(metadata.get("source") or "")[:30],
        "step": metadata.get("step"),
        "run_id": _uuid(metadata.get("run_id")),
        "next": [str(name) for name in one["next"]][:20],
    }


def _moment(text: Any) -> datetime | None:
    """LangGraph keeps it as text; whoever replays a past may have written anything."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _uuid(text: Any) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None


def _writers(one: dict[str, Any], parent: dict[str, Any] | None) -> list[str]:
    """The nodes whose writes made a checkpoint: those that were next in its parent."""
    metadata: dict[str, Any] = one["metadata"] or {}
    if parent is None or metadata.get("source") not in ("loop", "fork"):
        return []
    return list(dict.fromkeys(str(name) for name in parent["next"] if name != "__start__"))[:10]


# --- what has changed ------------------------------------------------------------------------------


def changes(old: Any, new: Any) -> list[dict[str, Any]]:
    """Which values differ, each `{key, kind, before, after}` in short texts; of messages, those that were added."""
    before, after = _values(old), _values(new)
    found: list[dict[str, Any]] = []
    for key in dict.fromkeys((*before, *after)):
        was, now = before.get(key), after.get(key)
        if key in before and key in after and (was is now or dumps(was) == dumps(now)):
            continue
        kind = "added" if key not in before else "removed" if key not in after else "changed"
        if _messages(now) and (was is None or was == [] or _messages(was)):
            found.append({"key": clip(key, 60), "kind": "messages", **_messages_changed(was or [], now or [])})
        else:
            found.append({"key": clip(key, 60), "kind": kind, "before": _short(was), "after": _short(now)})
        if len(found) > KEYS:
            break
    return found


def _values(given: Any) -> dict[str, Any]:
    if isinstance(given, dict):
        return cast("dict[str, Any]", given)
    return {} if given is None else {"value": given}


def _messages(given: Any) -> bool:
    listed = cast("list[Any]", given) if isinstance(given, list) else []
    return bool(listed) and is_message(listed[0]) and is_message(listed[-1])


def _messages_changed(old: list[Any], new: list[Any]) -> dict[str, Any]:
    was = {_identity(one): one for one in old}
    now = {_identity(one): one for one in new}
    added = [one for name, one in now.items() if name not in was]
    other = sum(name in was and dumps(was[name]) != dumps(one) for name, one in now.items())
    return {
        "added": [_said(one) for one in added[:KEYS]],
        "more": max(0, len(added) - KEYS),
        "rewritten": other,
        "removed": sum(name not in now for name in was),
    }


def _identity(message: Any) -> Any:
    found: Any = getattr(message, "id", None)
    if isinstance(message, dict):
        found = cast("dict[str, Any]", message).get("id")
    return found if isinstance(found, str) else dumps(cast(object, message))


def _said(message: Any) -> dict[str, str]:
    found = cast("dict[str, Any]", jsonable(message))
    return {"role": role_of(found)[:30], "text": clip(text_of(found), 160)}


def _short(value: Any) -> str:
    if isinstance(value, str):
        return clip(value[:400], 120)
    return clip(dumps(value)[:400].decode(errors="ignore"), 120)


# --- branches --------------------------------------------------------------------------------------


def lay(outline: list[tuple[str, str | None]]) -> dict[str, dict[str, Any]]:
    """Where each checkpoint stands in a drawing of the branches, newest first, one line of text each.

    `lane` is its own column, `through` are columns that pass by, `joins` those that end here because it is
    the parent of two; `above` and `below`: whether a line leads there.
    """
    waiting: list[str | None] = []  # for whom the line of each column is on its way
    rows: dict[str, dict[str, Any]] = {}
    for ident, parent in outline:
        mine = [column for column, wanted in enumerate(waiting) if wanted == ident]
        free = next((column for column, wanted in enumerate(waiting) if wanted is None), len(waiting))
        lane = mine[0] if mine else free
        through = [column for column, wanted in enumerate(waiting) if wanted not in (None, ident)]
        for column in mine:
            waiting[column] = None
        waiting += [None] * (lane + 1 - len(waiting))
        waiting[lane] = parent
        width = 1 + max((lane, *through, *mine))
        rows[ident] = {
            "lane": min(lane, MAX_LANES - 1),
            "through": [column for column in through if column < MAX_LANES],
            "joins": [column for column in mine[1:] if column < MAX_LANES],
            "above": bool(mine),
            "below": parent is not None,
            "width": min(width, MAX_LANES),
        }
        while waiting and waiting[-1] is None:
            waiting.pop()
    return rows
