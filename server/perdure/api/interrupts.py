"""The inbox: questions that agents have asked people, and the answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response

from perdure.api import fields, records, schemas
from perdure.api.answers import Json, location
from perdure.api.body import JsonRoute, any_json
from perdure.api.context import EngineDep
from perdure.api.gate import Gate, GateDep
from perdure.engine import interrupts
from perdure.engine.errors import QuestionNotFound
from perdure.engine.views import questions

router = APIRouter(prefix="/interrupts", route_class=JsonRoute, tags=["interrupts"])

Status = Literal["open", "answered", "rejected", "timed_out", "superseded"]
ThreadFilter = Annotated[fields.ThreadId | None, Query()]


@router.get("", response_model=list[records.Question])
async def search_interrupts(
    engine: EngineDep,
    gate: GateDep,
    status: Status | None = None,
    agent: str | None = None,
    thread_id: ThreadFilter = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(description="Token of the last row of the page before.")] = None,
) -> Response:
    """Questions, newest first."""
    about: dict[str, Any] = {"status": status, "agent": agent or None, "thread_id": thread_id, "limit": limit}
    within = await gate.allow("threads", "search", {**about, "offset": 0})
    rows = await questions.search(engine, **about, cursor=cursor or None, within=within)
    return Json(rows)


@router.get("/{token}", response_model=records.Question)
async def get_interrupt(token: str, gate: GateDep) -> Response:
    """One question."""
    return Json(await asked(gate, token, "read"))


async def asked(gate: Gate, token: str, action: Literal["read", "create_run"]) -> dict[str, Any]:
    """A question of a thread that the caller may see. Raises QuestionNotFound.

    The run that goes on with an answer acts for whom the one that asked did.
    """
    question = await interrupts.get(gate.engine, token)
    within = await gate.allow("threads", action, {"thread_id": question["thread_id"], "run_id": question["run_id"]})
    if not await gate.sees(question["thread_id"], within):
        raise QuestionNotFound("No question has this token")
    return question


def _resumed(run: dict[str, Any]) -> Response:
    return Json(run, 202, headers=location(run["thread_id"], run["run_id"]))


@router.post("/{token}/resolve", status_code=202, response_model=records.Run, openapi_extra=records.ANY_BODY)
async def resolve_interrupt(
    token: str, engine: EngineDep, value: Annotated[Any, Depends(any_json)], gate: GateDep
) -> Response:
    """Answer a question with any JSON value. The first answer wins; a later one is a 409."""
    await asked(gate, token, "create_run")
    return _resumed(await interrupts.resolve(engine, token, value, by=gate.identity or None))


@router.post("/{token}/reject", status_code=202, response_model=records.Run)
async def reject_interrupt(
    token: str, engine: EngineDep, gate: GateDep, body: schemas.Rejection | None = None
) -> Response:
    """Answer a question with "no"."""
    await asked(gate, token, "create_run")
    reason = body.reason if body else None
    return _resumed(await interrupts.reject(engine, token, reason, by=gate.identity or None))
