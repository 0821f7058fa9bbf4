"""Who is calling: authentication, once for each request and socket, before any route.

An `Auth` object of `langgraph_sdk` says it, the one that langgraph.json names (`auth.path`) or a
built-in one (`builtin`). What the caller may do is another question: `gate`. Without either there is
no middleware here and nothing is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import structlog
from langgraph_sdk import Auth
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.api import builtin
from perdure.api.answers import error
from perdure.api.body import PARSED
from perdure.engine import ratelimit
from perdure.engine.jsonable import jsonable
from perdure.engine.registry import ConfigError, Registry

if TYPE_CHECKING:
    from perdure.config import Settings

log = structlog.get_logger(__name__)

OPEN = frozenset({"/", "/ok", "/info", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/metrics"})
"""Paths that tell nothing of anybody."""

OPEN_BELOW = ("/interrupts/link/", "/callbacks/", "/console/login", "/console/logout", "/console/static/")
"""Below these a signature, or a token that cannot be guessed, is the permission; or there is nothing to tell."""

USER = "perdure.user"
"""Scope key of the caller; absent on open paths."""

CLOSE_CODES = 4000  # of a WebSocket: 4401 is to its client what 401 is to others


class User:
    """What `authenticate` returned, a name, a dict or an object, as handlers want to see it.

    By attribute and by key; `record` is the same as JSON, which goes along with the runs.
    """

    def __init__(self, given: Any) -> None:
        self._given = given
        fields = _fields(given)
        identity = fields.get("identity")
        if not isinstance(identity, str) or not identity:
            raise TypeError(f"authenticate returned {type(given).__name__} without an identity (a text)")
        self.identity = identity
        self.display_name = str(fields.get("display_name") or identity)
        self.is_authenticated = fields.get("is_authenticated", True) is not False
        self.permissions: list[str] = [str(one) for one in fields.get("permissions") or ()]
        known = {name: getattr(self, name) for name in ("identity", "display_name", "is_authenticated", "permissions")}
        self.record: dict[str, Any] = cast("dict[str, Any]", jsonable({**fields, **known}))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if name in self.record:
                return self.record[name]
            if not isinstance(self._given, str | Mapping):
                return getattr(self._given, name)
        raise AttributeError(f"the user has no {name!r}")

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def __contains__(self, key: object) -> bool:
        return key in self.record

    def __iter__(self) -> Iterator[str]:
        return iter(self.record)

    def get(self, key: str, default: Any = None) -> Any:
        return self.record.get(key, default)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.record)


def _fields(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        return {"identity": given}
    if isinstance(given, Mapping):
        return {str(key): value for key, value in cast("Mapping[Any, Any]", given).items()}
    for name in ("model_dump", "to_dict"):
        if callable(getattr(given, name, None)):
            return dict(getattr(given, name)())
    named = ("identity", "display_name", "is_authenticated", "permissions")
    own = {name: value for name, value in getattr(given, "__dict__", {}).items() if not name.startswith("_")}
    return {**own, **{name: getattr(given, name) for name in named if hasattr(given, name)}}


def load(settings: Settings, registry: Registry) -> Auth | None:
    """The Auth object of this server, None if there is none. Raises ConfigError."""
    section: Any = registry.config.get("auth")
    path: Any = cast("dict[str, Any]", section).get("path") if isinstance(section, dict) else None
    if path is None:
        return builtin.auth_of(settings)
    if settings.auth != "none":
        raise ConfigError(f"PERDURE_AUTH={settings.auth} and the `auth` entry of langgraph.json exclude each other")
    auth = registry.named("auth.path", path)
    if not isinstance(auth, Auth):
        raise ConfigError(f"auth.path ({path}) is a {type(auth).__name__}; expected a langgraph_sdk.Auth")
    if authenticator(auth) is None:
        raise ConfigError(f"auth.path ({path}) has no @auth.authenticate function")
    wanted(authenticator(auth))
    return auth


def authenticator(auth: Auth) -> Any:
    """The function that `@auth.authenticate` has registered: the SDK keeps this name for servers."""
    return auth._authenticate_handler  # pyright: ignore[reportPrivateUsage]


SOURCES: dict[str, Callable[[HTTPConnection], Any]] = {
    "request": lambda conn: conn,
    "body": lambda conn: conn.scope.get(PARSED),
    "path": lambda conn: conn.scope["path"],
    "method": lambda conn: conn.scope.get("method", "GET"),
    "path_params": lambda conn: path_params(conn.scope),
    "query_params": lambda conn: dict(QueryParams(conn.scope["query_string"])),
    "headers": lambda conn: dict(conn.scope["headers"]),
    "authorization": lambda conn: conn.headers.get("authorization"),
}
"""Parameters that an authenticate function may name, and where they come from. Header names are bytes."""


@cache
def wanted(function: Any) -> list[str]:
    """The parameters of an authenticate function. Raises ConfigError for one that nobody can give."""
    parameters = inspect.signature(function).parameters.values()
    for one in parameters:
        needed = one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        if needed and one.name not in SOURCES:
            raise ConfigError(f"@auth.authenticate wants {one.name!r}; there are {', '.join(SOURCES)}")
    return [one.name for one in parameters if one.name in SOURCES]


def path_params(scope: Scope) -> dict[str, Any]:
    """The values in the path, which is routed only later."""
    for route in routes_of(scope["app"].router.routes):
        match, child = route.matches(scope)
        if match is Match.FULL:
            return child.get("path_params", {})
    return {}


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """Routes, those of included routers too: newer FastAPI keeps a router as one route."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from routes_of(included.routes)


class Authentication:
    """ASGI middleware: calls the authenticate function, counts the caller's requests, and passes the user on.

    `mine` chooses the paths that it guards; others pass. A refused request gets its status, a
    refused socket is closed with 4000 and the status.
    """

    def __init__(
        self, app: ASGIApp, *, auth: Auth | None, limit: int | None, mine: Callable[[Scope], bool] | None = None
    ) -> None:
        self.app = app
        self.limit = limit
        self.mine = mine or guarded
        self.auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self.mine(scope):
            await self.app(scope, receive, send)
            return
        seen: list[Message] = []

        async def listen() -> Message:
            seen.append(await receive())
            return seen[-1]

        async def replay() -> Message:
            return seen.pop(0) if seen else await receive()

        try:
            user = await self._user(scope, listen)
            await self._count(scope, user)
        except (Auth.exceptions.HTTPException, HTTPException) as exc:
            await refuse(scope, replay, send, exc.status_code, str(exc.detail), exc.headers)
            return
        await self.app({**scope, USER: user, "user": user} if user else scope, replay, send)

    async def _user(self, scope: Scope, receive: Receive) -> User | None:
        if self.auth is None:
            return None
        return await recognise(self.auth, Request(scope, receive) if scope["type"] == "http" else HTTPConnection(scope))

    async def _count(self, scope: Scope, user: User | None) -> None:
        own = user.get(builtin.RATE_LIMIT) if user else None
        limit = own if isinstance(own, int) else self.limit
        if limit is None:
            return
        caller = user.get(builtin.KEY_ID) or user.identity if user else (scope.get("client") or ("",))[0]
        wait = await ratelimit.take(scope["app"].state.engine.pool, str(caller), limit)
        if wait is not None:
            text = f"More than {limit} requests in a minute; try again in {wait} s"
            raise HTTPException(429, text, headers={"Retry-After": str(wait)})


async def recognise(auth: Auth, connection: HTTPConnection) -> User:
    """The user that the authenticate function sees in a request. Raises what it raises, and 401 for nobody."""
    function = authenticator(auth)
    arguments = {name: SOURCES[name](connection) for name in wanted(function)}
    if inspect.iscoroutinefunction(function):
        given: Any = await function(**arguments)
    else:
        given = await run_in_threadpool(function, **arguments)
    if given is None:
        raise Auth.exceptions.HTTPException()
    return User(given)


def guarded(scope: Scope) -> bool:
    """Whether a path of ours needs a caller. OPTIONS has nothing to tell."""
    path: str = scope["path"]
    return scope.get("method") != "OPTIONS" and path not in OPEN and not path.startswith(OPEN_BELOW)


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, detail: str, headers: Mapping[str, str] | None
) -> None:
    """Answer a request, or a socket, that goes no further."""
    if scope["type"] == "http":
        await error(status, detail, headers=headers)(scope, receive, send)
        return
    await receive()  # its request to connect: only one that was accepted can be told why
    protocols = Headers(scope=scope).get("sec-websocket-protocol", "").split(",")
    await send({"type": "websocket.accept", "subprotocol": protocols[0].strip() or None})
    await send({"type": "websocket.close", "code": CLOSE_CODES + status, "reason": detail[:100]})
