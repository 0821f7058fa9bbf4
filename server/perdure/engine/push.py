"""Push notifications of tasks: table `push_configs`, whose webhooks are sent by `delivery`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from perdure.engine.db import Conn, Pool
from perdure.engine.errors import InvalidInput

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_CONFIGS = 20  # of a task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where a task's notifications go. `credentials` are never shown again."""

    config_id: str
    url: str
    version: str
    token: str | None = None
    scheme: str | None = None
    credentials: str | None = field(default=None, repr=False)


SET = """
INSERT INTO push_configs (thread_id, run_id, config_id, url, token, scheme, credentials, version)
SELECT %(thread_id)s, %(run_id)s, %(config_id)s, %(url)s, %(token)s, %(scheme)s, %(credentials)s, %(version)s
 WHERE (SELECT count(*) FROM push_configs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
           AND config_id <> %(config_id)s) < %(most)s
ON CONFLICT (thread_id, run_id, config_id) DO UPDATE
   SET url = excluded.url, token = excluded.token, scheme = excluded.scheme, credentials = excluded.credentials,
       version = excluded.version
RETURNING config_id
"""


async def put(conn: Conn, thread_id: UUID, run_id: UUID, config: Config) -> None:
    """Add a config to a task, or replace the one of that id. Raises InvalidInput when there are too many."""
    params = {"thread_id": thread_id, "run_id": run_id, "most": MAX_CONFIGS, **vars(config)}
    if await (await conn.execute(SET, params)).fetchone() is None:
        raise InvalidInput("pushNotificationConfig", f"a task has {MAX_CONFIGS} at most")


LIST = """
SELECT config_id, url, token, scheme, version FROM push_configs
 WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND (%(config_id)s::text IS NULL OR config_id = %(config_id)s)
 ORDER BY created_at, config_id
"""


async def of_task(engine: Engine, thread_id: UUID, run_id: UUID, config_id: str | None = None) -> list[Config]:
    """A task's configs, oldest first, without their credentials."""
    params = {"thread_id": thread_id, "run_id": run_id, "config_id": config_id}
    async with engine.pool.connection() as conn:
        return [Config(**row) for row in await (await conn.execute(LIST, params)).fetchall()]


DELETE = """
DELETE FROM push_configs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s AND config_id = %(config_id)s
"""


async def delete(engine: Engine, thread_id: UUID, run_id: UUID, config_id: str) -> None:
    """Forget a config; what is being sent to it may still arrive. One that is not there is gone already."""
    async with engine.pool.connection() as conn:
        await conn.execute(DELETE, {"thread_id": thread_id, "run_id": run_id, "config_id": config_id})


# From the run that has ended back to the one that its task began with: a run that took an answer belongs to
# the task of the run that had asked.
TELL = """
WITH RECURSIVE task AS (
    SELECT run_id, kwargs FROM runs WHERE thread_id = %(thread_id)s AND run_id = %(run_id)s
    UNION
    SELECT r.run_id, r.kwargs
      FROM task t JOIN interrupts i ON i.thread_id = %(thread_id)s
                      AND jsonb_exists(t.kwargs -> 'answered', i.interrupt_id)
           JOIN runs r ON r.thread_id = %(thread_id)s AND r.run_id = i.run_id
), added AS (
    INSERT INTO webhooks (thread_id, run_id, url, host, temporary, push_id)
    SELECT %(thread_id)s, %(run_id)s, p.url,
           lower(coalesce(substring(p.url FROM '//(?:[^/?#]*@)?([^/?#@]*)'), '')), false, p.push_id
      FROM push_configs p JOIN task t ON t.run_id = p.run_id
     WHERE p.thread_id = %(thread_id)s
    RETURNING webhook_id
)
SELECT pg_notify('perdure_webhook', '') FROM added
"""


async def tell(conn: Conn, thread_id: UUID, run_id: UUID) -> None:
    """Notify those who follow the task of this run. Part of the transaction that ends the run."""
    await conn.execute(TELL, {"thread_id": thread_id, "run_id": run_id})


ONE = """
SELECT run_id, config_id, url, token, scheme, credentials, version FROM push_configs WHERE push_id = %(push_id)s
"""


async def get(pool: Pool, push_id: UUID) -> tuple[UUID, Config] | None:
    """The task's first run and the config, for whoever sends; None when it has been deleted."""
    async with pool.connection() as conn:
        row: dict[str, Any] | None = await (await conn.execute(ONE, {"push_id": push_id})).fetchone()
    return (row.pop("run_id"), Config(**row)) if row else None
