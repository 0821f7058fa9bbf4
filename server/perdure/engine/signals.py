"""Listening: how one process hears of what another has committed (LISTEN/NOTIFY).

Notifications only say where to look; what is true stands in the tables. When the connection
is lost it is made anew, and everybody looks once, because something may have been missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import LiteralString

import structlog

from perdure.engine.db import connect

log = structlog.get_logger(__name__)

RECONNECT_SECONDS = 0.5

LISTEN: dict[str, LiteralString] = {
    "perdure_events": "LISTEN perdure_events",  # "<thread id> <last seq> <origin>": there are new events
    "perdure_work": "LISTEN perdure_work",  # a run may be claimed
    "perdure_cancel": "LISTEN perdure_cancel",  # "<run id>": its owner has lost it
    "perdure_webhook": "LISTEN perdure_webhook",  # a webhook may be sent
    "perdure_remote": "LISTEN perdure_remote",  # another server may be called
}


async def listen(dsn: str, handlers: dict[str, Callable[[str], None]], *, missed: Callable[[], None]) -> None:
    """Call `handlers[channel](payload)` for each notification, until cancelled.

    `missed` is called after every (re)connection: notifications may have been lost before.
    """
    while True:
        try:
            conn = await connect(dsn)
            async with conn:
                for channel in handlers:
                    await conn.execute(LISTEN[channel])
                missed()
                async for notice in conn.notifies():
                    handlers[notice.channel](notice.payload)
        except Exception as exc:  # the edge of a background loop: listening must not end
            log.warning("listen connection lost", error=str(exc).strip())
        await asyncio.sleep(RECONNECT_SECONDS)
