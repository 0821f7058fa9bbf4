"""The event protocol: commands by POST, a thread's events by SSE, and both on one WebSocket.

The event streams stay open across runs, and may be opened before the thread exists. Wire source:
langgraph-api 0.16, types of `langchain-protocol` 0.0.20.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, cast
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Response, WebSocket
from langgraph_sdk import Auth
from starlette.exceptions import HTTPException
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from perdure.api import records, schemas
from perdure.api.answers import Json
from perdure.api.auth import CLOSE_CODES
from perdure.api.body import BodyRefused, JsonRoute, any_json, parse
from perdure.api.commands import CommandFailed, checked, execute, failure, parts, position, success
from perdure.api.context import EngineDep
from perdure.api.fields import UUID_TEXT, ThreadId
from perdure.api.gate import Gate, GateDep
from perdure.api.sse import HEARTBEAT, closing, event_stream, frame
from perdure.engine import events, protocol
from perdure.engine.access import Within
from perdure.engine.errors import EngineError, Forbidden, InvalidInput
from perdure.engine.hub import Event
from perdure.engine.jsonable import dumps
from perdure.engine.showing import CHANNELS, Showing, Shown, Wanted

router = APIRouter(prefix="/threads/{thread_id}", route_class=JsonRoute, tags=["protocol"])

MAX_SUBSCRIPTIONS = 100  # of one socket
TOGETHER_SECONDS = 0.02  # subscriptions that come closer together than this see the past together
GONE, MALFORMED = 4404, 4422  # close codes that clients read as the HTTP status


def wanted(body: schemas.EventFilter) -> Wanted:
    """Raises InvalidInput (400) for channels that do not exist, or none."""
    asked: object = body.channels
    given = cast("list[Any]", asked) if isinstance(asked, list) else []
    if not given:
        raise InvalidInput("channels", "must be a list of at least one channel", status=400)
    for channel in given:
        named = isinstance(channel, str) and channel.startswith("custom:") and len(channel) > len("custom:")
        if channel not in CHANNELS and not named:
            known = ", ".join((*CHANNELS, "custom:<name>"))
            raise InvalidInput("channels", f"unknown channel {channel!r}; there are {known}", status=400)
    return Wanted(channels=frozenset(given), namespaces=body.namespaces, depth=body.depth)


@router.post("/commands", openapi_extra=records.ANY_BODY)
async def command(thread_id: ThreadId, gate: GateDep, envelope: Annotated[Any, Depends(any_json)]) -> Response:
    """Carry out a command. 200 for success and failure alike; 400 for what is no command.

    A subscription belongs to a WebSocket: here it is accepted and has no effect.
    """
    try:
        ident, method, params = parts(envelope)
    except CommandFailed as exc:
        return Json({**failure(None, exc.code, str(exc)), "detail": str(exc)}, 400)
    if method == "subscription.subscribe":
        try:
            wanted(checked(schemas.EventFilter, params))
        except (CommandFailed, InvalidInput) as exc:
            return Json(failure(ident, "invalid_argument", str(exc)))
        return Json(success(ident, {"subscription_id": str(uuid4()), "replayed_events": 0}, None))
    if method == "subscription.unsubscribe":
        return Json(success(ident, {}, None))
    return Json(await execute(gate, thread_id, ident, method, params))


@router.post("/stream/events", responses=records.EVENT_STREAM)
async def stream_events(thread_id: ThreadId, body: schemas.EventFilter, engine: EngineDep, gate: GateDep) -> Response:
    """Follow the channels of a thread: what is stored after `since`, then what comes."""
    source = protocol.follow(engine, thread_id, wanted(body), since=body.since)
    within = await gate.allow("threads", "read", {"thread_id": thread_id})
    return event_stream(_frames(gate.appears(thread_id, within), source))


async def _frames(before: AsyncIterator[None], source: AsyncIterator[Shown | None]) -> AsyncIterator[bytes]:
    async for _ in before:
        yield HEARTBEAT
    async with closing(source) as shown:
        async for event in shown:
            yield HEARTBEAT if event is None else frame(event.method, event.json(), str(event.seq))


@router.websocket("/stream/events")
async def socket_events(socket: WebSocket, thread_id: str, gate: GateDep) -> None:
    """Commands in, their answers and the events of the subscriptions out."""
    await socket.accept()
    if not UUID_TEXT.fullmatch(thread_id):
        await socket.close(MALFORMED, "Invalid thread ID: must be a UUID")
        return
    try:
        within = await gate.allow("threads", "read", {"thread_id": UUID(thread_id)})
    except (Forbidden, HTTPException, Auth.exceptions.HTTPException) as exc:
        await socket.close(CLOSE_CODES + getattr(exc, "status_code", 403), str(exc)[:100])
        return
    connection = _Connection(socket, gate, UUID(thread_id), within)
    try:
        with suppress(WebSocketDisconnect):
            await connection.serve()
    finally:
        await connection.close()


@dataclass(eq=False)
class _Subscription:
    wanted: Wanted
    since: int
    ident: str = field(default_factory=lambda: str(uuid4()))


@dataclass(frozen=True)
class _Anyone:
    """What at least one of several wants."""

    several: list[Wanted]

    def place(self, namespace: tuple[str, ...]) -> bool:
        return any(one.place(namespace) for one in self.several)

    def may(self, channel: str) -> bool:
        return any(one.may(channel) for one in self.several)

    def event(self, shown: Shown) -> bool:
        return any(one.event(shown) for one in self.several)


class _Connection:
    """One socket: a client's subscriptions, and one task that reads the thread for all of them.

    So events come in the order of their seq, and once, however many subscriptions want them. New
    subscriptions first get what they want of the past, up to where the reader stands: those that
    come together, as a client's do when it comes back, all at once and in order. JavaScript clients
    would take the end of a run, shown to one of them, for the end of what another waits for.
    """

    def __init__(self, socket: WebSocket, gate: Gate, thread_id: UUID, within: Within) -> None:
        self.socket = socket
        self.gate = gate
        self.within = within  # outside of it the thread does not exist yet
        self.engine = engine = gate.engine
        self.thread_id = thread_id
        self.subscriptions: list[_Subscription] = []
        self._new: list[_Subscription] = []  # have not seen the past yet
        self._due = 0.0  # when they are to see it, on the clock of the loop
        self._reader: asyncio.Task[None] | None = None
        self._showing = Showing(engine, thread_id)
        self._position = 0  # events up to here have been shown to the subscriptions
        self._turn = asyncio.Lock()  # the reader shows an event, or a new subscription the past
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Answer commands until the client leaves."""
        clock = asyncio.get_running_loop().time
        receiving = asyncio.create_task(self.socket.receive())
        try:
            while True:
                done, _ = await asyncio.wait({receiving}, timeout=max(0, self._due - clock()) if self._new else None)
                if self._new and clock() >= self._due:
                    await self._show_past()
                if not done:
                    continue
                message = receiving.result()
                if message["type"] == "websocket.disconnect":
                    return
                await self._answer(message)
                receiving = asyncio.create_task(self.socket.receive())
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _answer(self, message: Message) -> None:
        text: str | None = message.get("text")
        raw: bytes = text.encode(errors="surrogatepass") if text is not None else message.get("bytes") or b""
        ident: int | None = None
        try:
            ident, method, params = parts(parse(raw, max_depth=self.engine.settings.max_json_depth))
            answer = await self._execute(ident, method, params)
        except BodyRefused as exc:
            answer = failure(None, "invalid_argument", str(exc))
        except CommandFailed as exc:
            answer = failure(ident, exc.code, str(exc))
        await self._send(dumps(answer))

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _execute(self, ident: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "subscription.subscribe":
            return await self._subscribe(ident, params)
        if method == "subscription.unsubscribe":
            for several in (self.subscriptions, self._new):
                for one in several:
                    if one.ident == params.get("subscription_id"):
                        several.remove(one)
                        return success(ident, {}, None)
            raise CommandFailed("no_such_subscription", "This connection has no subscription with that id")
        if method == "subscription.reconnect":
            return success(ident, {"restored": False}, None)  # they end with their connection
        return await execute(self.gate, self.thread_id, ident, method, params)

    async def _subscribe(self, ident: int, params: dict[str, Any]) -> dict[str, Any]:
        if len(self.subscriptions) + len(self._new) >= MAX_SUBSCRIPTIONS:
            raise CommandFailed("invalid_argument", f"A connection may have {MAX_SUBSCRIPTIONS} subscriptions")
        body = checked(schemas.EventFilter, params)
        try:
            one = _Subscription(wanted(body), body.since)
        except InvalidInput as exc:
            raise CommandFailed("invalid_argument", str(exc)) from exc
        async with self._turn:
            if self._reader is None and await self.gate.sees(self.thread_id, self.within):
                self._position = await position(self.engine, self.thread_id)
            count = 0
            async for _ in self._past([one], states=False):
                count += 1
            if not self._new:
                self._due = asyncio.get_running_loop().time() + TOGETHER_SECONDS
            self._new.append(one)
            return success(ident, {"subscription_id": one.ident, "replayed_events": count}, self._position)

    async def _show_past(self) -> None:
        """What the new subscriptions want of it and no older one has been shown; then the reader serves them too."""
        async with self._turn:
            async for event in self._past(self._new):
                new, old = ([one for one in of if one.since < event.seq] for of in (self._new, self.subscriptions))
                if any(one.wanted.event(event) for one in new) and not any(one.wanted.event(event) for one in old):
                    await self._send(event.json())
            self.subscriptions += self._new
            self._new = []
            if self._reader is None:
                self._reader = asyncio.create_task(self._read(), name=f"protocol {self.thread_id}")

    def _past(self, several: list[_Subscription], *, states: bool = True) -> AsyncIterator[Shown]:
        """The stored events that at least one of several may want."""
        since = min(one.since for one in several)
        any_of = _Anyone([one.wanted for one in several])
        return protocol.replay(self.engine, self.thread_id, any_of, since=since, until=self._position, states=states)

    async def _read(self) -> None:
        """Show events to the subscriptions until the client leaves or the thread is deleted."""
        async for _ in self.gate.appears(self.thread_id, self.within):
            pass
        source = events.follow_thread(self.engine, self.thread_id, after=self._position, expected=True, states=False)
        try:
            async with closing(source) as log:
                async for event in log:
                    if event is not None:
                        async with self._turn:
                            await self._show(event)
                            self._position = event.seq
            await self.socket.close(GONE, "The thread has been deleted")
        except (WebSocketDisconnect, RuntimeError):  # the client has gone; `serve` notices it too
            return
        except EngineError as exc:
            await self.socket.close(GONE, str(exc)[:100])

    async def _show(self, event: Event) -> None:
        wanted = _Anyone([one.wanted for one in self.subscriptions if one.since < event.seq])
        for shown in await self._showing.of(event, wanted):
            await self._send(shown.json())

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            try:
                await self.socket.send_text(data.decode())
            except RuntimeError as exc:  # the socket has been closed meanwhile
                raise WebSocketDisconnect from exc
