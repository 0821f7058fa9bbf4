"""Answers that are written while the client reads: event streams, and JSON that takes a while.

A frame is `event: <name>\\r\\ndata: <one-line JSON>\\r\\n[id: <ms>-<seq>\\r\\n]\\r\\n`; silence is
filled with a comment. There is no end event: the server closes the stream, and the run's status is
final by then.
An open stream holds a subscription and no database connection.
Wire source: langgraph-api 0.16, `text/event-stream` of the run and thread streams.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

from fastapi import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from perdure.api.answers import location
from perdure.engine.errors import EngineError, NotFound
from perdure.engine.events import PROTOCOL
from perdure.engine.hub import Event
from perdure.engine.jsonable import dumps

HEARTBEAT = b": heartbeat\r\n\r\n"
LAST: Message = {"type": "http.response.body", "body": b"", "more_body": False}
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Connection": "keep-alive"}
HIDDEN = {"lifecycle", "input", "input.requested"}
"""Recorded for every run, shown only by the thread stream and the event protocol."""

EVENT_NAMES = {"messages-tuple": "messages", "messages": "messages/"}
"""Stream modes whose event name is not the mode itself; `messages/` stands for all that begin so."""

FROM_START = {"-1", "-", "0", "0-0"}
EVENT_ID = re.compile(r"[0-9]{1,16}-([0-9]{1,18})")
RUN_ENDED = b'"final":true'
"""In the data of the lifecycle event that is written in the transaction that ends a run."""

T = TypeVar("T")
Gone = Callable[[], Awaitable[object]]


def frame(event: str, data: bytes, ident: str | None = None) -> bytes:
    """One event as bytes; `data` is JSON on one line."""
    tail = f"\r\nid: {ident}\r\n\r\n" if ident else "\r\n\r\n"
    return b"event: " + event.encode() + b"\r\ndata: " + data + tail.encode()


def position(last_event_id: str | None, *, of_thread: bool = False) -> int | None:
    """The seq after which a reader goes on; None if it names none, 0 for the very beginning.

    Raises HTTPException 422 for anything but `<ms>-<seq>`, `-`, `0`, `0-0` and, for the stream of a run, `-1`.
    """
    text = (last_event_id or "").strip()
    if not text:
        return None
    if text in FROM_START and not (of_thread and text == "-1"):
        return 0
    if match := EVENT_ID.fullmatch(text):
        return int(match[1])
    raise HTTPException(422, "Last-Event-ID: must be <milliseconds>-<number> as sent by this server, or 0")


class Live(StreamingResponse):
    """An answer whose headers go out at once and whose body comes as it is made.

    When the client goes away the producer is closed and `on_gone` is called. A server that
    stops cancels the request: that closes the producer only, so a deploy does not cancel runs.
    `resumable` answers then end properly and their readers come back; others are cut off.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        media_type: str,
        headers: Mapping[str, str],
        resumable: bool = False,
        on_gone: Gone | None = None,
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self.chunks = chunks
        self.resumable = resumable
        self.on_gone = on_gone
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(_disconnect(receive))
        stopped = False
        try:
            await asyncio.wait((pump, gone), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            stopped = True  # not passed on: the server that cancelled would log it as a failure
        finished, left = pump.done(), gone.done()
        pump.cancel()
        gone.cancel()
        await asyncio.gather(pump, gone, return_exceptions=True)
        if finished:
            pump.result()
        elif stopped and self.resumable and self.begun:
            await send(LAST)
        elif left and not stopped and self.on_gone:
            await self.on_gone()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self.begun = True
        async with closing(self.chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send(LAST)


@asynccontextmanager
async def closing(source: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close a generator when its reader stops; a bare `async for` leaves that to the garbage collector."""
    try:
        yield source
    finally:
        if isinstance(source, AsyncGenerator):
            await cast("AsyncGenerator[T, None]", source).aclose()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event_stream(
    chunks: AsyncIterator[bytes],
    *,
    headers: Mapping[str, str] | None = None,
    on_gone: Gone | None = None,
) -> Live:
    """A `text/event-stream` answer."""
    return Live(
        chunks,
        media_type="text/event-stream",
        resumable=True,
        headers={**HEADERS, **(headers or {})},
        on_gone=on_gone,
    )


def slow_json(
    ended: AsyncIterator[None],
    outcome: Callable[[], Awaitable[Any]],
    *,
    thread_id: Any,
    run_id: Any,
    on_gone: Gone | None = None,
) -> Live:
    """JSON that is ready when the run has ended; until then a newline for each heartbeat.

    An engine error that comes up after the headers (the run was rolled back while somebody
    waited for it) is told as the wire tells failed runs, `{"__error__": {...}}`.
    """

    async def chunks() -> AsyncIterator[bytes]:
        try:
            async with closing(ended) as beats:
                async for _ in beats:
                    yield b"\n"
            result = await outcome()
        except EngineError as exc:
            result = {"__error__": {"error": type(exc).__name__, "message": str(exc)}}
        yield dumps(result)

    return Live(
        chunks(),
        media_type="application/json",
        headers=location(thread_id, run_id, "join"),
        on_gone=on_gone,
    )


async def run_frames(
    events: AsyncIterator[Event | None], *, ids: bool, modes: Iterable[str] = ()
) -> AsyncIterator[bytes]:
    """Frames of one run; `modes` keeps only those (and errors), and drops the metadata frame."""
    wanted = tuple(EVENT_NAMES.get(mode, mode) for mode in modes)
    with suppress(NotFound):  # deleted while somebody reads: the stream ends
        async with closing(events) as source:
            async for event in source:
                if event is None:
                    yield HEARTBEAT
                    continue
                name = event.event.partition("|")[0]
                if not _hidden(name) and (not wanted or _is_wanted(name, wanted)):
                    yield frame(event.event, event.data, event.id if ids else None)


def _hidden(name: str) -> bool:
    return name in HIDDEN or name.startswith(PROTOCOL)


def _is_wanted(name: str, wanted: tuple[str, ...]) -> bool:
    groups = tuple(want for want in wanted if want.endswith("/"))
    return name == "error" or name in wanted or name.startswith(groups)


async def thread_frames(events: AsyncIterator[Event | None], *, modes: Iterable[str]) -> AsyncIterator[bytes]:
    """Frames of every run of a thread, each with an id and each run closed by a `run_done` frame.

    `run_modes` shows each run in its own modes, `lifecycle` only begin and end.
    """
    modes = set(modes)
    everything = "run_modes" in modes
    with suppress(NotFound):
        async with closing(events) as source:
            async for event in source:
                if event is None:
                    yield HEARTBEAT
                    continue
                name = event.event.partition("|")[0]
                if name == "lifecycle":
                    if RUN_ENDED in event.data and (everything or "lifecycle" in modes):
                        done = {"status": "run_done", "run_id": event.run_id}
                        yield frame("metadata", dumps(done), event.id)
                elif not _hidden(name) and (everything or (name == "metadata" and "lifecycle" in modes)):
                    yield frame(event.event, event.data, event.id)
