"""The step journal of one attempt: table `steps`.

Graph code reaches it as plain data through the run's config (see `perdure.durable.journal`).
A finished step is found again by name and arguments, whatever the order of the calls; its
row is durable before the step returns, and the fence keeps a stale worker from adding any.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg_pool import PoolTimeout

from perdure.engine.db import Pool
from perdure.engine.errors import StepMismatch, StorageError
from perdure.engine.groupcommit import GroupCommit, Write
from perdure.engine.jsonable import dumps

LOAD = """
SELECT name, identity, n, call, keyed, status, value_type, value, error, attempts, next_at, overlapped
  FROM steps WHERE thread_id = %(thread_id)s AND scope = %(scope)s
"""

# name, identity (key or fingerprint), n-th call of that identity: the same after every replay
Place = tuple[str, str, int]


@dataclass
class _Scope:
    """What the journal knows of one LangGraph task, and which calls this visit has made."""

    rows: dict[Place, dict[str, Any]]
    visit: int
    made: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    calls: Counter[str] = field(default_factory=Counter[str])
    call_of: dict[Place, int] = field(default_factory=dict[Place, int])
    in_flight: set[Place] = field(default_factory=set[Place])
    overlapped: set[Place] = field(default_factory=set[Place])


class Journal:
    """Finds and saves the steps of one run; one instance per attempt, used on one event loop."""

    def __init__(self, pool: Pool, group: GroupCommit, thread_id: UUID, run_id: UUID, fence: int) -> None:
        self._pool = pool
        self._group = group
        self._thread_id = thread_id
        self._run_id = run_id
        self._fence = fence
        self._scopes: dict[str, _Scope] = {}
        self._serde = JsonPlusSerializer()

    async def find(self, scope: str, visit: int, name: str, key: str | None, fingerprint: str) -> dict[str, Any]:
        """The record of this call: what an earlier execution left, or `status` "new".

        Calls with the same name and the same key (else: the same arguments) are told apart
        by their order, `n`; calls that differ may come in any order. `visit` counts the
        node's executions within the attempt: each begins with no call made.

        Raises StepMismatch when the call at this place was recorded with other arguments and
        ran alone, so that no reordering explains the difference; StorageError when the
        database cannot be reached.
        """
        book = await self._open(scope, visit)
        identity = fingerprint if key is None else key
        place = (name, identity, book.made[name, identity])
        book.made[name, identity] += 1
        call = book.calls[name]
        book.calls[name] += 1
        row: dict[str, Any] | None = book.rows.get(place)
        if row is None:
            if key is None and not book.in_flight:
                _check_order(book, name, identity, call)
            row = {
                "call": call,
                "status": "new",
                "value_type": None,
                "error": None,
                "attempts": [],
                "next_at": None,
            }
        book.call_of[place] = row["call"]
        if row["status"] in ("new", "retrying"):
            if book.in_flight:
                book.overlapped |= {place, *book.in_flight}
            book.in_flight.add(place)
        next_at: datetime | None = row["next_at"]
        return {
            "n": place[2],
            "status": row["status"],
            "value": self._serde.loads_typed((row["value_type"], row["value"])) if row["value_type"] else None,
            "error": row["error"],
            "attempts": row["attempts"],
            "next_at": next_at.timestamp() if next_at else None,
        }

    async def save(
        self,
        scope: str,
        visit: int,
        name: str,
        n: int,
        *,
        key: str | None,
        fingerprint: str,
        status: str,
        value: Any = None,
        error: dict[str, Any] | None = None,
        attempts: list[dict[str, Any]] | None = None,
        next_at: float | None = None,
    ) -> None:
        """Record a call that `find` has returned; durable on return.

        Raises LeaseLost when the run was taken away, StorageError when the database cannot
        be reached, and TypeError when the value cannot be stored.
        """
        book = await self._open(scope, visit)
        value_type, blob = self._serde.dumps_typed(value) if status == "done" else (None, b"")
        identity = fingerprint if key is None else key
        place = (name, identity, n)
        if status != "retrying":
            book.in_flight.discard(place)
        row = (
            *(
                scope,
                *place,
                book.call_of.get(place, 0),
                self._run_id,
                key is not None,
                status,
                value_type,
                blob,
            ),
            *(dumps(error).decode() if error else None, dumps(attempts or []).decode(), next_at),
            place in book.overlapped,
        )
        await self._group.submit(Write(self._thread_id, self._fence, steps=[row], size=len(blob) + 200))

    async def _open(self, scope: str, visit: int) -> _Scope:
        book = self._scopes.get(scope)
        if book is not None and book.visit >= visit:
            return book
        try:
            async with self._pool.connection() as conn:
                cursor = await conn.execute(LOAD, {"thread_id": self._thread_id, "scope": scope})
                rows = await cursor.fetchall()
        except (psycopg.OperationalError, PoolTimeout) as exc:
            raise StorageError(f"The step journal could not be read: {str(exc).strip()}") from exc
        # another call of this scope may have loaded it meanwhile: its marks count
        current = self._scopes.get(scope)
        if current is None or current.visit < visit:
            current = _Scope({(row["name"], row["identity"], row["n"]): row for row in rows}, visit)
            self._scopes[scope] = current
        return current


def _check_order(book: _Scope, name: str, identity: str, call: int) -> None:
    """A call that ran alone in this place, with other arguments, and was not made again: they have changed."""
    for place, row in book.rows.items():
        made_again = book.made[name, place[1]] > place[2]
        alone = row["status"] == "done" and not row["overlapped"] and not row["keyed"]
        if place[0] == name and row["call"] == call and alone and not made_again:
            raise StepMismatch(
                f"Step {name!r} (call {call + 1}) was recorded with other arguments (fingerprint {place[1][:12]}, "
                f"now {identity[:12]}): they change between executions. Read clocks, random numbers and the outside "
                "world in a step of their own, or give the step a key"
            )
