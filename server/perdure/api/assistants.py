"""Assistants: configured graphs with versions, and what their graphs look like."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response

from perdure.api import records, schemas
from perdure.api.answers import Json, no_content, page
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.fields import AssistantId
from perdure.api.gate import DeleteAssistant, Gate, GateDep, ReadAssistant
from perdure.engine import assistants, versions
from perdure.engine.access import Within, kept
from perdure.engine.core import Engine
from perdure.engine.errors import GraphNotFound

router = APIRouter(prefix="/assistants", route_class=JsonRoute, tags=["assistants"])

MAX_XRAY = 1000


async def named(engine: Engine, assistant: str, within: Within = None) -> dict[str, Any]:
    """The assistant of that id, or the default one of the graph of that name; `within`: see `assistants.resolve`.

    Raises AssistantNotFound, GraphNotFound.
    """
    async with engine.pool.connection() as conn:
        return await assistants.resolve(engine, conn, assistant, within=within)


async def find(gate: Gate, assistant: str) -> dict[str, Any]:
    """What `named` finds, if the caller may read it, for paths that want an id: what is neither is malformed, 422."""
    within = await gate.allow("assistants", "read", {"assistant_id": assistant})
    try:
        return await named(gate.engine, assistant, within)
    except GraphNotFound as exc:
        raise HTTPException(422, f"Invalid assistant ID: must be a UUID or a graph's name. {exc}") from exc


def settled(body: schemas.AssistantCreate | schemas.AssistantPatch) -> dict[str, Any]:
    """The fields that the client sent."""
    fields = body.given()
    if "config" in fields:
        fields["config"] = schemas.config_of(fields["config"])
    return fields


@router.post("", response_model=records.Assistant)
async def create_assistant(body: schemas.AssistantCreate, engine: EngineDep, gate: GateDep) -> Response:
    """Create an assistant."""
    fields = settled(body)
    fields["metadata"], within = await gate.owned("assistants", "create", fields)
    return Json(await assistants.create(engine, **fields, within=within))


@router.post("/search", response_model=list[records.FoundAssistant])
async def search_assistants(body: schemas.AssistantSearch, engine: EngineDep, gate: GateDep) -> Response:
    """Find assistants."""
    metadata, within = await gate.search("assistants", body)
    rows, total = await assistants.search(
        engine,
        within=within,
        graph_id=body.graph_id,
        name=body.name,
        metadata=metadata,
        limit=body.limit,
        offset=body.offset,
        sort_by=body.sort_by,
        sort_order=body.sort_order,
    )
    return page(rows, total, offset=body.offset, select=body.select)


@router.post("/count", response_model=int)
async def count_assistants(body: schemas.AssistantCount, engine: EngineDep, gate: GateDep) -> Response:
    """How many assistants match."""
    metadata, within = await gate.search("assistants", body)
    count = await assistants.count(engine, graph_id=body.graph_id, name=body.name, metadata=metadata, within=within)
    return Json(count)


@router.get("/{assistant_id}", response_model=records.Assistant)
async def get_assistant(assistant_id: str, gate: GateDep) -> Response:
    """One assistant, by its id or by the name of its graph."""
    return Json(await find(gate, assistant_id))


@router.patch("/{assistant_id}", response_model=records.Assistant)
async def patch_assistant(
    assistant_id: AssistantId, body: schemas.AssistantPatch, engine: EngineDep, gate: GateDep
) -> Response:
    """Make a new version: metadata is merged at the top level, config and context are replaced."""
    fields = settled(body)
    value: dict[str, Any] = {"metadata": {}, **fields}
    within = await gate.assistant("update", assistant_id, value)
    fields["metadata"] = kept(value["metadata"], within)
    return Json(await assistants.patch(engine, assistant_id, **fields))


@router.delete("/{assistant_id}", status_code=204, response_class=Response)
async def delete_assistant(
    assistant_id: DeleteAssistant, engine: EngineDep, gate: GateDep, delete_threads: bool = False
) -> Response:
    """Delete an assistant, and with `delete_threads` the threads that belong to it."""
    within = await gate.allow("threads", "delete", {"assistant_id": assistant_id}) if delete_threads else None
    await assistants.delete(engine, assistant_id, delete_threads=delete_threads, within=within)
    return no_content()


@router.get("/{assistant_id}/graph", response_model=records.Graph)
async def get_graph(
    assistant_id: str, engine: EngineDep, gate: GateDep, xray: Annotated[str, Query()] = "false"
) -> Response:
    """The graph to draw; `xray` (true, or how many levels) shows what is inside subgraphs."""
    assistant = await find(gate, assistant_id)
    return Json(await engine.registry.draw(assistant["graph_id"], _xray(xray)))


def _xray(text: str) -> bool | int:
    text = text.strip().lower()
    if text in ("true", "false", ""):
        return text == "true"
    if text.isdecimal() and text.isascii() and len(text) < 10:
        return min(int(text), MAX_XRAY)
    raise HTTPException(422, "xray: must be true, false or a number of levels")


@router.get("/{assistant_id}/schemas", response_model=records.Schemas)
async def get_schemas(assistant_id: str, engine: EngineDep, gate: GateDep) -> Response:
    """JSON schemas of the graph's input, output, state, config and context; null for what has none."""
    assistant = await find(gate, assistant_id)
    return Json(await engine.registry.schemas(assistant["graph_id"]))


@router.get("/{assistant_id}/subgraphs", response_model=dict[str, records.SubgraphSchemas])
@router.get("/{assistant_id}/subgraphs/{namespace:path}", response_model=dict[str, records.SubgraphSchemas])
async def get_subgraphs(
    assistant_id: str, engine: EngineDep, gate: GateDep, namespace: str | None = None, recurse: bool = False
) -> Response:
    """Schemas of the graph's subgraphs by namespace."""
    assistant = await find(gate, assistant_id)
    return Json(await engine.registry.subgraphs(assistant["graph_id"], namespace, recurse))


@router.post("/{assistant_id}/versions", response_model=list[records.AssistantVersion])
async def list_versions(assistant_id: ReadAssistant, body: schemas.AssistantVersions, engine: EngineDep) -> Response:
    """The versions of an assistant, newest first."""
    rows = await versions.search(engine, assistant_id, limit=body.limit, offset=body.offset, metadata=body.metadata)
    return Json(rows)


@router.post("/{assistant_id}/latest", response_model=records.Assistant)
async def set_latest(
    assistant_id: AssistantId, body: schemas.AssistantLatest, engine: EngineDep, gate: GateDep
) -> Response:
    """Make a version the current one, with everything that belongs to it."""
    within = await gate.assistant("update", assistant_id, {"version": body.version})
    return Json(await versions.set_latest(engine, assistant_id, body.version, within=within))
