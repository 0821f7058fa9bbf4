"""`@step`: a function that is never executed again once it has finished."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import CodeType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from langchain_core.runnables import Runnable
from langgraph.types import RetryPolicy

from perdure.durable.brief import brief
from perdure.durable.fingerprint import Arguments
from perdure.durable.once import DEFAULT_RETRY, Call, idempotency_key, once, seconds
from perdure.durable.transaction import current

P = ParamSpec("P")
R = TypeVar("R")


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...


class _Step:
    """Make a function a step: whatever reads a clock, rolls dice or touches the world.

    Example:
        @step
        async def pay(amount: int) -> str:
            return await bank.transfer(amount, idempotency_key=step.idempotency_key())

        @tool
        @step(retry=RetryPolicy(max_attempts=5), timeout=10)
        def get_weather(city: str) -> str:  # not async: runs in a thread
            \"\"\"The weather of a city.\"\"\"

    The first call executes the function and stores what it returned before `await` gives it back. Called
    again at the same place of the graph with the same arguments (after a crash, a retry or an interrupt of
    its node) it gives that result back and executes nothing. Steps may be called concurrently and inside of
    one another. Where the same arguments occur twice in a node, the calls are told apart by their order.

    - `name`: how the journal finds it again; the function's name by default. Give two functions of one name
      that are used in one node different names, and keep the name when you rename the function.
    - `key`: what identifies a call instead of its arguments: a text, or a function of the same arguments that
      makes one. Needed for arguments that are no data, e.g. a client.
    - `retry`: a LangGraph RetryPolicy; 3 attempts after 0.5 s and 1 s by default, at most 60 s apart. Every
      exception is tried again unless the policy's `retry_on` says otherwise. A RetryableError sets its own
      wait. Waits above 2 s suspend the run: the node is executed again from its top.
    - `timeout`: seconds (or timedelta) for one attempt; TimeoutError counts as a failed attempt. A function
      that is not async can't be stopped: its thread goes on in the background.

    Errors: a TerminalError, or a ModelError that can't be retried, ends the step: it is stored and every
    replay raises it again. Any other error leaves after the last attempt with `retryable = True`: the server
    tries the whole run again later, and the step has a new round of attempts. A result that can't be stored
    is a TerminalError.

    On a server other than perdure's a step is a LangGraph `task`, without a checkpointer just the function
    with its retries.
    """

    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self,
        /,
        *,
        name: str | None = None,
        key: str | Callable[..., str] | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
    ) -> _Decorator: ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        key: str | Callable[..., str] | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
    ) -> Any:
        limit = seconds(timeout)

        def decorate(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
            called = name or getattr(function, "__name__", type(function).__name__)
            return _wrapped(function, called, key, retry or DEFAULT_RETRY, limit)

        return decorate if function is None else decorate(function)

    @staticmethod
    def idempotency_key() -> str:
        """A text for the receiver of an effect to recognise it by: the same for every attempt of this call.

        Different for every other call, unless both have the same explicit `key`. 36 characters. RuntimeError
        outside of a step.
        """
        return idempotency_key()

    @staticmethod
    def transaction() -> AbstractAsyncContextManager[Any]:
        """A transaction on perdure's database for effects that happen exactly once; gives the connection.

        Example:
            @step
            async def book(account: str, amount: int) -> int:
                async with step.transaction() as conn:  # a psycopg AsyncConnection
                    await conn.execute("UPDATE accounts SET sum = sum - %s WHERE id = %s", (amount, account))
                return amount

        The transaction stays open when the block ends and commits when the step returns, together with the
        step's result: after a crash either both are there or neither. So after the block only `return` makes
        sense; what stands between them happens before the commit, and `conn` must not be used any more. An
        error in the block, or in the step after it, rolls back and counts as a failed attempt, and so does a
        commit that the database refuses; if the connection breaks in the middle of the commit, the server
        tries the run again and looks whether it was committed.

        One per step; functions that are not async can't have any. RuntimeError for a second one, outside of a
        step, and where there is no perdure server.
        """
        return current("step.transaction()").transaction()


step = _Step()


class StepCall(NamedTuple):
    """What is known of a step before it is called: how `saga` checks an undo when it is registered."""

    name: str
    arguments: Arguments


def step_of(function: Any) -> StepCall | None:
    """The step that `function` is; None for anything else, a @tool around a step too."""
    return getattr(function, "__perdure_step__", None) if inspect.isfunction(function) else None


def is_step_call(call: Any) -> bool:
    """Whether `call` is a call of a step that has not been awaited."""
    # All steps are the one function `run` below, each with its own closure.
    return inspect.iscoroutine(call) and call.cr_code in _CODE


_CODE: set[CodeType] = set()


def _wrapped(
    function: Callable[..., Any],
    name: str,
    key: str | Callable[..., str] | None,
    retry: RetryPolicy,
    timeout: float | None,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    if isinstance(function, Runnable):
        raise TypeError(f"@step takes a function; put @tool above @step, not below ('{name}')")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"A step returns one value; '{name}' is a generator")
    arguments = Arguments(name, function)
    is_async = inspect.iscoroutinefunction(function)

    async def run(*args: Any, **kwargs: Any) -> Any:
        async def execute() -> Any:
            if is_async:
                return await function(*args, **kwargs)
            value = await asyncio.to_thread(function, *args, **kwargs)
            return await value if inspect.isawaitable(value) else value

        given = key(*args, **kwargs) if callable(key) else key
        seen = arguments.fingerprint(args, kwargs) if given is None else ""
        return await once(
            Call(name, execute, seen, given, retry, timeout, lambda: brief(arguments.given(args, kwargs)))
        )

    _CODE.add(run.__code__)
    wrapped = functools.wraps(function)(run)
    wrapped.__dict__["__perdure_step__"] = StepCall(name, arguments)
    return wrapped
