"""The server itself: is it alive, what is it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import structlog
from fastapi import APIRouter, Response

from perdure.api import records
from perdure.api.answers import Json, error
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.custom import switched_off
from perdure.engine import assistants
from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

router = APIRouter(route_class=JsonRoute, tags=["system"])
meta = APIRouter(route_class=JsonRoute, tags=["meta"])


@router.head("/ok", include_in_schema=False)
@router.get("/ok", response_model=records.Ok, responses=records.UNREACHABLE)
@router.get("/", response_model=records.Ok, include_in_schema=False)
async def ok(engine: EngineDep, check_db: bool = False) -> Response:
    """Alive; with `check_db` only if the database answers too, else 503.

    Not asked where `http.disable_meta` is set: then anybody may ask, and learns no more than that it is alive.
    """
    if check_db and not switched_off(engine.registry, "disable_meta"):
        try:
            await assistants.count(engine)  # any query will do
        except Exception:  # whatever the database or the network raises
            log.exception("database_unreachable")
            return error(503, "The database does not answer")
    return Json({"ok": True, "services": {}})


def info_of(engine: Engine) -> dict[str, Any]:
    return {
        "version": version("perdure"),
        "langgraph_py_version": version("langgraph"),
        "flags": {"assistants": True, "crons": True, "langsmith": False, "langsmith_tracing_replicas": False},
        "host": {"kind": "self-hosted", "project_id": None, "host_revision_id": None, "revision_id": None,
                 "tenant_id": None},
        "simulated": engine.settings.simulated,
    }  # fmt: skip


@meta.get("/info", response_model=records.Info)
async def info(engine: EngineDep) -> Response:
    """Version and abilities of this server."""
    return Json(info_of(engine))
