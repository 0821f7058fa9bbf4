"""The one event stream of an open page: it says that something has changed, and the page asks for itself again.

Nothing of what has changed goes through here, so there is nothing to lose: after a lost connection the page
asks once. A reader is told at most once in its `pace`, however much happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response

from perdure.api.context import EngineDep
from perdure.api.gate import GateDep
from perdure.api.sse import HEARTBEAT, event_stream
from perdure.console.pages import PageRoute
from perdure.engine.core import Engine

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

SLACK_SECONDS = 2.0  # a page takes time to make, perhaps on another server with another clock
CHANGED = b"event: changed\r\ndata: {}\r\nid: 1\r\n\r\n"


@router.get("/live")
async def follow_changes(
    engine: EngineDep,
    gate: GateDep,
    thread: UUID | None = None,
    since: float = 0,
    pace: Annotated[float, Query(ge=1, le=60)] = 1,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """`changed`, without saying what, for each burst of events: of one thread, or of any.

    `since`: before what the page shows was read (Unix time). What has happened from then on is told at once.
    `pace`: seconds that lie between two of them at least.
    """
    if thread is not None:
        await gate.thread("read", thread)
    return event_stream(_changes(engine, thread, since=0 if last_event_id else since, pace=pace))


async def _changes(engine: Engine, thread: UUID | None, *, since: float, pace: float) -> AsyncIterator[bytes]:
    with engine.hub.watch(thread) as changes:
        yield CHANGED if engine.hub.changed_at > since - SLACK_SECONDS else b"id: 1\r\n\r\n"
        while True:
            if not await changes.wait(engine.settings.heartbeat_seconds):
                yield HEARTBEAT
                continue
            changes.take()  # only that there was something matters
            yield CHANGED
            await asyncio.sleep(pace)  # what happens now is told in one go afterwards
