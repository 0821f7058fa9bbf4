"""How a page is made: one template, escaped, with headers that let it load nothing but our own files.

Every page is whole without scripts. When htmx asks for it (`HX-Request`) only `<main>` is sent, which is
morphed into the page that is there: that is how pages stay live, and what forms get back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Coroutine
from functools import cache, partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from uuid import UUID

import jinja2
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from langgraph_sdk import Auth
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse

from perdure.api.auth import USER, User
from perdure.api.errors import status_of, validation_detail
from perdure.console import shown
from perdure.console.bounds import bounded
from perdure.console.permit import is_admin
from perdure.engine.errors import EngineError

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Vary": "HX-Request",
}
BEGAN = "perdure.began"
"""In the scope of a request: Unix time before anything was read for it."""
NOTICE = "perdure_notice"
MAX_NOTICE = 300
MAX_FIELDS = 1000

NAVIGATION = (
    ("", (("/console/", "Overview"), ("/console/inbox", "Inbox"))),
    ("Agents", (("/console/agents", "Agents"), ("/console/playground", "Playground"))),
    ("Work", (("/console/runs", "Runs"), ("/console/threads", "Threads"), ("/console/schedules", "Schedules"))),
    ("Data", (("/console/store", "Store"), ("/console/sql", "SQL"))),
    ("System", (("/console/workers", "Workers"), ("/console/keys", "Keys"), ("/console/doctor", "Doctor"))),
)

templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters.update(shown.FILTERS, bounded=bounded)


def page(
    request: Request,
    template: str,
    *,
    title: str,
    live: UUID | str | None = None,
    pace: int = 1,
    status: int = 200,
    **given: Any,
) -> Response:
    """The page that `templates/<template>` makes of `given`.

    `live`: the thread, or "all", whose changes make an open page ask for itself again, at most every `pace` seconds.
    """
    root = request.scope.get("root_path", "")
    # an open page that asks for itself again must not take the notice from the page that a form leads to
    notice = "" if "x-refresh" in request.headers else request.cookies.get(NOTICE, "")
    context: dict[str, Any] = {
        "fragment": is_fragment(request),
        "title": title,
        "live": live,
        "since": request.scope.get(BEGAN, time.time()),
        "pace": pace,
        "root": root,
        "path": request.scope["path"].removeprefix(root),
        "here": address(request),
        "link": partial(link, root),
        "static": partial(_static, root),
        "navigation": NAVIGATION,
        "notice": parse_qs(notice).get("text", [""])[0][:MAX_NOTICE] if notice else "",
        "user": cast("User | None", request.scope.get(USER)),
        "admin": is_admin(request),
        "simulated": request.app.state.engine.settings.simulated,
    }
    text = templates.get_template(template).render({**context, **given})
    answer = HTMLResponse(text, status, headers=HEADERS)
    if notice:
        answer.delete_cookie(NOTICE, path=root + "/console")
    return answer


def link(root: str, to: str, /, **query: Any) -> str:
    """The address of a page; values of `query` that are None or empty are left out, lists repeated."""
    kept = {name: value for name, value in query.items() if value not in (None, "", [])}
    return f"{root}{quote(to)}" + (f"?{urlencode(kept, doseq=True)}" if kept else "")


def address(request: Request) -> str:
    """The path and query of a request, as the browser has them."""
    query = request.scope["query_string"].decode("latin-1")
    return quote(request.scope["path"]) + (f"?{query}" if query else "")


def is_fragment(request: Request) -> bool:
    """Whether htmx asks for `<main>` only."""
    return request.headers.get("hx-request") == "true" and "hx-history-restore-request" not in request.headers


def done(request: Request, to: str, notice: str = "") -> Response:
    """After a form: go on to the page `to` (a path with its query), which shows the notice once.

    Where htmx has sent the form from another page, the browser goes there: its changes are other ones to follow.
    """
    root = request.scope.get("root_path", "")
    answer: Response = RedirectResponse(root + to, 303)
    if is_fragment(request) and _path(request.headers.get("hx-current-url", "")) != _path(root + to):
        answer = Response(headers={"HX-Redirect": answer.headers["location"]})
    if notice:
        text = urlencode({"text": notice[:MAX_NOTICE]})
        answer.set_cookie(NOTICE, text, max_age=30, path=root + "/console", httponly=True, samesite="lax")
    return answer


def _path(url: str) -> str:
    """Empty for what is no address: the header is the client's."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


async def form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent; of a name that came twice, the last."""
    return {name: values[-1] for name, values in (await fields(request)).items()}


async def fields(request: Request) -> dict[str, list[str]]:
    """The fields of a form with all their values. NUL characters are dropped: PostgreSQL cannot hold them.

    Raises HTTPException 422 for more than `MAX_FIELDS`.
    """
    text = (await request.body()).decode(errors="replace")
    try:
        found = parse_qs(text, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as exc:
        raise HTTPException(422, f"form: {exc}") from exc
    return {name: [value.replace("\0", "") for value in values] for name, values in found.items()}


class PageRoute(APIRoute):
    """Errors of a page's function become a page, or what htmx shows above the one that is there."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            request.scope[BEGAN] = time.time()
            try:
                return await handle(request)
            except EngineError as exc:
                return problem(request, status_of(exc), str(exc))
            except RequestValidationError as exc:
                return problem(request, 422, validation_detail(exc.errors()))
            except (HTTPException, Auth.exceptions.HTTPException) as exc:
                return problem(request, exc.status_code, str(exc.detail))

        return answer


def problem(request: Request, status: int, text: str) -> Response:
    """An error for people. A form that htmx has sent keeps its page; the text appears above."""
    answer = page(request, "problem.html", title="Not possible", status=status, text=text)
    if is_fragment(request) and request.method != "GET":
        answer = page(request, "notice.html", title="", status=status, text=text)
        answer.headers["HX-Retarget"] = "#notices"
        answer.headers["HX-Reswap"] = "innerHTML"
    return answer


def _static(root: str, name: str) -> str:
    """The address of a file of ours; a changed file has another, so browsers may keep them."""
    return f"{root}/console/static/{name}?v={_version(name)}"


@cache
def _version(name: str) -> str:
    return hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
