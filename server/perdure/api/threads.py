"""Threads: create, find, change, copy, delete; their state and history; the stream of all their runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Header, HTTPException, Query, Response
from pydantic import BeforeValidator

from perdure.api import records, schemas
from perdure.api.answers import Json, no_content, paging, pick
from perdure.api.arrays import array
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep, LastEventId
from perdure.api.fields import ThreadId, one_or_list
from perdure.api.gate import DeleteThread, GateDep, ReadThread, UpdateThread
from perdure.api.schemas import CheckpointRef
from perdure.api.sse import event_stream, position, thread_frames
from perdure.engine import editing, events, prune, state, threads, valuesearch
from perdure.engine.access import kept
from perdure.engine.core import Engine
from perdure.engine.errors import GraphNotFound, ThreadNotFound
from perdure.engine.jsonable import jsonable
from perdure.engine.ttl import Ttl
from perdure.engine.views import storage

router = APIRouter(prefix="/threads", route_class=JsonRoute, tags=["threads"])

INDEX = re.compile(r"-?[0-9]{1,9}")
NO_GRAPH = "The thread was created without its supersteps: they need metadata.graph_id"

StreamModes = Annotated[list[Literal["run_modes", "lifecycle", "state_update"]], BeforeValidator(one_or_list), Query()]


async def _with_values(engine: Engine, thread: dict[str, Any]) -> dict[str, Any]:
    """A thread record with the `values` of its last state."""
    return {**thread, "values": await state.values(engine, thread)}


async def answer(engine: Engine, thread: dict[str, Any], *, ttl: bool = False) -> Response:
    full = await _with_values(engine, thread)
    if not ttl:
        full.pop("ttl", None)
    return Json(full)


@router.post("", response_model=records.Thread, responses=records.WITHOUT_PAST)
async def create_thread(body: schemas.ThreadCreate, engine: EngineDep, gate: GateDep) -> Response:
    """Create a thread; `supersteps` are replayed into checkpoints, as of the graph `metadata.graph_id`."""
    value = {"thread_id": body.thread_id, "metadata": body.metadata, "if_exists": body.if_exists}
    metadata, within = await gate.owned("threads", "create", value)
    if body.supersteps and body.thread_id and body.if_exists == "do_nothing":
        with suppress(ThreadNotFound):
            existing = await threads.get(engine, body.thread_id)
            if await gate.sees(body.thread_id, within):
                return await answer(engine, existing)
    thread = await threads.create(
        engine,
        thread_id=body.thread_id,
        metadata=metadata,
        if_exists=body.if_exists,
        ttl=_ttl(body.ttl),
        within=within,
    )
    if body.supersteps:
        if "graph_id" not in body.metadata:
            return Json({**thread, "values": None, "detail": NO_GRAPH}, 201)
        try:
            await editing.replay(engine, thread["thread_id"], [step.given() for step in body.supersteps])
        except Exception:  # it goes on to the client
            await threads.delete(engine, thread["thread_id"])  # a thread without its past is of no use
            raise
        thread = await threads.get(engine, thread["thread_id"])
    return await answer(engine, thread)


def _ttl(ttl: schemas.Ttl | None) -> Ttl | None:
    return Ttl(ttl.ttl, ttl.strategy) if ttl else None


@router.post("/search", response_model=list[records.FoundThread])
async def search_threads(body: schemas.ThreadSearch, engine: EngineDep, gate: GateDep) -> Response:
    """Find threads; `extract` adds single values of their state or metadata under names of your own."""
    for alias, path in body.extract.items():
        if path.split(".")[0] not in ("values", "metadata"):
            raise HTTPException(422, f"extract.{alias}: must begin with values or metadata")
    metadata, within = await gate.search("threads", body)
    rows, total = await valuesearch.search(
        engine,
        within=within,
        ids=body.ids,
        metadata=metadata,
        values=body.values,
        status=body.status,
        limit=body.limit,
        offset=body.offset,
        sort_by=body.sort_by,
        sort_order=body.sort_order,
    )
    return await array(_found(engine, body, rows), headers=paging(len(rows), total, offset=body.offset))


async def _found(engine: Engine, body: schemas.ThreadSearch, rows: list[dict[str, Any]]) -> AsyncGenerator[Any]:
    """Each thread with the fields that were asked for; the states of some are read at a time."""
    from_state = any(path.split(".")[0] == "values" for path in body.extract.values())
    complete = not body.select or "values" in body.select or from_state
    select = [*body.select, *(["extracted"] if body.extract else [])] if body.select else None
    for start in range(0, len(rows), state.STATES_AT_ONCE):
        some = rows[start : start + state.STATES_AT_ONCE]
        if complete:
            some = await asyncio.gather(*(_with_values(engine, row) for row in some))
        for one in some:
            if body.extract:
                one["extracted"] = {alias: _dig(one, path) for alias, path in body.extract.items()}
            # a field that is named is there before the first run, too
            yield pick({"interrupts": {}, **one}, select) if select else one


def _dig(row: dict[str, Any], path: str) -> Any:
    """The value at `values.messages[0].content`, None where there is none; objects are looked at as JSON."""
    head, *parts = path.replace("[", ".").replace("]", "").split(".")
    value: Any = jsonable(row.get(head))
    for part in parts:
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value).get(part)
        elif isinstance(value, list) and INDEX.fullmatch(part):
            items = cast("list[Any]", value)
            value = items[int(part)] if -len(items) <= int(part) < len(items) else None
        else:
            return None
    return value


@router.post("/count", response_model=int)
async def count_threads(body: schemas.ThreadCount, engine: EngineDep, gate: GateDep) -> Response:
    """How many threads match."""
    metadata, within = await gate.search("threads", body)
    _, found = await valuesearch.search(
        engine, metadata=metadata, values=body.values, status=body.status, limit=0, within=within
    )
    return Json(found)


@router.post("/prune", response_model=records.Pruned)
async def prune_threads(body: schemas.ThreadPrune, engine: EngineDep, gate: GateDep) -> Response:
    """Delete threads, or all but the newest checkpoint of each (409 if one is busy); counts those that existed."""
    within = await gate.allow("threads", "delete" if body.strategy == "delete" else "update", body.model_dump())
    return Json({"pruned_count": await prune.prune(engine, body.thread_ids, body.strategy, within=within)})


@router.get("/{thread_id}", response_model=records.Thread)
async def get_thread(
    thread_id: ReadThread,
    engine: EngineDep,
    include: Annotated[list[str], BeforeValidator(one_or_list), Query()] = [],  # noqa: B006
) -> Response:
    """One thread; `include=ttl` adds how long it lives: `{strategy, ttl_minutes, expires_at}`, or null."""
    return await answer(engine, await threads.get(engine, thread_id), ttl="ttl" in include)


@router.patch("/{thread_id}", response_model=records.Thread, responses=records.MINIMAL)
async def patch_thread(
    thread_id: ThreadId,
    body: schemas.ThreadPatch,
    engine: EngineDep,
    gate: GateDep,
    prefer: Annotated[str, Header(description="`return=minimal`: 204 without a body.")] = "",
) -> Response:
    """Merge metadata at the top level; set the time to live, which begins anew."""
    value = {"metadata": dict(body.metadata)}
    within = await gate.thread("update", thread_id, value)
    thread = await threads.patch(
        engine,
        thread_id,
        metadata=kept(value["metadata"], within),
        ttl=_ttl(body.ttl),
    )
    if "return=minimal" in prefer.replace(" ", "").lower():
        return no_content()
    return await answer(engine, thread)


@router.delete("/{thread_id}", status_code=204, response_class=Response)
async def delete_thread(thread_id: DeleteThread, engine: EngineDep) -> Response:
    """Delete a thread with everything that belongs to it; a running run is stopped."""
    await threads.delete(engine, thread_id)
    return no_content()


@router.post("/{thread_id}/copy", response_model=records.Thread)
async def copy_thread(thread_id: ReadThread, engine: EngineDep, gate: GateDep) -> Response:
    """A new thread with the same metadata and all checkpoints."""
    owns, _ = await gate.owned("threads", "create", {"thread_id": None})
    return await answer(engine, await threads.copy(engine, thread_id, metadata=owns))


@router.get("/{thread_id}/storage", response_model=records.Storage)
async def get_storage(thread_id: ReadThread, engine: EngineDep) -> Response:
    """How many bytes a thread takes up in the database."""
    return Json(await storage.storage(engine, thread_id))


async def _read(engine: Engine, thread_id: UUID, at: CheckpointRef, subgraphs: bool) -> Response:
    snapshot = await state.read(
        engine,
        thread_id,
        checkpoint_id=at.checkpoint_id or None,
        checkpoint_ns=at.checkpoint_ns,
        checkpoint_map=at.checkpoint_map or None,
        subgraphs=subgraphs,
    )
    return Json(snapshot)


@router.get("/{thread_id}/state", response_model=records.ThreadState)
async def get_state(
    thread_id: ReadThread, engine: EngineDep, subgraphs: bool = False, checkpoint_id: str | None = None
) -> Response:
    """The newest state of a thread."""
    return await _read(engine, thread_id, CheckpointRef(checkpoint_id=checkpoint_id), subgraphs)


@router.get("/{thread_id}/state/{checkpoint_id}", response_model=records.ThreadState)
async def get_state_at(
    thread_id: ReadThread, checkpoint_id: str, engine: EngineDep, subgraphs: bool = False
) -> Response:
    """The state at a checkpoint; an unknown checkpoint has an empty one."""
    return await _read(engine, thread_id, CheckpointRef(checkpoint_id=checkpoint_id), subgraphs)


@router.post("/{thread_id}/state/checkpoint", response_model=records.ThreadState)
async def post_state_at(thread_id: ReadThread, body: schemas.StateAt, engine: EngineDep) -> Response:
    """The state at a checkpoint of the graph or one of its subgraphs."""
    return await _read(engine, thread_id, body.checkpoint, body.subgraphs)


@router.post("/{thread_id}/state", response_model=records.StateUpdated)
async def update_state(thread_id: UpdateThread, body: schemas.StateUpdate, engine: EngineDep) -> Response:
    """Write values as if a node had; from an older checkpoint it forks. 409 while a run is active."""
    try:
        updated = await editing.update(
            engine,
            thread_id,
            values=body.values,
            as_node=body.as_node,
            checkpoint=(body.checkpoint.given() or None) if body.checkpoint else None,
            checkpoint_id=body.checkpoint_id or None,
        )
    except GraphNotFound as exc:  # the thread's graph has left langgraph.json
        raise HTTPException(400, str(exc)) from exc
    return Json(updated)


@router.get("/{thread_id}/history", response_model=list[records.ThreadState])
async def get_history(
    thread_id: ReadThread,
    engine: EngineDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1,
    before: str | None = None,
) -> Response:
    """States of a thread, newest first."""
    return await array(state.history(engine, thread_id, limit=limit, before=before or None))


@router.post("/{thread_id}/history", response_model=list[records.ThreadState])
async def post_history(thread_id: ReadThread, body: schemas.History, engine: EngineDep) -> Response:
    """States of a thread or of one of its subgraphs, newest first."""
    rows = state.history(
        engine,
        thread_id,
        limit=body.limit,
        before=body.before,
        metadata=body.metadata or None,
        checkpoint=(body.checkpoint.given() or None) if body.checkpoint else None,
    )
    return await array(rows)


@router.get("/{thread_id}/stream", responses=records.EVENT_STREAM)
async def stream_thread(
    thread_id: ReadThread,
    engine: EngineDep,
    last_event_id: LastEventId = None,
    stream_modes: StreamModes = [],  # noqa: B006
    stream_mode: StreamModes = [],  # noqa: B006
) -> Response:
    """Events of all runs of a thread, from now on or after `Last-Event-ID`; ends only with the thread."""
    after = position(last_event_id, of_thread=True)
    await threads.get(engine, thread_id)
    modes = {*stream_modes, *stream_mode} or {"run_modes"}
    return event_stream(thread_frames(events.follow_thread(engine, thread_id, after=after), modes=modes))
