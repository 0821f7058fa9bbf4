"""What a person does to runs and LangGraph's API has no call for: pause, resume, retry, restart, kill, steer, find."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, Field
from starlette.responses import Response

from perdure.api import records
from perdure.api.answers import Json
from perdure.api.body import JsonRoute, any_json
from perdure.api.context import EngineDep
from perdure.api.fields import RunId, ThreadId
from perdure.api.gate import GateDep, UpdateThread
from perdure.engine import control, finding, mailbox, runs

router = APIRouter(tags=["control"], route_class=JsonRoute)

Status = Literal["pending", "running", "suspended", "paused", "success", "error", "timeout", "interrupted"]


class Restart(BaseModel):
    """From where: nothing for the input of the run, or a checkpoint of its thread."""

    checkpoint_id: Annotated[str, Field(max_length=100)] | None = None


class RunSearch(BaseModel):
    """Filters; all that are given must hold."""

    status: list[Status] | None = None
    agent: Annotated[str, Field(max_length=200)] | None = None
    thread_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: Annotated[str, Field(max_length=1000)] | None = None
    cursor: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=1000, strict=True)] = 100


class Bulk(BaseModel):
    """One command for many runs."""

    action: control.Command
    run_ids: Annotated[list[UUID], Field(max_length=1000)]


class Done(BaseModel):
    """How many runs obeyed, and how many could not."""

    done: int
    failed: int


class Steered(BaseModel):
    """The run that will read the message."""

    run_id: UUID


@router.post("/threads/{thread_id}/runs/{run_id}/pause", status_code=202, response_model=records.Run)
async def pause_run(thread_id: UpdateThread, run_id: RunId, engine: EngineDep) -> Response:
    """Stop executing a run until it is resumed; the runs behind it wait."""
    return Json(await control.pause(engine, thread_id, run_id), 202)


@router.post("/threads/{thread_id}/runs/{run_id}/resume", status_code=202, response_model=records.Run)
async def resume_run(thread_id: UpdateThread, run_id: RunId, engine: EngineDep) -> Response:
    """Let a paused run go on, with the code that is there now."""
    return Json(await control.resume(engine, thread_id, run_id), 202)


@router.post("/threads/{thread_id}/runs/{run_id}/retry", status_code=202, response_model=records.Run)
async def retry_run(thread_id: UpdateThread, run_id: RunId, engine: EngineDep) -> Response:
    """Try a failed attempt again now."""
    return Json(await control.retry(engine, thread_id, run_id), 202)


@router.post("/threads/{thread_id}/runs/{run_id}/restart", status_code=202, response_model=records.Run)
async def restart_run(
    thread_id: ThreadId,
    run_id: RunId,
    engine: EngineDep,
    gate: GateDep,
    given: Annotated[Restart | None, Body()] = None,
) -> Response:
    """A new run with the input of an ended one, or from a checkpoint on."""
    actor = await gate.acting(thread_id, {"run_id": run_id, "if_not_exists": "reject"})
    checkpoint_id = given.checkpoint_id if given else None
    return Json(await control.restart(engine, thread_id, run_id, checkpoint_id=checkpoint_id, actor=actor), 202)


@router.post("/threads/{thread_id}/runs/{run_id}/kill", status_code=202, response_model=records.Run)
async def kill_run(thread_id: UpdateThread, run_id: RunId, engine: EngineDep) -> Response:
    """Cancel a run without undoing anything."""
    await control.kill(engine, thread_id, run_id)
    return Json(await runs.get(engine, thread_id, run_id), 202)


@router.post("/threads/{thread_id}/messages", status_code=202, response_model=Steered, openapi_extra=records.ANY_BODY)
async def send_message(
    thread_id: UpdateThread, message: Annotated[Any, Depends(any_json)], engine: EngineDep
) -> Response:
    """Put a message before the run that the thread is executing; its next `mailbox()` reads it."""
    return Json({"run_id": await mailbox.send(engine, thread_id, message)}, 202)


@router.post("/runs/search", response_model=list[records.Run])
async def search_runs(given: RunSearch, engine: EngineDep, gate: GateDep) -> Response:
    """Find runs over all threads, newest first."""
    _, within = await gate.search("threads", given)
    return Json(await finding.search(engine, **given.model_dump(), within=within))


@router.post("/runs/bulk", response_model=Done)
async def bulk_runs(given: Bulk, engine: EngineDep, gate: GateDep) -> Response:
    """Do one thing to many runs."""
    within = await gate.allow("threads", "delete" if given.action == "delete" else "update", given.model_dump())
    return Json(await control.bulk(engine, given.action, given.run_ids, within=within))
