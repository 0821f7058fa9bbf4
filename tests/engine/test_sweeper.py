"""What nobody else does in time is done once, however many sweepers there are."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql

from perdure.engine import runs, stop, sweeper
from perdure.engine.errors import LeaseLost
from perdure.engine.groupcommit import Write
from perdure.engine.ttl import Ttl
from tests.engine.conftest import one_node

GRAPHS = {"default": one_node()}

FREE = """
SELECT 1 WHERE NOT EXISTS (
    SELECT 1 FROM pg_locks l JOIN pg_database d ON d.oid = l.database
     WHERE d.datname = current_database() AND l.locktype = 'advisory')
"""
REGISTER = "INSERT INTO workers (worker_id, lock_key, name, slots) VALUES (%(id)s, %(key)s, 'test', 1)"


async def registered(lab, runs: int) -> tuple[Any, int, list[dict[str, Any]]]:
    """A worker, the key of its lock, and the runs that it has claimed."""
    worker, key = uuid4(), uuid4().int % 2**62
    await lab.execute(REGISTER, id=worker, key=key)
    created = [await lab.enqueue(await lab.thread(), {"text": ""}) for _ in range(runs)]
    assert len(await lab.claim(slots=runs + 1, worker_id=worker)) == runs
    return worker, key, created


async def statuses(lab) -> dict[str, int]:
    rows = await lab.rows("SELECT status, count(*) AS n FROM runs GROUP BY 1")
    return {row["status"]: row["n"] for row in rows}


async def at_once(lab, function: Any, *args: Any, sweepers: int = 4) -> list[Any]:
    """The same work by several sweepers, each on its own connection."""

    async def one() -> Any:
        async with lab.connection() as conn:
            return await function(*[conn if arg == "conn" else arg for arg in args])

    return await asyncio.gather(*(one() for _ in range(sweepers)))


async def test_runs_of_a_dead_worker_are_released_once(lab):
    _, _, created = await registered(lab, 5)
    counts = await at_once(lab, sweeper.dead_workers, lab.engine, "conn", uuid4())
    assert sum(counts) == 5
    assert await statuses(lab) == {"pending": 5}
    assert [row["failures"] for row in await lab.rows("SELECT failures FROM runs")] == [1] * 5
    assert await lab.rows("SELECT * FROM workers") == []
    assert await lab.work() == 5
    assert {(await lab.run(run))["status"] for run in created} == {"success"}


async def test_worker_that_holds_its_lock_is_alive_whatever_its_leases_say(lab):
    _, key, _ = await registered(lab, 2)
    async with lab.connection() as alive:
        await alive.execute("SELECT pg_advisory_lock(%s)", [key])
        assert sum(await at_once(lab, sweeper.dead_workers, lab.engine, "conn", uuid4())) == 0
        assert await statuses(lab) == {"running": 2}
    # its connection has gone; PostgreSQL frees the lock when it has noticed
    await lab.until(lambda: lab.rows(FREE))
    assert sum(await at_once(lab, sweeper.dead_workers, lab.engine, "conn", uuid4())) == 2


async def test_sweeper_never_takes_itself_for_dead(lab):
    worker, _, _ = await registered(lab, 1)
    assert await at_once(lab, sweeper.dead_workers, lab.engine, "conn", worker) == [0, 0, 0, 0]
    assert await statuses(lab) == {"running": 1}


async def test_ended_leases_are_released_once(lab):
    await registered(lab, 5)
    assert sum(await at_once(lab, sweeper.expired_leases, lab.engine, "conn")) == 0
    await lab.execute("UPDATE runs SET lease_until = now() - interval '1 s'")
    assert sum(await at_once(lab, sweeper.expired_leases, lab.engine, "conn")) == 5
    assert await statuses(lab) == {"pending": 5}


async def test_dead_worker_and_its_ended_leases_at_the_same_time_count_once(lab):
    await registered(lab, 5)
    await lab.execute("UPDATE runs SET lease_until = now() - interval '1 s'")
    fences = "SELECT fence FROM threads ORDER BY thread_id"
    before = [row["fence"] for row in await lab.rows(fences)]
    counts = await asyncio.gather(
        at_once(lab, sweeper.expired_leases, lab.engine, "conn"),
        at_once(lab, sweeper.dead_workers, lab.engine, "conn", uuid4()),
    )
    assert sum(map(sum, counts)) == 5
    assert [row["fence"] for row in await lab.rows(fences)] == [fence + 1 for fence in before]


async def test_stale_worker_writes_nothing_after_the_sweep(lab):
    await lab.enqueue(await lab.thread(), {"text": ""})
    claimed = await lab.claim_one()
    await lab.execute("UPDATE runs SET lease_until = now() - interval '1 s'")
    await at_once(lab, sweeper.expired_leases, lab.engine, "conn")
    before = await lab.everything()
    rows = [("", "c", None, "{}", "{}")]
    with pytest.raises(LeaseLost):
        await lab.group().submit(Write(claimed.thread_id, claimed.fence, checkpoints=rows))
    await lab.play(lab.attempt(claimed))
    assert await lab.everything() == before


async def test_threads_whose_time_has_come_are_deleted_once_unless_they_are_busy(lab):
    gone = [await lab.thread() for _ in range(5)]
    kept, busy, later = await lab.thread(), await lab.thread(), await lab.thread()
    await lab.enqueue(busy, {"text": ""})
    expiry = "UPDATE threads SET expires_at = now() + %(after)s * interval '1 min' WHERE thread_id = ANY(%(ids)s)"
    await lab.execute(expiry, after=-1, ids=[*gone, busy])
    await lab.execute(expiry, after=60, ids=[later])
    assert sum(await at_once(lab, sweeper.expired_threads, "conn")) == len(gone)
    left = {row["thread_id"] for row in await lab.rows("SELECT thread_id FROM threads")}
    assert left == {kept, busy, later}
    await lab.work()
    assert sum(await at_once(lab, sweeper.expired_threads, "conn")) == 1


@pytest.mark.parametrize("age", ["2 min", "1 hour", "30 days"])
async def test_events_of_an_ended_run_go_a_minute_after_its_end_unless_its_stream_is_resumable(lab, age):
    """Also when nobody swept for a while."""
    thread = await lab.thread()
    old = await lab.enqueue(thread, {"text": ""})
    resumable = await lab.enqueue(thread, {"text": ""}, stream_resumable=True)
    await lab.work()
    await lab.execute(sql.SQL("UPDATE purges SET purge_at = purge_at - interval {}").format(sql.Literal(age)))
    recent = await lab.enqueue(thread, {"text": ""})
    await lab.work()
    waiting = await lab.enqueue(thread, {"text": ""})
    await at_once(lab, sweeper.retention, "conn")
    assert [len(await lab.events(run)) > 0 for run in (old, resumable, recent, waiting)] == [False, True, True, True]


async def test_events_of_a_run_that_was_rolled_back_or_deleted_do_not_stay_for_ever(lab):
    thread = await lab.thread()
    first, second = await lab.enqueue(thread, {"text": ""}), await lab.enqueue(thread, {"text": ""})
    assert (await lab.claim_one()).run_id == first["run_id"]
    await stop.cancel(lab.engine, thread, first["run_id"], "rollback")
    await lab.work()
    await runs.delete(lab.engine, thread, second["run_id"])
    await lab.execute("UPDATE purges SET purge_at = purge_at - interval '2 min'")
    await at_once(lab, sweeper.retention, "conn")
    assert [*await lab.events(first), *await lab.events(second)] == []


async def test_whole_sweep_by_many_at_once(lab):
    await registered(lab, 3)
    await lab.execute("UPDATE runs SET lease_until = now() - interval '1 s'")
    old = await lab.thread(ttl=Ttl(1))
    await lab.execute("UPDATE threads SET updated_at = now() - interval '2 min' WHERE thread_id = %(id)s", id=old)
    await at_once(lab, sweeper.sweep, lab.engine, "conn", uuid4())
    assert await statuses(lab) == {"pending": 3}
    assert len(await lab.rows("SELECT 1 FROM threads")) == 3
