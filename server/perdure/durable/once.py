"""Executes a call once: the machine below `@step` and `DurableModel`.

Order of one call: find the row; if it is finished, give its result back; else execute, and save before the
result is given to anyone. Each failed attempt is saved before the wait that follows it, so a crash neither
starts the attempts over nor shortens the wait. Only a call that was in flight when the process died is
executed twice.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import NAMESPACE_OID, uuid4, uuid5

import structlog
from langchain_core.exceptions import ModelError
from langgraph.errors import EmptyInputError, GraphBubbleUp, GraphRecursionError, InvalidUpdateError
from langgraph.func import task
from langgraph.types import RetryPolicy

from perdure.durable.errors import TerminalError
from perdure.durable.journal import Found, Journal, Place, Transaction, here, nested
from perdure.durable.modelcalls import ModelCalls
from perdure.durable.recorded import described, leave, revived
from perdure.durable.suspend import pause, undoing, unfinished
from perdure.durable.transaction import CommitUnknown, Running, current, running

log = structlog.get_logger(__name__)

DEFAULT_RETRY = RetryPolicy(initial_interval=0.5, backoff_factor=2.0, max_interval=60.0, max_attempts=3, jitter=False)

AWAKE_SECONDS = 2.0
"""A longer wait between two attempts suspends the run."""

_UNSTORABLE = (TypeError, ValueError, OverflowError, RecursionError)

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
    given: Callable[[], Any] | None = None
    """The arguments in short, see `brief`; asked for only when the call is executed for the first time."""


class Passed(BaseException):
    """A call that is only counted, see `counting`, has no result."""


counting: ContextVar[bool] = ContextVar("perdure_counting", default=False)
"""Calls are looked up, so that later ones are told apart as before, but not executed: Passed instead."""


def idempotency_key() -> str:
    """See `step.idempotency_key`."""
    return current("step.idempotency_key()").effect_key


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
        raise revived(found["error"] or {})
    if counting.get():
        raise Passed
    unfinished(journal)
    # With the fingerprint: should concurrent calls swap their numbers on a replay, an effect may happen
    # twice, but none is taken for another one and left out.
    own = [call.key] if call.key is not None else [str(found["n"]), call.fingerprint]
    identity = "\n".join([place.thread_id, place.scope, call.name, *own])
    row = _JournalRow(journal, place, call, found)
    return await _attempts(call, row, str(uuid5(NAMESPACE_OID, identity)))


async def _as_task(call: Call) -> Any:
    """LangGraph's own journal: found by the order of the calls, durable with the superstep's checkpoint."""

    async def body() -> Any:
        inner = here()
        return await _attempts(call, _Row(), str(uuid5(NAMESPACE_OID, f"{inner.thread_id}\n{inner.scope}")))

    return await task(name=call.name)(body)()


class _Row:
    """The row of a call where there is no journal: forgets everything."""

    def __init__(self) -> None:
        self.attempts: list[dict[str, Any]] = []
        self.next_at: float | None = None
        self.inside = nested.get()[0]
        """The scope of what stands in the step, see `journal.nested`."""

    def trying(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def save(self, status: str, **fields: Any) -> None:
        pass

    async def wait(self, until: float) -> None:
        await pause(None, until, "", awake=0)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        raise RuntimeError("step.transaction() needs perdure's database: run this graph on a perdure server")


class _JournalRow(_Row):
    def __init__(self, journal: Journal, place: Place, call: Call, found: Found) -> None:
        super().__init__()
        self.journal, self.place, self.call, self.n = journal, place, call, found["n"]
        self.attempts, self.next_at = list(found["attempts"]), found["next_at"]
        self.inside += f"/{call.name}:{call.fingerprint[:16] if call.key is None else call.key}:{self.n}"

    def trying(self) -> AbstractContextManager[None]:
        return self.journal.trying(self.call.name, len(self.attempts) + 1)

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

    async def wait(self, until: float) -> None:
        await pause(self.journal, until, f"step {self.call.name}", awake=AWAKE_SECONDS)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        key, seen = self.call.key, self.call.fingerprint
        return self.journal.transaction(
            self.place.scope, self.place.visit, self.call.name, self.n, key=key, fingerprint=seen
        )


async def _attempts(call: Call, row: _Row, effect_key: str) -> Any:
    """Attempts until one succeeds, fails for good, or the round is used up."""
    limit = max(1, call.retry.max_attempts)
    failures = len(row.attempts) % limit  # a full round is behind us: this is the run's next attempt
    if row.next_at is not None:
        await row.wait(row.next_at)
    while True:
        started, clock = datetime.now(UTC), time.monotonic()
        attempt: dict[str, Any] = {"started_at": started.isoformat(), **({"undo": True} if undoing.get() else {})}
        if not row.attempts and call.given is not None:
            attempt["input"] = call.given()  # before the body may change its arguments
        current_attempt = Running(effect_key, row.transaction)
        seen = ModelCalls()
        try:
            with seen, row.trying():
                value = await _attempt(call, row, current_attempt)
            done = {**attempt, "seconds": time.monotonic() - clock, **seen.recorded()}
            committed = await _commit(call, current_attempt, value, [*row.attempts, done])
        except GraphBubbleUp:
            raise
        except CommitUnknown:
            raise  # the row may stand there as done: it is not touched, the run's next attempt looks
        except Exception as exc:
            failures += 1
            attempt |= {"seconds": time.monotonic() - clock, "error": described(exc), **seen.recorded()}
            row.attempts.append(attempt)
            if _is_terminal(exc, call.retry):
                await row.save("failed", error=attempt["error"])
                leave(exc, retryable=False)
            asked = _asked_wait(exc)
            if failures >= limit:
                next_at = None if asked is None else time.time() + asked
                await row.save("retrying", error=attempt["error"], next_at=next_at)
                leave(exc, retryable=True)
            wait = asked if asked is not None else _backoff(call.retry, failures)
            next_at = time.time() + wait
            await row.save("retrying", error=attempt["error"], next_at=next_at)
            log.warning("step failed", step=call.name, attempt=failures, wait_seconds=wait, error=type(exc).__name__)
        else:
            row.attempts.append(done)
            if not committed:
                await _save_value(call, row, value)
            return value
        await row.wait(next_at)


async def _attempt(call: Call, row: _Row, attempt: Running) -> Any:
    token, outer = running.set(attempt), nested.set((row.inside, len(row.attempts)))
    limit = asyncio.timeout(call.timeout)
    try:
        async with limit:
            return await call.execute()
    except BaseException as exc:
        await attempt.roll_back(exc)
        if isinstance(exc, TimeoutError) and limit.expired():
            raise TimeoutError(f"Step '{call.name}' took longer than {call.timeout:g} s") from exc
        raise
    finally:
        running.reset(token)
        nested.reset(outer)


async def _commit(call: Call, attempt: Running, value: Any, attempts: list[dict[str, Any]]) -> bool:
    try:
        return await attempt.commit(value, attempts)
    except _UNSTORABLE as exc:
        raise _unstorable(call, value, exc) from exc


async def _save_value(call: Call, row: _Row, value: Any) -> None:
    try:
        await row.save("done", value=value)
    except _UNSTORABLE as exc:
        error = _unstorable(call, value, exc)
        await row.save("failed", error=described(error))
        raise error from exc


def _unstorable(call: Call, value: Any, exc: Exception) -> TerminalError:
    return TerminalError(
        f"Step '{call.name}' returned a {type(value).__qualname__} that can't be stored ({exc}). "
        "Return JSON values, LangChain messages or dataclasses"
    )


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
