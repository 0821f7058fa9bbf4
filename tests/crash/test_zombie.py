"""A worker that was stopped past its lease and comes back: it can change nothing any more."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from perdure.engine import stop, threads
from tests.crash.fleet import LEASE_SECONDS, PATIENCE_SECONDS, Fleet, WorkerProcess

TABLES = (
    "SELECT * FROM threads ORDER BY thread_id",
    "SELECT * FROM runs ORDER BY run_id",
    "SELECT * FROM run_events ORDER BY thread_id, seq",
    "SELECT * FROM steps ORDER BY thread_id, scope, name, identity, n",
    "SELECT * FROM interrupts ORDER BY token",
    "SELECT * FROM checkpoints ORDER BY thread_id, checkpoint_ns, checkpoint_id",
    "SELECT * FROM checkpoint_blobs ORDER BY thread_id, checkpoint_ns, channel, version",
    "SELECT * FROM checkpoint_writes ORDER BY thread_id, checkpoint_ns, checkpoint_id, task_id, idx",
    "SELECT * FROM webhooks ORDER BY webhook_id",
    "SELECT * FROM purges ORDER BY run_id",
    "SELECT * FROM child_waits ORDER BY child_run_id, parent_run_id",
    "SELECT * FROM limit_places ORDER BY name, place",
    "SELECT * FROM limit_waiters ORDER BY waiter_no",
    "SELECT * FROM messages ORDER BY thread_id, message_no",
)


async def everything(fleet: Fleet) -> list[Any]:
    return [await fleet.rows(statement) for statement in TABLES]


async def noticed(worker: WorkerProcess) -> None:
    """Wait until the worker has found out that it lost its run."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while '"event": "lost"' not in worker.log.read_text():
            await asyncio.sleep(0.02)


async def another_finishes_it(fleet: Fleet, thread: UUID, run: UUID) -> None:
    fleet.worker()
    assert (await fleet.finish(thread, run))["log"] == ["did a", "did b", "did c"]


async def it_is_cancelled(fleet: Fleet, thread: UUID, run: UUID) -> None:
    await stop.cancel(fleet.engine, thread, run)


async def it_is_rolled_back(fleet: Fleet, thread: UUID, run: UUID) -> None:
    await stop.cancel(fleet.engine, thread, run, "rollback")


async def the_thread_is_deleted(fleet: Fleet, thread: UUID, run: UUID) -> None:
    await threads.delete(fleet.engine, thread)


async def another_run_replaces_it(fleet: Fleet, thread: UUID, run: UUID) -> None:
    fleet.worker()
    _, successor = await fleet.start("sequential", thread, input={"log": ["new"]}, multitask_strategy="interrupt")
    assert (await fleet.finish(thread, successor))["log"][-4:] == ["new", "did a", "did b", "did c"]


@pytest.mark.parametrize(
    "fate",
    [another_finishes_it, it_is_cancelled, it_is_rolled_back, the_thread_is_deleted, another_run_replaces_it],
)
async def test_a_stale_worker_changes_nothing(fleet: Fleet, fate: Any) -> None:
    hold = fleet.hold("b")
    fleet.settings["lease_seconds"] = 2.0  # a frozen worker keeps its lock: its run goes to another one after that
    zombie = fleet.worker()
    fleet.settings["lease_seconds"] = LEASE_SECONDS
    thread, run = await fleet.start("sequential", input={"log": []}, stream_mode=["values", "updates"])
    await fleet.until("b")
    zombie.freeze()
    hold.unlink()  # the zombie would go on, but it is frozen
    await fate(fleet, thread, run)
    before = await everything(fleet)
    zombie.thaw()
    await noticed(zombie)
    after = await everything(fleet)
    assert after == before
