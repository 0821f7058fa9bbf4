"""How often a caller may call: one token bucket each, table `rate_limits`, shared by all servers.

A bucket holds the requests of one minute and is refilled all the time. A request that is turned
away takes nothing.
"""

from __future__ import annotations

import math

from perdure.engine.db import Conn, Pool

# The row is locked until the statement ends, so requests at the same moment are counted one by one.
# `filled_at` never goes back: the clock was read before the lock was taken.
TAKE = """
INSERT INTO rate_limits AS b (caller, tokens, granted, filled_at)
VALUES (%(caller)s, %(limit)s::float8 - 1, true, clock_timestamp())
ON CONFLICT (caller) DO UPDATE
   SET (tokens, granted, filled_at) = (
       SELECT full_to - CASE WHEN full_to >= 1 THEN 1 ELSE 0 END, full_to >= 1, greatest(b.filled_at, at)
         FROM (SELECT least(%(limit)s::float8, b.tokens + greatest(0, extract(epoch FROM at - b.filled_at))
                            * %(limit)s::float8 / 60) AS full_to, at
                 FROM (SELECT clock_timestamp() AS at) clock) filled)
RETURNING granted, (1 - tokens) * 60 / %(limit)s::float8 AS seconds
"""


async def take(pool: Pool, caller: str, limit: int) -> int | None:
    """Count a request of a caller who may make `limit` a minute; None, or after how many seconds to try again."""
    async with pool.connection() as conn:
        row = await (await conn.execute(TAKE, {"caller": caller, "limit": limit})).fetchone()
    return None if row is None or row["granted"] else max(1, math.ceil(row["seconds"]))


EXPIRE = "DELETE FROM rate_limits WHERE filled_at < now() - interval '1 hour'"


async def expire(conn: Conn) -> None:
    """Forget buckets that have been full for long."""
    await conn.execute(EXPIRE)
