"""The `http` entry of langgraph.json: an app of the user's around ours, routes left out, headers passed on.

`http.app` is a Starlette or FastAPI app. Its middleware sees every request, its routes come before
ours (but for /docs and /openapi.json, which show ours), and its lifespan runs around ours. Its routes ask
nobody who they are unless `http.enable_custom_route_auth` is true.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.api import errors
from perdure.api.auth import Authentication
from perdure.api.cors import Cors, cors_options
from perdure.engine.registry import ConfigError, Registry

OURS = ("/docs", "/openapi.json", "/docs/oauth2-redirect")

DISABLED = {
    "disable_assistants": ("assistants",),
    "disable_threads": ("threads",),
    "disable_runs": ("runs", "crons"),
    "disable_store": ("store",),
    "disable_mcp": ("mcp",),
    "disable_a2a": ("a2a",),
    "disable_meta": ("meta", "metrics"),
    "disable_ui": ("console",),
}
"""Switches of `http` and the routes, by their tag, that they take away. `disable_meta` takes /docs and
/openapi.json as well; `disable_webhooks` takes none: see `webhook.py`."""

NEVER_PASSED = ("authorization", "cookie", "x-api-key")


def section(registry: Registry) -> dict[str, Any]:
    """The `http` entry."""
    http: Any = registry.config.get("http")
    return cast("dict[str, Any]", http) if isinstance(http, dict) else {}


def switched_off(registry: Registry, switch: str) -> bool:
    """Whether `http` says so. Anything but `true` is no."""
    return section(registry).get(switch) is True


def disabled(registry: Registry) -> set[str]:
    """Tags of routes that are not served."""
    return {tag for switch, tags in DISABLED.items() if switched_off(registry, switch) for tag in tags}


def configurable_header(registry: Registry) -> Callable[[str], bool]:
    """Whether a header, by its name in lower case, goes into the `configurable` of the runs it starts.

    `http.configurable_headers` has `includes` and `excludes`, lists of names with `*`. None by default; those
    that carry a secret never, unless they are named without `*`.
    """
    given: Any = section(registry).get("configurable_headers")
    rules = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    includes = [str(one).lower() for one in rules.get("includes") or rules.get("include") or ()]
    excludes = [str(one).lower() for one in rules.get("excludes") or rules.get("exclude") or ()]

    def passes(name: str) -> bool:
        if name in NEVER_PASSED and name not in includes:
            return False
        return any(fnmatchcase(name, one) for one in includes) and not any(fnmatchcase(name, one) for one in excludes)

    return passes


def around(app: FastAPI, registry: Registry, *, limit: int | None = None) -> ASGIApp:
    """The user's app with ours inside of it; ours if there is none. `limit`: see `Authentication`.

    Raises ConfigError.
    """
    path = section(registry).get("app")
    if path is None:
        return app
    theirs = registry.named("http.app", path)
    if not isinstance(theirs, Starlette):
        raise ConfigError(f"http.app ({path}) is a {type(theirs).__name__}; expected a Starlette or FastAPI app")
    if theirs is app:
        raise ConfigError(f"http.app ({path}) is this server's own app")
    own = list(theirs.router.routes)
    theirs.router.routes[:] = [*(route for route in app.routes if getattr(route, "path", "") in OURS), *own]
    theirs.router.routes.append(Mount("/", app=app))
    theirs.router.lifespan_context = _both(app, theirs)
    outer: ASGIApp = theirs
    if section(registry).get("enable_custom_route_auth") is True:
        outer = _Asked(theirs, app, own, limit)
    return Cors(errors.Guard(outer), **cors_options(registry.config))


def _both(app: FastAPI, theirs: Starlette) -> Callable[[Starlette], AbstractAsyncContextManager[Any]]:
    """Ours, then theirs within: their start may use our API's engine, and their end too."""
    inner = theirs.router.lifespan_context

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[Any, None]:
        async with app.router.lifespan_context(app), inner(theirs) as state:
            yield state

    return lifespan


class _Asked:
    """Asks on the user's own routes who is calling, as on ours; `request.user` tells it."""

    def __init__(self, theirs: ASGIApp, app: FastAPI, routes: list[BaseRoute], limit: int | None) -> None:
        self.theirs = theirs
        self.app = app
        self.routes = routes
        self.asking = Authentication(theirs, auth=app.state.auth, limit=limit, mine=self._is_own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.asking({**scope, "app": self.app}, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        if scope.get("method") == "OPTIONS":
            return False
        return any(route.matches(scope)[0] is not Match.NONE for route in self.routes)
