"""How a word leaves a node: to wait without costing anything (`Suspend`), or because the run is cancelled.

A word that has to wait notes what for in the journal object and raises `Suspend`. LangGraph lets the other
tasks of the superstep finish, keeps their writes and passes it out of the graph; the engine then gives up its
slot and starts the run's next attempt when the wait is over. The node is executed again from its top, what it
had finished is replayed, and the word finds its wait over.
"""

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import NoReturn

from langgraph.errors import GraphBubbleUp

from perdure.durable.journal import Journal


class Leaving(BaseException):
    """Leaves a node for the engine's sake, past author code: `except Exception` does not stop it.

    LangGraph asks isinstance(exc, GraphBubbleUp) before it cancels the sibling tasks (which go on, or have
    undos of their own to run) and before it gives an error to a node's error_handler. Python's `except` asks
    the real type, so neither `except Exception` nor `except GraphBubbleUp` catches it.
    """

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]  # meant: see above
        return GraphBubbleUp


class Suspend(Leaving):
    """The run waits; what for stands in the journal. Private to the words."""

    suspends = True


class Cancelled(Leaving):
    """The run was cancelled: raised by the first word that has not been finished, so that sagas undo their work.

    Not an Exception: `except Exception` does not stop it, and neither should you. Use `finally` or `saga`.
    """

    cancels = True


undoing: ContextVar[bool] = ContextVar("perdure_undoing", default=False)
"""The undos of a saga are running: they may do what is refused elsewhere."""

refusal: ContextVar[Callable[[], BaseException] | None] = ContextVar("perdure_refusal", default=None)
"""Inside of a saga that has failed: what to raise instead of doing anything new."""


def unfinished(journal: Journal | None) -> None:
    """Each word calls this before it does or awaits something that the journal does not hold yet.

    Raises Cancelled in an attempt that only compensates, and the error of the saga inside of a failed one.
    """
    if undoing.get():
        return
    if journal is not None and journal.cancelling:
        raise Cancelled("The run was cancelled")
    refuse = refusal.get()
    if refuse is not None:
        raise refuse()


def suspend_until(journal: Journal, when: float, why: str) -> NoReturn:
    """End the attempt; the run goes on at `when` (Unix seconds) or when something else wakes it."""
    journal.wait_until(when)
    raise Suspend(why)


async def pause(journal: Journal | None, when: float, why: str, *, awake: float) -> None:
    """Wait until `when` (Unix seconds): in memory up to `awake` seconds, beyond that the run is suspended."""
    remaining = when - time.time()
    if journal is not None and remaining > awake:
        suspend_until(journal, when, why)
    await asyncio.sleep(max(0.0, remaining))
