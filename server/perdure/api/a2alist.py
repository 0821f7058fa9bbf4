"""`ListTasks` of A2A 1.0: an agent's tasks by context and state, those of the caller, in pages."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from fastapi import Response

from perdure.api.a2acall import Asked
from perdure.api.a2amessage import optional_int
from perdure.api.answers import Json
from perdure.api.fields import UUID_TEXT
from perdure.api.jsonrpc import INVALID_PARAMS, RpcError, result_of
from perdure.engine import a2a, access, tasklist, tasks
from perdure.engine.errors import NotFound
from perdure.engine.jsonable import dumps
from perdure.engine.tasklist import Place
from perdure.engine.tasks import STATES, State

PAGE_SIZE, MAX_PAGE_SIZE = 50, 100
PREFIX = "TASK_STATE_"
OTHERS = {"UNSPECIFIED", "REJECTED", "AUTH_REQUIRED"}  # of A2A; ours are never in one of these
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)")


async def list_tasks(asked: Asked) -> Response:
    """A page of tasks, last changed first; artifacts only if they are asked for."""
    params = asked.params
    size = params.get("pageSize")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_PAGE_SIZE):
        raise _wrong("pageSize", f"must be a number from 1 to {MAX_PAGE_SIZE}")
    limit = size or PAGE_SIZE
    history = optional_int(params, "historyLength")
    after, since = _place(_text(params, "pageToken")), _time(_text(params, "statusTimestampAfter"))
    wanted, state = _state(_text(params, "status"))
    context = _text(params, "contextId")
    value: dict[str, Any] = {"metadata": {}, "limit": limit, "offset": 0}
    within = await asked.gate.allow("threads", "search", value)
    if within is None and value.get("metadata"):  # a handler without a filter may say what to look for
        within = access.containment(value["metadata"])
    none = wanted and state is None
    if none or (context and not UUID_TEXT.fullmatch(context)):
        return Json(result_of(asked.id, {"tasks": [], "nextPageToken": "", "pageSize": limit, "totalSize": 0}))
    found = await tasklist.search(
        asked.engine,
        asked.assistant["assistant_id"],
        thread_id=UUID(context) if context else None,
        state=state,
        since=since,
        after=after,
        limit=limit,
        within=within,
    )
    shown: list[dict[str, Any]] = []
    for thread_id, run_id in found.tasks:
        try:
            task = a2a.task(await tasks.get(asked.engine, thread_id, run_id), asked.version, history=history)
        except NotFound:  # deleted just now
            continue
        if params.get("includeArtifacts") is not True:
            task.pop("artifacts", None)
        shown.append(task)
    page = {"tasks": shown, "nextPageToken": _token(found.after), "pageSize": limit, "totalSize": found.total}
    return Json(result_of(asked.id, page))


def _state(name: str | None) -> tuple[bool, State | None]:
    """Whether a state is asked for, and which; None: one that no task of ours can be in. Raises RpcError."""
    if name is None or name == f"{PREFIX}UNSPECIFIED":
        return False, None
    state = name.removeprefix(PREFIX).lower().replace("_", "-")
    if not name.startswith(PREFIX) or (state not in STATES and name.removeprefix(PREFIX) not in OTHERS):
        raise _wrong("status", "must be a state such as TASK_STATE_COMPLETED")
    return True, state if state in STATES else None


def _token(place: Place | None) -> str:
    return base64.urlsafe_b64encode(dumps([place[0].isoformat(), str(place[1])])).decode() if place else ""


def _place(token: str | None) -> Place | None:
    if token is None:
        return None
    try:
        when, task = orjson.loads(base64.urlsafe_b64decode(token))
        place = (datetime.fromisoformat(when), UUID(task))
    except (ValueError, TypeError, AttributeError) as exc:
        raise _wrong("pageToken", "not one of this server's") from exc
    if place[0].tzinfo is None:
        raise _wrong("pageToken", "not one of this server's")
    return place


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if not TIME.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise _wrong("statusTimestampAfter", "must be a moment such as 2026-01-31T12:00:00Z") from exc


def _text(params: dict[str, Any], name: str) -> str | None:
    """Empty means absent, as in protobuf."""
    value = params.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(name, "must be a text")
    return value or None


def _wrong(field: str, problem: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"{field}: {problem}")
