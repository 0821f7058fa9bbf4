"""Executes a call once: the machine below `@step` and `DurableModel`.

Order of one call: find the row; if it is finished, give its result back; else execute, and save before the
result is given to anyone. Each failed attempt is saved before the wait that follows it, so a crash neither
starts the attempts over nor shortens the wait. Only a call that was in flight when the process died is
executed twice.
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, cast
from uuid import NAMESPACE_OID, uuid4, uuid5

import structlog
from langchain_core.exceptions import ModelError
from langgraph.errors import EmptyInputError, GraphBubbleUp, GraphRecursionError, InvalidUpdateError
from langgraph.func import task
from langgraph.types import RetryPolicy

from perdure.durable.errors import RetryableError, TerminalError
from perdure.durable.journal import Journal, Place, here

log = structlog.get_logger(__name__)

DEFAULT_RETRY = RetryPolicy(initial_interval=0.5, backoff_factor=2.0, max_interval=60.0, max_attempts=3, jitter=False)

_ALWAYS_TERMINAL = (GraphRecursionError, InvalidUpdateError, EmptyInputError)


@dataclass(frozen=True)
class Call:
    """One call of a step: what identifies it and how to treat its failures."""

    name: str
    execute: Callable[[], Awaitable[Any]]
    fingerprint: str
    key: str | None = None
    retry: RetryPolicy = DEFAULT_RETRY
    timeout: float | None = None
    """Seconds for each attempt."""


_running: ContextVar[str | None] = ContextVar("perdure_step", default=None)


def idempotency_key() -> str:
    """See `step.idempotency_key`."""
    key = _running.get()
    if key is None:
        raise RuntimeError("step.idempotency_key() works only inside of a @step function")
    return key


async def once(call: Call) -> Any:
    """The result of `call`, recorded or new.

    Raises what the call raised, with the attribute `retryable` set: False (recorded; every replay raises it
    again) or True (the attempts of this round are used up; the next run attempt has a new round). A
    control-flow exception of LangGraph, a cancellation and a lost lease pass through and leave no trace.
    """
    place = here()
    if place.journal is not None:
        return await _journaled(place.journal, place, call)
    if place.checkpointed:
        return await _as_task(call)
    return await _attempts(call, _Row(), f"{uuid4()}")


async def _journaled(journal: Journal, place: Place, call: Call) -> Any:
    found = await journal.find(place.scope, place.visit, call.name, call.key, call.fingerprint)
    if found["status"] == "done":
        return found["value"]
    if found["status"] == "failed":
        raise _revived(found["error"] or {})
    # With the fingerprint: should concurrent calls swap their numbers on a replay, an effect may happen
    # twice, but none is taken for another one and left out.
    own = [call.key] if call.key is not None else [str(found["n"]), call.fingerprint]
    identity = "\n".join([place.thread_id, place.scope, call.name, *own])
    row = _JournalRow(journal, place, call, found["n"], list(found["attempts"]), found["next_at"])
    return await _attempts(call, row, str(uuid5(NAMESPACE_OID, identity)))


async def _as_task(call: Call) -> Any:
    """LangGraph's own journal: found by the order of the calls, durable with the superstep's checkpoint."""

    async def body() -> Any:
        inner = here()
        return await _attempts(call, _Row(), str(uuid5(NAMESPACE_OID, f"{inner.thread_id}\n{inner.scope}")))

    return await task(name=call.name)(body)()


class _Row:
    """The row of a call where there is no journal: forgets everything."""

    attempts: list[dict[str, Any]]
    next_at: float | None

    def __init__(self) -> None:
        self.attempts = []
        self.next_at = None

    async def save(self, status: str, **fields: Any) -> None:
        pass


class _JournalRow(_Row):
    def __init__(
        self,
        journal: Journal,
        place: Place,
        call: Call,
        n: int,
        attempts: list[dict[str, Any]],
        next_at: float | None,
    ) -> None:
        self.journal, self.place, self.call, self.n = journal, place, call, n
        self.attempts, self.next_at = attempts, next_at

    async def save(self, status: str, **fields: Any) -> None:
        await self.journal.save(
            self.place.scope,
            self.place.visit,
            self.call.name,
            self.n,
            key=self.call.key,
            fingerprint=self.call.fingerprint,
            status=status,
            attempts=list(self.attempts),
            **fields,
        )


async def _attempts(call: Call, row: _Row, effect_key: str) -> Any:
    """Attempts until one succeeds, fails for good, or the round is used up."""
    limit = max(1, call.retry.max_attempts)
    failures = len(row.attempts) % limit  # a full round is behind us: this is the run's next attempt
    if row.next_at is not None:
        await asyncio.sleep(max(0.0, row.next_at - time.time()))
    while True:
        started, clock = datetime.now(UTC), time.monotonic()
        attempt: dict[str, Any] = {"started_at": started.isoformat()}
        try:
            value = await _attempt(call, effect_key)
        except GraphBubbleUp:
            raise
        except Exception as exc:
            failures += 1
            attempt |= {"seconds": time.monotonic() - clock, "error": _described(exc)}
            row.attempts.append(attempt)
            if _is_terminal(exc, call.retry):
                await row.save("failed", error=attempt["error"])
                _leave(exc, retryable=False)
            asked = _asked_wait(exc)
            if failures >= limit:
                await row.save(
                    "retrying", error=attempt["error"], next_at=None if asked is None else time.time() + asked
                )
                _leave(exc, retryable=True)
            wait = asked if asked is not None else _backoff(call.retry, failures)
            await row.save("retrying", error=attempt["error"], next_at=time.time() + wait)
            log.warning("step failed", step=call.name, attempt=failures, wait_seconds=wait, error=type(exc).__name__)
        else:
            attempt["seconds"] = time.monotonic() - clock
            row.attempts.append(attempt)
            await _save_value(call, row, value)
            return value
        await asyncio.sleep(wait)


async def _attempt(call: Call, effect_key: str) -> Any:
    token = _running.set(effect_key)
    limit = asyncio.timeout(call.timeout)
    try:
        async with limit:
            return await call.execute()
    except TimeoutError as exc:
        if limit.expired():
            raise TimeoutError(f"Step '{call.name}' took longer than {call.timeout:g} s") from exc
        raise
    finally:
        _running.reset(token)


async def _save_value(call: Call, row: _Row, value: Any) -> None:
    try:
        await row.save("done", value=value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        error = TerminalError(
            f"Step '{call.name}' returned a {type(value).__qualname__} that can't be stored ({exc}). "
            "Return JSON values, LangChain messages or dataclasses"
        )
        await row.save("failed", error=_described(error))
        raise error from exc


def seconds(duration: float | timedelta | None) -> float | None:
    """A duration in seconds, however it was given. ValueError if it is not positive."""
    value = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if value is not None and not value > 0:
        raise ValueError(f"A duration must be positive, not {duration!r}")
    return value


def _asked_wait(exc: Exception) -> float | None:
    wait = getattr(exc, "retry_after", None)
    return float(wait) if isinstance(wait, (int, float)) and wait >= 0 else None


def _backoff(policy: RetryPolicy, failures: int) -> float:
    # The exponent is bounded: a float overflows at 2 ** 1024.
    wait = min(policy.max_interval, policy.initial_interval * policy.backoff_factor ** min(failures - 1, 100))
    return wait + random.uniform(0, 1) if policy.jitter else wait


def _is_terminal(exc: Exception, policy: RetryPolicy) -> bool:
    declared = getattr(exc, "retryable", None)
    if isinstance(declared, bool):
        return not declared
    if isinstance(exc, ExceptionGroup):  # of a TaskGroup
        return any(_is_terminal(each, policy) for each in cast("ExceptionGroup[Exception]", exc).exceptions)
    if isinstance(exc, ModelError):
        return not exc.is_retryable
    if isinstance(exc, _ALWAYS_TERMINAL):
        return True
    chosen = policy.retry_on
    if chosen is DEFAULT_RETRY.retry_on:
        return False  # the author chose nothing; LangGraph's own choice would not retry a RuntimeError
    if isinstance(chosen, type):
        return not isinstance(exc, chosen)
    if callable(chosen):
        return not chosen(exc)
    return not isinstance(exc, tuple(chosen))


def _described(exc: Exception) -> dict[str, Any]:
    kind = type(exc)
    error: dict[str, Any] = {
        "error": kind.__name__,
        # PostgreSQL takes neither lone surrogates nor NUL, and a model's output in the text may hold both.
        "message": str(exc).encode(errors="replace").decode().replace("\0", ""),
        "class": f"{kind.__module__}:{kind.__qualname__}",
    }
    status = getattr(exc, "status", None)
    return error | {"status": status} if isinstance(status, int) else error


def _revived(error: dict[str, Any]) -> Exception:
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


def _leave(exc: Exception, *, retryable: bool) -> NoReturn:
    """Raise `exc` with the attribute set; wrapped if its class allows no attributes."""
    try:
        # The contract with whoever runs the graph.
        exc.retryable = retryable  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError:
        kind = RetryableError if retryable else TerminalError
        raise kind(f"{type(exc).__name__}: {exc}") from exc
    raise exc
