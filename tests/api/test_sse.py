"""Frames, positions, and answers that are written while the client reads."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from fastapi import HTTPException

from perdure.api.sse import (
    HEARTBEAT,
    Live,
    event_stream,
    frame,
    position,
    run_frames,
    slow_json,
    thread_frames,
)
from perdure.engine.errors import RunNotFound
from perdure.engine.hub import Event

RUN = UUID("00000000-0000-7000-8000-000000000001")


def event(seq: int, name: str, data: bytes = b"{}") -> Event:
    return Event(seq, 1000 + seq, RUN, name, data)


async def events(*items: Event | None) -> AsyncIterator[Event | None]:
    for item in items:
        yield item


async def names(frames: AsyncIterator[bytes]) -> list[str]:
    return [f.split(b"\r\n")[0].removeprefix(b"event: ").decode() async for f in frames]


def test_frame_is_crlf_with_the_id_last() -> None:
    assert frame("values", b'{"a":1}') == b'event: values\r\ndata: {"a":1}\r\n\r\n'
    assert frame("values", b"{}", "1-2") == b"event: values\r\ndata: {}\r\nid: 1-2\r\n\r\n"


def test_last_event_id_forms() -> None:
    assert position(None) is position("") is None
    assert [position(text) for text in ("-1", "0", "0-0", "-", "1700000000000-42")] == [0, 0, 0, 0, 42]
    assert [position(text, of_thread=True) for text in ("0", "0-0", "-", "1700000000000-42")] == [0, 0, 0, 42]
    with pytest.raises(HTTPException):
        position("-1", of_thread=True)
    for text in ("abc", "12", "1-2-3", "1-", "1-" + "9" * 19, "٣-٤"):
        with pytest.raises(HTTPException) as refused:
            position(text)
        assert refused.value.status_code == 422


async def test_run_frames_hide_the_engines_own_and_fill_silence() -> None:
    source = events(None, event(1, "lifecycle"), event(2, "metadata"), event(3, "updates|inner:1"))
    frames = [f async for f in run_frames(source, ids=True)]
    assert frames[0] == HEARTBEAT
    assert frames[1].endswith(b"id: 1002-2\r\n\r\n")
    assert frames[2].startswith(b"event: updates|inner:1\r\n")
    assert len(frames) == 3


async def test_ids_only_when_asked_for() -> None:
    assert b"id:" not in b"".join([f async for f in run_frames(events(event(1, "values")), ids=False)])


async def test_modes_filter_keeps_errors_and_drops_metadata() -> None:
    every = ["metadata", "values", "custom", "messages", "messages/partial", "messages/metadata|a:1", "error"]

    def source() -> AsyncIterator[Event | None]:
        return events(*(event(n, name) for n, name in enumerate(every, 1)))

    assert await names(run_frames(source(), ids=False, modes=["custom"])) == ["custom", "error"]
    assert await names(run_frames(source(), ids=False, modes=["messages-tuple"])) == ["messages", "error"]
    assert await names(run_frames(source(), ids=False, modes=["messages"])) == [
        "messages/partial",
        "messages/metadata|a:1",
        "error",
    ]


async def test_a_run_that_is_deleted_ends_its_stream() -> None:
    async def source() -> AsyncIterator[Event | None]:
        yield event(1, "metadata")
        raise RunNotFound("gone")

    assert await names(run_frames(source(), ids=False)) == ["metadata"]


async def test_thread_frames_close_each_run() -> None:
    every = (
        event(1, "lifecycle", b'{"event":"pending"}'),
        event(2, "metadata"),
        event(3, "updates"),
        event(4, "lifecycle", b'{"event":"completed","final":true}'),
    )
    frames = [f async for f in thread_frames(events(*every), modes=["run_modes"])]
    assert all(b"\r\nid: " in f for f in frames)
    assert frames[-1].startswith(b'event: metadata\r\ndata: {"status":"run_done","run_id":"%s"}' % str(RUN).encode())
    assert await names(thread_frames(events(*every), modes=["lifecycle"])) == ["metadata", "metadata"]
    assert await names(thread_frames(events(*every), modes=["state_update"])) == []


class Client:
    """The other end of an ASGI answer; `leave` is the client going away."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self._gone = asyncio.Event()
        self.begun = asyncio.Event()

    async def receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        self.begun.set()

    def leave(self) -> None:
        self._gone.set()

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)


class Source:
    """Chunks that never end, and whether they were closed."""

    closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await asyncio.sleep(60)
        finally:
            self.closed = True


async def test_headers_and_end_of_an_event_stream() -> None:
    client = Client()
    await event_stream(run_frames(events(event(1, "values")), ids=False), headers={"Location": "/x"})(
        {}, client.receive, client.send
    )
    headers = dict(client.messages[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"location"] == b"/x"
    assert client.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_client_that_leaves_closes_the_producer_and_is_told() -> None:
    client, source, told = Client(), Source(), []

    async def on_gone() -> None:
        told.append(source.closed)

    answer = event_stream(source.chunks(), on_gone=on_gone)
    task = asyncio.create_task(answer({}, client.receive, client.send))
    await client.begun.wait()
    client.leave()
    await asyncio.wait_for(task, 30)
    assert told == [True]


async def test_a_stopping_server_closes_the_producer_without_calling_it_a_disconnect() -> None:
    client, source, told = Client(), Source(), []

    async def on_gone() -> None:
        told.append(True)

    task = asyncio.create_task(event_stream(source.chunks(), on_gone=on_gone)({}, client.receive, client.send))
    await client.begun.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    await task
    assert source.closed
    assert told == []
    assert client.messages[-1]["more_body"] is False


async def test_slow_json_sends_headers_at_once_and_newlines_while_it_waits() -> None:
    client = Client()
    go = asyncio.Event()

    async def ended() -> AsyncIterator[None]:
        yield None
        yield None
        await go.wait()

    async def outcome() -> Any:
        return {"a": 1}

    answer = slow_json(ended(), outcome, thread_id="t", run_id="r")
    task = asyncio.create_task(answer({}, client.receive, client.send))
    start = time.monotonic()
    while client.body != b"\n\n":
        await asyncio.sleep(0.01)
        assert time.monotonic() - start < 30
    headers = dict(client.messages[0]["headers"])
    assert headers[b"content-location"] == b"/threads/t/runs/r"
    assert headers[b"location"] == b"/threads/t/runs/r/join"
    go.set()
    await task
    assert client.body == b'\n\n{"a":1}'


async def test_slow_json_tells_an_engine_error_as_a_failed_run() -> None:
    client = Client()

    async def ended() -> AsyncIterator[None]:
        raise RunNotFound("Run with ID r not found")
        yield None

    async def outcome() -> Any:
        raise AssertionError

    await slow_json(ended(), outcome, thread_id="t", run_id="r")({}, client.receive, client.send)
    assert client.body == b'{"__error__":{"error":"RunNotFound","message":"Run with ID r not found"}}'


async def test_an_unexpected_error_while_streaming_is_raised_and_the_answer_stays_unfinished() -> None:
    client = Client()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Live(chunks(), media_type="text/plain", headers={})({}, client.receive, client.send)
    assert client.messages[-1]["more_body"] is True
