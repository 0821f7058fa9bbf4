"""The HTTP API: the Agent Server's wire protocol, and what it lacks, over the engine.

Handlers hold no SQL and run no graph: they check a request, call one function of the engine
and answer with JSON or a stream of events. A request passes, in this order: `cors`, `errors.Guard`,
`body.JsonBody`, `auth.Authentication`, a handler, which asks the `gate`; errors on the way become answers in `errors`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from perdure.api import (
    a2a,
    agentcard,
    agents,
    assistants,
    control,
    crons,
    custom,
    errors,
    interrupts,
    links,
    mcp,
    metrics,
    protocol,
    remote,
    runs,
    steps,
    store,
    system,
    threads,
)
from perdure.api.auth import Authentication, load
from perdure.api.body import JsonBody
from perdure.api.cors import Cors, cors_options
from perdure.api.records import ERRORS
from perdure.config import Settings
from perdure.engine.core import Engine
from perdure.engine.registry import Registry

ROUTERS = (
    system.router,
    system.meta,
    assistants.router,
    threads.router,
    crons.router,
    store.router,
    control.router,
    runs.router,
    remote.router,
    steps.router,
    protocol.router,
    agents.listing,
    agents.router,
    links.router,
    interrupts.router,
    mcp.router,
    a2a.router,
    agentcard.router,
    metrics.router,
)


def create_app(settings: Settings, registry: Registry, dsn: str) -> FastAPI:
    """The ASGI app of one process; its lifespan opens the engine. The database must be migrated.

    Raises ConfigError for an Auth object that cannot be used.
    """
    auth = load(settings, registry)
    asking = Middleware(Authentication, auth=auth, limit=settings.rate_limit_per_minute)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with Engine.open(settings, registry, dsn) as engine:
            app.state.engine = engine
            yield

    app = FastAPI(
        title="perdure",
        version=version("perdure"),
        summary="Durable agents on LangGraph and PostgreSQL",
        lifespan=lifespan,
        responses=ERRORS,
        redoc_url=None,
        openapi_url=None if custom.switched_off(registry, "disable_meta") else "/openapi.json",
        middleware=[
            Middleware(metrics.Metered),
            Middleware(Cors, **cors_options(registry.config)),
            Middleware(errors.Guard),
            Middleware(JsonBody, max_bytes=settings.max_body_bytes, max_depth=settings.max_json_depth),
            *([asking] if auth or settings.rate_limit_per_minute else []),
            Middleware(metrics.NamedRoute),
        ],
    )
    app.state.auth = auth
    app.state.configurable_header = custom.configurable_header(registry)
    errors.install(app)
    left_out = custom.disabled(registry)
    for router in ROUTERS:
        if not left_out.intersection(router.tags):
            app.include_router(router)
    return app
