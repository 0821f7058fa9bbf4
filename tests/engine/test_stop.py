"""Stopping runs: what a saga has done is undone first, also when new input abandons it; kill goes down the tree."""

import asyncio
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import TerminalError, agent, approval, saga, sleep, step
from perdure.engine import control, finding, interrupts, orphans, runs, stop
from perdure.engine.errors import QuestionClosed
from perdure.engine.views import questions

done: list[str] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def nothing_done():
    done.clear()
    broken.clear()


class State(TypedDict, total=False):
    name: str
    said: str


@step
async def book(what: str) -> None:
    done.append(f"book {what}")


@step
async def cancel(what: str) -> None:
    if what in broken:
        raise TerminalError("cannot be undone")
    done.append(f"cancel {what}")


async def trip(given: State) -> State:
    """Asks inside of a saga, and again after it."""
    name = given["name"]
    async with saga() as s:
        s.undo(cancel, f"hotel {name}")
        await book(f"hotel {name}")
        answer = await approval("pay?")
        if not answer.approved:
            raise TerminalError("too expensive")
    return {"said": f"{name}: {interrupt('how was it?')}"}


async def nap(given: State) -> State:
    async with saga() as s:
        s.undo(cancel, "nap")
        await book("nap")
        await sleep(3600)
    return {"said": "slept"}


async def boss(given: State) -> State:
    async with saga() as s:
        s.undo(cancel, "boss")
        await book("boss")
        return {"said": (await agent("nap", {"name": "child"}))["said"]}


async def manager(given: State) -> State:
    return {"said": (await agent("default", {"name": given["name"]}))["said"]}


async def stubborn(given: State) -> State:
    async with saga() as s:
        s.undo(cancel, "stubborn")
        await book("stubborn")
        try:
            interrupt("sure?")
        finally:
            if given["name"] in broken:
                raise ValueError("author code that breaks on its way out")
    return {"said": "sure"}


def one(node: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile()


GRAPHS = {
    "default": one(trip),
    "nap": one(nap),
    "boss": one(boss),
    "manager": one(manager),
    "stubborn": one(stubborn),
    "echo": one(lambda given: {"said": given["name"]}),
}


async def asked(lab, graph: str = "default") -> tuple[Any, dict[str, Any], str]:
    """A thread whose run has asked inside of an open saga."""
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"name": "ada"}, assistant=graph)
    await lab.work()
    (question,) = await questions.search(lab.engine, thread_id=thread, status="open")
    assert await sagas(lab) == ["open"]
    return thread, run, question["token"]


async def sagas(lab) -> list[str]:
    return [row["status"] for row in await lab.rows("SELECT status FROM steps WHERE name = 'saga' ORDER BY created_at")]


async def statuses(lab, thread: Any) -> list[str]:
    """Of the thread's runs, in the order of their creation."""
    found = await finding.list_runs(lab.engine, thread, limit=100)
    return [run["status"] for run in reversed(found)]


async def compensating(lab, thread: Any) -> list[dict[str, Any]]:
    return [run for run in await finding.list_runs(lab.engine, thread) if "compensates" in run["metadata"]]


async def test_new_input_over_a_question_undoes_the_saga_first_and_then_begins(lab):
    thread, run, token = await asked(lab)
    after = await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    with pytest.raises(QuestionClosed):
        await interrupts.resolve(lab.engine, token, True)
    await lab.work()
    assert done == ["book hotel ada", "cancel hotel ada"]
    (undo,) = await compensating(lab, thread)
    assert (undo["status"], undo["metadata"]["compensates"]) == ("interrupted", str(run["run_id"]))
    assert await runs.outcome(lab.engine, thread, after["run_id"]) == {"name": "bob", "said": "bob"}
    assert await sagas(lab) == ["failed"]
    assert (await lab.run(run))["status"] == "success", "what has ended stays as it has ended"
    assert (await lab.run(after))["attempt"] == 1
    assert (await lab.thread_row(thread))["status"] == "idle"
    await lab.enqueue(thread, {"name": "eve"}, assistant="echo")
    assert await lab.work() == 1, "and only once"


async def test_input_that_was_accepted_before_the_question_undoes_the_saga_when_it_begins(lab):
    """Until then the question can be answered."""
    thread = await lab.thread()
    await lab.enqueue(thread, {"name": "ada"})
    late = await lab.enqueue(thread, {"name": "bob"}, assistant="echo", after_seconds=1000)
    await lab.work()
    assert done == ["book hotel ada"]
    await lab.execute("UPDATE runs SET ready_at = now(), available_at = now() WHERE ready_at > now()")
    await lab.work()
    assert done == ["book hotel ada", "cancel hotel ada"]
    assert (await runs.outcome(lab.engine, thread, late["run_id"]))["said"] == "bob"


async def test_an_answer_goes_on_with_the_saga_and_nothing_is_undone(lab):
    thread, _, token = await asked(lab)
    await lab.enqueue(thread, {"name": "bob"}, assistant="echo", behind_question=True)
    await interrupts.resolve(lab.engine, token, True)
    await lab.work()
    assert done == ["book hotel ada"]
    assert await sagas(lab) == ["done"]
    assert await compensating(lab, thread) == []


async def test_new_input_over_a_question_outside_of_a_saga_just_begins(lab):
    thread, _, token = await asked(lab)
    await interrupts.resolve(lab.engine, token, True)
    await lab.work()
    assert await sagas(lab) == ["done"]
    await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    assert await lab.work() == 1


async def test_a_crash_before_giving_way_changes_nothing(lab):
    thread, _, _ = await asked(lab)
    after = await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    assert await lab.work_until_killed(0) is False, "it writes nothing before"
    assert (await lab.run(after))["attempt"] == 1
    await lab.work()
    assert done == ["book hotel ada", "cancel hotel ada"]
    assert len(await compensating(lab, thread)) == 1
    assert (await runs.outcome(lab.engine, thread, after["run_id"]))["said"] == "bob"


async def test_a_crash_at_each_write_of_the_undoing_undoes_once_and_begins_once(lab):
    """The undo in flight at the kill may run twice, as any step."""
    for writes in range(20):
        done.clear()
        await lab.execute("DELETE FROM threads")
        thread, _, _ = await asked(lab)
        after = await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
        await lab.play(lab.attempt(await lab.claim_one()))  # gives way
        died = await lab.work_until_killed(writes)
        await lab.work()
        assert (await runs.outcome(lab.engine, thread, after["run_id"]))["said"] == "bob"
        assert done[0] == "book hotel ada"
        assert done[1:] in (["cancel hotel ada"], ["cancel hotel ada"] * 2), writes
        assert len(await compensating(lab, thread)) == 1
        assert await sagas(lab) == ["failed"]
        if not died:
            break
    else:
        pytest.fail("it never came to its end")


async def test_a_worker_that_lost_the_run_before_it_gave_way_changes_nothing(lab):
    thread, _, _ = await asked(lab)
    await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    stale = await lab.claim_one()
    assert stale.abandons_saga
    await lab.release(worker_id=lab.worker_id)
    before = await lab.everything()
    await lab.play(lab.attempt(stale))
    assert await lab.everything() == before
    await lab.work()
    assert done == ["book hotel ada", "cancel hotel ada"]


async def test_cancelling_the_new_input_does_not_stop_the_undoing_and_asks_nothing_again(lab):
    thread, _, _ = await asked(lab)
    after = await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    await lab.play(lab.attempt(await lab.claim_one()))  # gives way
    await stop.cancel(lab.engine, thread, after["run_id"])
    assert await questions.search(lab.engine, thread_id=thread, status="open") == []
    (undo,) = await compensating(lab, thread)
    await stop.cancel(lab.engine, thread, undo["run_id"])
    await lab.work()
    assert done == ["book hotel ada", "cancel hotel ada"]
    assert await statuses(lab, thread) == ["success", "interrupted", "interrupted"]
    assert (await lab.thread_row(thread))["status"] == "idle"


async def test_killing_the_run_that_undoes_leaves_it_at_that(lab):
    thread, _, _ = await asked(lab)
    after = await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    await lab.play(lab.attempt(await lab.claim_one()))  # gives way
    (undo,) = await compensating(lab, thread)
    await control.kill(lab.engine, thread, undo["run_id"])
    await lab.work()
    assert done == ["book hotel ada"]
    assert (await runs.outcome(lab.engine, thread, after["run_id"]))["said"] == "bob"
    assert await sagas(lab) == ["failed"]


@pytest.mark.parametrize("strategy", ["interrupt", "rollback", "enqueue"])
async def test_more_input_waits_for_the_undoing_too(lab, strategy):
    thread, _, _ = await asked(lab)
    await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    await lab.play(lab.attempt(await lab.claim_one()))  # gives way
    last = await lab.enqueue(thread, {"name": "eve"}, assistant="echo", multitask_strategy=strategy)
    await lab.work()
    assert done == ["book hotel ada", "cancel hotel ada"]
    assert (await runs.outcome(lab.engine, thread, last["run_id"]))["said"] == "eve"


async def test_undoing_that_fails_for_good_is_not_tried_again_and_holds_nobody_up(lab):
    thread, _, _ = await asked(lab, "stubborn")
    broken.add("ada")
    after = await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    await lab.work()
    (undo,) = await compensating(lab, thread)
    assert undo["status"] == "error"
    assert (await runs.outcome(lab.engine, thread, after["run_id"]))["said"] == "bob"
    assert "open" not in await sagas(lab)


async def test_the_run_that_undoes_wakes_who_waits_for_the_one_that_asked(lab):
    """A child that was overtaken is cancelled for its parent, once its saga is undone."""
    thread = await lab.thread()
    parent = await lab.enqueue(thread, {"name": "boss"}, assistant="default")
    await lab.work()
    assert (await lab.run(parent))["status"] == "success"
    await lab.enqueue(thread, {"name": "bob"}, assistant="echo")
    waits = "INSERT INTO child_waits VALUES (%(thread)s, %(run)s, %(waiter)s, %(waiting)s)"
    waiter = await lab.thread()
    waiting = await lab.enqueue(waiter, {"name": "w"}, assistant="nap")
    await lab.execute(waits, thread=thread, run=parent["run_id"], waiter=waiter, waiting=waiting["run_id"])
    await lab.work()
    assert await lab.rows("SELECT * FROM child_waits") == []


async def tree(lab) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A parent that waits for its child; both are inside of a saga."""
    thread = await lab.thread()
    parent = await lab.enqueue(thread, {"name": "boss"}, assistant="boss")
    await lab.work()
    child = await lab.one("SELECT * FROM runs WHERE parent_run_id = %(id)s", id=parent["run_id"])
    assert [(await lab.run(run))["status"] for run in (parent, child)] == ["suspended", "suspended"]
    assert done == ["book boss", "book nap"]
    return thread, parent, child


async def test_kill_goes_down_the_tree_as_kill(lab):
    thread, parent, child = await tree(lab)
    await control.kill(lab.engine, thread, parent["run_id"])
    assert [(await lab.run(run))["status"] for run in (parent, child)] == ["interrupted", "interrupted"]
    assert await lab.work() == 0
    assert done == ["book boss", "book nap"]
    assert "open" not in await sagas(lab)


async def test_kill_reaches_children_that_are_compensating_already(lab):
    thread, parent, child = await tree(lab)
    await stop.cancel(lab.engine, thread, parent["run_id"])
    assert [(await lab.run(run))["cancelling"] for run in (parent, child)] == ["interrupt", "interrupt"]
    await control.kill(lab.engine, thread, parent["run_id"])
    assert [(await lab.run(run))["status"] for run in (parent, child)] == ["interrupted", "interrupted"]
    assert await lab.work() == 0
    assert done == ["book boss", "book nap"]


async def test_kill_that_was_cut_short_is_finished_as_kill_by_whoever_looks(lab):
    thread, parent, child = await tree(lab)
    await stop.cancel_alone(lab.engine, thread, parent["run_id"], "interrupt", compensate=False)
    assert (await lab.run(child))["status"] == "suspended"
    await asyncio.gather(*(orphans.cancel_orphans(lab.engine) for _ in range(3)))
    assert (await lab.run(child))["status"] == "interrupted"
    assert await lab.work() == 0
    assert done == ["book boss", "book nap"]


async def test_cancel_goes_down_the_tree_and_undoes_everything(lab):
    thread, parent, child = await tree(lab)
    await stop.cancel(lab.engine, thread, parent["run_id"])
    await lab.work()
    assert sorted(done) == ["book boss", "book nap", "cancel boss", "cancel nap"]
    assert [(await lab.run(run))["status"] for run in (parent, child)] == ["interrupted", "interrupted"]


async def asking_child(lab) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A parent that waits for a child, which asks inside of a saga."""
    thread = await lab.thread()
    parent = await lab.enqueue(thread, {"name": "ada"}, assistant="manager")
    await lab.work()
    child = await lab.one("SELECT * FROM runs WHERE parent_run_id = %(id)s", id=parent["run_id"])
    assert [(await lab.run(run))["status"] for run in (parent, child)] == ["suspended", "success"]
    assert await questions.search(lab.engine, thread_id=child["thread_id"], status="open")
    return thread, parent, child


@pytest.mark.parametrize("how", ["cancel", "kill"])
async def test_a_child_that_asks_inside_of_a_saga_undoes_it_when_its_parent_is_cancelled_and_not_when_killed(lab, how):
    thread, parent, child = await asking_child(lab)
    await {"cancel": stop.cancel, "kill": control.kill}[how](lab.engine, thread, parent["run_id"])
    await lab.work()
    assert done == ["book hotel ada", *(["cancel hotel ada"] if how == "cancel" else [])]
    assert await questions.search(lab.engine, thread_id=child["thread_id"], status="open") == []
    assert await sagas(lab) == ["failed"]
    assert (await lab.thread_row(child["thread_id"]))["status"] in ("idle", "interrupted")
    after = await lab.enqueue(child["thread_id"], {"name": "bob"}, assistant="echo")
    assert await lab.work() == 1
    assert (await runs.outcome(lab.engine, child["thread_id"], after["run_id"]))["said"] == "bob"
