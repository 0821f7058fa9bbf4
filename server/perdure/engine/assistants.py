"""Assistants: a graph with a configuration and a name. Tables `assistants` and `assistant_versions`.

Every graph has a default assistant whose id follows from the graph's name (`perdure.engine.defaults`
makes it). A change makes a new version, and any version can be made current again
(`perdure.engine.versions`). `config.configurable` and `context` are two names for the same thing (the
first is what nodes read from the config, the second what they read from the runtime): whoever gives
one gets the other.

Records have the fields of the wire's assistant: assistant_id, graph_id, name, description, config,
context, metadata, version, created_at, updated_at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, LiteralString
from uuid import UUID, uuid4

from psycopg import sql

from perdure.engine import access, threads
from perdure.engine.access import Within
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import AssistantExists, AssistantNotFound, InvalidInput

if TYPE_CHECKING:
    from perdure.engine.core import Engine

COLUMNS: LiteralString = (
    "assistant_id, graph_id, name, description, config, context, metadata, version, created_at, updated_at"
)
THREADS_AT_ONCE = 200  # that one transaction deletes
MAX_OFFSET = 2**62  # PostgreSQL counts rows in 64 bits; clients may send more

CREATE: LiteralString = (
    """
INSERT INTO assistants (assistant_id, graph_id, name, description, config, context, metadata)
VALUES (%(assistant_id)s, %(graph_id)s, %(name)s, %(description)s, %(config)s, %(context)s, %(metadata)s)
ON CONFLICT (assistant_id) DO NOTHING
RETURNING """
    + COLUMNS
)


async def create(
    engine: Engine,
    *,
    graph_id: str,
    assistant_id: UUID | None = None,
    config: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    if_exists: Literal["raise", "do_nothing"] = "raise",
    name: str | None = None,
    description: str | None = None,
    within: Within = None,
) -> dict[str, Any]:
    """A new assistant, version 1; with `do_nothing` an existing one is returned unchanged.

    The id of a default assistant is never free for whom a filter holds: anybody may use what has it.
    Raises GraphNotFound, AssistantExists (with `do_nothing` if the existing one is not `within`), and
    InvalidInput when both `config.configurable` and `context` are given.
    """
    engine.registry.entry(graph_id)
    assistant_id = assistant_id or uuid4()
    config, context = _mirror(config, context)
    params = {
        "assistant_id": assistant_id,
        "graph_id": graph_id,
        "name": _text("name", name) or "Untitled",
        "description": _text("description", description),
        "config": jsonb(config),
        "context": jsonb(context),
        "metadata": jsonb(metadata or {}),
    }
    reserved = within is not None and assistant_id in defaults(engine)
    async with engine.pool.connection() as conn, conn.transaction():
        row = None if reserved else await (await conn.execute(CREATE, params)).fetchone()
        if row is not None:
            await _keep_version(conn, assistant_id)
            return row
        found = if_exists == "do_nothing" and await permitted(conn, assistant_id, within)
    if not found:
        raise AssistantExists(f"Assistant with ID {assistant_id} already exists")
    return await get(engine, assistant_id)


KEEP_VERSION = """
INSERT INTO assistant_versions (assistant_id, version, graph_id, name, description, config, context, metadata)
SELECT assistant_id, version, graph_id, name, description, config, context, metadata
  FROM assistants WHERE assistant_id = %(assistant_id)s
"""


async def _keep_version(conn: Conn, assistant_id: UUID) -> None:
    """Record the current state as the version it says it is. Part of the caller's transaction."""
    await conn.execute(KEEP_VERSION, {"assistant_id": assistant_id})


async def get(engine: Engine, assistant_id: UUID) -> dict[str, Any]:
    """Raises AssistantNotFound."""
    async with engine.pool.connection() as conn:
        return await get_in(conn, assistant_id)


def defaults(engine: Engine) -> list[UUID]:
    """The ids of the default assistants, which everybody may look at and run."""
    return [engine.registry.default_assistant_id(graph_id) for graph_id in engine.registry.graphs]


async def resolve(engine: Engine, conn: Conn, assistant: str, *, within: Within = None) -> dict[str, Any]:
    """The assistant that a client means by a UUID or by a graph's name (its default assistant).

    `within` holds for all but default assistants. Raises AssistantNotFound for an unknown UUID,
    GraphNotFound for any other text.
    """
    if assistant in engine.registry.graphs:
        return await get_in(conn, engine.registry.default_assistant_id(assistant))
    try:
        assistant_id = UUID(assistant)
    except ValueError:
        engine.registry.entry(assistant)
        raise
    if assistant_id not in defaults(engine) and not await permitted(conn, assistant_id, within):
        raise _not_found(assistant_id)
    return await get_in(conn, assistant_id)


PERMITTED = "SELECT 1 FROM assistants WHERE assistant_id = %(assistant_id)s AND metadata @> %(within)s"


async def permitted(conn: Conn, assistant_id: UUID, within: Within) -> bool:
    """Whether there is such an assistant within a filter; without a filter True, and nothing is asked."""
    if within is None:
        return True
    params = {"assistant_id": assistant_id, "within": jsonb(within)}
    return await (await conn.execute(PERMITTED, params)).fetchone() is not None


GET: LiteralString = "SELECT " + COLUMNS + " FROM assistants WHERE assistant_id = %(assistant_id)s"


async def get_in(conn: Conn, assistant_id: UUID) -> dict[str, Any]:
    """As `get`, on the caller's connection."""
    row = await (await conn.execute(GET, {"assistant_id": assistant_id})).fetchone()
    if row is None:
        raise _not_found(assistant_id)
    return row


LOCK = "SELECT graph_id, config, context FROM assistants WHERE assistant_id = %(assistant_id)s FOR UPDATE"
PATCH: LiteralString = (
    """
UPDATE assistants
   SET graph_id = coalesce(%(graph_id)s, graph_id),
       name = coalesce(%(name)s, name),
       description = coalesce(%(description)s, description),
       config = %(config)s,
       context = %(context)s,
       metadata = metadata || %(metadata)s,
       version = (SELECT max(v.version) + 1 FROM assistant_versions v
                   WHERE v.assistant_id = %(assistant_id)s),
       updated_at = now()
 WHERE assistant_id = %(assistant_id)s
RETURNING """
    + COLUMNS
)


async def patch(
    engine: Engine,
    assistant_id: UUID,
    *,
    graph_id: str | None = None,
    config: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    name: str | None = None,
    description: str | None = None,
) -> dict[str, Any]:
    """A new version, always, even when nothing is given; None leaves a field as it is.

    `metadata` is merged at the top level; `config` and `context` are replaced, and each replaces
    the other's mirror. Raises AssistantNotFound, GraphNotFound, InvalidInput.
    """
    if graph_id is not None:
        engine.registry.entry(graph_id)
    new_config, new_context = _mirror(config, context)
    params = {
        "assistant_id": assistant_id,
        "graph_id": graph_id,
        "name": _text("name", name),
        "description": _text("description", description),
        "metadata": jsonb(metadata or {}),
    }
    async with engine.pool.connection() as conn, conn.transaction():
        # Locked first, so that the next statement sees every version made before.
        old = await (await conn.execute(LOCK, {"assistant_id": assistant_id})).fetchone()
        if old is None:
            raise _not_found(assistant_id)
        if config is None and context is None:
            new_config, new_context = old["config"], old["context"]
        elif config is None:  # tags and recursion limit stay
            new_config = {k: v for k, v in old["config"].items() if k != "configurable"} | new_config
        params |= {"config": jsonb(new_config), "context": jsonb(new_context)}
        row = await (await conn.execute(PATCH, params)).fetchone()
        await _keep_version(conn, assistant_id)
    assert row is not None  # locked above
    return row


DELETE = "DELETE FROM assistants WHERE assistant_id = %(assistant_id)s"
THREADS_OF = """
SELECT thread_id FROM threads
 WHERE metadata @> %(metadata)s AND (%(within)s::jsonb IS NULL OR metadata @> %(within)s)
 ORDER BY thread_id LIMIT %(limit)s FOR UPDATE
"""


async def delete(engine: Engine, assistant_id: UUID, *, delete_threads: bool = False, within: Within = None) -> None:
    """Delete an assistant with all its versions and, if asked, the threads (`within`) that it ran on.

    THREADS_AT_ONCE of them in a transaction, and the assistant in the last one: a call that was cut
    short may be repeated, and goes on. The default assistant of a graph comes back at the next start.
    Raises AssistantNotFound.
    """
    wanted = {"metadata": jsonb({"assistant_id": str(assistant_id)}), "limit": THREADS_AT_ONCE}
    wanted |= {"within": access.parameter(within)}
    more = delete_threads
    async with engine.pool.connection() as conn:
        while True:
            async with conn.transaction():
                if not await (await conn.execute(LOCK, {"assistant_id": assistant_id})).fetchone():
                    raise _not_found(assistant_id)
                if more:
                    rows = await (await conn.execute(THREADS_OF, wanted)).fetchall()
                    await threads.delete_rows(conn, [row["thread_id"] for row in rows])
                    more = len(rows) == THREADS_AT_ONCE
                if not more:
                    await conn.execute(DELETE, {"assistant_id": assistant_id})
                    return


MATCHING: LiteralString = """
  FROM assistants
 WHERE (%(graph_id)s::text IS NULL OR graph_id = %(graph_id)s)
   AND (%(name)s::text IS NULL OR name ILIKE %(name)s)
   AND metadata @> %(metadata)s
   AND (%(within)s::jsonb IS NULL OR metadata @> %(within)s OR assistant_id = ANY(%(defaults)s))
"""
SEARCH: LiteralString = (
    "SELECT " + COLUMNS + MATCHING + "ORDER BY {by} {way}, assistant_id LIMIT %(limit)s OFFSET %(offset)s"
)
SORT = ("assistant_id", "created_at", "updated_at", "name", "graph_id")


async def search(
    engine: Engine,
    *,
    graph_id: str | None = None,
    name: str | None = None,
    metadata: dict[str, Any] | None = None,
    limit: int = 10,
    offset: int = 0,
    sort_by: str | None = None,
    sort_order: str | None = None,
    within: Within = None,
) -> tuple[list[dict[str, Any]], int]:
    """Assistants that match every filter given, and how many match in all; newest first by default.

    `name` is a part of the name in any case; `metadata` is contained in theirs. Raises
    GraphNotFound, and InvalidInput for an unknown sort field.
    """
    if sort_by is not None and sort_by not in SORT:
        raise InvalidInput("sort_by", f"must be one of {', '.join(SORT)}")
    way = sql.SQL("ASC" if (sort_order or "desc").lower() == "asc" else "DESC")
    query = sql.SQL(SEARCH).format(by=sql.Identifier(sort_by or "created_at"), way=way)
    params = _filter(engine, graph_id, name, metadata, within)
    params |= {"limit": limit, "offset": min(offset, MAX_OFFSET)}
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(query, params)).fetchall()
        return rows, await _count(conn, params)


async def count(
    engine: Engine,
    *,
    graph_id: str | None = None,
    name: str | None = None,
    metadata: dict[str, Any] | None = None,
    within: Within = None,
) -> int:
    """How many assistants match, see `search`."""
    params = _filter(engine, graph_id, name, metadata, within)
    async with engine.pool.connection() as conn:
        return await _count(conn, params)


COUNT: LiteralString = "SELECT count(*) AS n" + MATCHING


OLDEST = """
SELECT DISTINCT ON (name) name, assistant_id FROM assistants
 WHERE name = ANY(%(names)s)
   AND (%(within)s::jsonb IS NULL OR metadata @> %(within)s OR assistant_id = ANY(%(defaults)s))
 ORDER BY name, created_at, assistant_id
"""


async def oldest(engine: Engine, names: list[str], *, within: Within = None) -> dict[str, UUID]:
    """By name: of the assistants of exactly that name the one that was made first. Names must not contain NUL."""
    params = {"names": names, "within": access.parameter(within), "defaults": defaults(engine)}
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(OLDEST, params)).fetchall()
    return {row["name"]: row["assistant_id"] for row in rows}


async def _count(conn: Conn, params: dict[str, Any]) -> int:
    row = await (await conn.execute(COUNT, params)).fetchone()
    return row["n"] if row else 0


def _filter(
    engine: Engine, graph_id: str | None, name: str | None, metadata: dict[str, Any] | None, within: Within
) -> dict[str, Any]:
    if graph_id is not None:
        engine.registry.entry(graph_id)
    if name is not None:
        part = _text("name", name) or ""
        for special in ("\\", "%", "_"):
            part = part.replace(special, "\\" + special)
        name = f"%{part}%"
    limits = {"within": access.parameter(within), "defaults": defaults(engine)}
    return {"graph_id": graph_id, "name": name, "metadata": jsonb(metadata or {}), **limits}


def _mirror(config: dict[str, Any] | None, context: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both from whichever of `config.configurable` and `context` is given."""
    config = dict(config or {})
    if context and config.get("configurable"):
        raise InvalidInput(
            "",
            "Cannot specify both configurable and context; give one, the other follows from it",
            status=400,
        )
    if context:
        config["configurable"] = context
    return config, context or config.get("configurable") or {}


def _text(field: str, text: str | None) -> str | None:
    if text is not None and "\x00" in text:
        raise InvalidInput(field, "must not contain the character NUL")
    return text


def _not_found(assistant_id: UUID) -> AssistantNotFound:
    return AssistantNotFound(f"Assistant with ID {assistant_id} not found")
