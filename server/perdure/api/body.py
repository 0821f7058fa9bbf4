"""Request bodies: read, limited and checked once, before any handler sees them.

`JsonBody` is ASGI middleware. It turns away, with a 4xx that names the field, what PostgreSQL
or a JSON reader behind it could not hold: NUL characters, lone surrogates, numbers that are not
finite or have more than 64 bits, nesting without end, more bytes than allowed. The parsed value
travels on in the scope, so nothing is parsed twice; bodies above `IN_THREAD_BYTES` are parsed
beside the event loop.

`JsonRoute` is the route class that hands the parsed value to FastAPI.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, cast

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.api.answers import error

PARSED = "perdure.json"
"""Scope key of the parsed body; absent when the request has none."""

INVALID_JSON = "Invalid JSON in request body"
IN_THREAD_BYTES = 64 * 1024  # about 1 ms of parsing and checking
DRAIN_FACTOR = 8
"""A body that is too large is read and dropped up to this many times the limit: a client that is
still sending when the connection is closed would see a reset instead of the 413."""

WITHOUT_BODY = {"GET", "HEAD", "OPTIONS"}
FORMS = ("/interrupts/link/", "/console/")
"""Below these paths bodies are forms of web pages: limited here, read by their handler."""

RPC = {"/mcp": 400, "/a2a/": 200}
"""Below these paths errors are JSON-RPC's, and the HTTP status of a body that is no request."""

LONG_DIGITS = re.compile(rb"[0-9]{19}")

# A value and how it was reached: (its parent's link, its key or index).
Link: TypeAlias = "tuple[Link | None, str | int] | None"


class BodyRefused(ValueError):
    """The request cannot be accepted; the text is the `detail` of the answer."""


class BodyTooLarge(BodyRefused):
    """More bytes than `max_body_bytes`."""


class _Huge:
    """Stands for an integer beyond 64 bits in what `json` parsed."""


class JsonBody:
    """ASGI middleware in front of every route; see the module."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_depth: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_depth = max_depth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                    raise BodyRefused("URL: NUL characters are not allowed")
                if scope["method"] not in WITHOUT_BODY:
                    body = await self._read(receive)
                    if body is None:
                        return
                    if body and not scope["path"].startswith(FORMS):
                        parsed = await self._parse(body)
                        scope = {**scope, PARSED: parsed, "headers": _as_json(scope["headers"])}
                    receive = _replay(body, receive)
            except BodyRefused as exc:
                await _refusal(scope["path"], exc)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away while sending it."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size <= self.max_bytes:
                chunks.append(chunk)
            elif size > DRAIN_FACTOR * self.max_bytes:
                break
            if not message.get("more_body", False):
                break
        if size > self.max_bytes:
            raise BodyTooLarge(f"Request body is larger than {self.max_bytes} bytes")
        return b"".join(chunks)

    async def _parse(self, body: bytes) -> Any:
        if len(body) < IN_THREAD_BYTES:
            return parse(body, max_depth=self.max_depth)
        return await asyncio.to_thread(parse, body, max_depth=self.max_depth)


def _refusal(path: str, exc: BodyRefused) -> Response:
    too_large = isinstance(exc, BodyTooLarge)
    rpc = next((status for prefix, status in RPC.items() if path.startswith(prefix)), None)
    if rpc is None:
        return error(413 if too_large else 422, str(exc))
    code = -32700 if str(exc) == INVALID_JSON else -32600
    shown: dict[str, Any] = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": str(exc)}}
    return error(413 if too_large else rpc, str(exc), **shown)


class JsonRequest(Request):
    """A request whose JSON has been parsed by the middleware."""

    async def json(self) -> Any:
        return self.scope[PARSED] if PARSED in self.scope else await super().json()


class JsonRoute(APIRoute):
    """A route that takes the parsed body from the middleware instead of parsing it again."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_parsed


def any_json(request: Request) -> Any:
    """Dependency: the body of a call that takes any JSON value, `null` and `false` included.

    FastAPI reads a body of `null` as a missing one.
    """
    if PARSED not in request.scope:
        raise BodyRefused(INVALID_JSON)
    return request.scope[PARSED]


def parse(body: bytes, *, max_depth: int) -> Any:
    """The value of a JSON text.

    Raises BodyRefused, naming the path of the first value that cannot be accepted.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _diagnosis(body, max_depth) from None
    if LONG_DIGITS.search(body):  # orjson reads a longer integer as a float: look again
        _check(_loads(body), max_depth)
    elif b"\\u0000" in body or body.count(b"[") + body.count(b"{") > max_depth:
        _check(value, max_depth)
    return value


def _diagnosis(body: bytes, max_depth: int) -> BodyRefused:
    """Why orjson refused: it is stricter than `json`, which gets further and lets the value be named."""
    try:
        _check(_loads(body), max_depth)
    except BodyRefused as exc:
        return exc
    return BodyRefused(INVALID_JSON)


def _loads(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_int=_integer, parse_constant=float)
    except ValueError:  # UnicodeDecodeError too
        raise BodyRefused(INVALID_JSON) from None
    except RecursionError:
        raise BodyRefused("body: nested too deeply") from None


def _integer(digits: str) -> int | _Huge:
    number = int(digits) if len(digits) <= 20 else 2**64
    return number if -(2**63) <= number < 2**64 else _Huge()


def _check(value: Any, max_depth: int) -> None:
    """Walk a parsed value without recursion; raises BodyRefused at the first bad part."""
    _check_scalar(value, None)
    stack: list[tuple[Any, Link, int]] = [(value, None, 1)]
    while stack:
        node, where, depth = stack.pop()
        if isinstance(node, dict):
            items: Any = cast("dict[str, Any]", node).items()
        elif isinstance(node, list):
            items = enumerate(cast("list[Any]", node))
        else:
            continue
        if depth > max_depth:
            raise BodyRefused(f"{_path(where)}: nested deeper than {max_depth} levels")
        for key, child in items:
            if key.__class__ is str:
                _check_scalar(key, (where, key))
            if child.__class__ is dict or child.__class__ is list:
                stack.append((child, (where, key), depth + 1))
            else:
                _check_scalar(child, (where, key))


def _check_scalar(value: Any, where: Link) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise BodyRefused(f"{_path(where)}: NUL characters are not allowed")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BodyRefused(f"{_path(where)}: not valid Unicode, it has a lone surrogate") from None
    elif isinstance(value, float):
        if value - value != 0:
            raise BodyRefused(f"{_path(where)}: numbers must be finite")
    elif isinstance(value, _Huge):
        raise BodyRefused(f"{_path(where)}: integers must fit in 64 bits")


def _path(where: Link) -> str:
    """`input.messages[0].content`, shortened when long, printable whatever the keys are."""
    parts: list[str] = []
    while where is not None:
        where, key = where
        parts.append(f"[{key}]" if isinstance(key, int) else "." + key[:60])
    parts.reverse()
    text = "".join(parts[:6]) + ("…" if len(parts) > 6 else "")
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.lstrip("."))
    return printable or "body"


def _as_json(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Whatever a client calls it, the body is JSON: `curl -d` says it was a form."""
    return [(k, v) for k, v in headers if k != b"content-type"] + [(b"content-type", b"application/json")]


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
