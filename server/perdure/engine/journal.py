"""The step journal of one attempt, as graph code has it.

It goes to the graph as plain data through the run's config (see `perdure.durable.journal`). A finished
step is found again by name and arguments, whatever the order of the calls; its row is durable before the
step returns, and the fence keeps a stale worker from adding any. The rows are those of `perdure.engine.steps`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg_pool import PoolTimeout

from perdure.engine import children, limits, mailbox, meters, orphans, steps
from perdure.engine.db import Conn, connect, jsonb, storable
from perdure.engine.errors import StepMismatch, StorageError
from perdure.engine.groupcommit import GroupCommit, Write

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.queue import Claimed
    from perdure.engine.tracing.attempt import AttemptTrace

MAILBOX = "mailbox"

# name, identity (key or fingerprint), n-th call of that identity: the same after every replay
Place = tuple[str, str, int]


class Transaction:
    """A step's own database transaction: its effects and its row commit together, or not at all."""

    def __init__(self, journal: Journal, conn: Conn, row: dict[str, Any], book: _Scope, place: Place) -> None:
        self.conn = conn
        self.saved = False
        self.attempts: list[dict[str, Any]] = []
        self._journal = journal
        self._row = row
        self._book = book
        self._place = place

    async def save(self, value: Any, attempts: list[dict[str, Any]] | None = None) -> None:
        """Record the step as done with this value, in this transaction. Raises LeaseLost."""
        kind, blob = self._journal.serde.dumps_typed(value)
        overlapped = self._place in self._book.overlapped
        values = {"type": kind, "value": blob, "attempts": jsonb(attempts or []), "overlapped": overlapped}
        await steps.save(self.conn, {**self._row, **values})
        self.saved, self.attempts = True, attempts or []


class _NotSaved(Exception):
    """Rolls back a transaction whose step did not return."""


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
    """The journal of one attempt, as graph code sees it; used on one event loop.

    `called` is told of each call of a word. `cancelling`: this attempt only compensates. `waits` is
    what the words have noted before they suspend the run. `trace` is told of tries and of replayed steps.
    """

    def __init__(
        self,
        engine: Engine,
        group: GroupCommit,
        run: Claimed,
        *,
        called: Callable[[], None] | None = None,
        trace: AttemptTrace | None = None,
    ) -> None:
        self.cancelling = run.cancelling is not None
        self.waits: list[float | None] = []  # times (Unix seconds); None: until a child wakes the run
        self.children: list[str] = []  # their run ids
        self.serde = JsonPlusSerializer()
        self._engine = engine
        self._pool = engine.pool
        self._group = group
        self._run = run
        self._called = called
        self._trace = trace
        self._scopes: dict[str, _Scope] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asking: Counter[str] = Counter()  # calls that wait for their turn
        self._places: defaultdict[str, list[str]] = defaultdict(list)
        self._transactions: list[str] = []  # how the scopes of what stands in an open one begin

    def _keys(self) -> dict[str, Any]:
        return {"thread_id": self._run.thread_id, "run_id": self._run.run_id, "fence": self._run.fence}

    async def find(self, scope: str, visit: int, name: str, key: str | None, fingerprint: str) -> dict[str, Any]:
        """The record of this call: what an earlier execution left, or `status` "new".

        Calls with the same name and the same key (else: the same arguments) are told apart
        by their order, `n`; calls that differ may come in any order. `visit` counts the
        node's executions within the attempt: each begins with no call made.

        Raises StepMismatch when the call at this place was recorded with other arguments and
        ran alone, so that no reordering explains the difference; StorageError when the
        database cannot be reached.
        """
        identity = fingerprint if key is None else key
        if "\x00" in identity + name or any("\ud800" <= c <= "\udfff" for c in identity + name):
            raise ValueError(f"Name and key of step {name!r} must be text that UTF-8 and PostgreSQL can hold")
        if self._called is not None:
            self._called()
        self._asking[scope] += 1
        try:
            async with self._turns[scope]:  # first come, first numbered, also while the rows are being read
                book = await self._open(scope, visit)
        finally:
            self._asking[scope] -= 1
        place = (name, identity, book.made[name, identity])
        book.made[name, identity] += 1
        call = book.calls[name]
        book.calls[name] += 1
        row: dict[str, Any] | None = book.rows.get(place)
        alone = not book.in_flight
        if row is None:
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
            if book.in_flight or self._asking[scope]:
                book.overlapped |= {place, *book.in_flight}
            book.in_flight.add(place)
            # Calls that the author started together are all made before one of them goes on: a step
            # that never awaits would else be finished, and recorded as alone, before the next one begins.
            await asyncio.sleep(0)
            if row["status"] == "new" and key is None and alone and place not in book.overlapped:
                try:
                    _check_order(book, name, identity, call)
                except StepMismatch:
                    book.in_flight.discard(place)
                    raise
        if self._trace is not None and row["status"] == "done":
            self._trace.replayed(name)
        next_at: datetime | None = row["next_at"]
        return {
            "n": place[2],
            "status": row["status"],
            "value": self.serde.loads_typed((row["value_type"], row["value"])) if row["value_type"] else None,
            "error": row["error"],
            "attempts": row["attempts"],
            "next_at": next_at.timestamp() if next_at else None,
        }

    def trying(self, name: str, number: int) -> AbstractContextManager[None]:
        """Around the `number`-th try (from 1 on) of a call that `find` has returned."""
        return nullcontext() if self._trace is None else self._trace.step(name, number)

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
        value_type, blob = self.serde.dumps_typed(value) if status == "done" else (None, b"")
        identity = fingerprint if key is None else key
        place = (name, identity, n)
        row = (
            *(
                scope,
                *place,
                book.call_of.get(place, 0),
                self._run.run_id,
                key is not None,
                status,
                value_type,
                blob,
            ),
            *(storable(error) if error else None, storable(attempts or []), next_at),
            place in book.overlapped,
        )
        await self._group.submit(Write(self._run.thread_id, self._run.fence, steps=[row], size=len(blob) + 200))
        meters.step(name, status, attempts)
        if status != "retrying":
            book.in_flight.discard(place)

    @asynccontextmanager
    async def transaction(
        self, scope: str, visit: int, name: str, n: int, *, key: str | None, fingerprint: str
    ) -> AsyncIterator[Transaction]:
        """A transaction for the step that `find` has returned; see `Transaction`. Without `save`: rolled back."""
        book = await self._open(scope, visit)
        place = (name, fingerprint if key is None else key, n)
        row = {
            **self._keys(),
            **dict(zip(("scope", "name", "identity", "n"), (scope, *place), strict=True)),
            "call": book.call_of.get(place, 0),
            "keyed": key is not None,
        }
        try:
            async with self._connection(scope, name) as conn, conn.transaction():
                transaction = Transaction(self, conn, row, book, place)
                yield transaction
                if not transaction.saved:
                    raise _NotSaved
        except _NotSaved:
            return
        meters.step(name, "done", transaction.attempts)
        book.in_flight.discard(place)

    @asynccontextmanager
    async def _connection(self, scope: str, name: str) -> AsyncIterator[Conn]:
        """A connection that author code may hold for long; only so many of the pool's are given away.

        A transaction inside of a step that has one open itself must not wait for a place that the outer one
        may hold: it gets a connection of its own.
        """
        inside = f"{scope}/{name}:"
        if any(scope.startswith(outer) for outer in self._transactions):
            async with await connect(self._engine.dsn) as conn:
                yield conn
            return
        async with self._engine.transactions:
            self._transactions.append(inside)
            try:
                async with self._pool.connection() as conn:
                    yield conn
            finally:
                self._transactions.remove(inside)

    async def receive(self, scope: str, visit: int) -> list[Any]:
        """Messages sent to the thread that no earlier call took; taking and recording are one transaction."""
        found = await self.find(scope, visit, MAILBOX, None, MAILBOX)
        if found["status"] == "done":
            return found["value"]
        if self.cancelling:
            return []
        n: int = found["n"]
        async with self.transaction(scope, visit, MAILBOX, n, key=None, fingerprint=MAILBOX) as transaction:
            taken = await mailbox.take(transaction.conn, self._run.thread_id)
            await transaction.save(taken)
        return taken

    # -- waiting

    def wait_until(self, when: float) -> None:
        """The run is about to wait for a time (Unix seconds)."""
        self.waits.append(when)

    def wait_for(self, child: dict[str, str]) -> None:
        """The run is about to wait for a child that `outcome` has called running."""
        self.waits.append(None)
        self.children.append(child["run_id"])

    async def start(
        self,
        agent: str,
        input: Any,
        *,
        key: str | None,
        idempotency_key: str,
        delay: float = 0.0,
        bound: bool = True,
        server: str | None = None,
    ) -> dict[str, str]:
        """Start a run of another assistant, once for this idempotency key; see `children.start`."""
        return await children.start(
            self._engine,
            self._run,
            agent,
            input,
            key=key,
            idempotency_key=idempotency_key,
            delay=delay,
            bound=bound,
            server=server,
        )

    async def outcome(self, child: dict[str, str]) -> dict[str, Any]:
        """What has become of a child; see `children.outcome`."""
        return await children.outcome(self._engine, self._run, child)

    async def cancel(self, child: dict[str, str]) -> None:
        """Cancel a child; one that has ended stays as it is."""
        await orphans.cancel(self._engine, self._run, child)

    async def acquire(self, name: str, n: int) -> bool:
        """Take a place under a fleet-wide limit; see `limits.acquire`."""
        place = uuid4().hex
        taken = await limits.acquire(self._pool, self._run, name, n, place)
        if taken:
            self._places[name].append(place)
        return taken

    async def release(self, name: str) -> None:
        """Give the place back."""
        await limits.release(self._pool, self._run, name, self._places[name].pop())

    async def _open(self, scope: str, visit: int) -> _Scope:
        book = self._scopes.get(scope)
        if book is not None and book.visit >= visit:
            return book
        # What this scope is named after (its checkpoint) must not be lost once a step has run.
        await self._group.barrier(self._run.thread_id)
        try:
            async with self._pool.connection() as conn:
                rows = await steps.load(conn, self._run.thread_id, scope)
        except (psycopg.OperationalError, PoolTimeout) as exc:
            raise StorageError(f"The step journal could not be read: {str(exc).strip()}") from exc
        book = _Scope({(row["name"], row["identity"], row["n"]): row for row in rows}, visit)
        self._scopes[scope] = book
        return book


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
