"""The store: items under a namespace and a key that all threads share, table `store` (LangGraph's).

Graph nodes and HTTP use the same `Store`; each takes its own connection from a pool per call.
`store.ttl` of langgraph.json is honoured: expired items are not shown, and `expire` deletes them.
With `store.index` a search with a `query` finds items by meaning (`vectors.py`); without it, `query` says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, cast

from langgraph.store.base import NOT_PROVIDED, Item, TTLConfig

from perdure.engine.db import Conn, Pool
from perdure.engine.embedding import MAX_FIELD_BYTES, MAX_FIELDS, is_field
from perdure.engine.errors import InvalidInput
from perdure.engine.vectors import VectorStore

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.registry import Registry

RESERVED_ROOT = "langgraph"
MAX_NAME_BYTES = 2000  # namespace and key together: they are an index row, which PostgreSQL limits to 2,704
MAX_FILTERS = 100
COMPARISONS: dict[str, LiteralString] = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
OPERATORS = {"$eq", "$ne", *COMPARISONS}


class Store(VectorStore):
    """LangGraph's store, where numbers compare as numbers and `$ne` finds items that lack the field.

    Upstream compares the texts, so that 10 is less than 9.
    """

    def _get_filter_condition(self, key: str, op: str, value: Any) -> tuple[str, list[Any]]:
        if op == "$ne":
            found: tuple[str, list[Any]] = cast(Any, super())._get_filter_condition(key, "$eq", value)
            return f"({found[0]}) IS NOT TRUE", found[1]
        if op in COMPARISONS and isinstance(value, int | float) and not isinstance(value, bool):
            condition = (
                "CASE WHEN jsonb_typeof(value->%s) = 'number' "
                f"THEN (value->>%s)::numeric {COMPARISONS[op]} %s::numeric ELSE false END"
            )
            return condition, [key, key, str(value)]
        return cast(Any, super())._get_filter_condition(key, op, value)


def open_store(pool: Pool, registry: Registry) -> Store:
    """The store on a pool of the running event loop (a few µs)."""
    section = registry.config.get("store")
    given: Any = cast("dict[str, Any]", section).get("ttl") if isinstance(section, dict) else None
    ttl: dict[str, Any] = {"omit_expired": True}
    if isinstance(given, dict):
        ttl |= cast("dict[str, Any]", given)
    return Store(pool, cast(TTLConfig, ttl), registry.embedder)


def _store(engine: Engine) -> Store:
    return open_store(engine.pool, engine.registry)


async def put(
    engine: Engine,
    namespace: list[str],
    key: str,
    value: dict[str, Any],
    *,
    index: list[str] | bool | None = None,
    ttl: float | None = None,
) -> None:
    """Write an item, over the one that is there. `ttl` in minutes; None: the configured one.

    `index`: the fields to find it by, instead of the configured ones; False: none. The item and its vectors
    are written together or not at all.

    Raises InvalidInput: 400 for an empty namespace and the root `langgraph`, else 422; EmbeddingFailed.
    """
    place = _place(namespace, key)
    if place[0] == RESERVED_ROOT:
        raise InvalidInput("namespace", f"the root label {RESERVED_ROOT!r} is reserved", status=400)
    fields = None if index is True else index
    if fields and (len(fields) > MAX_FIELDS or not all(map(is_field, fields))):
        raise InvalidInput("index", f"may be at most {MAX_FIELDS} paths of {MAX_FIELD_BYTES} bytes")
    await _store(engine).aput(place, key, value, fields, ttl=NOT_PROVIDED if ttl is None else ttl)


async def get(engine: Engine, namespace: list[str], key: str, *, refresh_ttl: bool | None = None) -> Any:
    """An item; None if there is none. Raises InvalidInput as `put` does."""
    item = await _store(engine).aget(_place(namespace, key), key, refresh_ttl=refresh_ttl)
    return None if item is None else _record(item)


async def delete(engine: Engine, namespace: list[str], key: str) -> None:
    """Forget an item, if there is one. Raises InvalidInput as `put` does."""
    await _store(engine).adelete(_place(namespace, key), key)


async def search(
    engine: Engine,
    prefix: list[str],
    *,
    filter: dict[str, Any] | None = None,
    query: str | None = None,
    limit: int = 10,
    offset: int = 0,
    refresh_ttl: bool | None = None,
) -> list[dict[str, Any]]:
    """Items of a namespace and of those below it, last changed first; an empty prefix means all.

    A filter is `{field: value}` or `{field: {"$gt": value, ...}}`; an item that lacks the field
    matches `$ne` only. With `store.index`, `query` ranks by meaning what has vectors, the nearest first with
    its `score`. Raises InvalidInput (422), EmbeddingFailed.
    """
    _check_labels("namespace_prefix", prefix)
    found = await _store(engine).asearch(
        tuple(prefix),
        query=query,
        filter=_filter(filter),
        limit=limit,
        offset=offset,
        refresh_ttl=refresh_ttl,
    )
    return [{**_record(item), "score": item.score} for item in found]


async def namespaces(
    engine: Engine,
    *,
    prefix: list[str] | None = None,
    suffix: list[str] | None = None,
    max_depth: int | None = None,
    limit: int = 100,
    offset: int = 0,
) -> list[list[str]]:
    """Namespaces that hold items, sorted, cut at `max_depth` labels; `*` stands for any label.

    Raises InvalidInput (422).
    """
    _check_labels("prefix", prefix or [])
    _check_labels("suffix", suffix or [])
    found = await _store(engine).alist_namespaces(
        prefix=tuple(prefix) if prefix else None,
        suffix=tuple(suffix) if suffix else None,
        max_depth=max_depth,
        limit=limit,
        offset=offset,
    )
    return sorted(list(labels) for labels in found)


EXPIRE = "DELETE FROM store WHERE expires_at < now()"


async def expire(conn: Conn) -> None:
    """Delete the items whose time has come."""
    await conn.execute(EXPIRE)


def _place(namespace: list[str], key: str) -> tuple[str, ...]:
    if not namespace:
        raise InvalidInput("namespace", "cannot be empty", status=400)
    _check_labels("namespace", namespace)
    if len(".".join(namespace).encode()) + len(key.encode()) > MAX_NAME_BYTES:
        raise InvalidInput("key", f"namespace and key together may have at most {MAX_NAME_BYTES} bytes")
    return tuple(namespace)


def _check_labels(field: str, labels: list[str]) -> None:
    for label in labels:
        if not label or "." in label:
            raise InvalidInput(field, f"the label {label!r} is not allowed: labels cannot be empty or hold a dot")
    if len(".".join(labels).encode()) > MAX_NAME_BYTES:
        raise InvalidInput(field, f"may have at most {MAX_NAME_BYTES} bytes")


def _filter(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """Operators as they are; an object without operators is a value to compare with."""
    ready: dict[str, Any] = {}
    for field, wanted in (given or {}).items():
        if not isinstance(wanted, dict):
            ready[field] = wanted
            continue
        operators = cast("dict[str, Any]", wanted)
        if not any(name.startswith("$") for name in operators):
            ready[field] = {"$eq": operators}
            continue
        for name in operators:
            if name not in OPERATORS:
                raise InvalidInput(f"filter.{field}", f"unknown operator {name!r}; there are {sorted(OPERATORS)}")
        ready[field] = operators
    if len(ready) > MAX_FILTERS:
        raise InvalidInput("filter", f"may name at most {MAX_FILTERS} fields")
    return ready or None


def _record(item: Item) -> dict[str, Any]:
    return {
        "namespace": list(item.namespace),
        "key": item.key,
        "value": item.value,
        "created_at": item.created_at,
        "updated_at": item.updated_at,
    }
