"""What JsonBody turns away, and how it says so."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from perdure.api.body import PARSED, BodyRefused, JsonBody, parse


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (rb'{"a": {"b": ["x", "y\u0000"]}}', "a.b[1]: NUL characters are not allowed"),
        (rb'{"a": {"k\u0000": 1}}', "a.k\\x00: NUL characters are not allowed"),
        (rb'{"a": ["\ud800"]}', "a[0]: not valid Unicode, it has a lone surrogate"),
        (rb'"\udfff"', "body: not valid Unicode, it has a lone surrogate"),
        (b'{"n": 1e999}', "n: numbers must be finite"),
        (b'{"n": NaN}', "n: numbers must be finite"),
        (b'{"n": [-Infinity]}', "n[0]: numbers must be finite"),
        (b'{"n": 18446744073709551616}', "n: integers must fit in 64 bits"),
        (b'{"n": -9223372036854775809}', "n: integers must fit in 64 bits"),
        (b'{"n": ' + b"9" * 5000 + b"}", "n: integers must fit in 64 bits"),
        (b'{"deep": ' + b"[" * 10 + b"]" * 10 + b"}", "nested deeper than 10 levels"),
        (b"[" * 200_000, "body"),
        (b"{oops", "Invalid JSON in request body"),
        (b"   ", "Invalid JSON in request body"),
        (b'"\xff"', "Invalid JSON in request body"),
        (b"\xef\xbb\xbf{}", "Invalid JSON in request body"),
        (b"a=1&b=2", "Invalid JSON in request body"),
    ],
)
def test_refused_bodies_name_the_field(body: bytes, detail: str) -> None:
    with pytest.raises(BodyRefused) as refused:
        parse(body, max_depth=10)
    assert detail in str(refused.value)
    str(refused.value).encode()


@pytest.mark.parametrize(
    "value",
    [
        {"n": [2**64 - 1, -(2**63), 1.5e300, 1e30, 0.1234567890123456789]},
        {"text": "\\u0000 is only spelled here", "digits": "9" * 100},
        {"emoji": "\U0001f600"},
        None,
        [[[[]]]],
        {"": {"": 1}},
    ],
)
def test_accepted_bodies_arrive_as_they_are(value: Any) -> None:
    assert parse(json.dumps(value).encode(), max_depth=10) == value


def test_depth_limit_counts_levels() -> None:
    assert parse(b"[" * 10 + b"]" * 10, max_depth=10)
    with pytest.raises(BodyRefused):
        parse(b"[" * 11 + b"]" * 11, max_depth=10)


async def _echo(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse({"size": len(body), "parsed": request.scope.get(PARSED, "nothing")})


def _client(max_bytes: int = 1000) -> TestClient:
    app = Starlette(routes=[Route("/{rest:path}", _echo, methods=["GET", "POST", "DELETE"])])
    return TestClient(JsonBody(app, max_bytes=max_bytes, max_depth=10))


def test_a_body_at_the_limit_passes_and_one_above_is_413() -> None:
    client = _client(max_bytes=20)
    assert client.post("/", content=b'"' + b"x" * 18 + b'"').json()["size"] == 20
    refused = client.post("/", content=b'"' + b"x" * 19 + b'"')
    assert refused.status_code == 413
    assert "20 bytes" in refused.json()["detail"]


def test_a_chunked_body_above_the_limit_is_413() -> None:
    chunks = (b"x" * 10 for _ in range(10))
    assert _client(max_bytes=20).post("/", content=chunks).status_code == 413


async def test_a_body_without_end_is_cut_off() -> None:
    reads = 0

    async def receive() -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    await JsonBody(_never, max_bytes=1000, max_depth=10)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert reads < 20


async def _never(*_: Any) -> None:
    raise AssertionError("must not be called")


async def test_a_client_that_leaves_while_sending_ends_the_request() -> None:
    messages: AsyncIterator[Any] = aiter_of(
        {"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}
    )
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    await JsonBody(_never, max_bytes=1000, max_depth=10)(scope, lambda: anext(messages), _never)


async def aiter_of(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


def test_nul_in_path_or_query_is_422() -> None:
    for path in ("/a%00b", "/a?q=%00"):
        refused = _client().get(path)
        assert refused.status_code == 422, path
        assert refused.json() == {"detail": "URL: NUL characters are not allowed"}


def test_the_parsed_value_travels_on_and_an_empty_body_is_none_at_all() -> None:
    assert _client().post("/", content=b"null").json()["parsed"] is None
    assert _client().post("/").json()["parsed"] == "nothing"
    assert _client().request("DELETE", "/", content=b'{"a":1}').json()["parsed"] == {"a": 1}
    assert _client().request("GET", "/", content=b"{oops").status_code == 200


async def test_a_large_body_does_not_block_the_event_loop() -> None:
    middleware = JsonBody(_never, max_bytes=2**24, max_depth=10)
    body = json.dumps([{"k\\u0000": list(range(50))}] * 20_000).encode().replace(b"\\\\u0000", b"u")
    parsing = asyncio.create_task(middleware._parse(body))
    ticks = 0
    while not parsing.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert len(await parsing) == 20_000
    assert ticks > 5
