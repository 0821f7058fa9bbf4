"""`step.transaction()`: effects in perdure's own database, exactly once.

The transaction stays open when its block is left; it commits when the step function returns, together with
the journal row that holds the returned value.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any

from perdure.durable.journal import Transaction


class CommitUnknown(Exception):
    """The connection broke while the transaction was committed: nobody here knows whether it was."""

    retryable = True


class Running:
    """One attempt of a step, as the code inside of it sees it."""

    def __init__(self, effect_key: str, begin: Callable[[], AbstractAsyncContextManager[Transaction]]) -> None:
        self.effect_key = effect_key
        self._begin = begin
        self._used = False
        self._context: AbstractAsyncContextManager[Transaction] | None = None
        self._transaction: Transaction | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Any]:
        if self._used:
            raise RuntimeError("A step has only one transaction: put both blocks into one, or make two steps")
        self._used = True
        context = self._begin()
        transaction = await context.__aenter__()
        self._context = context
        try:
            yield transaction.conn
        except BaseException as exc:
            await self.roll_back(exc)
            raise
        self._transaction = transaction

    async def roll_back(self, exc: BaseException) -> None:
        """Undo the effects of this attempt, if it has an open transaction."""
        context, self._context, self._transaction = self._context, None, None
        if context is not None:
            await context.__aexit__(type(exc), exc, exc.__traceback__)

    async def commit(self, value: Any, attempts: list[dict[str, Any]]) -> bool:
        """Commit the effects and the journal row in one; False if the attempt has no open transaction.

        Raises TypeError or ValueError if the value can't be stored, what the database says if it refuses (all
        is rolled back then), and CommitUnknown if it could not say anything.
        """
        if self._context is None or self._transaction is None:
            return False
        try:
            await self._transaction.save(value, attempts=attempts)
        except BaseException as exc:
            await self.roll_back(exc)
            raise
        context, self._context = self._context, None
        try:
            await context.__aexit__(None, None, None)
        except Exception as exc:
            if _refused(exc):
                raise
            raise CommitUnknown(f"The commit of a step's transaction was not confirmed: {exc}") from exc
        return True


def _refused(exc: Exception) -> bool:
    """The database itself answered the commit with an error, so nothing was committed."""
    state = getattr(exc, "sqlstate", None)  # psycopg; None when the connection was lost
    # 08 and 57: the connection or the server went down in the middle; 40003: completion unknown
    return isinstance(state, str) and not state.startswith(("08", "57")) and state != "40003"


running: ContextVar[Running | None] = ContextVar("perdure_step", default=None)


def current(word: str) -> Running:
    """The step that the caller stands in; RuntimeError, naming `word`, outside of one."""
    found = running.get()
    if found is None:
        raise RuntimeError(f"{word} works only inside of a @step function")
    return found
