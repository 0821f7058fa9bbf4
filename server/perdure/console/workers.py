"""Workers: the processes that execute runs, and what each of them is doing."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from perdure.api import schemas
from perdure.api.context import EngineDep
from perdure.api.gate import GateDep
from perdure.console.pages import PageRoute, page
from perdure.console.permit import Admin
from perdure.engine.views.workers import list_workers

router = APIRouter(prefix="/console/workers", include_in_schema=False, route_class=PageRoute, tags=["console"])

MAX_SHOWN = 20  # runs of one worker; the others are a number


@router.get("")
async def show_workers(request: Request, engine: EngineDep, gate: GateDep, admin: Admin) -> Response:
    """All workers of this database; of their runs those that the caller may open."""
    _, within = await gate.search("threads", schemas.ThreadSearch())
    workers = await list_workers(engine, within=within)
    return page(
        request,
        "workers.html",
        title="Workers",
        live="all",
        workers=workers,
        used=sum(worker["used"] for worker in workers if worker["alive"]),
        slots=sum(worker["slots"] for worker in workers if worker["alive"]),
        max_shown=MAX_SHOWN,
        lease_seconds=engine.settings.lease_seconds,
    )
