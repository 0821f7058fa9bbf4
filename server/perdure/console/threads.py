"""Threads: a table with filters, the way to one by its id or by the key of a session, and deleting many."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from perdure.api import agents, schemas
from perdure.api.context import EngineDep
from perdure.api.fields import UUID_TEXT, ThreadStatus
from perdure.api.gate import Gate, GateDep
from perdure.console.given import Blank, Word, Words, checked, object_of
from perdure.console.pages import PageRoute, done, fields, link, page
from perdure.engine import prune, threads
from perdure.engine.errors import AssistantNotFound, GraphNotFound, ThreadNotFound
from perdure.engine.views import threadlist

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

PAGE = 50
MAX_TICKED = 1000
OURS = {"graph_id", "assistant_id"}
"""Metadata that the table shows elsewhere, or that says nothing to people."""


@router.get("/threads")
async def list_threads(
    request: Request,
    engine: EngineDep,
    gate: GateDep,
    status: Annotated[ThreadStatus | None, Blank, Query()] = None,
    agent: Words = None,
    key: Word = None,
    metadata: Words = None,
    id: Word = None,
    cursor: Word = None,
) -> Response:
    """Last touched first. A whole id, or an agent with a key, leads straight to the thread."""
    missing = ""
    if id and UUID_TEXT.fullmatch(id.strip()):
        found = UUID(id.strip())
        if await _is_there(gate, found):
            return done(request, f"/console/threads/{found}")
        missing = f"There is no thread {found}."
    elif agent and key:
        found = await _session(gate, agent, key)
        if found:
            return done(request, f"/console/threads/{found}")
        missing = f"The agent {agent} has no session with the key {key}."
    elif key:
        missing = "A key belongs to an agent: choose the agent, too."
    body = checked(
        schemas.ThreadSearch, {"status": status, "metadata": _metadata(request, metadata or ""), "limit": PAGE}
    )
    wanted, within = await gate.search("threads", body)
    listed: dict[str, Any] = {"rows": [], "cursor": None, "partial": False}
    if not missing:
        listed = await threadlist.find_threads(
            engine,
            status=status,
            agent=agent,
            metadata=wanted,
            id_prefix=id,
            cursor=cursor,
            limit=PAGE,
            within=within,
        )
    query: dict[str, Any] = {"status": status, "agent": agent, "metadata": metadata, "id": id}
    root = request.scope.get("root_path", "")
    return page(
        request,
        "threads.html",
        title="Threads",
        live=None if missing else "all",
        rows=[{**row, "about": {k: v for k, v in row["metadata"].items() if k not in OURS}} for row in listed["rows"]],
        partial=listed["partial"],
        newest=link(root, "/console/threads", **query) if cursor else None,
        older=link(root, "/console/threads", **query, cursor=listed["cursor"]) if listed["cursor"] else None,
        query={**query, "key": key},
        filtered=any(query.values()),
        missing=missing,
        agents=list(dict.fromkeys([*engine.registry.graphs, *([agent] if agent else [])])),
    )


@router.post("/threads/delete")
async def delete_threads(request: Request, engine: EngineDep, gate: GateDep) -> Response:
    """Delete the threads that are ticked, as the API's prune does; those of others are left alone."""
    ticked = (await fields(request)).get("thread_id", [])
    if not ticked:
        raise HTTPException(422, "Tick the threads that are to be deleted")
    if len(ticked) > MAX_TICKED:
        raise HTTPException(422, f"thread_id: at most {MAX_TICKED} at once")
    body = checked(schemas.ThreadPrune, {"thread_ids": ticked, "strategy": "delete"})
    within = await gate.allow("threads", "delete", body.model_dump())
    count = await prune.prune(engine, body.thread_ids, "delete", within=within)
    return done(request, "/console/threads", f"{count} thread{'' if count == 1 else 's'} deleted")


def _metadata(request: Request, text: str) -> dict[str, Any]:
    """What metadata must contain: a JSON object, or `name=value` for texts, with commas between several."""
    pairs = [one.partition("=") for one in text.split(",") if one.strip()]
    if pairs and not set(text) & set('{}"') and all(name.strip() and sign for name, sign, _ in pairs):
        return {name.strip(): value.strip() for name, _, value in pairs}
    return object_of(request, "metadata", text)


async def _is_there(gate: Gate, thread_id: UUID) -> bool:
    try:
        await gate.thread("read", thread_id)
        await threads.get(gate.engine, thread_id)
    except ThreadNotFound:
        return False
    return True


async def _session(gate: Gate, agent: str, key: str) -> UUID | None:
    """The thread of a key, if it has been called already."""
    try:
        thread_id = await agents.session(gate, agent, key)
    except (AssistantNotFound, GraphNotFound):
        return None
    return thread_id if await _is_there(gate, thread_id) else None
