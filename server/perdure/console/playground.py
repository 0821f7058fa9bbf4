"""The playground: talk to an agent. The page brings the choice and the frame; all else its script asks the API."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from perdure.api import agents
from perdure.api.context import EngineDep
from perdure.api.fields import ThreadId
from perdure.api.gate import Gate, GateDep
from perdure.console.pages import PageRoute, page
from perdure.engine import threads
from perdure.engine.errors import ThreadNotFound

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

Key = Annotated[str, Query(max_length=200)]
Thread = Annotated[ThreadId | None, Query()]


@router.get("/playground")
async def show_playground(
    request: Request,
    engine: EngineDep,
    gate: GateDep,
    agent: str = "",
    example: Annotated[int, Query(ge=0)] = 0,
    thread: Thread = None,
    key: Key = "",
) -> Response:
    """An agent, with one of its requests, on a thread, in the session of a key, or on a thread yet to be made."""
    if thread is not None and key:
        raise HTTPException(422, "key: a thread is given already; give one of them")
    await gate.allow("assistants", "search", {"metadata": {}, "limit": len(engine.registry.graphs), "offset": 0})
    exists = False
    if thread is not None:
        found = await _found(gate, thread)
        exists = True
        agent = agent or str(found["metadata"].get("graph_id") or "")
    agent = agent or engine.registry.graph_ids[0]
    entry = engine.registry.entry(agent)
    if key:
        thread = await agents.session(gate, agent, key)
        with suppress(ThreadNotFound):
            exists = bool(await _found(gate, thread))
    if entry.examples and example >= len(entry.examples):
        raise HTTPException(422, f"example: {agent} has {len(entry.examples)}, counted from 0")
    return page(
        request,
        "playground.html",
        title="Playground",
        graphs=engine.registry.graph_ids,
        agent=agent,
        about=entry,
        example=example,
        given=json.dumps(entry.examples[example]["input"]) if entry.examples else "",
        thread=thread,
        exists=exists,
        key=key,
        guarded=gate.auth is not None,
    )


async def _found(gate: Gate, thread: UUID) -> dict[str, Any]:
    """Raises ThreadNotFound, also for a thread of somebody else."""
    await gate.thread("read", thread)
    return await threads.get(gate.engine, thread)
