"""Claiming, renewing, releasing, retrying: who owns a run."""

import asyncio
from typing import Any
from uuid import uuid4

import orjson
import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from perdure.engine import queue
from perdure.engine.db import open_pool
from perdure.engine.errors import LeaseLost
from perdure.engine.events import Frame


class State(TypedDict, total=False):
    text: str


_builder = StateGraph(State)
_builder.add_node("node", lambda state: {"text": "done"})
_builder.add_edge(START, "node")
_builder.add_edge("node", END)
GRAPHS = {"default": _builder.compile()}

POLICY: dict[str, Any] = {"max_attempts": 70, "initial": 0.5, "cap": 60.0}
ERROR = {"error": "Broken", "message": "it broke"}


async def finish(lab, run, status="success"):
    """The transaction that ends an attempt."""
    async with lab.engine.pool.connection() as conn, conn.transaction():
        await queue.settle_thread(
            conn, run.thread_id, run.run_id, fence=run.fence, status="idle", error=None, interrupts={}
        )
        await queue.end_run(conn, run.thread_id, run.run_id, status, None)
        await queue.promote(conn, run.thread_id)


async def retry(lab, run, **given):
    async with lab.engine.pool.connection() as conn:
        options = {"error": ERROR, "delay": 0.0, "paused": False, "frames": [Frame.of("lifecycle", {})], **given}
        return await queue.retry(conn, run, **options)


async def test_runs_of_a_thread_are_claimed_in_the_order_of_their_creation(lab):
    thread = await lab.thread()
    wanted = [(await lab.enqueue(thread, {"text": str(n)}))["run_id"] for n in range(5)]
    got = []
    while claimed := await lab.claim(slots=10):
        assert len(claimed) == 1
        got.append(claimed[0].run_id)
        assert await lab.claim(slots=10) == []
        await finish(lab, claimed[0])
    assert got == wanted


async def test_oldest_ready_run_of_all_threads_comes_first(lab):
    threads = [await lab.thread() for _ in range(4)]
    for thread in threads:
        await lab.enqueue(thread, {})
    assert [(await lab.claim_one()).thread_id for _ in threads] == threads


async def test_claim_takes_at_most_slots_runs_and_one_per_thread(lab):
    threads = [await lab.thread() for _ in range(5)]
    for thread in threads * 2:
        await lab.enqueue(thread, {})
    first, rest = await lab.claim(slots=3), await lab.claim(slots=10)
    assert (len(first), len(rest)) == (3, 2)
    assert {run.thread_id for run in first + rest} == set(threads)


async def test_graphs_that_a_worker_does_not_have_are_left_to_others(lab):
    await lab.enqueue(await lab.thread(), {})
    options = {"worker_id": await lab.registered(), "slots": 5, "lease_seconds": 9}
    assert await queue.claim(lab.engine.pool, graphs=["another"], **options) == []
    assert len(await queue.claim(lab.engine.pool, graphs=["another", "default"], **options)) == 1


async def test_claim_says_what_the_worker_needs_to_know(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"text": "hello"}, metadata={"mine": 1})
    claimed = await lab.claim_one()
    assert (claimed.run_id, claimed.attempt, claimed.failures, claimed.graph_id) == (run["run_id"], 1, 0, "default")
    assert (claimed.head, claimed.head_run_id, claimed.base_checkpoint_id) == (None, None, "")
    assert claimed.kwargs["input"] == {"text": "hello"}
    assert claimed.metadata["mine"] == 1
    row, owner = await lab.run(run), await lab.thread_row(thread)
    assert (row["status"], row["worker_id"], row["ready_at"]) == ("running", lab.worker_id, None)
    assert (owner["status"], owner["run_id"], owner["fence"]) == ("busy", run["run_id"], claimed.fence)


async def test_many_claimers_at_once_give_each_run_once_and_one_run_per_thread(lab):
    threads = [await lab.thread() for _ in range(30)]
    for thread in threads:
        await lab.enqueue(thread, {})
    # two runs of one thread that are both ready: the delayed one has become due
    for thread in threads[:10]:
        await lab.enqueue(thread, {}, after_seconds=100)
    await lab.retries_are_due()
    pools = [await open_pool(lab.dsn, size=4, name="claimers") for _ in range(3)]
    workers = [await lab.registered() for _ in range(12)]
    options = {"graphs": ["default"], "lease_seconds": 60}
    try:
        seen: list[queue.Claimed] = []
        for _ in range(3):
            claims = (
                queue.claim(pool, worker_id=workers[4 * p + s], slots=slots, **options)
                for p, pool in enumerate(pools)
                for s, slots in enumerate((1, 2, 3, 30))
            )
            seen += [run for found in await asyncio.gather(*claims) for run in found]
    finally:
        for pool in pools:
            await pool.close()
    assert len(seen) == 30
    assert {run.thread_id for run in seen} == set(threads)
    states = await lab.rows("SELECT status, count(*) AS n FROM runs GROUP BY 1 ORDER BY 1")
    assert [(row["status"], row["n"]) for row in states] == [("pending", 10), ("running", 30)]


async def test_runs_of_a_claim_in_flight_are_handed_back_with_the_others(lab):
    """It is committed after the worker has begun to hand back: nobody must wait for its lease."""
    worker = await lab.registered()
    await lab.enqueue(await lab.thread(), {})
    given = {"worker_id": worker, "graphs": ["default"], "slots": 5, "lease_seconds": 60}
    policy = {"lost": False, **POLICY}
    async with lab.connection() as claiming, lab.connection() as leaving:
        async with claiming.transaction():
            assert len(await (await claiming.execute(queue.CLAIM, given)).fetchall()) == 1
            back = asyncio.create_task(queue.unregister(leaving, worker, **policy))
            await lab.until(lambda: _waits_for_a_lock(lab))
        assert len(await back) == 1
    (row,) = await lab.rows("SELECT status, failures, worker_id FROM runs")
    assert row == {"status": "pending", "failures": 0, "worker_id": None}
    assert await lab.rows("SELECT * FROM workers") == []


async def _waits_for_a_lock(lab) -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(await lab.rows(waiting))


async def test_nothing_is_claimed_for_a_worker_that_hands_back_or_has_done_so(lab):
    worker = await lab.registered()
    await lab.enqueue(await lab.thread(), {})
    given = {"worker_id": worker, "graphs": ["default"], "slots": 5, "lease_seconds": 60}
    async with lab.connection() as leaving:
        async with leaving.transaction():
            await queue.unregister(leaving, worker, lost=False, **POLICY)
            assert await queue.claim(lab.engine.pool, **given) == [], "and it does not wait"
        assert await queue.claim(lab.engine.pool, **given) == []
    assert len(await lab.claim()) == 1


async def test_delayed_run_is_overtaken_by_later_ones_and_starts_when_it_is_due(lab):
    thread = await lab.thread()
    late = await lab.enqueue(thread, {}, after_seconds=3600)
    soon = await lab.enqueue(thread, {})
    claimed = await lab.claim_one()
    assert claimed.run_id == soon["run_id"]
    await finish(lab, claimed)
    assert await lab.claim() == []
    assert 3500 < (await queue.next_ready(lab.engine.pool, ["default"]) or 0) <= 3600
    assert (await lab.thread_row(thread))["status"] == "busy"
    await lab.retries_are_due()
    assert (await lab.claim_one()).run_id == late["run_id"]


async def test_delayed_run_that_comes_due_waits_for_the_run_before_it(lab):
    thread = await lab.thread()
    late = await lab.enqueue(thread, {}, after_seconds=3600)
    await lab.enqueue(thread, {})
    claimed = await lab.claim_one()
    await lab.retries_are_due()
    assert await lab.claim(slots=5) == []
    await finish(lab, claimed)
    assert (await lab.claim_one()).run_id == late["run_id"]


async def test_run_that_was_created_while_a_due_run_waits_comes_after_it(lab):
    thread = await lab.thread()
    late = await lab.enqueue(thread, {}, after_seconds=3600)
    await lab.execute("UPDATE runs SET ready_at = now() - interval '1 s', available_at = now() - interval '1 s'")
    later = await lab.enqueue(thread, {})
    first = await lab.claim_one()
    assert first.run_id == late["run_id"]
    await finish(lab, first)
    assert (await lab.claim_one()).run_id == later["run_id"]


async def test_retrying_run_holds_the_queue_of_its_thread(lab):
    thread = await lab.thread()
    first = await lab.enqueue(thread, {})
    await lab.enqueue(thread, {})
    claimed = await lab.claim_one()
    await retry(lab, claimed, delay=3600)
    assert await lab.claim(slots=5) == []
    row = await lab.run(first)
    assert (row["status"], row["failures"], row["error"], row["worker_id"]) == ("pending", 1, ERROR, None)
    assert 3500 < (await queue.next_ready(lab.engine.pool, ["default"]) or 0) <= 3600
    await lab.retries_are_due()
    again = await lab.claim_one()
    assert (again.run_id, again.attempt, again.failures) == (first["run_id"], 2, 1)
    assert again.fence > claimed.fence


async def test_ready_run_of_a_locked_thread_is_not_claimed_and_is_due_already(lab):
    """A worker looks again in a moment, instead of waiting for news that may not come."""
    thread = await lab.thread()
    run = await lab.enqueue(thread, {})
    assert await queue.next_ready(lab.engine.pool, ["another"]) is None
    async with lab.connection() as conn, conn.transaction():
        await conn.execute("SELECT 1 FROM threads FOR UPDATE")
        assert await lab.claim() == []
        due = await queue.next_ready(lab.engine.pool, ["default"])
        assert due is not None
        assert due <= 0
    assert (await lab.claim_one()).run_id == run["run_id"]
    assert await queue.next_ready(lab.engine.pool, ["default"]) is None


async def test_paused_run_holds_the_queue_of_its_thread(lab):
    thread = await lab.thread()
    first = await lab.enqueue(thread, {})
    await lab.enqueue(thread, {})
    await retry(lab, await lab.claim_one(), paused=True)
    await lab.retries_are_due()
    assert await lab.claim(slots=5) == []
    row = await lab.run(first)
    assert (row["status"], row["ready_at"]) == ("paused", None)


async def test_renewed_lease_is_not_released(lab):
    await lab.enqueue(await lab.thread(), {})
    await lab.enqueue(await lab.thread(), {})
    kept, lost = await lab.claim(slots=2)
    await lab.execute("UPDATE runs SET lease_until = now() - interval '1 s'")
    async with lab.connection() as conn:
        await queue.renew(conn, worker_id=uuid4(), run_ids=[lost.run_id], lease_seconds=60)
        await queue.renew(conn, worker_id=lab.worker_id, run_ids=[kept.run_id], lease_seconds=60)
    assert [row["run_id"] for row in await lab.release()] == [lost.run_id]


async def test_two_sweepers_at_once_release_a_run_once(lab):
    threads = [await lab.thread() for _ in range(10)]
    for thread in threads:
        await lab.enqueue(thread, {})
    claimed = {run.thread_id: run.fence for run in await lab.claim(slots=10)}
    await lab.execute("UPDATE runs SET lease_until = now() - interval '1 s'")
    sweeps = await asyncio.gather(*(lab.release() for _ in range(6)))
    released = [row["thread_id"] for sweep in sweeps for row in sweep]
    assert sorted(released) == sorted(threads)
    fences = {row["thread_id"]: row["fence"] for row in await lab.rows("SELECT thread_id, fence FROM threads")}
    assert fences == {thread: fence + 1 for thread, fence in claimed.items()}
    lost = await lab.one("SELECT count(*) AS n, sum(failures) AS failures FROM runs")
    assert lost == {"n": 10, "failures": 10}
    notices = await lab.one("SELECT count(*) AS n FROM run_events WHERE data LIKE %(text)s", text='%"lost"%')
    assert notices == {"n": 10}


async def test_release_leaves_a_run_alone_that_was_claimed_anew_meanwhile(lab):
    """The second sweeper has seen the lease's end, and acts when another worker has the run already."""
    run = await lab.enqueue(await lab.thread(), {})
    await lab.claim_one()
    await lab.execute("UPDATE runs SET lease_until = now() - interval '1 s'")
    other = uuid4()
    async with lab.connection() as conn, lab.connection() as slow:
        async with conn.transaction():
            await conn.execute("SELECT 1 FROM threads FOR UPDATE")
            late = asyncio.create_task(queue.release(slow, worker_id=None, lost=True, **POLICY))
            waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            await lab.until(lambda: lab.rows(waiting))
            # released and claimed by others in one moment
            await conn.execute("UPDATE threads SET fence = fence + 2")
            await conn.execute("UPDATE runs SET worker_id = %s, lease_until = now() + interval '1 min'", [other])
        assert await late == []
    row = await lab.run(run)
    assert (row["status"], row["worker_id"], row["failures"]) == ("running", other, 0)
    assert await lab.release() == []


async def test_handing_back_costs_no_failure_and_no_wait(lab):
    run = await lab.enqueue(await lab.thread(), {})
    for attempt in range(1, 6):
        claimed = await lab.claim_one()
        assert (claimed.attempt, claimed.failures) == (attempt, 0)
        released = await lab.release(worker_id=lab.worker_id, lost=False, max_attempts=1)
        assert [row["status"] for row in released] == ["pending"]
    assert (await lab.run(run))["error"] is None


async def test_release_of_one_worker_touches_no_other(lab):
    for _ in range(2):
        await lab.enqueue(await lab.thread(), {})
    mine, other = await lab.claim_one(), await lab.claim_one(worker_id=uuid4())
    assert [row["run_id"] for row in await lab.release(worker_id=lab.worker_id)] == [mine.run_id]
    assert (await lab.run({"run_id": other.run_id}))["status"] == "running"


async def test_lost_workers_cost_no_wait_at_first_and_then_a_growing_one(lab):
    run = await lab.enqueue(await lab.thread(), {})
    waits = []
    for _ in range(7):
        await lab.claim_one()
        await lab.release(worker_id=lab.worker_id, initial=1.0, cap=5.0)
        waits.append((await lab.one("SELECT round(extract(epoch FROM ready_at - updated_at)) AS s FROM runs"))["s"])
        await lab.retries_are_due()
    assert waits == [0, 0, 0, 1, 2, 4, 5]
    assert (await lab.run(run))["error"]["error"] == "WorkerLost"


async def test_lost_workers_pause_a_run_after_max_attempts(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {})
    states = []
    for _ in range(3):
        await lab.claim_one()
        states += [row["status"] for row in await lab.release(worker_id=lab.worker_id, max_attempts=3)]
        await lab.retries_are_due()
    assert states == ["pending", "pending", "paused"]
    row = await lab.run(run)
    assert (row["attempt"], row["failures"], row["ready_at"], row["error"]["error"]) == (3, 3, None, "WorkerLost")
    assert await lab.claim() == []
    assert orjson.loads((await lab.events(run))[-1]["data"])["final"] is True


async def test_run_paused_by_lost_workers_ends_its_stream_with_an_error_frame(lab):
    run = await lab.enqueue(await lab.thread(), {})
    await lab.claim_one()
    await lab.release(worker_id=lab.worker_id, max_attempts=1)
    assert [event["event"] for event in await lab.events(run)][-2:] == ["error", "lifecycle"]


@pytest.mark.parametrize("taken", ["fenced off", "claimed by another", "ended", "deleted"])
async def test_stale_owner_changes_nothing_and_hears_that_it_has_lost_the_run(lab, taken):
    thread = await lab.thread()
    await lab.enqueue(thread, {})
    stale = await lab.claim_one()
    if taken == "fenced off":
        await lab.fence_off(thread)
    elif taken == "claimed by another":
        await lab.release(worker_id=lab.worker_id)
        await lab.claim_one(worker_id=uuid4())
    elif taken == "ended":
        await finish(lab, stale)
    else:
        await lab.execute("DELETE FROM threads")
    before = await lab.everything()
    for end in (finish(lab, stale), retry(lab, stale), retry(lab, stale, paused=True)):
        with pytest.raises(LeaseLost):
            await end
    assert await lab.release(worker_id=lab.worker_id) == [] or taken == "fenced off"
    if taken != "fenced off":
        assert await lab.everything() == before


async def test_thread_stays_busy_until_the_last_run_of_its_queue_has_ended(lab):
    thread = await lab.thread()
    for _ in range(2):
        await lab.enqueue(thread, {})
    states = []
    while claimed := await lab.claim():
        await finish(lab, claimed[0])
        states.append((await lab.thread_row(thread))["status"])
    assert states == ["busy", "idle"]


async def test_calls_by_key_wait_behind_an_open_question(lab):
    thread = await lab.thread()
    await lab.enqueue(thread, {})
    asking = await lab.claim_one()
    await lab.execute(
        """INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id,
                                   graph_id, assistant_id, token, question)
           SELECT thread_id, 'c', 't', 0, '', repeat('a', 32), run_id, graph_id, assistant_id, 'k', '1' FROM runs"""
    )
    await finish(lab, asking)
    held = await lab.enqueue(thread, {}, behind_question=True)
    assert await lab.claim() == []
    assert (await lab.thread_row(thread))["status"] == "idle"
    await lab.execute("UPDATE interrupts SET status = 'timed_out'")
    async with lab.engine.pool.connection() as conn:
        await queue.promote(conn, thread)
    assert (await lab.claim_one()).run_id == held["run_id"]
