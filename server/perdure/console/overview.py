"""The first page: how the agents are doing, and what waits for somebody."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from perdure.api.context import EngineDep
from perdure.api.gate import GateDep
from perdure.console.pages import PageRoute, page
from perdure.engine.views import figures

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

SPANS = {1: "hour", 6: "6 hours", 24: "24 hours", 168: "7 days"}
Hours = Annotated[float, Query(gt=0, le=figures.MAX_HOURS)]

BAR, HEIGHT = 10, 100
"""Units of the chart: of one bucket across, and of the highest bar."""


@router.get("/")
async def show_overview(request: Request, engine: EngineDep, gate: GateDep, hours: Hours = 1) -> Response:
    """Figures of the last hours."""
    within = await gate.allow("threads", "search", {"metadata": {}, "limit": figures.NEWEST, "offset": 0})
    found = await figures.overview(engine, within=within, hours=hours)
    return page(
        request,
        "overview.html",
        title="Overview",
        live="all",
        pace=5,  # half a second of database time for 20,000 runs
        figures=found,
        chart=chart(found["buckets"]),
        hours=hours,
        spans=SPANS,
        span=SPANS.get(int(hours), f"{hours:g} hours") if hours == int(hours) else f"{hours:g} hours",
        graphs=set(engine.registry.graphs),
        newest=figures.NEWEST,
        any=bool(found["total"]["model_calls"] or _count(found["total"])),
    )


def _count(total: Mapping[str, Any]) -> int:
    return sum(total["active"].values()) + sum(total["ended"].values())


def chart(buckets: list[dict[str, Any]]) -> dict[str, Any]:
    """Bars from the bottom up, good ones first, and what they say in words.

    `bars`: `{x, y, height, kind, title}` in the units above; `highest`: the number that the highest bar stands for.
    """
    highest = max((sum(_parts(one).values()) for one in buckets), default=0)
    bars: list[dict[str, Any]] = []
    for n, bucket in enumerate(buckets):
        below = 0.0
        title = f"{bucket['at']:%d %b %H:%M}: " + ", ".join(f"{count} {kind}" for kind, count in _parts(bucket).items())
        for kind, count in _parts(bucket).items():
            if count:
                height = HEIGHT * count / highest
                y = HEIGHT - below - height
                bars.append({"x": n * BAR, "y": y, "height": height, "kind": kind, "title": title})
                below += height
    sums = {kind: sum(_parts(one)[kind] for one in buckets) for kind in ("success", "error", "cancelled")}
    busiest: datetime | None = max(buckets, key=lambda one: sum(_parts(one).values()))["at"] if highest else None
    text = (
        f"Runs that ended: {sums['success']} with success, {sums['error']} with an error, {sums['cancelled']} cancelled"
    )
    if busiest is not None:
        text += f"; most at {busiest:%H:%M} UTC, {highest}"
    return {
        "bars": bars,
        "width": max(1, len(buckets)) * BAR,
        "height": HEIGHT,
        "bar": BAR,
        "highest": highest,
        "text": text,
    }


def _parts(bucket: Mapping[str, Any]) -> dict[str, int]:
    return {"success": bucket["success"], "error": bucket["error"], "cancelled": bucket["other"]}
