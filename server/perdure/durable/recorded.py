"""Errors on their way into the journal and back."""

import sys
from typing import Any, NoReturn

from perdure.durable.errors import RetryableError, TerminalError


def described(exc: BaseException) -> dict[str, Any]:
    """`{"error": class name, "message": text, "class": "module:qualified name", "status": int if it has one}`."""
    kind = type(exc)
    error: dict[str, Any] = {
        "error": kind.__name__,
        # PostgreSQL takes neither lone surrogates nor NUL, and a model's output in the text may hold both.
        "message": str(exc).encode(errors="replace").decode().replace("\0", ""),
        "class": f"{kind.__module__}:{kind.__qualname__}",
    }
    status = getattr(exc, "status", None)
    return error | {"status": status} if isinstance(status, int) else error


def revived(error: dict[str, Any]) -> Exception:
    """The recorded error, as its own class where that is found: `except` takes the same path again.

    Only classes that are already imported are looked at, and their `__init__` is not called: its arguments
    are not known. Others become a TerminalError that names the class.
    """
    message, status = str(error.get("message", "")), error.get("status")
    module, _, path = str(error.get("class", "")).partition(":")
    kind: Any = sys.modules.get(module)
    for part in path.split("."):
        kind = getattr(kind, part, None)
    plain = TerminalError(f"{error.get('error', 'Error')}: {message}", status if isinstance(status, int) else 422)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return plain
    try:
        exc = kind.__new__(kind, message)
        exc.args = (message,)
        exc.__dict__.update({"message": message, "retryable": False})
        if isinstance(status, int):
            exc.__dict__["status"] = status
        str(exc)
    except Exception:  # a class that can't live without its __init__
        return plain
    return exc


def leave(exc: Exception, *, retryable: bool) -> NoReturn:
    """Raise `exc` with the attribute set; wrapped if its class allows no attributes."""
    try:
        # The contract with whoever runs the graph.
        exc.retryable = retryable  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError:
        kind = RetryableError if retryable else TerminalError
        raise kind(f"{type(exc).__name__}: {exc}") from exc
    raise exc
