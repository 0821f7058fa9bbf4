"""The store over HTTP: what graph nodes reach by `get_store()`, item by item and by search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from perdure.api import records, schemas
from perdure.api.answers import Json, no_content
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.gate import GateDep
from perdure.engine import store

router = APIRouter(prefix="/store", route_class=JsonRoute, tags=["store"])


@router.put("/items", status_code=204, response_class=Response)
async def put_item(body: schemas.ItemPut, engine: EngineDep, gate: GateDep) -> Response:
    """Write an item, over the one that is there."""
    value = {"key": body.key, "value": body.value, "index": body.index}
    namespace = await gate.store("put", body.namespace, value)
    await store.put(engine, namespace, body.key, body.value, index=body.index, ttl=body.ttl)
    return no_content()


@router.get("/items", response_model=records.Item | None)
async def get_item(
    engine: EngineDep,
    gate: GateDep,
    key: Annotated[str, Query()],
    namespace: Annotated[str, Query(description="The labels, joined by dots.")] = "",
    refresh_ttl: bool | None = None,
) -> Response:
    """One item; `null` if there is none."""
    labels = await gate.store("get", namespace.split(".") if namespace else [], {"key": key})
    item = await store.get(engine, labels, key, refresh_ttl=refresh_ttl)
    return Json({**item, "namespace": gate.shown(item["namespace"])} if item else None)


@router.delete("/items", status_code=204, response_class=Response)
async def delete_item(body: schemas.ItemDelete, engine: EngineDep, gate: GateDep) -> Response:
    """Delete an item; it need not exist."""
    await store.delete(engine, await gate.store("delete", body.namespace, {"key": body.key}), body.key)
    return no_content()


@router.post("/items/search", response_model=records.Items)
async def search_items(body: schemas.ItemSearch, engine: EngineDep, gate: GateDep) -> Response:
    """Find items below a namespace."""
    value = {"filter": body.filter, "limit": body.limit, "offset": body.offset, "query": body.query}
    found = await store.search(
        engine,
        await gate.store("search", body.namespace_prefix, value),
        filter=body.filter,
        query=body.query,
        limit=body.limit,
        offset=body.offset,
        refresh_ttl=body.refresh_ttl,
    )
    return Json({"items": [{**item, "namespace": gate.shown(item["namespace"])} for item in found]})


@router.post("/namespaces", response_model=records.Namespaces)
async def list_namespaces(body: schemas.NamespaceSearch, engine: EngineDep, gate: GateDep) -> Response:
    """The namespaces that hold items."""
    value = {"suffix": body.suffix, "max_depth": body.max_depth, "limit": body.limit, "offset": body.offset}
    hidden = 1 if gate.hides else 0
    found = await store.namespaces(
        engine,
        prefix=await gate.store("list_namespaces", body.prefix or [], value),
        suffix=body.suffix,
        max_depth=body.max_depth and body.max_depth + hidden,
        limit=body.limit,
        offset=body.offset,
    )
    return Json({"namespaces": [gate.shown(namespace) for namespace in found]})
