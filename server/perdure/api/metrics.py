"""`/metrics`, and the middleware that counts requests for it.

Without authentication, as scrapers expect: it holds no names but those of routes, graphs and steps.
"""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.api.answers import Json
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.engine import meters, metrics

router = APIRouter(route_class=JsonRoute, tags=["metrics"])

TEXT = "text/plain; version=0.0.4; charset=utf-8"
ROUTE = "perdure.route"
"""Scope key of a list: `NamedRoute`, which sees the route, tells it to `Metered`, which sees everything."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}, "application/json": {"schema": {}}}}},
)
async def get_metrics(engine: EngineDep, format: Literal["prometheus", "json"] = "prometheus") -> Response:
    """The queue (the same at every server) and this process, in Prometheus' text format or as JSON."""
    state = await metrics.queue(engine)
    if format == "json":
        return Json({"queue": state, "api": metrics.process()})
    return Response(metrics.text(state), media_type=TEXT)


class Metered:
    """ASGI middleware outside of everything: counts answers and measures the time until each begins."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        method = scope["method"] if scope["method"] in METHODS else meters.OTHER
        route: list[str] = []

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = route[0] if route else meters.OTHER
                meters.requests.labels(method, name, message["status"]).inc()
                meters.answer_seconds.labels(method, name).observe(time.perf_counter() - began)
            await send(message)

        await self.app({**scope, ROUTE: route}, receive, count)


class NamedRoute:
    """ASGI middleware inside of everything: the route's template, which the router leaves in the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names: list[str] | None = scope.get(ROUTE)

        async def name(message: Message) -> None:
            if names is not None and not names and (found := getattr(scope.get("route"), "path", None)):
                names.append(found)
            await send(message)

        await self.app(scope, receive, name)
