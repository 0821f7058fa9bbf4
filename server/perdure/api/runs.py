"""Runs: create, stream, wait for, join, look at, cancel, delete.

Each handler checks the request, calls one function of the engine and answers. Stream, wait,
join and background are the same path, cut at different places: enqueue, then follow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, HTTPException, Query, Response
from pydantic import BeforeValidator

from perdure.api import fields, records, schemas
from perdure.api.answers import Json, location, no_content, pick
from perdure.api.assistants import named
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep, IdempotencyKey, LastEventId
from perdure.api.fields import RunId, ThreadId
from perdure.api.gate import DeleteThread, Gate, GateDep, ReadThread, UpdateThread
from perdure.api.schemas import RunCreate, StatelessRunCreate
from perdure.api.sse import Gone, event_stream, position, run_frames, slow_json
from perdure.api.webhook import check_webhook
from perdure.engine import events, finding, runs, stop
from perdure.engine.core import Engine
from perdure.engine.errors import GraphNotFound, InvalidInput, RunFinished, RunNotFound
from perdure.engine.newrun import NewRun

router = APIRouter(route_class=JsonRoute, tags=["runs"])

FINAL = {"success", "error", "timeout", "interrupted"}
MAX_BATCH = 1000
SERVER_OWNED = {
    "thread_id",
    "run_id",
    "assistant_id",
    "graph_id",
    "checkpoint_id",
    "checkpoint_ns",
    "checkpoint_map",
    "user_id",
}
"""Keys of `configurable` that name things of the server: they are not the author's context."""

Modes = Annotated[list[fields.StreamMode], BeforeValidator(fields.one_or_list), Query()]


def new_run(body: RunCreate, engine: Engine, idempotency_key: str | None) -> NewRun:
    """What the engine is asked to do.

    Raises InvalidInput for a refused webhook, and (400) for a `context` beside a `configurable` of the
    author's: they mean the same, so giving one fills the other.
    """
    config = schemas.config_of(body.config)
    authors = {k: v for k, v in config.get("configurable", {}).items() if k not in SERVER_OWNED}
    context = body.context or authors
    if body.context and authors:
        raise InvalidInput("", "Cannot specify both configurable and context; give one", status=400)
    if body.context:
        config["configurable"] = {**config.get("configurable", {}), **body.context}
    return NewRun(
        assistant=body.assistant_id,
        input=body.input,
        command=(body.command.given() or None) if body.command else None,
        metadata=body.metadata,
        config=config,
        context=context or None,
        checkpoint=(body.checkpoint.given() or None) if body.checkpoint else None,
        checkpoint_id=body.checkpoint_id or None,
        stream_mode=list(dict.fromkeys(body.stream_mode)) or ["values"],
        stream_subgraphs=body.stream_subgraphs,
        stream_resumable=body.stream_resumable,
        interrupt_before=body.interrupt_before,
        interrupt_after=body.interrupt_after,
        multitask_strategy=body.multitask_strategy,
        if_not_exists=body.if_not_exists,
        on_disconnect=body.on_disconnect,
        on_completion=body.on_completion if isinstance(body, StatelessRunCreate) else "delete",
        after_seconds=body.after_seconds,
        max_duration=body.max_duration,
        webhook=check_webhook(body.webhook, engine.registry.config) if body.webhook else None,
        durability="exit" if body.checkpoint_during is False else body.durability,
        idempotency_key=idempotency_key,
    )


@contextmanager
def graph_names_are_input() -> Iterator[None]:
    """An unknown graph name is a 422 on run creation (WIRE: errors before start), not a 404."""
    try:
        yield
    except GraphNotFound as exc:
        raise HTTPException(422, str(exc)) from exc


async def start(gate: Gate, thread_id: UUID | None, new: NewRun) -> dict[str, Any]:
    """Enqueue a run for the caller."""
    new = await gate.starting(new, thread_id)
    with graph_names_are_input():
        return await runs.enqueue(gate.engine, thread_id, new)


def cancelling(engine: Engine, run: dict[str, Any], wanted: bool) -> Gone | None:
    """What to do when the client goes away: cancel the run, if that was asked for."""
    if not wanted:
        return None

    async def cancel() -> None:
        with suppress(RunFinished, RunNotFound):  # it ended in the same moment
            await stop.cancel(engine, run["thread_id"], run["run_id"], "interrupt")

    return cancel


def waiting(engine: Engine, run: dict[str, Any], *, cancel: bool = False) -> Response:
    """The final values of a run, as soon as there are any."""
    thread_id, run_id = run["thread_id"], run["run_id"]
    return slow_json(
        events.ended(engine, thread_id, run_id),
        lambda: runs.outcome(engine, thread_id, run_id),
        thread_id=thread_id,
        run_id=run_id,
        on_gone=cancelling(engine, run, cancel),
    )


def streaming(engine: Engine, run: dict[str, Any], new: NewRun) -> Response:
    """The events of a run that was just created."""
    thread_id, run_id = run["thread_id"], run["run_id"]
    return event_stream(
        run_frames(events.follow(engine, thread_id, run_id), ids=new.stream_resumable),
        headers=location(thread_id, run_id, "stream"),
        on_gone=cancelling(engine, run, new.on_disconnect == "cancel"),
    )


def created(run: dict[str, Any]) -> Response:
    return Json(run, headers=location(run["thread_id"], run["run_id"]))


@router.post("/threads/{thread_id}/runs", response_model=records.Run)
async def create_run(
    thread_id: ThreadId, body: RunCreate, engine: EngineDep, key: IdempotencyKey, gate: GateDep
) -> Response:
    """Start a run in the background."""
    return created(await start(gate, thread_id, new_run(body, engine, key)))


@router.post("/threads/{thread_id}/runs/stream", responses=records.EVENT_STREAM)
async def stream_run(
    thread_id: ThreadId, body: RunCreate, engine: EngineDep, key: IdempotencyKey, gate: GateDep
) -> Response:
    """Start a run and stream its events."""
    new = new_run(body, engine, key)
    return streaming(engine, await start(gate, thread_id, new), new)


@router.post("/threads/{thread_id}/runs/wait", responses=records.VALUES)
async def wait_run(
    thread_id: ThreadId, body: RunCreate, engine: EngineDep, key: IdempotencyKey, gate: GateDep
) -> Response:
    """Start a run and answer its final values; a failed run is a 200 with `__error__`."""
    run = await start(gate, thread_id, new_run(body, engine, key))
    return waiting(engine, run, cancel=body.on_disconnect == "cancel")


@router.post("/runs", response_model=records.Run)
async def create_stateless_run(
    body: StatelessRunCreate, engine: EngineDep, key: IdempotencyKey, gate: GateDep
) -> Response:
    """Start a run on a thread of its own, in the background."""
    return created(await start(gate, None, new_run(body, engine, key)))


@router.post("/runs/stream", responses=records.EVENT_STREAM)
async def stream_stateless_run(
    body: StatelessRunCreate, engine: EngineDep, key: IdempotencyKey, gate: GateDep
) -> Response:
    """Start a run on a thread of its own and stream its events."""
    new = new_run(body, engine, key)
    return streaming(engine, await start(gate, None, new), new)


@router.post("/runs/wait", responses=records.VALUES)
async def wait_stateless_run(
    body: StatelessRunCreate, engine: EngineDep, key: IdempotencyKey, gate: GateDep
) -> Response:
    """Start a run on a thread of its own and answer its final values."""
    run = await start(gate, None, new_run(body, engine, key))
    return waiting(engine, run, cancel=body.on_disconnect == "cancel")


@router.post("/runs/batch", response_model=list[records.Run])
async def create_run_batch(
    body: Annotated[list[StatelessRunCreate], Body(max_length=MAX_BATCH)], engine: EngineDep, gate: GateDep
) -> Response:
    """Start several stateless runs. The request is checked as a whole before the first one starts."""
    batch = [new_run(item, engine, None) for item in body]
    for name in {new.assistant for new in batch}:
        with graph_names_are_input():
            await named(engine, name, await gate.usable(name))
    return Json([await start(gate, None, new) for new in batch])


@router.post("/runs/cancel", status_code=204, response_class=Response)
async def cancel_runs(
    body: schemas.BulkCancel, engine: EngineDep, gate: GateDep, action: fields.CancelAction = "interrupt"
) -> Response:
    """Cancel several runs of a thread, or all of a status; 404 if none of the ids is an active run."""
    within = await gate.allow("threads", "update", {**body.model_dump(), "action": action})
    count = await stop.cancel_many(
        engine, thread_id=body.thread_id, run_ids=body.run_ids or None, status=body.status, action=action, within=within
    )
    if not count and body.status is None:
        raise RunNotFound("None of the run IDs is a pending or running run of this thread")
    return no_content()


@router.get("/threads/{thread_id}/runs", response_model=list[records.FoundRun])
async def list_runs(
    thread_id: ReadThread,
    engine: EngineDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
    offset: Annotated[int, Query(ge=0, le=fields.MAX_OFFSET)] = 0,
    status: str | None = None,
    select: Annotated[list[fields.RunField], BeforeValidator(fields.one_or_list), Query()] = [],  # noqa: B006
) -> Response:
    """The runs of a thread, newest first; a `status` that does not exist matches nothing."""
    rows = await finding.list_runs(engine, thread_id, status=status, limit=limit, offset=offset)
    return Json([pick(row, select) for row in rows])


@router.get("/threads/{thread_id}/runs/{run_id}", response_model=records.Run)
async def get_run(thread_id: ReadThread, run_id: RunId, engine: EngineDep) -> Response:
    """One run."""
    return Json(await runs.get(engine, thread_id, run_id))


@router.delete("/threads/{thread_id}/runs/{run_id}", status_code=204, response_class=Response)
async def delete_run(thread_id: DeleteThread, run_id: RunId, engine: EngineDep) -> Response:
    """Delete a run; its checkpoints stay."""
    await runs.delete(engine, thread_id, run_id)
    return no_content()


@router.get("/threads/{thread_id}/runs/{run_id}/join", responses=records.VALUES)
async def join_run(
    thread_id: ReadThread, run_id: RunId, engine: EngineDep, gate: GateDep, cancel_on_disconnect: bool = False
) -> Response:
    """Wait for a run; answers the thread's current values, any number of times."""
    if cancel_on_disconnect:
        await gate.thread("update", thread_id)
    run = await runs.get(engine, thread_id, run_id)
    return waiting(engine, run, cancel=cancel_on_disconnect)


@router.get("/threads/{thread_id}/runs/{run_id}/stream", responses=records.EVENT_STREAM)
async def join_run_stream(
    thread_id: ReadThread,
    run_id: RunId,
    engine: EngineDep,
    gate: GateDep,
    last_event_id: LastEventId = None,
    stream_mode: Modes = [],  # noqa: B006
    cancel_on_disconnect: bool = False,
) -> Response:
    """The events of a run: those after `Last-Event-ID`, or what is produced from now on.

    Who joins before the run has started misses nothing. The events of a run that has ended can be
    read again only if it was created with `stream_resumable`.
    """
    if cancel_on_disconnect:
        await gate.thread("update", thread_id)
    after = position(last_event_id)
    run = await runs.get(engine, thread_id, run_id)
    resumable = bool(run["kwargs"].get("resumable"))
    if run["status"] in FINAL and not resumable:
        after = None
    started = run["status"] != "pending" or run.get("attempt", 0) > 0
    if after is None and started:
        after = await events.position(engine, thread_id)
    return event_stream(
        run_frames(events.follow(engine, thread_id, run_id, after=after), ids=resumable, modes=stream_mode),
        headers=location(thread_id, run_id, "stream"),
        on_gone=cancelling(engine, run, cancel_on_disconnect),
    )


@router.post(
    "/threads/{thread_id}/runs/{run_id}/cancel", status_code=202, response_class=Response, responses=records.STOPPED
)
async def cancel_run(
    thread_id: UpdateThread,
    run_id: RunId,
    engine: EngineDep,
    wait: bool = False,
    action: fields.CancelAction = "interrupt",
) -> Response:
    """Cancel a run: 202 at once, or 200 when it has stopped. Finished and unknown runs are a 404."""
    try:
        await stop.cancel(engine, thread_id, run_id, action)
    except RunFinished as exc:
        raise RunNotFound(str(exc)) from exc
    if not wait:
        return Response(status_code=202)

    async def stopped() -> AsyncIterator[None]:
        with suppress(RunNotFound):  # a rollback deletes it
            async for _ in events.ended(engine, thread_id, run_id):
                yield None

    async def nothing() -> dict[str, Any]:
        return {}

    return slow_json(stopped(), nothing, thread_id=thread_id, run_id=run_id)
