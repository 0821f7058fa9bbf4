"""Idempotency keys: table `idempotency_keys`. The same key and request give the first run again.

A key is claimed in the transaction that creates its run, so a crash leaves neither or both.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.engine.db import Conn
from perdure.engine.errors import IdempotencyMismatch
from perdure.engine.jsonable import dumps

if TYPE_CHECKING:
    from perdure.engine.newrun import NewRun

CLAIM = """
INSERT INTO idempotency_keys (key, request_hash, thread_id, run_id)
VALUES (%(key)s, %(hash)s, %(run_id)s, %(run_id)s)
ON CONFLICT (key) DO NOTHING RETURNING key
"""
FIRST = "SELECT request_hash, thread_id, run_id FROM idempotency_keys WHERE key = %(key)s"


async def claim(conn: Conn, key: str, request: tuple[UUID | None, NewRun], run_id: UUID) -> tuple[UUID, UUID] | None:
    """Claim the key for a new run (None), or return thread and run of the first request.

    Part of the caller's transaction; a second request waits here until the first one's is
    over. Raises IdempotencyMismatch when the first request was another one.
    """
    thread_id, new = request
    # a delay given as a point in time is another number of seconds at each try
    request_data = {"thread": thread_id, **asdict(new), "after_seconds": None, "actor": None}
    digest = hashlib.sha256(dumps(request_data)).hexdigest()
    params: dict[str, Any] = {"key": key, "hash": digest, "run_id": run_id}
    if await (await conn.execute(CLAIM, params)).fetchone():
        return None
    row = await (await conn.execute(FIRST, {"key": key})).fetchone()
    if row is None or row["request_hash"] != digest:
        raise IdempotencyMismatch("Idempotency-Key was used before with another request")
    return row["thread_id"], row["run_id"]


SETTLE = "UPDATE idempotency_keys SET thread_id = %(thread_id)s WHERE key = %(key)s"


async def settle(conn: Conn, key: str, thread_id: UUID) -> None:
    """Note the thread of the new run, once it is known."""
    await conn.execute(SETTLE, {"key": key, "thread_id": thread_id})


EXPIRE = "DELETE FROM idempotency_keys WHERE created_at < now() - interval '24 hours'"


async def expire(conn: Conn) -> None:
    """Forget keys after 24 hours."""
    await conn.execute(EXPIRE)
