"""API keys of the built-in authentication: table `api_keys`.

A key is shown once, when it is made; stored is its sha256. That is enough: a key is 256 random bits,
so nobody finds it from the hash, and a slow hash would only cost each request its time.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID, uuid4

from perdure.engine.db import Conn, Pool
from perdure.engine.errors import Conflict

PREFIX = "prk_"
FORM = re.compile(r"prk_[A-Za-z0-9_-]{43}")
COLUMNS: LiteralString = "key_id, hint, name, owner, rate_limit, created_at, expires_at, revoked_at, last_used_at"

# A key that was made with another one has at most what that one has: LEAST ignores NULL.
CREATE: LiteralString = (
    """
INSERT INTO api_keys (key_id, hash, hint, name, owner, rate_limit, expires_at)
SELECT %(key_id)s, %(hash)s, %(hint)s, %(name)s, %(owner)s,
       least(%(rate_limit)s::integer, by.rate_limit), least(%(expires_at)s::timestamptz, by.expires_at)
  FROM (SELECT 1) one LEFT JOIN api_keys by ON by.key_id = %(by)s
ON CONFLICT (key_id) DO NOTHING
RETURNING """
    + COLUMNS
)


async def create(
    conn: Conn,
    *,
    name: str,
    owner: str,
    rate_limit: int | None = None,
    expires_at: datetime | None = None,
    by: UUID | None = None,
    key_id: UUID | None = None,
) -> dict[str, Any]:
    """A new key, with its record; `key` is nowhere to be had again.

    `by`: the key with which it is made; the new one lives no longer and may call no more often. `key_id`: the id
    that it gets, so that a form sent twice makes one key. Raises Conflict for an id that is there.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    params: dict[str, Any] = {
        "key_id": key_id or uuid4(),
        "hash": _hash(key),
        "hint": key[:8],
        "name": name,
        "owner": owner,
        "rate_limit": rate_limit,
        "expires_at": expires_at,
        "by": by,
    }
    row = await (await conn.execute(CREATE, params)).fetchone()
    if row is None:
        raise Conflict("This key has been made already")
    return {**row, "key": key}


# A key in use all the time is written once a minute. It may have been revoked a moment ago: this
# reads the row, and nothing is kept in memory.
FIND: LiteralString = (
    "WITH found AS (SELECT "
    + COLUMNS
    + """ FROM api_keys
     WHERE hash = %(hash)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
), used AS (
    UPDATE api_keys k SET last_used_at = now() FROM found
     WHERE k.key_id = found.key_id AND (k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 min')
)
SELECT * FROM found"""
)


async def find(pool: Pool, key: str) -> dict[str, Any] | None:
    """The record of a key that is valid now, and None for any other text."""
    if not FORM.fullmatch(key):
        return None
    async with pool.connection() as conn:
        return await (await conn.execute(FIND, {"hash": _hash(key)})).fetchone()


LIST: LiteralString = (
    "SELECT "
    + COLUMNS
    + """ FROM api_keys
 WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)
   AND (%(after)s::uuid IS NULL
        OR (created_at, key_id) < (SELECT created_at, key_id FROM api_keys WHERE key_id = %(after)s))
 ORDER BY created_at DESC, key_id DESC
 LIMIT %(limit)s  -- NULL: no limit"""
)


async def list_keys(
    conn: Conn, *, owner: str | None = None, after: UUID | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """The keys that were ever made, of one owner or (None) of all, newest first; without the keys themselves.

    `after`: the last one of the page before.
    """
    return await (await conn.execute(LIST, {"owner": owner, "after": after, "limit": limit})).fetchall()


VALID = """
SELECT count(*) AS n FROM api_keys
 WHERE owner = %(owner)s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""


async def count_valid(conn: Conn, owner: str) -> int:
    """How many keys of an owner open something now."""
    row = await (await conn.execute(VALID, {"owner": owner})).fetchone()
    return row["n"] if row else 0


REVOKE: LiteralString = (
    """
UPDATE api_keys SET revoked_at = now()
 WHERE revoked_at IS NULL AND key_id = %(key_id)s AND (%(owner)s::text IS NULL OR owner = %(owner)s)
RETURNING """
    + COLUMNS
)


async def revoke(conn: Conn, key_id: UUID, *, owner: str | None = None) -> dict[str, Any] | None:
    """The key opens nothing any more, from the next request on, on every server.

    None: no such key is valid, or it is not the `owner`'s.
    """
    return await (await conn.execute(REVOKE, {"key_id": key_id, "owner": owner})).fetchone()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
