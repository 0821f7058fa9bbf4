"""A connection that does something once its transaction is committed, and never if it is not.

Only where somebody wants that (traces): others use psycopg's own class.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection, AsyncTransaction
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow


class Committing(AsyncConnection[DictRow]):
    """Calls what `after_commit` was given when the outermost `transaction()` has committed, in that order.

    What was given inside of a block that is rolled back is forgotten. In autocommit, as all our connections are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._after: list[Callable[[], None]] = []

    def after_commit(self, act: Callable[[], None]) -> None:
        """Outside of a transaction `act` is called at once: what it tells of is there. It must not block or fail."""
        if self.info.transaction_status is TransactionStatus.IDLE:
            act()
        else:
            self._after.append(act)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[AsyncTransaction]:
        mark = len(self._after)
        try:
            async with super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
        except BaseException:
            del self._after[mark:]
            raise
        if self.info.transaction_status is TransactionStatus.IDLE:
            after, self._after = self._after, []
            for act in after:
                act()
