"""The timeline of a run over HTTP: steps, waits, child runs and questions, to look at while it works or later."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from perdure.api import records
from perdure.api.answers import Json
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.fields import RunId
from perdure.api.gate import ReadThread
from perdure.engine.views import timeline

router = APIRouter(tags=["runs"], route_class=JsonRoute)


@router.get("/threads/{thread_id}/runs/{run_id}/steps", response_model=list[records.Step])
async def list_steps(
    thread_id: ReadThread,
    run_id: RunId,
    engine: EngineDep,
    values: bool = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=timeline.MAX_ROWS)] = 0,
) -> Response:
    """What a run has done, in the order in which it began; `X-Pagination-Next` tells that there is more.

    `values` adds results and questions, each cut after some 2,000 characters, and what steps were given, in short.
    """
    entries, more = await timeline.read(engine, thread_id, run_id, limit=limit, offset=offset, values=values)
    return Json(entries, headers={"X-Pagination-Next": str(offset + limit)} if more else None)
