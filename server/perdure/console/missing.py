"""Any other path below /console: a page that says so. The last router, because it takes what others leave."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from perdure.api.gate import GateDep
from perdure.console.pages import PageRoute, problem

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])


@router.get("/{path:path}")
async def show_missing(request: Request, path: str, gate: GateDep) -> Response:
    """404, for people who know the menu."""
    return problem(request, 404, f"There is no page /console/{path[:100]}")
