"""What a person changes about a thread: state, metadata, time to live; runs from a checkpoint; copies; its end.

Each form does what the API's call of the same kind does, with the same permissions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from perdure.api import runs as run_routes
from perdure.api import schemas
from perdure.api import threads as routes
from perdure.api.context import EngineDep
from perdure.api.fields import RunId, ThreadId
from perdure.api.gate import DeleteThread, Gate, GateDep, ReadThread, UpdateThread
from perdure.console.given import checked, json_of, number_of, object_of
from perdure.console.history import about
from perdure.console.pages import PageRoute, done, form
from perdure.engine import control, state, stop, threads
from perdure.engine.errors import CheckpointNotFound, RunNotFound
from perdure.engine.newrun import NewRun

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

MAX_CHECKPOINT = 100


def _own(thread_id: UUID, **query: Any) -> str:
    return f"/console/threads/{thread_id}" + (f"?{urlencode(query)}" if query else "")


@router.post("/threads/{thread_id}/state")
async def change_state(request: Request, thread_id: UpdateThread, engine: EngineDep) -> Response:
    """Write values as if a node had; with a checkpoint, a new branch that begins there. 409 while a run is active."""
    given = await form(request)
    checkpoint_id = given.get("checkpoint_id") or None
    text = given.get("values", "")
    if not text.strip():
        raise HTTPException(422, "values: write the values that are to change, as JSON")
    body = schemas.StateUpdate(
        values=json_of(request, "values", text),
        as_node=given.get("as_node", "").strip() or None,
        checkpoint_id=checkpoint_id,
    )
    await routes.update_state(thread_id, body, engine)
    if checkpoint_id:
        return done(
            request, _own(thread_id, tab="history"), "A new branch begins at that checkpoint; it is the head now"
        )
    return done(request, _own(thread_id, tab="state"), "State changed")


@router.post("/threads/{thread_id}/metadata")
async def change_metadata(request: Request, thread_id: ThreadId, engine: EngineDep, gate: GateDep) -> Response:
    """Merge metadata at the top level."""
    metadata = object_of(request, "metadata", (await form(request)).get("metadata", ""))
    await routes.patch_thread(thread_id, checked(schemas.ThreadPatch, {"metadata": metadata}), engine, gate)
    return done(request, _own(thread_id, tab="state"), "Metadata changed")


@router.post("/threads/{thread_id}/ttl")
async def change_ttl(request: Request, thread_id: ThreadId, engine: EngineDep, gate: GateDep) -> Response:
    """Set the time to live, which begins anew."""
    given = await form(request)
    ttl = {"ttl": number_of("minutes", given.get("minutes", "")), "strategy": given.get("strategy", "delete")}
    await routes.patch_thread(thread_id, checked(schemas.ThreadPatch, {"ttl": ttl}), engine, gate)
    return done(request, _own(thread_id, tab="state"), "Time to live set")


@router.post("/threads/{thread_id}/copy")
async def copy_thread(request: Request, thread_id: ReadThread, engine: EngineDep, gate: GateDep) -> Response:
    """A new thread with the same metadata and all checkpoints."""
    owns, _ = await gate.owned("threads", "create", {"thread_id": None})
    made = await threads.copy(engine, thread_id, metadata=owns)
    return done(request, _own(made["thread_id"]), "This is the copy")


@router.post("/threads/{thread_id}/prune")
async def prune_thread(request: Request, thread_id: UpdateThread, engine: EngineDep, gate: GateDep) -> Response:
    """Delete all checkpoints but the newest."""
    body = checked(schemas.ThreadPrune, {"thread_ids": [str(thread_id)], "strategy": "keep_latest"})
    await routes.prune_threads(body, engine, gate)
    return done(request, _own(thread_id, tab="history"), "Only the newest state is left")


@router.post("/threads/{thread_id}/delete")
async def delete_thread(request: Request, thread_id: DeleteThread, engine: EngineDep) -> Response:
    """Delete a thread; a session begins anew at its next call."""
    await threads.delete(engine, thread_id)
    return done(request, "/console/threads", f"Thread {thread_id} deleted")


@router.post("/threads/{thread_id}/rerun")
async def run_again(request: Request, thread_id: ThreadId, engine: EngineDep, gate: GateDep) -> Response:
    """A new run without input from a checkpoint on, with the configuration of the run that made it."""
    checkpoint_id = (await form(request)).get("checkpoint_id", "")[:MAX_CHECKPOINT]
    thread = await _readable(gate, thread_id)
    found = await state.read(engine, thread_id, checkpoint_id=checkpoint_id or None)
    if not checkpoint_id or found["metadata"] is None:
        raise CheckpointNotFound(f"Thread {thread_id} has no checkpoint {checkpoint_id!r}")
    if not found["next"]:
        raise HTTPException(409, "Nothing comes after this checkpoint: choose an earlier one, or send new input")
    run = None
    run_id = about(found)["run_id"]
    if run_id:
        actor = await gate.acting(thread_id, {"run_id": run_id, "if_not_exists": "reject"})
        with suppress(RunNotFound):  # deleted since then
            run = await control.restart(engine, thread_id, run_id, checkpoint_id=checkpoint_id, actor=actor)
    if run is None:
        metadata = thread["metadata"]
        assistant = metadata.get("assistant_id") or metadata.get("graph_id")
        if not isinstance(assistant, str):
            raise HTTPException(409, "The thread has no assistant yet: run it once")
        run = await run_routes.start(gate, thread_id, NewRun(assistant=assistant, checkpoint_id=checkpoint_id))
    return done(
        request, _own(thread_id, tab="history"), "A new run goes on from that checkpoint, on a branch of its own"
    )


async def _readable(gate: Gate, thread_id: UUID) -> dict[str, Any]:
    await gate.thread("read", thread_id)
    return await threads.get(gate.engine, thread_id)


@router.post("/threads/{thread_id}/runs/{run_id}/cancel")
async def cancel_run(request: Request, thread_id: UpdateThread, run_id: RunId, engine: EngineDep) -> Response:
    """Cancel a run that has not ended."""
    await stop.cancel(engine, thread_id, run_id)
    return done(request, _own(thread_id, tab="runs"), "Run cancelled")


@router.post("/threads/{thread_id}/runs/cancel")
async def cancel_waiting(request: Request, thread_id: UpdateThread, engine: EngineDep, gate: GateDep) -> Response:
    """Cancel all runs that wait."""
    body = checked(schemas.BulkCancel, {"thread_id": str(thread_id), "status": "pending"})
    within = await gate.allow("threads", "update", {**body.model_dump(), "action": "interrupt"})
    count = await stop.cancel_many(engine, thread_id=thread_id, status="pending", within=within)
    return done(request, _own(thread_id, tab="runs"), f"{count} waiting run{'' if count == 1 else 's'} cancelled")
