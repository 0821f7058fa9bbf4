"""The store over HTTP: what graph nodes reach by `get_store()`, item by item and by search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from perdure.api import records, schemas
from perdure.api.answers import Json, no_content
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.engine import store

router = APIRouter(prefix="/store", route_class=JsonRoute, tags=["store"])


@router.put("/items", status_code=204, response_class=Response)
async def put_item(body: schemas.ItemPut, engine: EngineDep) -> Response:
    """Write an item, over the one that is there."""
    await store.put(engine, body.namespace, body.key, body.value, index=body.index, ttl=body.ttl)
    return no_content()


@router.get("/items", response_model=records.Item | None)
async def get_item(
    engine: EngineDep,
    key: Annotated[str, Query()],
    namespace: Annotated[str, Query(description="The labels, joined by dots.")] = "",
    refresh_ttl: bool | None = None,
) -> Response:
    """One item; `null` if there is none."""
    labels = namespace.split(".") if namespace else []
    return Json(await store.get(engine, labels, key, refresh_ttl=refresh_ttl))


@router.delete("/items", status_code=204, response_class=Response)
async def delete_item(body: schemas.ItemDelete, engine: EngineDep) -> Response:
    """Delete an item; it need not exist."""
    await store.delete(engine, body.namespace, body.key)
    return no_content()


@router.post("/items/search", response_model=records.Items)
async def search_items(body: schemas.ItemSearch, engine: EngineDep) -> Response:
    """Find items below a namespace."""
    found = await store.search(
        engine,
        body.namespace_prefix,
        filter=body.filter,
        query=body.query,
        limit=body.limit,
        offset=body.offset,
        refresh_ttl=body.refresh_ttl,
    )
    return Json({"items": found})


@router.post("/namespaces", response_model=records.Namespaces)
async def list_namespaces(body: schemas.NamespaceSearch, engine: EngineDep) -> Response:
    """The namespaces that hold items."""
    found = await store.namespaces(
        engine,
        prefix=body.prefix,
        suffix=body.suffix,
        max_depth=body.max_depth,
        limit=body.limit,
        offset=body.offset,
    )
    return Json({"namespaces": found})
