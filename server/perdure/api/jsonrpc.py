"""JSON-RPC 2.0 over HTTP, as MCP and A2A speak it: one request in a POST, one answer.

Batches are refused: neither protocol has them any more. An error that is also an HTTP error carries
`detail` beside `error`, like every other error of this server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from fastapi import Request

from perdure.api.answers import Json
from perdure.api.body import PARSED
from perdure.engine.errors import EngineError, Forbidden

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

Id = str | int | None
MAX_METHOD_CHARS = 100


class RpcError(Exception):
    """A request that is refused; `status` is the HTTP status, 200 where JSON-RPC alone speaks."""

    def __init__(self, code: int, message: str, *, data: Any = None, status: int = 200) -> None:
        super().__init__(message)
        self.code = code
        self.data = data
        self.status = status


@dataclass(frozen=True)
class Call:
    """A request or a notification. `params` is what the client sent: {} if it sent none."""

    id: Id
    method: str
    params: dict[str, Any]
    notification: bool


def read(request: Request) -> Call | None:
    """The call in a body; None for a response, which nobody here waits for.

    Raises RpcError.
    """
    if PARSED not in request.scope:
        raise RpcError(PARSE_ERROR, "Invalid JSON in request body", status=400)
    body: Any = request.scope[PARSED]
    if not isinstance(body, dict):
        what = "Batches are not supported" if isinstance(body, list) else "The body must be a JSON object"
        raise RpcError(INVALID_REQUEST, what, status=400)
    envelope = cast("dict[str, Any]", body)
    if envelope.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, 'jsonrpc: must be "2.0"', status=400)
    if "method" not in envelope and ("result" in envelope or "error" in envelope):
        return None
    method = envelope.get("method")
    if not isinstance(method, str) or not method:
        raise RpcError(INVALID_REQUEST, "method: must be a text", status=400)
    ident = envelope.get("id")
    if "id" in envelope and (isinstance(ident, bool) or not isinstance(ident, str | int)):
        raise RpcError(INVALID_REQUEST, "id: must be a text or an integer", status=400)
    params = envelope.get("params")
    if params is not None and not isinstance(params, dict):
        raise RpcError(INVALID_PARAMS, "params: must be an object")
    return Call(ident, method, cast("dict[str, Any]", params or {}), "id" not in envelope)


def read_request(request: Request) -> Call:
    """As `read`, where only requests make sense. Raises RpcError."""
    asked = read(request)
    if asked is None or asked.notification:
        raise RpcError(INVALID_REQUEST, "id: must be a text or an integer")
    return asked


def _id_of(request: Request) -> Id:
    """The id to answer under, as far as the body has a usable one."""
    body: Any = request.scope.get(PARSED)
    ident: Any = cast("dict[str, Any]", body).get("id") if isinstance(body, dict) else None
    return ident if isinstance(ident, str | int) and not isinstance(ident, bool) else None


def result_of(ident: Id, result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "result": result}


def error_of(ident: Id, error: RpcError) -> dict[str, Any]:
    shown: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.data is not None:
        shown["data"] = error.data
    return {"jsonrpc": "2.0", "id": ident, "error": shown}


def refusal(request: Request, exc: RpcError | EngineError) -> Json:
    """An error as a whole answer."""
    error = as_rpc(exc)
    body = error_of(_id_of(request), error)
    return Json(body if error.status < 400 else {**body, "detail": str(error)}, error.status)


def unknown_method(method: str, *, status: int = 200) -> RpcError:
    return RpcError(METHOD_NOT_FOUND, f"Unknown method {method[:MAX_METHOD_CHARS]!r}", status=status)


def as_rpc(exc: RpcError | EngineError) -> RpcError:
    """What the engine refuses is the fault of the params, whatever HTTP would call it; Forbidden stays a 403."""
    if isinstance(exc, RpcError):
        return exc
    if isinstance(exc, Forbidden):
        raise exc
    return RpcError(INVALID_PARAMS, str(exc))
