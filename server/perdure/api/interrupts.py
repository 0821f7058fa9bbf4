"""The inbox: questions that agents have asked people, and the answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response

from perdure.api import records, schemas
from perdure.api.answers import Json, location
from perdure.api.body import JsonRoute, any_json
from perdure.api.context import EngineDep
from perdure.engine import interrupts

router = APIRouter(prefix="/interrupts", route_class=JsonRoute, tags=["interrupts"])

Status = Literal["open", "answered", "rejected", "timed_out", "superseded"]
ThreadFilter = Annotated[schemas.ThreadId | None, Query()]


@router.get("", response_model=list[records.Question])
async def search_interrupts(
    engine: EngineDep,
    status: Status | None = None,
    agent: str | None = None,
    thread_id: ThreadFilter = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(description="Token of the last row of the page before.")] = None,
) -> Response:
    """Questions, newest first."""
    rows = await interrupts.search(
        engine, status=status, agent=agent or None, thread_id=thread_id, limit=limit, cursor=cursor or None
    )
    return Json(rows)


@router.get("/{token}", response_model=records.Question)
async def get_interrupt(token: str, engine: EngineDep) -> Response:
    """One question."""
    return Json(await interrupts.get(engine, token))


def _resumed(run: dict[str, Any]) -> Response:
    return Json(run, 202, headers=location(run["thread_id"], run["run_id"]))


@router.post("/{token}/resolve", status_code=202, response_model=records.Run, openapi_extra=records.ANY_BODY)
async def resolve_interrupt(token: str, engine: EngineDep, value: Annotated[Any, Depends(any_json)]) -> Response:
    """Answer a question with any JSON value. The first answer wins; a later one is a 409."""
    return _resumed(await interrupts.resolve(engine, token, value, by=None))


@router.post("/{token}/reject", status_code=202, response_model=records.Run)
async def reject_interrupt(token: str, engine: EngineDep, body: schemas.Rejection | None = None) -> Response:
    """Answer a question with "no"."""
    return _resumed(await interrupts.reject(engine, token, body.reason if body else None, by=None))
