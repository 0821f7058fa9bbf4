"""The HTTP API: the Agent Server's wire protocol, and what it lacks, over the engine.

Handlers hold no SQL and run no graph: they check a request, call one function of the engine
and answer with JSON or a stream of events. A request passes, in this order: `cors`, `errors.Guard`,
`body.JsonBody`, a handler; errors on the way become answers in `errors`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from perdure.api import agents, assistants, control, crons, errors, interrupts, protocol, runs, store, system, threads
from perdure.api.body import JsonBody
from perdure.api.cors import Cors, cors_options
from perdure.api.records import ERRORS
from perdure.config import Settings
from perdure.engine.core import Engine
from perdure.engine.registry import Registry

ROUTERS = (
    system.router,
    assistants.router,
    threads.router,
    crons.router,
    store.router,
    control.router,
    runs.router,
    protocol.router,
    agents.router,
    interrupts.router,
)


def create_app(settings: Settings, registry: Registry, dsn: str) -> FastAPI:
    """The ASGI app of one process; its lifespan opens the engine. The database must be migrated."""

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
        middleware=[
            Middleware(Cors, **cors_options(registry.config)),
            Middleware(errors.Guard),
            Middleware(JsonBody, max_bytes=settings.max_body_bytes, max_depth=settings.max_json_depth),
        ],
    )
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
