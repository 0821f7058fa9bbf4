"""Children on other servers: table `remote_calls`.

    starting --started--> running --settle--> done | failed | cancelled | gone
        +-----------------settle (refused, or handed over)-----------^

This is the caller's side: its attempt writes a row and goes on. A thread of every worker
(`perdure.engine.calling`) speaks to the other server, and notes in `perdure.engine.tries` what comes of it.
A callback of the other server is believed to be nothing but a nudge: we ask that server what has
happened, so a forged or repeated one is harmless.

Locks are taken in this order: thread, run, call.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from standardwebhooks import WebhookVerificationError

from perdure.engine import tracing
from perdure.engine.db import Conn, jsonb, plain_json
from perdure.engine.errors import InvalidInput, LeaseLost

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.queue import Claimed

START = """
WITH held AS (
    SELECT thread_id FROM threads WHERE thread_id = %(thread_id)s AND fence = %(fence)s FOR SHARE
), added AS (
    INSERT INTO remote_calls (thread_id, call_id, run_id, bound, server, host, agent, key, input, callers, available_at,
                              token, callback_url, trace)
    SELECT thread_id, %(call_id)s, %(run_id)s, %(bound)s, %(server)s, %(host)s, %(agent)s, %(key)s, %(input)s,
           %(callers)s, now() + make_interval(secs => %(delay)s), %(token)s, %(callback_url)s, %(trace)s
      FROM held
    ON CONFLICT (thread_id, call_id) DO NOTHING
    RETURNING call_id
)
SELECT thread_id, (SELECT pg_notify('perdure_remote', '') FROM added) FROM held
"""


async def start(
    engine: Engine,
    parent: Claimed,
    server: str,
    agent: str,
    given: Any,
    *,
    key: str | None,
    callers: list[str],
    idempotency_key: str,
    delay: float,
    bound: bool,
) -> dict[str, str]:
    """Write down that a run is to be started on another server, once for this idempotency key.

    `run_id` of the answer is the id of the call. Raises LeaseLost, and InvalidInput for an address
    that is not http or https.
    """
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput("server", f"{server!r} is no http or https address")
    call_id = uuid5(parent.thread_id, idempotency_key)
    token = secrets.token_urlsafe(32)
    own = engine.settings.public_url
    row: dict[str, Any] = {
        "thread_id": parent.thread_id,
        "fence": parent.fence,
        "run_id": parent.run_id,
        "call_id": call_id,
        "bound": bound,
        "server": server,
        "host": parts.netloc.lower(),
        "agent": agent,
        "key": key,
        "input": plain_json(given),
        "callers": jsonb(callers),
        "delay": delay,
        "token": token,
        "trace": tracing.child_of(parent),
        "callback_url": f"{own.rstrip('/')}/callbacks/{token}" if own and bound else None,
    }
    async with engine.pool.connection() as conn:
        if await (await conn.execute(START, row)).fetchone() is None:
            raise LeaseLost(f"Run {parent.run_id} has another owner")
    return {"thread_id": str(call_id), "run_id": str(call_id), "server": server}


LOOK = """
SELECT status, output, error, run_id, settled_at FROM remote_calls
 WHERE thread_id = %(thread_id)s AND call_id = %(call_id)s
"""
NOTE = """
WITH held AS (
    SELECT thread_id FROM threads WHERE thread_id = %(thread_id)s AND fence = %(fence)s FOR SHARE
), noted AS (
    UPDATE remote_calls c SET run_id = %(run_id)s FROM held
     WHERE c.thread_id = held.thread_id AND c.call_id = %(call_id)s
)
SELECT thread_id FROM held
"""


async def outcome(engine: Engine, parent: Claimed, call_id: UUID) -> dict[str, Any]:
    """What has become of a call: as `children.outcome`, with the same promise to wake the caller.

    Whoever waits stands in the row; a run that goes on for another one (it was cancelled, or a
    question was answered) takes its place before it looks. Raises LeaseLost.
    """
    keys = {"thread_id": parent.thread_id, "call_id": call_id}
    async with engine.pool.connection() as conn:
        found = await (await conn.execute(LOOK, keys)).fetchone()
        if found and found["settled_at"] is None and found["run_id"] != parent.run_id:
            note = {**keys, "run_id": parent.run_id, "fence": parent.fence}
            if await (await conn.execute(NOTE, note)).fetchone() is None:
                raise LeaseLost(f"Run {parent.run_id} has another owner")
            found = await (await conn.execute(LOOK, keys)).fetchone()
    if found is None:
        return {"status": "gone", "output": None, "error": None}
    status = "running" if found["settled_at"] is None else found["status"]
    return {"status": status, "output": found["output"], "error": found["error"]}


# One that was never tried needs no word to the other server.
CANCEL = """
WITH held AS (
    SELECT thread_id FROM threads WHERE thread_id = %(thread_id)s AND fence = %(fence)s FOR SHARE
), cancelled AS (
    UPDATE remote_calls c
       SET cancelling = true, nudged = true, tries = 0,
           status = CASE WHEN attempt = 0 THEN 'cancelled' ELSE status END,
           settled_at = CASE WHEN attempt = 0 THEN now() END,
           next_at = CASE WHEN attempt = 0 THEN NULL WHEN speaking AND next_at > now() THEN next_at ELSE now() END
      FROM held
     WHERE c.thread_id = held.thread_id AND c.call_id = %(call_id)s AND c.settled_at IS NULL AND NOT c.cancelling
    RETURNING c.call_id
)
SELECT thread_id, (SELECT pg_notify('perdure_remote', '') FROM cancelled) FROM held
"""


async def cancel(engine: Engine, parent: Claimed, call_id: UUID) -> None:
    """The caller does not want it any more: the other server will be told. Raises LeaseLost."""
    params = {"thread_id": parent.thread_id, "fence": parent.fence, "call_id": call_id}
    async with engine.pool.connection() as conn:
        if await (await conn.execute(CANCEL, params)).fetchone() is None:
            raise LeaseLost(f"Run {parent.run_id} has another owner")


ORPHANS = """
WITH cancelled AS (
    UPDATE remote_calls c
       SET cancelling = true, nudged = true, tries = 0,
           status = CASE WHEN attempt = 0 THEN 'cancelled' ELSE status END,
           settled_at = CASE WHEN attempt = 0 THEN now() END,
           next_at = CASE WHEN attempt = 0 THEN NULL WHEN speaking AND next_at > now() THEN next_at ELSE now() END
     WHERE c.bound AND NOT c.cancelling AND c.settled_at IS NULL
       AND NOT EXISTS (SELECT 1 FROM runs p WHERE p.thread_id = c.thread_id AND p.run_id = c.run_id
                          AND p.status <> 'interrupted' AND p.cancelling IS NULL)
    RETURNING call_id
)
SELECT (SELECT count(*) FROM cancelled) AS n, (SELECT pg_notify('perdure_remote', '') FROM cancelled LIMIT 1)
"""


async def cancel_orphans(conn: Conn) -> int:
    """Calls whose caller was cancelled or deleted are to be cancelled too; how many. One statement."""
    row = await (await conn.execute(ORPHANS)).fetchone()
    return row["n"] if row else 0


VERIFY_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
CALLED = """
WITH called AS (
    UPDATE remote_calls
       SET nudged = true, next_at = CASE WHEN speaking AND next_at > now() THEN next_at ELSE now() END
     WHERE token = %(token)s AND settled_at IS NULL
    RETURNING call_id
)
SELECT call_id, (SELECT pg_notify('perdure_remote', '') FROM called) FROM remote_calls WHERE token = %(token)s
"""


async def called_back(engine: Engine, token: str, body: bytes, headers: Mapping[str, str]) -> None:
    """The other server says that something has happened: ask it now. May come any number of times.

    Raises InvalidInput: 410 for a token that nobody waits for, 401 without a valid signature. One is
    needed exactly if this server signs its own webhooks: both have the secret then.
    """
    from perdure.engine.delivery import signers

    keys = signers(engine.settings)
    if keys:
        signed = {name: headers[name] for name in VERIFY_HEADERS if name in headers}
        if not any(_valid(one, body, signed) for one in keys):
            raise InvalidInput("", "The callback has no valid signature", status=401)
    async with engine.pool.connection() as conn:
        if await (await conn.execute(CALLED, {"token": token})).fetchone() is None:
            raise InvalidInput("", "Nobody waits for this callback", status=410)


def _valid(key: Any, body: bytes, headers: dict[str, str]) -> bool:
    try:
        key.verify(body, headers)
    except (WebhookVerificationError, ValueError):
        return False
    return True


FORGET = "DELETE FROM remote_calls WHERE thread_id = ANY(%(ids)s) AND settled_at IS NOT NULL"


async def forget(conn: Conn, thread_ids: list[UUID]) -> None:
    """Threads are deleted: so are their settled calls. Part of the caller's transaction.

    The others are cancelled by whoever looks after orphans; what was to outlive its caller still does.
    """
    await conn.execute(FORGET, {"ids": thread_ids})


EXPIRE = """
DELETE FROM remote_calls c
 WHERE settled_at < now() - interval '1 day'
   AND NOT EXISTS (SELECT 1 FROM runs p WHERE p.thread_id = c.thread_id AND p.run_id = c.run_id AND c.bound
                      AND p.status IN ('pending', 'running', 'suspended', 'paused'))
"""
GIVE_UP = """
UPDATE remote_calls
   SET status = CASE WHEN cancelling THEN 'cancelled' ELSE 'failed' END, settled_at = now(), next_at = NULL,
       input = NULL
 WHERE settled_at IS NULL AND created_at < now() - interval '30 days' AND (cancelling OR NOT bound)
"""


async def expire(conn: Conn) -> None:
    """Forget calls a day after their end, and give up after 30 days what nobody waits for."""
    await conn.execute(GIVE_UP)
    await conn.execute(EXPIRE)
