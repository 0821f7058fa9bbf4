"""The console: web pages at `/console`, rendered here and served by the process that serves the API.

Pages call the same engine functions as the API, ask the same `gate`, and change things by forms that any
browser can send; htmx only saves reloading. All that a page shows comes from the database, and all that
the person has chosen stands in the URL, so that any replica can answer any request.
A request passes `session.Session` (cookie → header), the API's middleware, and one function of a page
module, which calls `pages.page`.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from perdure.api.custom import disabled
from perdure.console import (
    agents,
    doctor,
    inbox,
    keys,
    live,
    login,
    missing,
    oidc,
    overview,
    playground,
    run,
    runs,
    schedules,
    sql,
    store,
    thread,
    threadforms,
    threads,
    workers,
)
from perdure.console.session import Session
from perdure.engine.registry import Registry

TAG = "console"
STATIC = Path(__file__).parent / "static"

ROUTERS = (
    login.router,
    oidc.router,
    live.router,
    overview.router,
    agents.router,
    playground.router,
    inbox.router,
    runs.router,
    run.router,
    schedules.router,
    workers.router,
    keys.router,
    sql.router,
    doctor.router,
    threads.router,
    thread.router,
    threadforms.router,
    store.router,
)


def install(app: FastAPI, registry: Registry) -> None:
    """Add the pages, their files and the session to the app of the API, unless langgraph.json leaves them out."""
    if TAG in disabled(registry):
        return
    app.mount("/console/static", StaticFiles(directory=STATIC), name="console-static")
    for router in (*ROUTERS, missing.router):
        app.include_router(router)
    app.add_middleware(Session)
