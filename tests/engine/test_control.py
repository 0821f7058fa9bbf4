"""Pausing and resuming, seen from the queue: who waits for whom."""

from typing import Any

import pytest

from perdure.engine import control, queue, stop
from perdure.engine.errors import RunFinished
from tests.engine.conftest import one_node

GRAPHS = {"default": one_node()}


async def queued(lab, *delays: float) -> tuple[Any, list[dict[str, Any]]]:
    """A thread with a run for each delay."""
    thread = await lab.thread()
    return thread, [await lab.enqueue(thread, {"text": ""}, after_seconds=delay) for delay in delays]


async def next_of(lab) -> Any:
    """Which run is claimed next, if any, by a worker with one slot; it is executed."""
    claimed = await lab.claim()
    if not claimed:
        return None
    await lab.play(lab.attempt(claimed[0]))
    return claimed[0].run_id


async def ages(lab, seconds: int) -> None:
    await lab.execute(
        "UPDATE runs SET available_at = available_at - %(s)s * interval '1 s', "
        "ready_at = ready_at - %(s)s * interval '1 s'",
        s=seconds,
    )


async def test_what_is_behind_a_run_that_was_paused_before_it_started_waits_for_it(lab):
    thread, (first, second) = await queued(lab, 0, 0)
    await control.pause(lab.engine, thread, first["run_id"])
    assert (await lab.thread_row(thread))["run_id"] is None
    third = await lab.enqueue(thread, {"text": ""})
    assert await next_of(lab) is None
    assert await queue.next_ready(lab.engine.pool, ["default"]) is None, "workers would ask again and again"
    assert (await lab.thread_row(thread))["status"] == "busy"
    await control.resume(lab.engine, thread, first["run_id"])
    assert [await next_of(lab) for _ in range(3)] == [run["run_id"] for run in (first, second, third)]


async def test_a_run_that_waits_in_the_queue_can_be_paused_and_keeps_its_place(lab):
    thread, (first, second, third) = await queued(lab, 0, 0, 0)
    await control.pause(lab.engine, thread, second["run_id"])
    assert await next_of(lab) == first["run_id"]
    assert await next_of(lab) is None
    assert (await lab.thread_row(thread))["status"] == "busy"
    await control.resume(lab.engine, thread, second["run_id"])
    assert [await next_of(lab) for _ in range(2)] == [second["run_id"], third["run_id"]]


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_cancelling_a_run_that_was_paused_before_it_started_frees_the_queue(lab, action):
    thread, (first, second) = await queued(lab, 0, 0)
    await control.pause(lab.engine, thread, first["run_id"])
    await stop.cancel(lab.engine, thread, first["run_id"], action)
    assert await next_of(lab) == second["run_id"]
    assert (await lab.thread_row(thread))["status"] == "idle"


async def test_a_resumed_run_does_not_start_before_its_time(lab):
    thread, (late,) = await queued(lab, 1000)
    await control.pause(lab.engine, thread, late["run_id"])
    await control.resume(lab.engine, thread, late["run_id"])
    assert await next_of(lab) is None
    await ages(lab, 1000)
    assert await next_of(lab) == late["run_id"]


async def test_a_delayed_run_holds_nobody_up_before_its_time_paused_or_resumed(lab):
    thread, (late, first) = await queued(lab, 1000, 0)
    await control.pause(lab.engine, thread, late["run_id"])
    assert await next_of(lab) == first["run_id"]
    second = await lab.enqueue(thread, {"text": ""})
    await control.resume(lab.engine, thread, late["run_id"])
    assert await next_of(lab) == second["run_id"]
    await control.pause(lab.engine, thread, late["run_id"])
    await ages(lab, 1000)
    third = await lab.enqueue(thread, {"text": ""})
    assert await next_of(lab) is None, "it is due, and paused"
    await control.resume(lab.engine, thread, late["run_id"])
    assert [await next_of(lab) for _ in range(2)] == [late["run_id"], third["run_id"]]


async def test_pausing_a_running_run_takes_it_from_its_worker_and_it_stays_the_head(lab):
    thread, (first, second) = await queued(lab, 0, 0)
    claimed = await lab.claim_one()
    await control.pause(lab.engine, thread, first["run_id"])
    row = await lab.thread_row(thread)
    assert (row["run_id"], row["fence"]) == (first["run_id"], claimed.fence + 1)
    await lab.play(lab.attempt(claimed))
    assert (await lab.run(first))["status"] == "paused"
    assert await next_of(lab) is None
    with pytest.raises(RunFinished):
        await control.pause(lab.engine, thread, first["run_id"])
    await control.resume(lab.engine, thread, first["run_id"])
    assert [await next_of(lab) for _ in range(2)] == [first["run_id"], second["run_id"]]
