"""Default assistants: each graph of langgraph.json has one, version 1 of which nobody has to make.

They are made, and described anew, when a server or a worker starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.engine.core import Engine

ENSURE_DEFAULTS = """
WITH new AS (
    INSERT INTO assistants (assistant_id, graph_id, name, description, metadata)
    SELECT d.assistant_id, d.graph_id, d.graph_id, d.description, '{"created_by": "system"}'
      FROM unnest(%(ids)s::uuid[], %(graph_ids)s::text[], %(descriptions)s::text[])
           AS d(assistant_id, graph_id, description)
     ORDER BY 1   -- two servers starting at once take the same order, so neither waits for the other for ever
    ON CONFLICT (assistant_id) DO NOTHING
    RETURNING *
)
INSERT INTO assistant_versions (assistant_id, version, graph_id, name, description, config, context, metadata)
SELECT assistant_id, version, graph_id, name, description, config, context, metadata FROM new
"""

REFRESH_DESCRIPTIONS = """
WITH stale AS (
    SELECT a.assistant_id, d.description
      FROM assistants a
      JOIN unnest(%(ids)s::uuid[], %(descriptions)s::text[]) AS d(assistant_id, description) USING (assistant_id)
     WHERE a.version = 1 AND a.description IS DISTINCT FROM d.description
     ORDER BY a.assistant_id   -- as above
       FOR UPDATE OF a
), refreshed AS (
    UPDATE assistants a SET description = s.description FROM stale s WHERE a.assistant_id = s.assistant_id
)
UPDATE assistant_versions v SET description = s.description
  FROM stale s WHERE v.assistant_id = s.assistant_id AND v.version = 1
"""


async def ensure_defaults(engine: Engine) -> None:
    """Make the default assistant of each configured graph where it is missing.

    One that nobody has changed is described as langgraph.json describes its graph today; others stay as they
    are. Any number of processes may call it at once.
    """
    entries = list(engine.registry.graphs.values())
    params = {
        "ids": [engine.registry.default_assistant_id(e.graph_id) for e in entries],
        "graph_ids": [e.graph_id for e in entries],
        "descriptions": [e.description for e in entries],
    }
    async with engine.pool.connection() as conn:
        await conn.execute(ENSURE_DEFAULTS, params)
        await conn.execute(REFRESH_DESCRIPTIONS, params)
