"""Errors as HTTP: the one table from engine errors to status codes, and the one shape of their bodies.

The body is always `{"detail": "<text>"}`: the SDKs show only strings. Nothing of an unexpected
exception leaves the server; it is logged and the client gets a 500.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from langgraph_sdk import Auth
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.api.answers import Json, error
from perdure.api.body import INVALID_JSON, BodyRefused
from perdure.engine import errors as engine_errors

log = structlog.get_logger(__name__)

STATUS: dict[type[engine_errors.EngineError], int] = {
    engine_errors.Forbidden: 403,
    engine_errors.NotFound: 404,
    engine_errors.Conflict: 409,
    engine_errors.Invalid: 422,
    engine_errors.EmbeddingFailed: 424,
    engine_errors.EngineError: 400,
}
"""The most specific class wins. InvalidInput carries its own status, 400 or 422. A handler that
must answer otherwise (an unknown graph on run creation, cancelling a finished run) says so itself."""

OWN_WORDS = "perdure"
"""Type of the validation errors of `fields.py` whose message names the field already."""

MAX_LISTED = 5


def status_of(exc: engine_errors.EngineError) -> int:
    """The status code of an engine error."""
    if isinstance(exc, engine_errors.InvalidInput):
        return exc.status
    return next(STATUS[cls] for cls in type(exc).__mro__ if cls in STATUS)


def validation_detail(errors: Sequence[Any]) -> str:
    """`limit: Input should be less than or equal to 1000`, at most `MAX_LISTED` of them."""
    texts: list[str] = []
    for err in cast("Sequence[dict[str, Any]]", errors):
        place, *path = err["loc"] or ("body",)
        if place == "body" and not path and err["type"] == "missing":
            return INVALID_JSON
        if err["type"] == OWN_WORDS:
            texts.append(err["msg"])
            continue
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        texts.append(f"{field or place}: {err['msg']}")
    more = len(texts) - MAX_LISTED
    return "; ".join(texts[:MAX_LISTED] + ([f"and {more} more"] if more > 0 else []))


def install(app: FastAPI) -> None:
    """Give an app the handlers; unexpected exceptions are `Guard`'s."""
    app.add_exception_handler(engine_errors.EngineError, _engine_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Auth.exceptions.HTTPException, _http_error)
    app.add_exception_handler(BodyRefused, _body_refused)


async def _engine_error(request: Request, exc: Exception) -> Json:
    exc = cast(engine_errors.EngineError, exc)
    return error(status_of(exc), str(exc))


async def _validation_error(request: Request, exc: Exception) -> Json:
    return error(422, validation_detail(cast(RequestValidationError, exc).errors()))


async def _http_error(request: Request, exc: Exception) -> Json:
    exc = cast(HTTPException, exc)  # the SDK's for authors of auth handlers has the same attributes
    return error(exc.status_code, str(exc.detail), headers=exc.headers)


async def _body_refused(request: Request, exc: Exception) -> Json:
    return error(422, str(exc))


class Guard:
    """ASGI middleware: an unexpected exception is logged and becomes a 500 that tells nothing.

    Once an answer has begun it can only be cut off: the connection ends without the last
    chunk, and a client knows that something is missing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("request_failed", method=scope["method"], path=scope["path"], begun=started)
            if not started:  # else returning is what cuts the connection
                await error(500, "Internal Server Error")(scope, receive, send)
