"""Answers that are arrays: whole when they are small, else read as fast as the client takes them."""

import asyncio
from typing import Any

import orjson
import pytest

from perdure.api import arrays

ROW = {"text": "x" * 1000}


class Rows:
    """`count` rows of 1 kB, of which `read` were asked for; with `fails` the one after them fails."""

    def __init__(self, count: int, *, fails: bool = False) -> None:
        self.count, self.fails = count, fails
        self.read, self.closed = 0, False

    async def __call__(self) -> Any:
        try:
            while self.read < self.count:
                self.read += 1
                yield ROW
            if self.fails:
                raise ConnectionError("the database has gone")
        finally:
            self.closed = True


class Client:
    """Takes what the application sends; `room` is how much of the body it takes before it stops reading."""

    def __init__(self, room: float = float("inf")) -> None:
        self.room = room
        self.body, self.ended = b"", False
        self.full, self.gone = asyncio.Event(), asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] != "http.response.body":
            return
        self.body += message.get("body", b"")
        self.ended = not message.get("more_body", False)
        if len(self.body) > self.room:
            self.full.set()
            await asyncio.Event().wait()

    async def receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("count", [0, 1, 3, 5000])
async def test_an_array_is_the_same_whole_or_in_pieces(count: int) -> None:
    answer = await arrays.array(Rows(count)(), headers={"X-Pagination-Total": "7"})
    assert (answer.status_code, answer.headers["X-Pagination-Total"]) == (200, "7")
    assert answer.headers["content-type"] == "application/json"
    assert ("content-length" in answer.headers) is (count < 1000)
    client = Client()
    await answer({"type": "http"}, client.receive, client.send)
    assert client.ended
    assert orjson.loads(client.body) == [ROW] * count


async def test_rows_wait_for_the_client_and_end_with_it() -> None:
    rows = Rows(100_000)
    answer = await arrays.array(rows())
    client = Client(room=2 * arrays.WHOLE_BYTES)
    sending = asyncio.create_task(answer({"type": "http"}, client.receive, client.send))
    await client.full.wait()
    assert rows.read * 1000 < 2 * arrays.WHOLE_BYTES + 10_000
    client.gone.set()
    await sending
    assert rows.closed
    assert not client.ended


async def test_a_failure_is_an_error_or_breaks_the_answer_off() -> None:
    early = Rows(10, fails=True)
    with pytest.raises(ConnectionError):
        await arrays.array(early())
    assert early.closed
    late = Rows(5000, fails=True)
    answer = await arrays.array(late())
    client = Client()
    with pytest.raises(ConnectionError):
        await answer({"type": "http"}, client.receive, client.send)
    assert late.closed
    assert not client.ended
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(client.body)
