"""`saga`: either all of it happens, or what has happened is undone.

The row of a saga: `open` when its block is entered; `done` when the block ends well; still `open`, but with
the error, from the moment at which the undos begin; `failed` when they have all run. Once the error is there
the block can't do anything new: replayed after a crash in the middle of the undos, it comes to the same undos
and leaves by the same error, even if what had failed would succeed now.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ParamSpec, cast

import structlog
from langgraph.errors import GraphBubbleUp, GraphInterrupt, ParentCommand

from perdure.durable.journal import Place, here
from perdure.durable.recorded import described, revived
from perdure.durable.step import step_of
from perdure.durable.suspend import Cancelled, refusal, undoing, unfinished

log = structlog.get_logger(__name__)

P = ParamSpec("P")
Undo = tuple[str, Callable[[], Awaitable[Any]]]

_around: ContextVar["Saga | None"] = ContextVar("perdure_saga", default=None)


class Saga:
    """See `saga`."""

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self._state = "not entered"
        self._place: Place
        self._n = 0
        self._recorded: dict[str, Any] | None = None  # the error by which it has failed
        self._outer: tuple[Saga | None, Callable[[], BaseException] | None]

    def undo(self, step: Callable[P, Awaitable[Any]], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `step` with these arguments, as JSON values, should the block fail.

        Register it before the effect: what was in flight when the process died may have happened, so an undo
        must be able to undo nothing. TypeError if it is no step or does not take these arguments; RuntimeError
        outside of the block.
        """
        known = step_of(step)
        if known is None:
            raise TypeError(f"saga.undo() takes a function decorated with @step (not under @tool), not {step!r}")
        known.arguments.fingerprint(args, kwargs)
        if self._state not in ("open", "done", "failed"):
            raise RuntimeError(f"undo({known.name}) belongs inside of the saga's `async with` block")
        self._undos.append((known.name, lambda: step(*args, **kwargs)))

    async def __aenter__(self) -> "Saga":
        if self._state != "not entered":
            raise RuntimeError("A saga is entered once: write `async with saga()` for each")
        place = self._place = here()
        self._outer = (_around.get(), refusal.get())
        self._state = "open"
        if place.journal is not None:
            found = await place.journal.find(place.scope, place.visit, "saga", None, "")
            self._n = found["n"]
            if found["status"] == "new":
                unfinished(place.journal)
                await self._save("open")
            else:
                self._state = found["status"]
                self._recorded = found["error"]
        _around.set(self)
        if self._recorded is not None:
            refusal.set(self._refusal)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        outer, refused = self._outer
        _around.set(outer)
        refusal.set(refused)
        state, self._state = self._state, "left"
        bubbles = _bubbles(exc)
        if bubbles:
            raise bubbles[0]
        error = None if state == "done" else self._error(exc)
        if error is not None:
            await self._compensate(error)
            if error is not exc:
                raise error
        elif exc is None or type(exc) is ParentCommand:
            if state != "done":
                await self._save("done")
            self._hand_over(outer)

    def _error(self, exc: BaseException | None) -> BaseException | None:
        """By which error the saga fails, if it does: what passes through says nothing about its end."""
        journal = self._place.journal
        ended = exc is None or type(exc) is ParentCommand
        if ended or isinstance(exc, GraphInterrupt):
            if self._recorded is not None:
                return self._refusal()
            if journal is not None and journal.cancelling and not undoing.get():
                return Cancelled("The run was cancelled")
            return None
        kind = type(exc)
        if kind is Cancelled:
            return exc
        if not issubclass(kind, Exception) or issubclass(kind, GraphBubbleUp):
            return None
        # The server tries the run again, so the saga may still succeed.
        retried = getattr(exc, "retryable", None) is True and journal is not None and not journal.cancelling
        return None if retried and self._recorded is None else exc

    async def _compensate(self, error: BaseException) -> None:
        if self._recorded is None:
            await self._save("open", described(error))
        outer = undoing.get()
        undoing.set(True)
        try:
            for name, undo in reversed(self._undos):
                await self._undo(name, undo, error)
        finally:
            undoing.set(outer)
        await self._save("failed", self._recorded or described(error))

    async def _undo(self, name: str, undo: Callable[[], Awaitable[Any]], error: BaseException) -> None:
        try:
            await undo()
        except GraphBubbleUp:
            raise
        except Exception as exc:
            if self._place.journal is not None and getattr(exc, "retryable", None) is True:
                raise  # the server tries the run again: the undos go on from here
            error.add_note(f"Its undo '{name}' failed: {type(exc).__name__}: {exc}")
            log.error("undo failed", step=name, error=type(exc).__name__)

    async def _save(self, status: str, error: dict[str, Any] | None = None) -> None:
        place = self._place
        if place.journal is None:
            return
        at = (place.scope, place.visit, "saga", self._n)
        await place.journal.save(*at, key=None, fingerprint="", status=status, error=error, attempts=[])

    def _refusal(self) -> BaseException:
        recorded = self._recorded or {}
        if recorded.get("class") == f"{Cancelled.__module__}:{Cancelled.__qualname__}":
            return Cancelled(str(recorded.get("message", "")))
        return revived(recorded)

    def _hand_over(self, outer: "Saga | None") -> None:
        """What has ended well inside of a saga of the same node is undone with that one."""
        if outer is not None and outer._place.scope == self._place.scope:
            outer._undos.extend(self._undos)


def saga() -> Saga:
    """A block whose effects are undone, last first, when it fails or its run is cancelled.

    Example:
        async with saga() as s:
            s.undo(cancel_hotel, trip_id)
            await book_hotel(trip_id)
            s.undo(cancel_flight, trip_id)
            await book_flight(trip_id)

    The undos run when an exception leaves the block, as ordinary steps under their own retry policy; then the
    exception goes on. A crash in the middle goes on with the undos that are left, and the block does nothing
    new any more, even if it would succeed now. An undo that fails for good is logged and noted on the
    exception; the others still run. When the block ends well no undo runs.

    Not a failure, so no undo: a wait, a question to a person, and an error with `retryable = True`, e.g. of a
    step whose attempts are used up, because the server tries the run again. When the run is cancelled, the
    first word in the block that has not been finished raises `Cancelled`, and the undos run.

    Nested in one node, a saga that has ended well is undone when the one around it fails.

    Outside of a perdure server the undos run in this process, for every exception.
    """
    return Saga()


def _bubbles(exc: BaseException | None) -> list[BaseException]:
    """The waits and questions in the exception group of a TaskGroup: LangGraph understands them alone only."""
    if not isinstance(exc, BaseExceptionGroup):
        return []
    found: list[BaseException] = []
    for each in cast("BaseExceptionGroup[BaseException]", exc).exceptions:
        found += [each] if isinstance(each, GraphBubbleUp) else _bubbles(each)
    return found
