"""Pruning and times to live: what goes, what stays, and who may still write."""

import asyncio
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure.engine import control, finding, interrupts, prune, state, stop, threads, ttl
from perdure.engine.errors import Conflict, LeaseLost, ThreadBusy
from perdure.engine.groupcommit import Write
from perdure.engine.ttl import Ttl
from perdure.engine.views import questions


class State(TypedDict, total=False):
    log: Annotated[list[str], lambda old, new: old + new]


def node(name: str) -> Any:
    return lambda given: {"log": [name]}


def line(*nodes: tuple[str, Any]) -> Any:
    graph = StateGraph(State)
    previous = START
    for name, does in nodes:
        graph.add_node(name, does)
        graph.add_edge(previous, name)
        previous = name
    graph.add_edge(previous, END)
    return graph.compile()


def ask(given: State) -> State:
    return {"log": [interrupt("sure?")]}


GRAPHS = {
    "default": line(("a", node("a")), ("b", node("b"))),
    "nested": line(("quiet", line(("inner", node("inner")))), ("asks", line(("before", node("before")), ("ask", ask)))),
}

CHECKPOINTS = "SELECT * FROM checkpoints WHERE thread_id = %(id)s"
WRITES = "SELECT * FROM checkpoint_writes WHERE thread_id = %(id)s"
BLOBS = "SELECT * FROM checkpoint_blobs WHERE thread_id = %(id)s"


async def worked(lab, *turns: str, graph: str = "default") -> Any:
    thread = await lab.thread()
    for turn in turns:
        await lab.enqueue(thread, {"log": [turn]}, assistant=graph)
        await lab.work()
    return thread


async def stored(lab, thread: Any) -> list[int]:
    """How many checkpoints, writes and blobs."""
    return [len(await lab.rows(table, id=str(thread))) for table in (CHECKPOINTS, WRITES, BLOBS)]


async def shown(lab, thread: Any) -> Any:
    snapshot = await state.read(lab.engine, thread)
    return {key: snapshot[key] for key in ("values", "next", "checkpoint_id")}


async def test_only_the_newest_checkpoint_and_what_it_needs_is_left(lab):
    thread, other = await worked(lab, "1", "2", "3"), await worked(lab, "4")
    before, others = await shown(lab, thread), await stored(lab, other)
    fence = (await lab.thread_row(thread))["fence"]
    assert await prune.prune(lab.engine, [thread, uuid4()], "keep_latest") == 1
    assert await shown(lab, thread) == before
    (left,) = [one async for one in state.history(lab.engine, thread)]
    assert left["parent_checkpoint_id"] is None
    checkpoints, writes, blobs = await stored(lab, thread)
    assert (checkpoints, writes) == (1, 0)
    assert blobs <= len(GRAPHS["default"].channels)
    assert await stored(lab, other) == others
    assert (await lab.thread_row(thread))["fence"] > fence
    assert await prune.prune(lab.engine, [thread], "keep_latest") == 1, "again"
    assert await shown(lab, thread) == before
    await lab.enqueue(thread, {"log": ["5"]})
    await lab.work()
    assert (await shown(lab, thread))["values"]["log"] == [*before["values"]["log"], "5", "a", "b"]


async def test_a_question_in_a_subgraph_can_be_answered_after_pruning(lab):
    thread = await worked(lab, "in", graph="nested")
    (question,) = await questions.search(lab.engine, thread_id=thread, status="open")
    before = await stored(lab, thread)
    await prune.prune(lab.engine, [thread], "keep_latest")
    after = await stored(lab, thread)
    assert after[0] < before[0]
    spaces = {row["checkpoint_ns"].partition(":")[0] for row in await lab.rows(CHECKPOINTS, id=str(thread))}
    assert spaces == {"", "asks"}, "what the finished subgraph had is gone"
    await interrupts.resolve(lab.engine, question["token"], "yes")
    await lab.work()
    assert (await shown(lab, thread))["values"]["log"][-1] == "yes"
    assert (await lab.thread_row(thread))["status"] == "idle"


@pytest.mark.parametrize("how", ["pending", "running", "paused", "delayed"])
async def test_a_busy_thread_is_refused_and_nothing_has_changed(lab, how):
    idle, thread = await worked(lab, "1", "2"), await worked(lab, "1", "2")
    run = await lab.enqueue(thread, {"log": ["3"]}, after_seconds=1000 if how == "delayed" else 0)
    if how == "running":
        await lab.claim_one()
    elif how == "paused":
        await control.pause(lab.engine, thread, run["run_id"])
    before = await lab.everything()
    with pytest.raises(ThreadBusy, match=str(thread)):
        await prune.prune(lab.engine, [idle, thread], "keep_latest")
    assert await lab.everything() == before
    await stop.cancel(lab.engine, thread, run["run_id"], "rollback")
    assert await prune.prune(lab.engine, [idle, thread], "keep_latest") == 2


async def test_whoever_owned_the_thread_before_writes_nothing_after_pruning(lab):
    thread = await worked(lab, "1", "2")
    fence = (await lab.thread_row(thread))["fence"]
    await prune.prune(lab.engine, [thread], "keep_latest")
    with pytest.raises(LeaseLost):
        await lab.group().submit(Write(thread, fence, checkpoints=[("", "z", None, "{}", "{}")]))


async def test_many_prunes_and_runs_at_once_disturb_nobody(lab):
    made = [await worked(lab, "1", "2") for _ in range(4)]
    wanted = [await shown(lab, thread) for thread in made]
    calls = [prune.prune(lab.engine, made, "keep_latest") for _ in range(6)]
    assert await asyncio.gather(*calls) == [4] * 6
    assert [await shown(lab, thread) for thread in made] == wanted
    late = [lab.enqueue(made[0], {"log": ["late"]}), *(prune.prune(lab.engine, made, "keep_latest") for _ in range(4))]
    ends = await asyncio.gather(*late, return_exceptions=True)
    assert all(end == 4 or isinstance(end, ThreadBusy) for end in ends[1:])
    await lab.work()
    assert (await shown(lab, made[0]))["values"]["log"][-3:] == ["late", "a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE checkpoints SET metadata = metadata || '{"counters_since_delta_snapshot": {"log": 1}}'""",
        """UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{channel_values,log}', 'true')""",
    ],
)
async def test_states_that_are_stored_as_changes_are_not_torn_apart(lab, change):
    thread, plain = await worked(lab, "1", "2"), await worked(lab, "1")
    await lab.execute(change + " WHERE thread_id = %(id)s", id=str(thread))
    before = await lab.everything()
    with pytest.raises(Conflict, match=str(thread)):
        await prune.prune(lab.engine, [plain, thread], "keep_latest")
    assert await lab.everything() == before


async def test_many_threads_are_deleted_in_batches(lab, monkeypatch):
    monkeypatch.setattr(prune, "BATCH", 2)
    made, kept = [await worked(lab, "1") for _ in range(5)], await worked(lab, "1")
    assert await prune.prune(lab.engine, [*made, uuid4()], "delete") == 5
    assert [row["thread_id"] for row in await lab.rows("SELECT thread_id FROM threads")] == [kept]
    assert {row["thread_id"] for row in await lab.rows("SELECT thread_id FROM checkpoints")} == {str(kept)}


# -- times to live


async def pass_time(lab, minutes: float) -> None:
    await lab.execute(
        "UPDATE threads SET updated_at = updated_at - %(by)s, pruned_at = pruned_at - %(by)s",
        by=timedelta(minutes=minutes),
    )


async def sweep(lab, sweepers: int = 3) -> int:
    async def one() -> int:
        async with lab.connection() as conn:
            return await prune.expired(conn)

    return sum(await asyncio.gather(*(one() for _ in range(sweepers))))


async def test_a_thread_is_deleted_a_time_after_its_last_update(lab):
    thread, stays = await lab.thread(ttl=Ttl(60)), await lab.thread()
    await pass_time(lab, 59)
    assert await sweep(lab) == 0
    await threads.patch(lab.engine, thread, metadata={"seen": True})
    await pass_time(lab, 59)
    assert await sweep(lab) == 0, "the change has begun it anew"
    await lab.enqueue(thread, {"log": ["1"]})
    await lab.work()
    await pass_time(lab, 59)
    assert await sweep(lab) == 0, "so has the run"
    await pass_time(lab, 2)
    assert await sweep(lab) == 1
    assert [row["thread_id"] for row in await lab.rows("SELECT thread_id FROM threads")] == [stays]
    assert await stored(lab, thread) == [0, 0, 0]


async def test_a_thread_is_pruned_once_after_each_time_that_it_was_used(lab):
    thread = await lab.thread(ttl=Ttl(60, "keep_latest"))
    for turn in ("1", "2"):
        await lab.enqueue(thread, {"log": [turn]})
        await lab.work()
        before = await shown(lab, thread)
        assert (await stored(lab, thread))[0] > 1
        await pass_time(lab, 61)
        assert await sweep(lab) == 1
        assert await shown(lab, thread) == before
        assert (await stored(lab, thread))[0] == 1
        assert await sweep(lab) == 0
        await pass_time(lab, 600)
        assert await sweep(lab) == 0


@pytest.mark.parametrize("strategy", ["delete", "keep_latest"])
async def test_a_thread_with_an_active_run_stays_as_it_is(lab, strategy):
    thread = await lab.thread(ttl=Ttl(1, strategy))
    run = await lab.enqueue(thread, {"log": ["1"]})
    await pass_time(lab, 10)
    assert await sweep(lab) == 0
    await control.pause(lab.engine, thread, run["run_id"])
    await pass_time(lab, 10)
    assert await sweep(lab) == 0
    await control.resume(lab.engine, thread, run["run_id"])
    await lab.work()
    await pass_time(lab, 10)
    assert await sweep(lab) == 1


async def test_a_state_that_cannot_be_pruned_is_looked_at_once(lab):
    thread = await lab.thread(ttl=Ttl(1, "keep_latest"))
    await lab.enqueue(thread, {"log": ["1"]})
    await lab.work()
    await lab.execute("""UPDATE checkpoints SET metadata = metadata || '{"delta_writes_versioned": true}'""")
    before = await stored(lab, thread)
    await pass_time(lab, 10)
    assert await sweep(lab) == 1
    assert await sweep(lab) == 0
    assert await stored(lab, thread) == before


async def test_a_thread_tells_its_time_to_live(lab):
    thread = await lab.thread(ttl=Ttl(90))
    found = await threads.get(lab.engine, thread)
    expires = datetime.fromisoformat(found["ttl"].pop("expires_at"))  # PostgreSQL drops zeros at the end of a second
    assert expires == found["updated_at"] + timedelta(minutes=90)
    assert found["ttl"] == {"strategy": "delete", "ttl_minutes": 90}
    await threads.patch(lab.engine, thread, ttl=Ttl(0.5, "keep_latest"))
    found = await threads.get(lab.engine, thread)
    assert (found["ttl"]["strategy"], found["ttl"]["ttl_minutes"]) == ("keep_latest", 0.5)
    copied = await threads.copy(lab.engine, thread)
    assert copied["ttl"]["ttl_minutes"] == 0.5
    assert (await threads.get(lab.engine, await lab.thread()))["ttl"] is None


async def test_threads_get_the_configured_time_to_live_unless_they_have_their_own_or_go_with_their_run(lab):
    lab.engine.registry.config["checkpointer"] = {"ttl": {"default_ttl": 30, "sweep_interval_minutes": 5}}
    made = uuid4()
    await lab.enqueue(made, {"log": []}, if_not_exists="create")
    plain, own = await lab.thread(), await lab.thread(ttl=Ttl(7))
    found = [(await threads.get(lab.engine, thread))["ttl"]["ttl_minutes"] for thread in (made, plain, own)]
    assert found == [30, 30, 7]
    stateless = await lab.enqueue(None, {"log": []})
    kept = await lab.enqueue(None, {"log": []}, on_completion="keep")
    rows = await lab.rows("SELECT thread_id, ttl FROM threads")
    lives = {row["thread_id"]: row["ttl"] for row in rows}
    assert (lives[stateless["thread_id"]], lives[kept["thread_id"]]) == (None, timedelta(minutes=30))
    assert await finding.list_runs(lab.engine, made)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"ttl": None}, None),
        ({"ttl": {"strategy": "delete"}}, None),
        ({"ttl": {"default_ttl": 5}}, Ttl(5.0)),
        ({"ttl": {"default_ttl": 0.5, "strategy": "keep_latest"}}, Ttl(0.5, "keep_latest")),
        ({"ttl": 5}, "checkpointer.ttl:"),
        ({"ttl": {"default_ttl": "5"}}, "default_ttl"),
        ({"ttl": {"default_ttl": -1}}, "default_ttl"),
        ({"ttl": {"default_ttl": True}}, "default_ttl"),
        ({"ttl": {"default_ttl": float("inf")}}, "default_ttl"),
        ({"ttl": {"default_ttl": 5, "strategy": "forget"}}, "strategy"),
    ],
)
def test_what_langgraph_json_may_say(given, wanted):
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            ttl.configured({"checkpointer": given})
    else:
        assert ttl.configured({"checkpointer": given}) == wanted
