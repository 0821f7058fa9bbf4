"""Versions of assistants: looking at them, and going back to one. Table `assistant_versions`.

`perdure.engine.assistants` adds a row in the transaction that makes or changes an assistant, and takes all of
them away with it; a row never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

from perdure.engine import access, assistants
from perdure.engine.access import Within
from perdure.engine.db import jsonb
from perdure.engine.errors import AssistantNotFound

if TYPE_CHECKING:
    from perdure.engine.core import Engine

VERSIONS = """
SELECT assistant_id, version, graph_id, name, description, config, context, metadata, created_at
  FROM assistant_versions
 WHERE assistant_id = %(assistant_id)s AND metadata @> %(metadata)s
 ORDER BY version DESC
 LIMIT %(limit)s OFFSET %(offset)s
"""


async def search(
    engine: Engine,
    assistant_id: UUID,
    *,
    limit: int = 10,
    offset: int = 0,
    metadata: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Every version an assistant has had, newest first, without `updated_at`. Raises AssistantNotFound."""
    params = {
        "assistant_id": assistant_id,
        "metadata": jsonb(metadata or {}),
        "limit": limit,
        "offset": min(offset, assistants.MAX_OFFSET),
    }
    async with engine.pool.connection() as conn:
        rows = await (await conn.execute(VERSIONS, params)).fetchall()
        if not rows:
            await assistants.get_in(conn, assistant_id)
    return rows


SET_LATEST: LiteralString = (
    """
UPDATE assistants
   SET (graph_id, name, description, config, context, metadata, version, updated_at) = (
       SELECT v.graph_id, v.name, v.description, v.config, v.context, v.metadata, v.version, now()
         FROM assistant_versions v
        WHERE v.assistant_id = %(assistant_id)s AND v.version = %(version)s)
 WHERE assistant_id = %(assistant_id)s
   AND EXISTS (SELECT 1 FROM assistant_versions v
                WHERE v.assistant_id = %(assistant_id)s AND v.version = %(version)s
                  AND (%(within)s::jsonb IS NULL OR v.metadata @> %(within)s))
RETURNING """
    + assistants.COLUMNS
)


async def set_latest(engine: Engine, assistant_id: UUID, version: int, *, within: Within = None) -> dict[str, Any]:
    """Make a version current: everything is as it was then. The next patch still takes the next free number.

    Raises AssistantNotFound, for an unknown version too, and one whose metadata are not `within`.
    """
    async with engine.pool.connection() as conn:
        params = {"assistant_id": assistant_id, "version": version}
        params |= {"within": access.parameter(within)}
        row = await (await conn.execute(SET_LATEST, params)).fetchone()
        if row is None:
            await assistants.get_in(conn, assistant_id)
            raise AssistantNotFound(f"Assistant with ID {assistant_id} has no version {version}")
    return row
