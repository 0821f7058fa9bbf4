"""One thread: its messages as a chat, its state, its history with all branches, and its runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from perdure.api.context import EngineDep
from perdure.api.gate import ReadThread
from perdure.console import chat, history
from perdure.console.bounds import bounded
from perdure.console.given import Blank, Word
from perdure.console.pages import PageRoute, link, page
from perdure.engine import state, threads
from perdure.engine.core import Engine
from perdure.engine.errors import CheckpointNotFound
from perdure.engine.runs import ENDED
from perdure.engine.views import lineup, questions, runlist

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

Tab = Literal["chat", "state", "history", "runs"]
RUNS = 30
LINE = 100
QUESTIONS = 20
SESSION_VERSION = 5
"""Ids of sessions are made from their keys (`children.session_thread`)."""


@router.get("/threads/{thread_id}")
async def show_thread(
    request: Request,
    thread_id: ReadThread,
    engine: EngineDep,
    tab: Annotated[Tab | None, Blank, Query()] = None,
    messages: Annotated[Annotated[int, Field(ge=0, le=10**9)] | None, Blank, Query()] = None,
    before: Word = None,
    checkpoint: Word = None,
    cursor: Word = None,
) -> Response:
    """`messages`: the page that ends before that number; `before`: checkpoints older than it; `checkpoint`: opened."""
    thread = await threads.get(engine, thread_id)
    past = await history.checkpoints(engine, thread_id, before) if tab == "history" else None
    # the newest page has read the present values: of a large state that takes most of the time
    now = (past and past["newest"]) or await state.read(engine, thread_id)
    listed = chat.messages_of(now["values"])
    if tab is None or (tab == "chat" and not listed):
        tab = "chat" if listed else "state"
    shown: dict[str, Any] = {}
    if tab == "chat":
        shown["chat"] = chat.conversation(listed, messages)
    elif tab == "state":
        shown |= {"values": bounded(now["values"]), "nodes": await _nodes(engine, thread)}
    elif tab == "history":
        shown |= {"history": past, **await _opened(engine, thread, checkpoint)}
    else:
        ended = await runlist.find_runs(engine, thread_id=thread_id, status=list(ENDED), cursor=cursor, limit=RUNS)
        shown |= {"line": await lineup.line(engine, thread_id, limit=LINE + 1), "past": ended, "most": LINE}
    agent = thread["metadata"].get("graph_id")
    return page(
        request,
        "thread.html",
        title=f"Thread {str(thread_id)[:8]}",
        live=thread_id,
        thread=thread,
        thread_id=thread_id,
        agent=agent if isinstance(agent, str) else None,
        metadata=bounded(thread["metadata"]),
        failure=thread.get("error"),
        session=thread_id.version == SESSION_VERSION,
        tab=tab,
        tabs=[*(["chat"] if listed else []), "state", "history", "runs"],
        now={**history.about(now), "values": None},
        questions=await questions.search(engine, status="open", thread_id=thread_id, limit=QUESTIONS),
        own=link(request.scope.get("root_path", ""), f"/console/threads/{thread_id}"),
        api=f"/threads/{thread_id}",
        before=before,
        cursor=cursor,
        **shown,
    )


async def _opened(engine: Engine, thread: dict[str, Any], checkpoint: str | None) -> dict[str, Any]:
    """The checkpoint that is opened in the history. Raises CheckpointNotFound."""
    thread_id: UUID = thread["thread_id"]
    opened = None
    if checkpoint:
        found = await state.read(engine, thread_id, checkpoint_id=checkpoint)
        if found["metadata"] is None:
            raise CheckpointNotFound(f"Thread {thread_id} has no checkpoint {checkpoint!r}")
        tasks = [
            {
                "name": str(task["name"]),
                "result": bounded(task["result"]),
                "error": task["error"] and str(task["error"]),
            }
            for task in found["tasks"][:50]
        ]
        opened = {
            **history.about(found),
            "values": bounded(found["values"]),
            "tasks": tasks,
            "metadata": bounded(found["metadata"]),
        }
    return {"opened": opened, "nodes": await _nodes(engine, thread) if opened else []}


async def _nodes(engine: Engine, thread: dict[str, Any]) -> list[str]:
    """The names that an update can be written as; empty where the graph cannot be looked at."""
    graph_id = state.graph_id_of(thread)
    if not graph_id:
        return []
    try:
        graph = await engine.registry.look(graph_id, state.own_config(thread), checkpointer=None)
        return [name for name in graph.nodes if not name.startswith("__")]
    except Exception:  # code of the author's, or a graph that is gone: names are only a help
        return []
