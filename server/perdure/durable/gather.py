"""`gather` and `race`: several calls at once, with the same result on every replay."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from langgraph.errors import GraphBubbleUp

from perdure.durable.agent import RUNNING, AgentCall, wait_for
from perdure.durable.fingerprint import fingerprint
from perdure.durable.journal import Child, Place, here
from perdure.durable.once import Passed, counting
from perdure.durable.step import is_step_call
from perdure.durable.suspend import Cancelled, Leaving, Suspend

R = TypeVar("R")
Record = Callable[[int], Awaitable[None]]
"""Writes the winner down."""


async def gather(*calls: Awaitable[R]) -> list[R]:
    """The results of all calls, in the order of the arguments.

    Example:
        checks = await gather(agent("eligibility", claim), agent("fraud", claim), agent("rates", claim))
        pages = await gather(*[fetch(url) for url in urls])  # steps

    Takes either `agent(…)` calls or calls of steps, not awaited. Agents are all started, in order, and the run
    is suspended until they have ended; steps run concurrently in this process.

    All calls come to their end before this one does, failures too, so that whoever catches the error, or
    undoes in a saga, knows that nothing is in flight any more. Then the error of the first call that failed
    for good is raised; if one is only to be tried again later, that error, or the wait of a step, leaves first
    and what is finished is not repeated.

    TypeError for anything else than such calls, and for a mixture.
    """
    if _are_agents("gather", calls) and here().journal is not None:
        return await _all_agents(here(), cast("Sequence[AgentCall]", calls))
    tasks = _tasks(calls)
    await _all_ended(tasks)
    return [task.result() for task in tasks]


async def race(*calls: Awaitable[R]) -> R:
    """The result of the call that is the first to succeed; the others are cancelled.

    Example:
        answer = await race(agent("quick_search", question), agent("deep_search", question))

    Takes either `agent(…)` calls or calls of steps, not awaited. The winner is recorded before the losers are
    cancelled, so a replay gives the same one. A call that fails is out of the race; if all fail, the error of
    the first argument is raised. A step that is cancelled may have had its effect; one that is not async goes
    on in its thread.

    ValueError without calls. TypeError as for `gather`; graph objects race only outside of a perdure server.
    Without a journal nothing is recorded: a replay may see another winner.
    """
    if not calls:
        raise ValueError("race() needs at least one call")
    agents = _are_agents("race", calls)
    place = here()
    if place.journal is None:
        tasks = _tasks(calls)
        return tasks[await _first(tasks)].result()
    names = [[call.name, call.input, call.key] for call in calls if isinstance(call, AgentCall)]
    identity = fingerprint(names or [cast("Any", call).__name__ for call in calls])
    found = await place.journal.find(place.scope, place.visit, "race", None, identity)

    async def record(winner: int) -> None:
        assert place.journal is not None
        at = (place.scope, place.visit, "race", found["n"])
        await place.journal.save(*at, key=None, fingerprint=identity, status="done", value=winner, attempts=[])

    winner: int | None = found["value"] if found["status"] == "done" else None
    if agents:
        return await _race_agents(place, cast("Sequence[AgentCall]", calls), winner, record)
    if winner is not None:
        return await _replayed(cast("Sequence[Coroutine[Any, Any, Any]]", calls), winner)
    tasks = _tasks(calls)
    return tasks[await _first(tasks, record)].result()


async def _all_agents(place: Place, calls: Sequence[AgentCall]) -> list[Any]:
    children = await _started(place, calls)
    results: list[Any] = []
    for call, child in zip(calls, children, strict=True):
        results.append(child if isinstance(child, Exception) else await _outcome(place, call, child))
    waiting = [child for child, result in zip(children, results, strict=True) if result is RUNNING]
    if waiting:
        wait_for(place, cast("list[Child]", waiting))
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


async def _race_agents(place: Place, calls: Sequence[AgentCall], winner: int | None, record: Record) -> Any:
    children = await _started(place, calls)
    results: list[Any] = []
    if winner is None:
        for call, child in zip(calls, children, strict=True):
            results.append(child if isinstance(child, Exception) else await _outcome(place, call, child))
            if results[-1] is not RUNNING and not isinstance(results[-1], Exception):
                break
        else:
            waiting = [child for child, result in zip(children, results, strict=True) if result is RUNNING]
            if waiting:
                wait_for(place, cast("list[Child]", waiting))
            raise results[0]
        winner = len(results) - 1
        await record(winner)
    value = await calls[winner].outcome(place, cast("Child", children[winner])) if not results else results[winner]
    for n, (call, child) in enumerate(zip(calls, children, strict=True)):
        if n != winner and not isinstance(child, Exception):
            await call.cancel(place, child)
    return value


async def _started(place: Place, calls: Sequence[AgentCall]) -> list[Child | Exception]:
    """The children, all started, one after the other; the error instead of one that can't be."""
    children: list[Child | Exception] = []
    for call in calls:
        try:
            children.append(await call.start(place))
        except Exception as exc:
            if not _is_final(exc):
                raise
            children.append(exc)
    return children


async def _outcome(place: Place, call: AgentCall, child: Child) -> Any:
    try:
        return await call.outcome(place, child)
    except Exception as exc:
        if not _is_final(exc):
            raise
        return exc


async def _all_ended(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Wait for all, then raise what is most urgent; an error that must not wait cancels the others."""
    pending = set(tasks)
    try:
        while pending and not any(_is_fatal(task) for task in tasks):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancelled(tasks)
    _raise_most_urgent(tasks)


async def _first(tasks: Sequence[asyncio.Task[Any]], record: Record | None = None) -> int:
    """The place of the first that succeeds, recorded before the others are cancelled."""
    pending = set(tasks)
    try:
        while pending and not any(_is_fatal(task) for task in tasks):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for n, task in enumerate(tasks):
                if task.done() and _error(task) is None:
                    if record is not None:
                        await record(n)
                    return n
    finally:
        await _cancelled(tasks)
    _raise_most_urgent(tasks)
    raise AssertionError("unreachable: without a winner each has failed")


async def _replayed(calls: Sequence[Coroutine[Any, Any, Any]], winner: int) -> Any:
    """The winner's recorded result. The others are counted, so that later calls find their own rows."""
    value: Any = None
    for n, call in enumerate(calls):
        if n == winner:
            value = await call
            continue
        token = counting.set(True)
        try:
            with suppress(Passed, Exception):
                await call
        finally:
            counting.reset(token)
    return value


def _are_agents(word: str, calls: Sequence[Awaitable[Any]]) -> bool:
    """Whether the calls are of agents by name; False: they run in this process. TypeError for a mixture."""
    for call in calls:
        if isinstance(call, AgentCall):
            call.close()  # it is in good hands
    kinds = {_kind(call) for call in calls}
    graphs_on_server = word == "race" and "graphs" in kinds and here().journal is not None
    if len(kinds) <= 1 and "other" not in kinds and not graphs_on_server:
        return "agents" in kinds
    for call in calls:
        close = getattr(call, "close", None)
        if close is not None:
            close()  # no warning about what was never awaited
    if "other" in kinds:
        wrong = next(call for call in calls if _kind(call) == "other")
        raise TypeError(f"{word}() takes agent(…) calls or calls of steps, not awaited; {wrong!r} is neither")
    if graphs_on_server and len(kinds) == 1:
        raise TypeError("race() takes agents by name on a perdure server: a graph object can't be cancelled for good")
    raise TypeError(f"{word}() takes either agents or steps: {' and '.join(sorted(kinds))} wait in different ways")


def _kind(call: Any) -> str:
    if isinstance(call, AgentCall):
        return "graphs" if call.local else "agents"
    return "steps" if is_step_call(call) else "other"


def _tasks(calls: Sequence[Awaitable[Any]]) -> list[asyncio.Task[Any]]:
    """One task per call, begun in the order of the arguments."""
    runs = [call.run() if isinstance(call, AgentCall) else call for call in calls]
    return [asyncio.create_task(cast("Coroutine[Any, Any, Any]", run)) for run in runs]


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel who still runs and wait until all have ended: nothing goes on in the background."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        _error(task)  # looked at: asyncio would complain otherwise


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _is_fatal(task: asyncio.Task[Any]) -> bool:
    """It ended by something that is no failure of its own, such as a lost lease."""
    exc = _error(task) if task.done() else None
    return exc is not None and not issubclass(type(exc), (Exception, Leaving))


def _is_final(exc: Exception) -> bool:
    """A failure for good, not one that will be tried again, nor a wait."""
    return getattr(exc, "retryable", None) is not True and not isinstance(exc, GraphBubbleUp)


def _raise_most_urgent(tasks: Sequence[asyncio.Task[Any]]) -> None:
    errors = [exc for task in tasks if (exc := _error(task)) is not None]
    urgent = [exc for exc in errors if not issubclass(type(exc), (Exception, Suspend))]
    urgent.sort(key=lambda exc: issubclass(type(exc), (Cancelled, asyncio.CancelledError)))
    later = [exc for exc in errors if getattr(exc, "retryable", None) is True]
    waits = [exc for exc in errors if isinstance(exc, GraphBubbleUp)]
    for exc in [*urgent, *later, *waits, *errors]:
        raise exc
