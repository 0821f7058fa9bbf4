"""Assistants: configured graphs with versions, and what their graphs look like."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response

from perdure.api import records, schemas
from perdure.api.answers import Json, no_content, page
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.schemas import AssistantId
from perdure.engine import assistants
from perdure.engine.core import Engine
from perdure.engine.errors import GraphNotFound

router = APIRouter(prefix="/assistants", route_class=JsonRoute, tags=["assistants"])

MAX_XRAY = 1000


async def named(engine: Engine, assistant: str) -> dict[str, Any]:
    """The assistant of that id, or the default one of the graph of that name.

    Raises AssistantNotFound, GraphNotFound.
    """
    async with engine.pool.connection() as conn:
        return await assistants.resolve(engine, conn, assistant)


async def find(engine: Engine, assistant: str) -> dict[str, Any]:
    """As `named`, for paths that want an id: what is neither is a malformed id, 422."""
    try:
        return await named(engine, assistant)
    except GraphNotFound as exc:
        raise HTTPException(422, f"Invalid assistant ID: must be a UUID or a graph's name. {exc}") from exc


def settled(body: schemas.AssistantCreate | schemas.AssistantPatch) -> dict[str, Any]:
    """The fields that the client sent."""
    fields = body.given()
    if "config" in fields:
        fields["config"] = schemas.config_of(fields["config"])
    return fields


@router.post("", response_model=records.Assistant)
async def create_assistant(body: schemas.AssistantCreate, engine: EngineDep) -> Response:
    """Create an assistant."""
    return Json(await assistants.create(engine, **settled(body)))


@router.post("/search", response_model=list[records.Assistant])
async def search_assistants(body: schemas.AssistantSearch, engine: EngineDep) -> Response:
    """Find assistants."""
    rows, total = await assistants.search(
        engine,
        graph_id=body.graph_id,
        name=body.name,
        metadata=body.metadata,
        limit=body.limit,
        offset=body.offset,
        sort_by=body.sort_by,
        sort_order=body.sort_order,
    )
    return page(rows, total, offset=body.offset, select=body.select)


@router.post("/count", response_model=int)
async def count_assistants(body: schemas.AssistantCount, engine: EngineDep) -> Response:
    """How many assistants match."""
    count = await assistants.count(engine, graph_id=body.graph_id, name=body.name, metadata=body.metadata)
    return Json(count)


@router.get("/{assistant_id}", response_model=records.Assistant)
async def get_assistant(assistant_id: str, engine: EngineDep) -> Response:
    """One assistant, by its id or by the name of its graph."""
    return Json(await find(engine, assistant_id))


@router.patch("/{assistant_id}", response_model=records.Assistant)
async def patch_assistant(assistant_id: AssistantId, body: schemas.AssistantPatch, engine: EngineDep) -> Response:
    """Make a new version: metadata is merged at the top level, config and context are replaced."""
    return Json(await assistants.patch(engine, assistant_id, **settled(body)))


@router.delete("/{assistant_id}", status_code=204, response_class=Response)
async def delete_assistant(assistant_id: AssistantId, engine: EngineDep, delete_threads: bool = False) -> Response:
    """Delete an assistant, and with `delete_threads` the threads that belong to it."""
    await assistants.delete(engine, assistant_id, delete_threads=delete_threads)
    return no_content()


@router.get("/{assistant_id}/graph", response_model=records.Graph)
async def get_graph(assistant_id: str, engine: EngineDep, xray: Annotated[str, Query()] = "false") -> Response:
    """The graph to draw; `xray` (true, or how many levels) shows what is inside subgraphs."""
    assistant = await find(engine, assistant_id)
    return Json(await engine.registry.draw(assistant["graph_id"], _xray(xray)))


def _xray(text: str) -> bool | int:
    text = text.strip().lower()
    if text in ("true", "false", ""):
        return text == "true"
    if text.isdecimal() and text.isascii() and len(text) < 10:
        return min(int(text), MAX_XRAY)
    raise HTTPException(422, "xray: must be true, false or a number of levels")


@router.get("/{assistant_id}/schemas", response_model=records.Schemas)
async def get_schemas(assistant_id: str, engine: EngineDep) -> Response:
    """JSON schemas of the graph's input, output, state, config and context; null for what has none."""
    assistant = await find(engine, assistant_id)
    return Json(await engine.registry.schemas(assistant["graph_id"]))


@router.get("/{assistant_id}/subgraphs", response_model=dict[str, records.Schemas])
@router.get("/{assistant_id}/subgraphs/{namespace:path}", response_model=dict[str, records.Schemas])
async def get_subgraphs(
    assistant_id: str, engine: EngineDep, namespace: str | None = None, recurse: bool = False
) -> Response:
    """Schemas of the graph's subgraphs by namespace."""
    assistant = await find(engine, assistant_id)
    return Json(await engine.registry.subgraphs(assistant["graph_id"], namespace, recurse))


@router.post("/{assistant_id}/versions", response_model=list[records.Assistant])
async def list_versions(assistant_id: AssistantId, body: schemas.AssistantVersions, engine: EngineDep) -> Response:
    """The versions of an assistant, newest first."""
    rows = await assistants.versions(engine, assistant_id, limit=body.limit, offset=body.offset, metadata=body.metadata)
    return Json(rows)


@router.post("/{assistant_id}/latest", response_model=records.Assistant)
async def set_latest(assistant_id: AssistantId, body: schemas.AssistantLatest, engine: EngineDep) -> Response:
    """Make a version the current one, with everything that belongs to it."""
    return Json(await assistants.set_latest(engine, assistant_id, body.version))
