"""The words that wait, start other runs and undo, on real workers."""

import asyncio
from uuid import UUID

import orjson

from perdure.engine import events, mailbox, runs, state, stop, threads
from tests.crash.fleet import PATIENCE_SECONDS, Fleet


async def status(fleet: Fleet, run: UUID) -> str:
    return (await fleet.rows("SELECT status FROM runs WHERE run_id = %(run)s", run=run))[0]["status"]


async def becomes(fleet: Fleet, run: UUID, wanted: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await status(fleet, run) != wanted:
            await asyncio.sleep(0.02)


async def test_a_sleeping_run_needs_no_worker_and_goes_on_when_it_is_due(fleet: Fleet) -> None:
    worker = fleet.worker(kill={"at": 1, "when": "after", "kind": "suspend"})
    thread, run = await fleet.start("napping", input={"log": []})
    await worker.gone()
    shown = await runs.get(fleet.engine, thread, run)
    assert shown["status"] == "running"
    assert shown["suspended"]
    assert shown["next_at"]
    fleet.worker()
    assert (await fleet.finish(thread, run))["log"] == ["did before nap", "did after nap"]
    assert fleet.effects == {"before nap": 1, "after nap": 1}


async def test_a_parent_waits_for_its_children_without_a_slot(fleet: Fleet) -> None:
    fleet.settings["slots"] = 1
    fleet.worker()
    thread, run = await fleet.start("parent", input={"log": []})
    values = await fleet.finish(thread, run)
    alone = ["child", "did a", "did b", "did c"]
    several = [line for i in range(3) for line in (f"child {i}", f"did small child {i}")]
    assert values["log"] == [*alone, *several, "did parent"]
    assert set(fleet.effects.values()) == {1}


async def test_the_first_child_wins_and_the_other_is_cancelled(fleet: Fleet) -> None:
    fleet.worker()
    thread, run = await fleet.start("racing", input={"log": []})
    assert (await fleet.finish(thread, run))["log"] == ["did small quick", "did raced"]
    left = await fleet.rows("SELECT graph_id, status FROM runs WHERE graph_id = 'slow'")
    assert left == [{"graph_id": "slow", "status": "interrupted"}]


async def test_a_childs_question_does_not_wake_the_parent_its_answer_does(fleet: Fleet) -> None:
    fleet.worker()
    thread, run = await fleet.start("delegate", input={"log": []})
    await becomes(fleet, run, "suspended")
    child = (await fleet.rows("SELECT thread_id, run_id FROM runs WHERE graph_id = 'questions'"))[0]
    [told] = await fleet.rows('SELECT data FROM run_events WHERE data LIKE \'{"event":"suspended"%%\'')
    assert orjson.loads(told["data"])["children"] == [str(child["run_id"])]
    for answer in ("one", "two"):
        await fleet.finish(child["thread_id"], child["run_id"])
        assert await status(fleet, run) == "suspended"
        _, child["run_id"] = await fleet.start("questions", child["thread_id"], command={"resume": answer})
    values = await fleet.finish(thread, run)
    assert values["answers"] == ["one", "two"]
    assert fleet.effects["told"] == 1


async def test_cancelling_a_parent_cancels_its_children(fleet: Fleet) -> None:
    fleet.worker()
    hold = fleet.hold("a")
    thread, run = await fleet.start("parent", input={"log": []})
    await becomes(fleet, run, "suspended")
    await fleet.until("a")
    await stop.cancel(fleet.engine, thread, run)
    child = (await fleet.rows("SELECT run_id FROM runs WHERE graph_id = 'sequential'"))[0]["run_id"]
    await becomes(fleet, child, "interrupted")
    hold.unlink()
    assert fleet.effects == {"a": 1}


async def test_a_deleted_child_fails_the_parent(fleet: Fleet) -> None:
    fleet.worker()
    fleet.hold("a")
    thread, run = await fleet.start("parent", input={"log": []})
    await becomes(fleet, run, "suspended")
    child = (await fleet.rows("SELECT thread_id FROM runs WHERE graph_id = 'sequential'"))[0]["thread_id"]
    await threads.delete(fleet.engine, child)
    assert (await fleet.finish(thread, run))["__error__"]["error"] == "TerminalError"


async def test_a_saga_is_undone_in_reverse_although_the_worker_dies_in_the_middle(fleet: Fleet) -> None:
    worker = fleet.worker()
    hold = fleet.hold("undo hotel")
    thread, run = await fleet.start("trip", input={"log": []})
    await fleet.until("undo hotel")
    worker.kill()
    hold.unlink()
    fleet.worker()
    assert (await fleet.finish(thread, run))["log"] == ["No car left", "did sorry"]
    assert fleet.effects["undo flight"] == 1
    assert fleet.effects["undo hotel"] == 2
    assert fleet.effects["failed"] == 1
    order = fleet.effects_file.read_text().splitlines()
    assert order.index("undo flight") < order.index("undo hotel")


async def test_cancelling_a_saga_undoes_it_first_and_leaves_a_usable_thread(fleet: Fleet) -> None:
    worker = fleet.worker()
    fleet.hold("car")
    hold = fleet.hold("undo hotel")
    thread, run = await fleet.start("long_trip", input={"log": []})
    await fleet.until("car")
    await stop.cancel(fleet.engine, thread, run)
    await fleet.until("undo hotel")
    worker.kill()
    hold.unlink()
    fleet.worker()
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for _ in events.ended(fleet.engine, thread, run):
            pass
    assert await status(fleet, run) == "interrupted"
    assert fleet.effects["undo car"] == 1
    assert fleet.effects["undo flight"] == 1
    assert fleet.effects["undo hotel"] == 2
    shown = await threads.get(fleet.engine, thread)
    assert shown["status"] == "idle"
    assert shown["error"]["error"] == "UserInterrupt"
    assert (await state.read(fleet.engine, thread))["next"] == []
    fleet.effects_file.with_name("effects.hold.car").unlink()
    thread, run = await fleet.start("long_trip", thread, input={"log": ["again"]})
    assert (await fleet.finish(thread, run))["log"][-1] == "booked"


async def test_new_input_by_interrupt_waits_until_the_saga_is_undone(fleet: Fleet) -> None:
    fleet.worker()
    hold = fleet.hold("car")
    thread, _ = await fleet.start("long_trip", input={"log": []})
    await fleet.until("car")
    thread, run = await fleet.start("long_trip", thread, input={"log": ["new"]}, multitask_strategy="interrupt")
    await fleet.until("undo hotel")
    hold.unlink()
    assert (await fleet.finish(thread, run))["log"][-1] == "booked"
    order = fleet.effects_file.read_text().splitlines()
    assert order[-3:] == ["hotel", "flight", "car"]
    assert order.count("undo hotel") == 1


async def test_a_limit_holds_over_workers_and_survives_their_death(fleet: Fleet) -> None:
    first = fleet.worker()
    hold = fleet.hold("x0")
    started = [await fleet.start("limited", input={"log": ["x0"]})]
    await fleet.until("x0")
    fleet.worker()
    started += [await fleet.start("limited", input={"log": [f"x{i}"]}) for i in range(1, 5)]
    first.kill()
    hold.unlink()
    for thread, run in started:
        await fleet.finish(thread, run)
    order = [line for line in fleet.effects_file.read_text().splitlines() if line in ("in", "out")]
    inside = 0
    for line in order[1:]:  # the first one never came out: its worker was killed
        inside += 1 if line == "in" else -1
        assert inside in (0, 1), "two were in at the same time"


async def test_messages_reach_the_running_run_once(fleet: Fleet) -> None:
    worker = fleet.worker()
    hold = fleet.hold("turn 1")
    thread, run = await fleet.start("listening", input={"log": []})
    await fleet.until("turn 1")
    await mailbox.send(fleet.engine, thread, {"text": "left"})
    await mailbox.send(fleet.engine, thread, {"text": "right"})
    worker.kill()
    hold.unlink()
    fleet.worker()
    assert (await fleet.finish(thread, run))["answers"] == [{"text": "left"}, {"text": "right"}]
