"""The step journal of one attempt: table `steps`.

Graph code reaches it as plain data through the run's config (see `perdure.durable.journal`).
A finished step is found again by name and arguments, whatever the order of the calls; its
row is durable before the step returns, and the fence keeps a stale worker from adding any.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from perdure.engine.db import Pool
from perdure.engine.errors import StepMismatch
from perdure.engine.groupcommit import GroupCommit, Write
from perdure.engine.jsonable import dumps

LOAD = """
SELECT name, n, key, fingerprint, status, value_type, value, error, attempts, next_at, overlapped
  FROM steps
 WHERE thread_id = %(thread_id)s AND scope = %(scope)s
 ORDER BY name, n
"""


@dataclass
class _Scope:
    """What the journal knows of one LangGraph task, and what this visit has used of it."""

    rows: list[dict[str, Any]]
    visit: int = 0
    used: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    next_n: dict[str, int] = field(default_factory=dict[str, int])
    calls: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    in_flight: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    overlapped: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])


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
        """The recorded call of that name and key (or arguments) that this visit has not used yet.

        Without one, the next number of that name is reserved and `status` is "new". `visit`
        counts the node's executions within the attempt: each starts with nothing used.

        Raises StepMismatch when the call at this place was recorded with other arguments and
        ran alone, so that no reordering explains the difference.
        """
        book = await self._open(scope, visit)
        call = book.calls[name]
        book.calls[name] += 1
        for row in book.rows:
            same = row["key"] == key if key is not None else row["fingerprint"] == fingerprint
            if row["name"] == name and same and (name, row["n"]) not in book.used:
                break
        else:
            row = self._reserve(book, name, call, key, fingerprint)
        place = (name, int(row["n"]))
        book.used.add(place)
        if row["status"] in ("new", "retrying"):
            if book.in_flight:
                book.overlapped |= {place, *book.in_flight}
            book.in_flight.add(place)
        next_at: datetime | None = row["next_at"]
        return {
            "n": row["n"],
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
        """Record a call; durable on return.

        Raises LeaseLost when the run was taken away, and TypeError when the value cannot be
        stored.
        """
        book = await self._open(scope, visit)
        value_type, blob = self._serde.dumps_typed(value) if status == "done" else (None, b"")
        if status != "retrying":
            book.in_flight.discard((name, n))
        overlapped = (name, n) in book.overlapped
        row = (
            *(scope, name, n, self._run_id, key, fingerprint, status, value_type, blob),
            *(dumps(error).decode() if error else None, dumps(attempts or []).decode(), next_at, overlapped),
        )
        await self._group.submit(Write(self._thread_id, self._fence, steps=[row], size=len(blob) + 200))

    async def _open(self, scope: str, visit: int) -> _Scope:
        book = self._scopes.get(scope)
        if book is None or book.visit < visit:
            async with self._pool.connection() as conn:
                cursor = await conn.execute(LOAD, {"thread_id": self._thread_id, "scope": scope})
                rows = await cursor.fetchall()
            # another call of this scope may have loaded it meanwhile: its marks count
            current = self._scopes.get(scope)
            if current is not None and current.visit >= visit:
                return current
            book = self._scopes[scope] = _Scope(rows, visit)
        return book

    @staticmethod
    def _reserve(book: _Scope, name: str, call: int, key: str | None, fingerprint: str) -> dict[str, Any]:
        mine = [row for row in book.rows if row["name"] == name]
        at_place = next((row for row in mine if row["n"] == call), None)
        if (
            at_place
            and key is None
            and at_place["key"] is None
            and at_place["status"] == "done"
            and not at_place["overlapped"]
            and not book.in_flight
            and (name, call) not in book.used
        ):
            raise StepMismatch(
                f"Step {name!r} (call {call}) was recorded with other arguments (fingerprint "
                f"{at_place['fingerprint'][:12]}, now {fingerprint[:12]}): its arguments change between executions. "
                "Read clocks, random numbers and the outside world in a step of their own, or give the step a key"
            )
        known = itertools.chain((int(row["n"]) for row in mine), (book.next_n.get(name, 0) - 1,))
        n = max(known, default=-1) + 1
        book.next_n[name] = n + 1
        return {"n": n, "status": "new", "value_type": None, "error": None, "attempts": [], "next_at": None}
