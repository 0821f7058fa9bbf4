"""Runs that another server has started here, and reports about runs that we have started there.

The other side asks for the outcome of its run until there is one, and says when it needs it no
more. What it reports to us is only a nudge, see `perdure.engine.remote`.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from perdure.api import records
from perdure.api.answers import Json, no_content
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.fields import RunId
from perdure.api.gate import ReadThread, UpdateThread
from perdure.engine import children, orphans, remote

router = APIRouter(tags=["remote"], route_class=JsonRoute)


@router.get("/threads/{thread_id}/runs/{run_id}/outcome", response_model=records.Outcome)
async def get_outcome(thread_id: ReadThread, run_id: RunId, engine: EngineDep) -> Response:
    """What has become of a run, at once; while it asks a person it is `running`. An unknown one is `gone`."""
    return Json(await children.look(engine, thread_id, run_id))


@router.delete("/threads/{thread_id}/runs/{run_id}/outcome", status_code=202, response_class=Response)
async def give_up_outcome(thread_id: UpdateThread, run_id: RunId, engine: EngineDep) -> Response:
    """Nobody waits for a run any more: cancel it, or withdraw what it asks. A run that has ended stays as it is."""
    await orphans.abandon(engine, thread_id, run_id)
    return Response(status_code=202)


@router.post("/callbacks/{token}", status_code=204, response_class=Response, openapi_extra=records.ANY_BODY)
async def call_back(token: str, request: Request, engine: EngineDep) -> Response:
    """The webhook of a run that `agent(…, server=…)` has started; 410 once nobody waits for it."""
    await remote.called_back(engine, token, await request.body(), request.headers)
    return no_content()
