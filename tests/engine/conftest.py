"""What the engine's tests share: an engine on the test's own event loop, and a lab that plays the workers.

Attempts are executed in the test's loop (`Lab.work`), so a test decides when a worker claims, dies or
comes back. One database per file, emptied before each test; time passes by ageing rows.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import structlog.testing
from langgraph.graph import END, START, StateGraph
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import sql
from typing_extensions import TypedDict

from perdure.config import Settings
from perdure.engine import queue, runs, threads
from perdure.engine.attempt import Attempt, Workshop
from perdure.engine.core import Engine
from perdure.engine.db import connect
from perdure.engine.errors import LeaseLost
from perdure.engine.groupcommit import GroupCommit, Write
from perdure.engine.newrun import NewRun
from perdure.engine.queue import Claimed
from perdure.engine.registry import GraphEntry, Registry
from tests.conftest import Database

TABLES = (
    *("threads", "runs", "run_events", "steps", "interrupts", "workers", "idempotency_keys", "assistants"),
    *("webhooks", "purges", "crons", "child_waits", "limit_places", "limit_waiters", "messages", "remote_calls"),
    *("checkpoints", "checkpoint_blobs", "checkpoint_writes"),
)


def one_node() -> Any:
    """A graph that is done at once."""

    class State(TypedDict, total=False):
        text: str

    builder = StateGraph(State)
    builder.add_node("node", lambda given: {"text": "done"})
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile()


@pytest.fixture(scope="module")
def module_dsn(database_url: str, template_database: str) -> Iterator[str]:
    """A migrated database for the tests of one file."""
    with Database(database_url, template_database) as (_, dsn):
        yield dsn


@pytest.fixture
def settings() -> Settings:
    """Quick heartbeats; whatever else the environment of the developer says is left out."""
    return Settings(database_url="unused", heartbeat_seconds=0.1, retry_initial_seconds=5, event_flush_ms=5)


@pytest.fixture
async def lab(module_dsn: str, settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator["Lab"]:
    """An engine with the graphs of the test's file (`GRAPHS`) on an empty database."""
    async with await connect(module_dsn) as conn:
        for table in ("assistant_versions", *TABLES):
            await conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
    graphs = getattr(request.module, "GRAPHS", {})
    registry = Registry({}, {name: GraphEntry(name, name, None, graph) for name, graph in graphs.items()})
    with structlog.testing.capture_logs() as logs:  # also quicker: printing a traceback takes a second
        async with Engine.open(settings, registry, module_dsn) as engine:
            yield Lab(engine, module_dsn, logs)


REGISTER = """
INSERT INTO workers (worker_id, lock_key, name, slots) VALUES (%(id)s, %(key)s, 'test', 1) ON CONFLICT DO NOTHING
"""


class Killed(LeaseLost):
    """The process of the attempt has died; nothing that it does counts any more."""


class DyingGroup(GroupCommit):
    """Dies after `left` writes: none of the later ones arrives."""

    def __init__(self, pool: Any, left: int) -> None:
        super().__init__(pool, origin="dying")
        self.left = left
        self.died = False

    async def dead(self) -> None:
        """The process is gone, whatever its tasks would still do. What it had sent before arrives."""
        self.left = 0
        if self._task is not None:
            await self._task

    def enqueue(self, write: Write) -> "asyncio.Future[int]":
        if self.left > 0:
            self.left -= 1
            return super().enqueue(write)
        self.died = True
        write.done = asyncio.get_running_loop().create_future()
        write.done.set_exception(Killed())
        write.done.exception()
        return write.done


@dataclass
class Lab:
    """The engine under test, and its workers' deeds one by one."""

    engine: Engine
    dsn: str
    logs: list[Any]
    worker_id: UUID = field(default_factory=uuid4)
    graph: str = "default"

    def __post_init__(self) -> None:
        self.store = AsyncPostgresStore(conn=cast(Any, self.engine.pool))

    # -- the database

    async def rows(self, statement: Any, **params: Any) -> list[dict[str, Any]]:
        async with self.engine.pool.connection() as conn:
            return await (await conn.execute(statement, params)).fetchall()

    async def one(self, statement: Any, **params: Any) -> dict[str, Any]:
        (row,) = await self.rows(statement, **params)
        return row

    async def execute(self, statement: Any, **params: Any) -> int:
        async with self.engine.pool.connection() as conn:
            return (await conn.execute(statement, params)).rowcount

    async def everything(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of all tables, to compare."""
        return {
            table: sorted(await self.rows(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))), key=repr)
            for table in TABLES
        }

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of its own, as a sweeper has."""
        async with await connect(self.dsn) as conn:
            yield conn

    async def cut_connections(self) -> None:
        """Every connection to the database breaks, as in a restart of the server; returns when all have."""
        async with self.connection() as conn:
            cursor = await conn.execute(
                "SELECT pg_terminate_backend(pid, 30000) AS gone FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert all(row["gone"] for row in await cursor.fetchall())

    # -- threads and runs

    async def thread(self, **given: Any) -> UUID:
        return (await threads.create(self.engine, **given))["thread_id"]

    async def thread_at_zero(self) -> UUID:
        """A thread with the fence 0, for those who write without a claim."""
        thread_id = await self.thread()
        await self.execute("UPDATE threads SET fence = 0 WHERE thread_id = %(id)s", id=thread_id)
        return thread_id

    async def enqueue(self, thread_id: UUID | None, input: Any = None, **given: Any) -> dict[str, Any]:
        new = NewRun(**{"assistant": self.graph, "input": input, **given})
        return await runs.enqueue(self.engine, thread_id, new)

    async def run(self, run: dict[str, Any]) -> dict[str, Any]:
        """The row of a run."""
        return await self.one("SELECT * FROM runs WHERE run_id = %(id)s", id=run["run_id"])

    async def thread_row(self, thread_id: UUID) -> dict[str, Any]:
        return await self.one("SELECT * FROM threads WHERE thread_id = %(id)s", id=thread_id)

    async def events(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        return await self.rows("SELECT * FROM run_events WHERE run_id = %(id)s ORDER BY seq", id=run["run_id"])

    # -- workers

    async def registered(self, worker_id: UUID | None = None) -> UUID:
        """A worker that may claim runs; nobody holds its lock."""
        worker_id = worker_id or uuid4()
        await self.execute(REGISTER, id=worker_id, key=worker_id.int % 2**62)
        return worker_id

    async def claim(self, slots: int = 1, *, worker_id: UUID | None = None, lease: float = 60) -> list[Claimed]:
        return await queue.claim(
            self.engine.pool,
            worker_id=await self.registered(worker_id or self.worker_id),
            graphs=self.engine.registry.graph_ids,
            slots=slots,
            lease_seconds=lease,
        )

    async def claim_one(self, **given: Any) -> Claimed:
        (run,) = await self.claim(**given)
        return run

    def group(self) -> GroupCommit:
        return GroupCommit(self.engine.pool, origin=self.engine.origin)

    def attempt(self, run: Claimed, *, group: GroupCommit | None = None, pool: Any = None, hub: Any = True) -> Attempt:
        engine = replace(self.engine, pool=pool or self.engine.pool)
        shop = Workshop(
            engine=engine,
            group=group or GroupCommit(engine.pool, origin=engine.origin),
            store=self.store,
            hub=engine.hub if hub else None,
        )
        return Attempt(shop, run)

    async def work(self) -> int:
        """Execute runs one after another until none is ready; returns how many attempts that took."""
        count = 0
        while claimed := await self.claim():
            count += 1
            await self.play(self.attempt(claimed[0]))
        return count

    async def play(self, attempt: Attempt) -> None:
        """Execute an attempt in a task of its own, as a worker does: losing the run cancels that task."""
        task = asyncio.create_task(attempt.execute())
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def work_until_killed(self, writes: int) -> bool:
        """Execute the next run by a worker that dies after so many writes, at the latest when the attempt ends.

        Its loss is noticed at once. Returns whether it died before the end.
        """
        run = await self.claim_one()
        group = DyingGroup(self.engine.pool, writes)
        attempt = self.attempt(run, group=group)

        async def dead(commit: Any) -> None:
            raise Killed

        attempt._settle = dead
        await self.play(attempt)
        died = group.died
        await group.dead()
        assert await self.release(worker_id=self.worker_id)
        return died

    async def release(self, *, worker_id: UUID | None = None, lost: bool = True, **given: Any) -> list[dict[str, Any]]:
        """Give back the runs of a worker, or those whose lease has ended."""
        policy = {"max_attempts": 70, "initial": 0.5, "cap": 60.0, **given}
        async with self.connection() as conn:
            return await queue.release(conn, worker_id=worker_id, lost=lost, **policy)

    async def retries_are_due(self) -> None:
        await self.execute("UPDATE runs SET ready_at = now() WHERE ready_at > now()")

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait until a condition holds, at most a minute."""
        async with asyncio.timeout(60):
            while True:
                found = holds()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(0.005)

    async def fence_off(self, thread_id: UUID) -> None:
        await self.execute("UPDATE threads SET fence = fence + 1 WHERE thread_id = %(id)s", id=thread_id)
