"""The login of the console: a cookie that stands for the header which the API wants.

The cookie holds that header, encrypted with a key that all servers of a database share; nothing is kept on
a server. So a person has in the console the permissions that the key or token has at the API, and a key that
is revoked ends its logins. The API takes the cookie, too, for requests that our own pages make: a page of another
origin cannot use it.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from urllib.parse import quote, urlsplit

import orjson
from cryptography.fernet import Fernet, InvalidToken
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.engine import links

COOKIE = "perdure_session"
HOURS = 12
MAX_COOKIE = 4_000  # bytes; with its name and attributes browsers take 4,096
CREDENTIALS = ("authorization", "x-api-key")
LOGIN = "/console/login"
OPEN = (LOGIN, "/console/static/", "/console/logout")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


async def seal(app: FastAPI, header: str, value: str) -> str:
    """The cookie for a header. Compressed, because browsers drop cookies of more than 4,096 bytes."""
    return (await _cipher(app)).encrypt(zlib.compress(orjson.dumps([header, value]))).decode()


async def unseal(app: FastAPI, cookie: str) -> tuple[str, str] | None:
    """The header in a cookie; None for one that is not ours, or older than `HOURS`."""
    try:
        header, value = orjson.loads(zlib.decompress((await _cipher(app)).decrypt(cookie.encode(), ttl=HOURS * 3600)))
    except (InvalidToken, UnicodeEncodeError, zlib.error):
        return None
    return header, value


async def _cipher(app: FastAPI) -> Fernet:
    if getattr(app.state, "console_cipher", None) is None:
        secret = await links.secret(app.state.engine)
        key = hashlib.sha256(b"perdure console\0" + secret).digest()
        app.state.console_cipher = Fernet(base64.urlsafe_b64encode(key))
    return app.state.console_cipher


def from_here(connection: HTTPConnection) -> bool:
    """Whether one of our own pages, or the person itself, makes this request, as the browser tells it.

    Without these headers it is no browser, or an old one whose `Origin` tells.
    """
    site = connection.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = connection.headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == connection.headers.get("host")
    except ValueError:  # no address
        return False


class Session:
    """ASGI middleware around everything: cookie to header, forms from elsewhere refused, 401 to the login page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        page = path == "/console" or path.startswith("/console/")
        here = from_here(connection)
        if page and not here and scope.get("method") not in SAFE:
            await HTMLResponse("This form was sent by a page of another site.", 403)(scope, receive, send)
            return
        # a link in a mail leads here, too
        visit = page and scope.get("method") == "GET" and connection.headers.get("sec-fetch-mode") == "navigate"
        if here or visit:
            scope = await _with_header(connection, scope)
        if page and not path.startswith(OPEN):
            send = _to_login(connection, scope, receive, send)
        await self.app(scope, receive, send)


async def _with_header(connection: HTTPConnection, scope: Scope) -> Scope:
    cookie = connection.cookies.get(COOKIE)
    if not cookie or any(name in connection.headers for name in CREDENTIALS):
        return scope
    found = await unseal(connection.app, cookie)
    if found is None:
        return scope
    header, value = found
    return {**scope, "headers": [*scope["headers"], (header.encode("latin-1"), value.encode("latin-1", "replace"))]}


def _to_login(connection: HTTPConnection, scope: Scope, receive: Receive, send: Send) -> Send:
    """Instead of a 401: the login page, which leads back."""
    replaced = False

    async def watch(message: Message) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] == 401:
            replaced = True
            root = scope.get("root_path", "")
            wanted = scope["path"] if scope["method"] == "GET" else root + "/console/"
            if scope["method"] == "GET" and scope["query_string"]:
                wanted += "?" + scope["query_string"].decode("latin-1")
            to = f"{root}{LOGIN}?next={quote(wanted)}"
            htmx = Headers(scope=scope).get("hx-request") == "true"
            answer = HTMLResponse("", 401, headers={"HX-Redirect": to}) if htmx else RedirectResponse(to, 303)
            await answer(scope, receive, send)
        if not replaced:
            await send(message)

    return watch
