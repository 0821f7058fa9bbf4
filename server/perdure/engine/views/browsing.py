"""Going through the store by hand: the labels below a namespace, the items in it, how long one lives.

Each page reads about as many rows as it shows, however many there are: labels are found by jumping along the
index of namespaces (in the order of their bytes) from one to the next, items by their key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.engine.views import places

if TYPE_CHECKING:
    from perdure.engine.core import Engine

SHOWN_CHARS = 400  # of an item's value in a list
LAST = "\U0010ffff" * 8  # sorts behind every label

# A namespace `a` comes before `a-b`, and that before `a.b`, which is below `a`: so from `a` itself one step is
# made, and from anything below it a jump to what follows all of that (`/` is the character after the dot).
# 100 of 300 labels with 100,000 items below them: 309 pages of the index, 1 ms.
JUMP = """
WITH RECURSIVE jump AS (
    SELECT (SELECT s.prefix FROM store s WHERE s.prefix ~>=~ %(first)s AND s.prefix ~<~ %(end)s
             ORDER BY s.prefix USING ~<~ LIMIT 1) AS prefix
    UNION ALL
    SELECT (SELECT s.prefix FROM store s
             WHERE s.prefix ~>=~ CASE WHEN position('.' IN substr(j.prefix, %(length)s + 1)) = 0
                                      THEN j.prefix || chr(1)
                                      ELSE substr(j.prefix, 1, %(length)s)
                                           || split_part(substr(j.prefix, %(length)s + 1), '.', 1) || '/' END
               AND s.prefix ~<~ %(end)s
             ORDER BY s.prefix USING ~<~ LIMIT 1)
      FROM jump j WHERE j.prefix IS NOT NULL
)
SELECT prefix FROM jump WHERE prefix IS NOT NULL LIMIT %(limit)s
"""


async def labels(
    engine: Engine, namespace: list[str], *, cursor: str | None = None, limit: int = 100
) -> tuple[list[str], str | None]:
    """The labels that follow a namespace, where there are items at or below them; and the `cursor` of the next page.

    In the order of their bytes; a label may come twice, on two pages. What has expired counts until it is deleted.
    """
    base = "".join(f"{label}." for label in namespace)
    params: dict[str, Any] = {
        "first": base + (cursor or ""),
        "end": base[:-1] + "/" if base else LAST,
        "length": len(base),
        "limit": limit + 1,
    }
    async with places.looking(engine) as conn:
        rows = await (await conn.execute(JUMP, params)).fetchall()
    found = [row["prefix"][len(base) :] for row in rows]
    names = dict.fromkeys(rest.split(".", 1)[0] for rest in found[:limit])
    return list(names), found[limit] if len(found) > limit else None


ITEMS = """
SELECT key, left(value::text, %(chars)s) AS value, created_at, updated_at, expires_at FROM store
 WHERE prefix = %(prefix)s AND key > %(after)s AND (expires_at IS NULL OR expires_at > now())
 ORDER BY key LIMIT %(limit)s
"""


async def items(
    engine: Engine, namespace: list[str], *, after: str | None = None, limit: int = 50
) -> list[dict[str, Any]]:
    """Items of a namespace itself, in the order of their keys, from the one behind `after`.

    `value` is the beginning of its JSON text.
    """
    params = {"prefix": ".".join(namespace), "after": after or "", "limit": limit, "chars": SHOWN_CHARS}
    async with places.looking(engine) as conn:
        return await (await conn.execute(ITEMS, params)).fetchall()


LIFE = "SELECT ttl_minutes::float8, expires_at FROM store WHERE prefix = %(prefix)s AND key = %(key)s"


async def life(engine: Engine, namespace: list[str], key: str) -> dict[str, Any]:
    """How long an item lives: `ttl_minutes` from its last use, and `expires_at`; both None if it stays."""
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(LIFE, {"prefix": ".".join(namespace), "key": key})).fetchone()
    return row or {"ttl_minutes": None, "expires_at": None}
