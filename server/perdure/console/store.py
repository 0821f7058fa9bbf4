"""The store: namespaces level by level, their items, one item, and a search below any of them.

Namespaces stand in addresses as the caller knows them. What the gate makes of them (an owner's own, say) goes to
the engine, and what comes back is put behind what the caller asked for.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from perdure.api import schemas
from perdure.api import store as routes
from perdure.api.context import EngineDep
from perdure.api.fields import MAX_OFFSET
from perdure.api.gate import Gate, GateDep
from perdure.console.bounds import bounded
from perdure.console.given import Blank, Words, checked, number_of, object_of
from perdure.console.pages import PageRoute, done, form, link, page
from perdure.console.shown import MAX_TEXT, as_json
from perdure.engine import store
from perdure.engine.core import Engine
from perdure.engine.jsonable import dumps
from perdure.engine.views import browsing

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

LEVEL = 100  # labels of one level
PAGE = 50


@router.get("/store")
async def browse_store(
    request: Request,
    engine: EngineDep,
    gate: GateDep,
    prefix: Words = None,
    namespace: Words = None,
    key: Annotated[str | None, Query(max_length=4000)] = None,
    query: Words = None,
    filter: Words = None,
    offset: Annotated[Annotated[int, Field(ge=0, le=MAX_OFFSET)] | None, Blank, Query()] = None,
    after: Words = None,
    level: Words = None,
) -> Response:
    """`namespace` and `key`: one item. `query`, `filter`: a search below `prefix`. Else what is at `prefix`.

    `after` and `offset` page through items, `level` through labels. Looking does not make items live longer.
    """
    if namespace is not None and key is not None:
        return await _item(request, engine, gate, _labels(namespace), key)
    labels = _labels(prefix)
    root = request.scope.get("root_path", "")
    at = ".".join(labels)
    shown: dict[str, Any] = {
        "found": None,
        "below": [],
        "items": [],
        "older": None,
        "newest": None,
        "more_labels": None,
    }
    if query or filter:
        start = offset or 0
        found = await _search(request, engine, gate, labels, query, filter, start)
        asked: dict[str, Any] = {"prefix": at, "query": query, "filter": filter}
        if len(found) > PAGE:
            shown["older"] = link(root, "/console/store", **asked, offset=start + PAGE)
        shown |= {"found": found[:PAGE], "newest": link(root, "/console/store", **asked) if start else None}
    else:
        shown |= await _level(engine, gate, labels, after, level, root)
    return page(
        request,
        "store.html",
        title="Store",
        labels=labels,
        at=at,
        crumbs=[(".".join(labels[: n + 1]), label) for n, label in enumerate(labels)],
        query=query,
        filter=filter,
        by_meaning=engine.registry.embedder is not None,
        **shown,
    )


async def _level(
    engine: Engine, gate: Gate, labels: list[str], after: str | None, level: str | None, root: str
) -> dict[str, Any]:
    """What is below a namespace, and in it."""
    value: dict[str, Any] = {"suffix": [], "max_depth": len(labels) + 1, "limit": LEVEL, "offset": 0}
    moved = await gate.store("list_namespaces", labels, value)
    below, more = await browsing.labels(engine, moved, cursor=level, limit=LEVEL)
    items: list[dict[str, Any]] = []
    if labels:
        searched: dict[str, Any] = {"filter": {}, "limit": PAGE, "offset": 0, "query": None}
        inside = await gate.store("search", labels, searched)
        items = await browsing.items(engine, inside, after=after, limit=PAGE + 1)
    at = ".".join(labels)
    older = link(root, "/console/store", prefix=at, after=items[PAGE - 1]["key"]) if len(items) > PAGE else None
    return {
        "below": [(".".join([*labels, label]), label) for label in below],
        "more_labels": link(root, "/console/store", prefix=at, level=more) if more else None,
        "items": items[:PAGE],
        "older": older,
        "newest": link(root, "/console/store", prefix=at) if after or level else None,
    }


async def _search(
    request: Request,
    engine: Engine,
    gate: Gate,
    labels: list[str],
    query: str | None,
    filter: str | None,
    offset: int,
) -> list[dict[str, Any]]:
    wanted = object_of(request, "filter", filter or "")
    asked = {"filter": wanted, "limit": PAGE + 1, "offset": offset, "query": query}
    body = checked(schemas.ItemSearch, {"namespace_prefix": labels, **asked})
    moved = await gate.store("search", body.namespace_prefix, {**asked})
    found = await store.search(
        engine, moved, filter=body.filter, query=body.query, limit=body.limit, offset=body.offset, refresh_ttl=False
    )
    return [
        {
            "namespace": ".".join([*labels, *item["namespace"][len(moved) :]]),
            "key": item["key"],
            "value": dumps(item["value"])[: browsing.SHOWN_CHARS].decode(errors="ignore"),
            "updated_at": item["updated_at"],
            "score": item["score"],
        }
        for item in found
    ]


async def _item(request: Request, engine: Engine, gate: Gate, labels: list[str], key: str) -> Response:
    moved = await gate.store("get", labels, {"key": key})
    item = await store.get(engine, moved, key, refresh_ttl=False)
    text = as_json(item["value"], MAX_TEXT + 1) if item else ""
    return page(
        request,
        "store_item.html",
        title=f"Item {key[:60]}",
        status=200 if item else 404,
        labels=labels,
        at=".".join(labels),
        crumbs=[(".".join(labels[: n + 1]), label) for n, label in enumerate(labels)],
        key=key,
        item=item,
        value=bounded(item["value"]) if item else None,
        text=text if len(text) <= MAX_TEXT else None,
        life=await browsing.life(engine, moved, key),
    )


def _labels(text: str | None) -> list[str]:
    return text.split(".") if text else []


def _at(prefix: str, **query: str) -> str:
    return link("", "/console/store", **({"prefix": prefix} if not query else {"namespace": prefix, **query}))


@router.post("/store/put")
async def put_item(request: Request, engine: EngineDep, gate: GateDep) -> Response:
    """Write an item, over the one that is there."""
    given = await form(request)
    namespace, key, minutes = given.get("namespace", "").strip(), given.get("key", ""), given.get("ttl", "").strip()
    body = checked(
        schemas.ItemPut,
        {
            "namespace": _labels(namespace),
            "key": key,
            "value": object_of(request, "value", given.get("value", "")),
            "ttl": number_of("ttl", minutes) if minutes else None,
        },
    )
    await routes.put_item(body, engine, gate)
    return done(request, _at(namespace, key=key), "Item written")


@router.post("/store/delete")
async def delete_item(request: Request, engine: EngineDep, gate: GateDep) -> Response:
    """Delete an item; it need not exist."""
    given = await form(request)
    namespace, key = given.get("namespace", ""), given.get("key", "")
    await routes.delete_item(checked(schemas.ItemDelete, {"namespace": _labels(namespace), "key": key}), engine, gate)
    return done(request, _at(namespace), f"Item {key[:100]} deleted")
