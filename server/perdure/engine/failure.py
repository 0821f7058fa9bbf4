"""What an exception of an attempt means for its run: tell it, try again or not, and when.

Exceptions speak by attributes, so that author code and the engine need not know each other: `retryable`,
`retry_after` (seconds, or a timedelta) and `status` (an HTTP status for whoever called the agent).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

MAX_WAIT_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class Failure:
    """`error` is what the run's row and its readers get; `after` the wait that the exception asks for, in seconds."""

    error: dict[str, Any]
    retryable: bool
    after: float | None


def failure_of(exc: Exception) -> Failure:
    """Only what says so is tried again; a lost database does, whoever noticed it: a store, or author code."""
    error: dict[str, Any] = {"error": type(exc).__name__, "message": _text(exc)}
    status = getattr(exc, "status", None)
    if isinstance(status, int):
        error["status"] = status
    retryable = getattr(exc, "retryable", isinstance(exc, psycopg.OperationalError)) is True
    return Failure(error, retryable, _seconds(getattr(exc, "retry_after", None)))


def _seconds(asked: Any) -> float | None:
    """The wait that an exception asks for, if it is one that makes sense."""
    if isinstance(asked, timedelta):
        asked = asked.total_seconds()
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not math.isfinite(asked) or asked < 0:
        return None
    return min(float(asked), MAX_WAIT_SECONDS)


def _text(exc: BaseException) -> str:
    """The text of any exception, also of one that cannot be printed."""
    try:
        return str(exc)
    except Exception:  # author code
        return f"{type(exc).__name__} without a text"
