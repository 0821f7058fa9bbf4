"""Signing in and out. Which field the page has depends on what the server's authentication wants to see."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from langgraph_sdk import Auth
from starlette.exceptions import HTTPException

from perdure.api.auth import recognise
from perdure.api.builtin import Owners
from perdure.console.pages import PageRoute, done, form, page
from perdure.console.session import COOKIE, CREDENTIALS, HOURS, MAX_COOKIE, seal

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

HOME = "/console/"
MAX_CREDENTIAL = 8_000  # a cookie holds it


@router.get("/login")
async def show_login(request: Request, next: str = HOME) -> Response:
    """The form; whoever needs none is sent on."""
    if request.app.state.auth is None:
        return done(request, HOME)
    return login_page(request, next)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Try the key or token as the API would; if it is good the cookie holds it from now on."""
    if request.app.state.auth is None:
        return done(request, HOME)
    given = await form(request)
    wanted, header, value = given.get("next", HOME), given.get("header", ""), given.get("credential", "").strip()
    if header not in CREDENTIALS or not 0 < len(value) <= MAX_CREDENTIAL or not value.isascii():
        return login_page(request, wanted, "That cannot be a key or a token.", status=422)
    if header == "authorization" and " " not in value:
        value = f"Bearer {value}"
    try:
        await recognise(request.app.state.auth, with_header(request, header, value))
    except (HTTPException, Auth.exceptions.HTTPException) as exc:
        return login_page(request, wanted, f"Not accepted: {exc.detail}", status=401)
    answer = await enter(request, header, value, wanted)
    return answer or login_page(request, wanted, "That is too large for a cookie.", status=422)


async def enter(
    request: Request, header: str, value: str, wanted: str, *, seconds: int = HOURS * 3600
) -> Response | None:
    """Go to the page `wanted` with a cookie that stands for the header; None if it would be too large."""
    sealed = await seal(request.app, header, value)
    if len(sealed) > MAX_COOKIE:
        return None
    answer = done(request, _inside(wanted).removeprefix(request.scope.get("root_path", "")))
    path = request.scope.get("root_path", "") + "/"
    answer.set_cookie(COOKIE, sealed, max_age=seconds, path=path, httponly=True, samesite="lax", secure=secure(request))
    return answer


def secure(request: Request) -> bool:
    """Whether the browser sees HTTPS."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """Forget the cookie. The key stays valid."""
    answer = done(request, "/console/login")
    answer.delete_cookie(COOKIE, path=request.scope.get("root_path", "") + "/")
    return answer


def login_page(request: Request, wanted: str, problem: str = "", *, status: int = 200) -> Response:
    """The form, or where to sign in instead."""
    kind = request.app.state.engine.settings.auth if isinstance(request.app.state.auth, Owners) else "custom"
    settings = request.app.state.engine.settings
    host = urlsplit(settings.oidc_issuer or "").hostname if kind == "oidc" and settings.oidc_client_id else None
    about: dict[str, Any] = {"next": _inside(wanted), "kind": kind, "host": host, "problem": problem}
    return page(request, "login.html", title="Sign in", status=status, **about)


def _inside(wanted: str) -> str:
    """A page of the console, whatever a link asks for."""
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return HOME
    inside = not parts.scheme and not parts.netloc and "/console" in parts.path and "\\" not in wanted
    return wanted if inside and wanted.startswith("/") and not wanted.startswith("//") else HOME


def with_header(request: Request, header: str, value: str) -> Request:
    """The request as it would come with that header, and without others of its kind."""
    kept: list[Any] = [(k, v) for k, v in request.scope["headers"] if k.decode("latin-1") not in CREDENTIALS]
    return Request({**request.scope, "headers": [*kept, (header.encode(), value.encode())]}, request.receive)
