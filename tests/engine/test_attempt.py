"""What a crash leaves behind, and how the next attempt goes on from there."""

import asyncio
import operator
from collections import Counter
from types import SimpleNamespace
from typing import Annotated, Any

import orjson
import psycopg
import pytest
from langgraph.config import get_config, get_store
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, interrupt
from typing_extensions import TypedDict

from perdure.engine import finding, runs, state, stop, threads
from perdure.engine.beginning import JOURNAL
from perdure.engine.errors import LeaseLost, StorageError
from perdure.engine.groupcommit import GroupCommit, Write
from perdure.engine.worker import Worker

CALLS: Counter[str] = Counter()
GATE: dict[str, Any] = {}


class State(TypedDict, total=False):
    total: Annotated[int, operator.add]
    log: Annotated[list[str], operator.add]
    answers: Annotated[list[Any], operator.add]


class Flaky(Exception):
    """Worth another attempt."""

    retryable = True


def node(name: str) -> Any:
    def run(given: State) -> Any:
        CALLS[name] += 1
        return {"log": [name], "total": 1}

    return run


def line(**nodes: Any) -> StateGraph:
    graph = StateGraph(State)
    before = START
    for name, function in nodes.items():
        graph.add_node(name, function)
        graph.add_edge(before, name)
        before = name
    graph.add_edge(before, END)
    return graph


async def step(name: str, execute: Any) -> Any:
    """What `perdure.step` does, in three lines."""
    journal, ns = get_config()["configurable"][JOURNAL], get_config()["configurable"]["checkpoint_ns"]
    found = await journal.find(ns, 1, name, None, "same")
    if found["status"] == "done":
        return found["value"]
    value = execute()
    await journal.save(ns, 1, name, found["n"], key=None, fingerprint="same", status="done", value=value)
    return value


async def steps(given: State) -> Any:
    for name in ("one", "two", "three"):
        await step(name, lambda name=name: CALLS.update([name]))
    return {"log": ["steps"], "total": 1}


def ask(given: State) -> Any:
    CALLS["ask"] += 1
    return {"answers": [interrupt("first?"), interrupt("second?")]}


async def held(given: State) -> Any:
    """Waits until the test lets it go on."""
    GATE["reached"].set()
    await GATE["open"].wait()
    return {"log": ["held"]}


def fails(given: State) -> Any:
    CALLS["fails"] += 1
    raise GATE["error"]


def flaky_twice(given: State) -> Any:
    CALLS["flaky"] += 1
    if CALLS["flaky"] < 3:
        raise ConnectionError("not yet")
    return {"log": ["flaky"]}


async def stores(given: State) -> Any:
    await GATE["before"]()
    await get_store().aput(("space",), "key", {"value": 1})
    return {"log": ["stored"]}


_jump = StateGraph(State)
for _name in ("a", "b", "c"):
    _jump.add_node(_name, node(_name))
_jump.add_edge(START, "a")
_jump.add_edge("a", "b")

_loop = StateGraph(State)
_loop.add_node("again", lambda given: Command(goto="again"))
_loop.add_edge(START, "again")

_retried = StateGraph(State)
_retried.add_node("flaky", flaky_twice, retry_policy=RetryPolicy(initial_interval=0.001, jitter=False))
_retried.add_edge(START, "flaky")

GRAPHS = {
    "default": line(a=node("a"), b=node("b"), c=node("c")).compile(),
    "steps": line(a=node("a"), steps=steps, b=node("b")).compile(),
    "steps_first": line(steps=steps).compile(),
    "jump": _jump.compile(),
    "asking": line(a=node("a"), ask=ask, b=node("b")).compile(),
    "nested": line(a=node("a"), child=line(x=node("x"), ask=ask).compile(), b=node("b")).compile(),
    "held": line(a=node("a"), held=held).compile(),
    "failing": line(a=node("a"), fails=fails).compile(),
    "loop": _loop.compile(),
    "retried": _retried.compile(),
    "stores": line(stores=stores).compile(),
}


@pytest.fixture
def settings(settings):
    """Events go with the first write and with the last, however long it takes: the others are to be killed at."""
    return settings.model_copy(update={"event_flush_ms": 600_000})


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()
    GATE.clear()
    GATE.update(reached=asyncio.Event(), open=asyncio.Event())


async def values(lab, thread: Any) -> Any:
    """The thread's values, without empty lists."""
    found = await state.values(lab.engine, await threads.get(lab.engine, thread))
    return {name: value for name, value in found.items() if value != []}


def ordered(found: dict[str, Any]) -> dict[str, Any]:
    """Nodes of one superstep log in an order of their own."""
    return {**found, "log": sorted(found["log"])}


async def in_status(lab, run: Any, status: str) -> bool:
    return (await lab.run(run))["status"] == status


async def forks(lab, thread: Any) -> int:
    """How many checkpoints have more than one successor."""
    rows = await lab.rows(
        "SELECT parent_checkpoint_id FROM checkpoints WHERE thread_id = %(id)s AND checkpoint_ns = '' "
        "AND parent_checkpoint_id IS NOT NULL GROUP BY 1 HAVING count(*) > 1",
        id=str(thread),
    )
    return len(rows)


async def history(lab: Any, thread: Any) -> list[dict[str, Any]]:
    return [one async for one in state.history(lab.engine, thread)]


class Begun:
    """Scenarios: each makes a thread and its next run, and knows what must have come of it in the end."""

    @staticmethod
    async def _input(lab: Any) -> Any:
        thread = await lab.thread()
        await lab.enqueue(thread, {"total": 10, "log": ["in"]})
        return thread, {"total": 13, "log": ["in", "a", "b", "c"]}

    @staticmethod
    async def input_on_a_used_thread(lab: Any) -> Any:
        thread, _ = await Begun._input(lab)
        await lab.work()
        await lab.enqueue(thread, {"total": 10, "log": ["more"]})
        return thread, {"total": 26, "log": ["in", "a", "b", "c", "more", "a", "b", "c"]}

    @staticmethod
    async def input_with_steps(lab: Any) -> Any:
        thread = await lab.thread()
        await lab.enqueue(thread, {"total": 10}, assistant="steps")
        return thread, {"total": 13, "log": ["a", "steps", "b"]}

    @staticmethod
    async def update(lab: Any) -> Any:
        thread, _ = await Begun._input(lab)
        await lab.work()
        await lab.enqueue(thread, command={"update": {"total": 100, "log": ["updated"]}})
        return thread, {"total": 113, "log": ["in", "a", "b", "c", "updated"]}

    @staticmethod
    async def update_and_goto(lab: Any) -> Any:
        thread = await lab.thread()
        await lab.enqueue(thread, {"total": 10, "log": ["in"]}, assistant="jump")
        await lab.work()
        command = {"update": {"total": 100, "log": ["updated"]}, "goto": "c"}
        await lab.enqueue(thread, command=command, assistant="jump")
        return thread, {"total": 113, "log": ["in", "a", "b", "updated", "c"]}

    @staticmethod
    async def goto_with_input_for_the_node(lab: Any) -> Any:
        thread = await lab.thread()
        await lab.enqueue(thread, {"total": 10, "log": ["in"]}, assistant="jump")
        await lab.work()
        await lab.enqueue(thread, command={"goto": [{"node": "c", "input": {}}, "b"]}, assistant="jump")
        return thread, {"total": 14, "log": ["in", "a", "b", "b", "c"]}

    @staticmethod
    async def update_on_a_thread_without_state(lab: Any) -> Any:
        thread = await lab.thread()
        await lab.enqueue(thread, command={"update": {"total": 100}, "goto": "c"}, assistant="jump")
        return thread, {"total": 203, "log": ["a", "b", "c"]}  # LangGraph applies the update twice then

    @staticmethod
    async def fork(lab: Any) -> Any:
        thread, _ = await Begun._input(lab)
        await lab.work()
        past = (await history(lab, thread))[2]  # "a" has run
        await lab.enqueue(thread, checkpoint_id=past["checkpoint_id"])
        return thread, {"total": 13, "log": ["in", "a", "b", "c"]}

    @staticmethod
    async def fork_with_input(lab: Any) -> Any:
        thread, _ = await Begun._input(lab)
        await lab.work()
        past = (await history(lab, thread))[2]
        await lab.enqueue(thread, {"total": 50, "log": ["other"]}, checkpoint_id=past["checkpoint_id"])
        return thread, {"total": 64, "log": ["in", "a", "other", "a", "b", "c"]}

    @staticmethod
    async def answer(lab: Any, graph: str = "asking") -> Any:
        thread = await lab.thread()
        await lab.enqueue(thread, {"total": 10}, assistant=graph)
        await lab.work()
        await lab.enqueue(thread, command={"resume": "1st"}, assistant=graph)
        return thread, {"second": "second?"}

    @staticmethod
    async def second_answer(lab: Any, graph: str = "asking") -> Any:
        thread, _ = await Begun.answer(lab, graph)
        await lab.work()
        await lab.enqueue(thread, command={"resume": "2nd"}, assistant=graph)
        log = ["a", "b"] if graph == "asking" else ["a", "x", "b"]
        total = 12 if graph == "asking" else 11 + 11 + 1 + 1
        return thread, {"total": total, "log": log, "answers": ["1st", "2nd"]}

    @staticmethod
    async def second_answer_in_a_subgraph(lab: Any) -> Any:
        return await Begun.second_answer(lab, "nested")

    @staticmethod
    async def answer_with_update(lab: Any) -> Any:
        thread, _ = await Begun.answer(lab)
        await lab.work()
        await lab.enqueue(thread, command={"resume": "2nd", "update": {"total": 100}}, assistant="asking")
        return thread, {"total": 112, "log": ["a", "b"], "answers": ["1st", "2nd"]}


SCENARIOS = [name for name in vars(Begun) if not name.startswith("_")]


@pytest.mark.parametrize("name", SCENARIOS)
async def test_run_that_is_killed_at_any_write_has_the_result_it_would_have_had(lab, name):
    """The worker dies before its n-th write, and so does the next one; the third one comes to the end."""
    begin = getattr(Begun, name)
    writes, died = 0, True
    wanted_forks = None
    while died:
        assert writes < 60
        thread, wanted = await begin(lab)
        if wanted_forks is None:  # what an undisturbed run makes
            await lab.work()
            wanted_forks, sane = await forks(lab, thread), await values(lab, thread)
            thread, wanted = await begin(lab)
            if "total" in wanted and name != "second_answer_in_a_subgraph":
                assert ordered(sane) == ordered(wanted)
        CALLS.clear()
        died = await lab.work_until_killed(writes)
        await lab.work_until_killed(writes)
        assert await lab.work() == 1, writes
        (newest,) = await finding.list_runs(lab.engine, thread, limit=1)
        assert (newest["status"], newest["attempt"]) == ("success", 3), writes
        assert await values(lab, thread) == sane, writes
        assert await forks(lab, thread) == wanted_forks, writes
        if name == "input_with_steps":
            assert {n: CALLS[n] for n in ("one", "two", "three")} == dict.fromkeys(("one", "two", "three"), 1) or (
                max(CALLS[n] for n in ("one", "two", "three")) <= 3
            ), writes
        if "second" in wanted:
            open_rows = await lab.rows(
                "SELECT question FROM interrupts WHERE thread_id = %(id)s AND status = 'open'", id=thread
            )
            assert [row["question"] for row in open_rows] == ["second?"], writes
        writes += 1
    assert writes >= 3


async def test_finished_step_is_not_executed_again_wherever_its_worker_is_killed(lab):
    """A step whose own write has arrived: killed at any write after it."""
    for writes in range(40):
        thread = await lab.thread()
        await lab.enqueue(thread, {"total": 1}, assistant="steps")
        CALLS.clear()
        died = await lab.work_until_killed(writes)
        done = {row["name"] for row in await lab.rows("SELECT name FROM steps WHERE thread_id = %(id)s", id=thread)}
        before = dict(CALLS)
        await lab.work()
        for name in done:
            assert CALLS[name] == before[name] == 1, (writes, name)
        if not died:
            assert len(done) == 3
            return
    pytest.fail("it never came to its end")


async def test_command_is_applied_although_a_failed_command_stands_before_it(lab):
    """The first one's writes are still on the head checkpoint when the second one's worker is killed."""
    for writes in range(12):
        thread = await lab.thread()
        await lab.enqueue(thread, {"total": 1}, assistant="jump")
        await lab.work()
        await lab.enqueue(thread, command={"update": {"total": 10}, "goto": "c"}, assistant="jump")
        await lab.work_until_killed(3)
        (failed,) = await finding.list_runs(lab.engine, thread, limit=1)
        await stop.cancel(lab.engine, thread, failed["run_id"])
        head = (await history(lab, thread))[0]
        if head["metadata"]["run_id"] == str(failed["run_id"]):
            pytest.skip("the first command came further than its own writes")
        await lab.enqueue(thread, command={"update": {"total": 100}, "goto": "c"}, assistant="jump")
        died = await lab.work_until_killed(writes)
        await lab.work()
        # the first one's update may count or not, as LangGraph has it; the second one's must
        assert (await values(lab, thread))["total"] >= 1 + 2 + 100, writes
        if not died:
            return


async def test_run_that_is_taken_over_in_the_middle_of_a_node_is_finished_by_the_other_worker_only(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant="held")
    old = lab.attempt(await lab.claim_one())
    task = asyncio.create_task(lab.play(old))
    await GATE["reached"].wait()
    await lab.release(worker_id=lab.worker_id)
    new = lab.attempt(await lab.claim_one())
    GATE["open"].set()
    await asyncio.gather(task, lab.play(new))
    assert old.lost or "lost" in [entry["event"] for entry in lab.logs]
    assert await values(lab, thread) == {"total": 2, "log": ["a", "held"]}
    names = [orjson.loads(e["data"])["event"] for e in await lab.events(run) if e["event"] == "lifecycle"]
    assert names[-1] == "completed"
    assert names.count("completed") == 1
    assert (await lab.run(run))["attempt"] == 2


async def test_exception_of_control_flow_out_of_a_node_is_no_failure_of_the_run(lab):
    """LeaseLost passes through author code; the run belongs to whoever has it now."""
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant="failing")
    GATE["error"] = LeaseLost("gone")
    await lab.play(lab.attempt(await lab.claim_one()))
    assert (await lab.run(run))["status"] == "running"
    await lab.release(worker_id=lab.worker_id)
    GATE["error"] = ValueError("real")
    await lab.work()
    assert (await lab.run(run))["error"] == {"error": "ValueError", "message": "real"}


# --- failing


async def test_retryable_error_waits_for_another_attempt_with_growing_pauses(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant="failing")
    following = await lab.enqueue(thread, {"total": 1})
    GATE["error"] = Flaky("busy")
    waits = []
    for attempt in range(1, 7):
        await lab.play(lab.attempt(await lab.claim_one()))
        shown = await runs.get(lab.engine, thread, run["run_id"])
        assert (shown["status"], shown["attempt"]) == ("pending", attempt)
        assert shown["error"] == {"error": "Flaky", "message": "busy"}
        waits.append((await lab.one("SELECT round(extract(epoch FROM ready_at - updated_at)) AS s FROM runs "
                                    "WHERE run_id = %(id)s", id=run["run_id"]))["s"])  # fmt: skip
        assert shown["next_at"] is not None
        assert (await lab.thread_row(thread))["status"] == "busy"
        await lab.retries_are_due()
    assert waits == [5, 10, 20, 40, 60, 60]
    assert (CALLS["a"], CALLS["fails"]) == (1, 6)
    assert (await lab.run(following))["status"] == "pending"
    lines = [orjson.loads(e["data"]) for e in await lab.events(run) if e["event"] == "lifecycle"]
    assert [one["seconds"] for one in lines if one["event"] == "retrying"] == waits
    assert not any(one.get("final") for one in lines)
    assert "error" not in [e["event"] for e in await lab.events(run)]


async def test_error_that_names_its_own_wait_is_tried_again_after_it(lab):
    run = await lab.enqueue(await lab.thread(), {"total": 1}, assistant="failing")
    GATE["error"] = Flaky("busy")
    GATE["error"].retry_after = 1234.0
    await lab.work()
    row = await lab.run(run)
    assert round((row["ready_at"] - row["updated_at"]).total_seconds()) == 1234


async def test_run_is_paused_with_an_error_frame_when_its_attempts_are_used_up(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant="failing")
    following = await lab.enqueue(thread, {"total": 1})
    await lab.execute("UPDATE runs SET failures = 68, attempt = 68")
    GATE["error"] = Flaky("busy")
    await lab.work()
    assert (await lab.run(run))["status"] == "pending"
    await lab.retries_are_due()
    await lab.work()
    shown = await runs.get(lab.engine, thread, run["run_id"])
    assert (shown["status"], shown["paused"], shown["attempt"]) == ("error", True, 70)
    tail = (await lab.events(run))[-2:]
    assert [e["event"] for e in tail] == ["error", "lifecycle"]
    assert orjson.loads(tail[0]["data"]) == {"error": "Flaky", "message": "busy"}
    assert orjson.loads(tail[1]["data"])["final"] is True
    assert await runs.outcome(lab.engine, thread, run["run_id"]) == {"__error__": shown["error"]}
    assert await lab.work() == 0
    assert (await lab.run(following))["status"] == "pending"


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("k"), GraphRecursionError("deep")], ids=repr)
async def test_error_outside_of_a_step_ends_the_run(lab, error):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant="failing")
    following = await lab.enqueue(thread, {"total": 1})
    GATE["error"] = error
    assert await lab.work() == 2
    row = await lab.run(run)
    wanted = {"error": type(error).__name__, "message": str(error)}
    assert (row["status"], row["error"], row["attempt"]) == ("error", wanted, 1)
    tail = (await lab.events(run))[-2:]
    assert [e["event"] for e in tail] == ["error", "lifecycle"]
    assert orjson.loads(tail[0]["data"]) == wanted
    assert (await lab.run(following))["status"] == "success"


async def test_error_that_is_marked_as_final_ends_the_run_at_once(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant="failing")
    GATE["error"] = Flaky("no")
    GATE["error"].retryable = False
    GATE["error"].status = 402
    await lab.work()
    row = await lab.run(run)
    assert (row["status"], row["error"]) == ("error", {"error": "Flaky", "message": "no", "status": 402})
    assert (await lab.thread_row(thread))["status"] == "error"


async def test_endless_loop_and_missing_input_end_the_run(lab):
    for graph, given, error in (("loop", {"total": 1}, "GraphRecursionError"), ("default", None, "EmptyInputError")):
        run = await lab.enqueue(await lab.thread(), given, assistant=graph, config={"recursion_limit": 5})
        await lab.work()
        row = await lab.run(run)
        assert (row["status"], row["error"]["error"]) == ("error", error)


async def test_error_with_characters_that_cannot_be_stored_ends_the_run_all_the_same(lab):
    run = await lab.enqueue(await lab.thread(), {"total": 1}, assistant="failing")
    GATE["error"] = ValueError("a\x00b \ud800")
    await lab.work()
    assert (await lab.run(run))["status"] == "error"


async def test_error_that_cannot_even_be_printed_ends_the_run_all_the_same(lab):
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    run = await lab.enqueue(await lab.thread(), {"total": 1}, assistant="failing")
    GATE["error"] = Odd()
    await lab.work()
    assert (await lab.run(run))["status"] == "error"


async def test_retry_policy_of_a_node_is_kept_within_the_attempt(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant="retried")
    await lab.work()
    row = await lab.run(run)
    assert (row["status"], row["attempt"], CALLS["flaky"]) == ("success", 1, 3)


async def test_graph_that_is_gone_ends_the_run(lab):
    run = await lab.enqueue(await lab.thread(), {"total": 1})
    claimed = await lab.claim_one()
    graphs = dict(lab.engine.registry.graphs)
    lab.engine.registry.graphs.clear()
    try:
        await lab.play(lab.attempt(claimed))
    finally:
        lab.engine.registry.graphs.update(graphs)
    assert (await lab.run(run))["error"]["error"] == "GraphNotFound"


# --- the database is lost


@pytest.mark.parametrize("graph", ["held", "stores"])
async def test_run_is_tried_again_when_the_database_is_lost_in_the_middle(lab, graph, monkeypatch):
    monkeypatch.setattr("perdure.engine.attempt.RECOMMIT_SECONDS", 0.01)
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"total": 1}, assistant=graph)
    GATE["before"] = lab.cut_connections
    attempt = lab.attempt(await lab.claim_one())
    if graph == "held":
        task = asyncio.create_task(lab.play(attempt))
        await GATE["reached"].wait()
        await lab.cut_connections()
        GATE["open"].set()
    else:
        task = asyncio.create_task(lab.play(attempt))
    await asyncio.wait_for(task, 60)

    async def nothing() -> None:
        pass

    GATE["before"] = nothing
    for _ in range(20):  # the pool has to find out about its dead connections
        try:
            row = await lab.run(run)
            break
        except psycopg.OperationalError:
            continue
    assert (row["status"], row["failures"], row["worker_id"]) == ("pending", 1, None), row["error"]
    # what the graph's own store raises keeps its name
    assert row["error"]["error"] in (("StorageError",) if graph == "held" else ("OperationalError", "AdminShutdown"))
    await lab.retries_are_due()
    await lab.work()
    assert (await lab.run(run))["status"] == "success"


async def test_no_node_is_executed_before_the_input_is_durable(lab):
    """Else a finished step could belong to a checkpoint that was never written."""

    class Slow(GroupCommit):
        held: "asyncio.Future[int] | None" = None

        def enqueue(self, write: Write) -> "asyncio.Future[int]":
            if not write.checkpoints or self.held is not None:
                return super().enqueue(write)
            self.held = write.done = asyncio.get_running_loop().create_future()
            return write.done

    run = await lab.enqueue(await lab.thread(), {"total": 1}, assistant="steps_first")
    group = Slow(lab.engine.pool, origin="")
    task = asyncio.create_task(lab.play(lab.attempt(await lab.claim_one(), group=group)))
    await lab.until(lambda: group.held is not None)
    await asyncio.sleep(0.2)
    assert CALLS.total() == 0
    assert group.held is not None
    group.held.set_exception(StorageError("away"))
    await task
    assert (await lab.run(run))["status"] == "pending"
    await lab.retries_are_due()
    await lab.work()
    assert (await lab.run(run))["status"] == "success"
    assert {CALLS[name] for name in ("one", "two", "three")} == {1}


# --- a whole worker


async def test_worker_executes_what_is_there_and_what_comes_and_feeds_the_readers_of_its_process(lab):
    before = await lab.enqueue(await lab.thread(), {"total": 1})
    worker = Worker(lab.engine.settings, lab.engine.registry, lab.dsn, hub=lab.engine.hub, origin=lab.engine.origin)
    await asyncio.to_thread(worker.start)
    try:
        after = await lab.enqueue(await lab.thread(), {"total": 1})
        for run in (before, after):
            await lab.until(lambda run=run: in_status(lab, run, "success"))
        held = await lab.enqueue(await lab.thread(), {"total": 1}, assistant="held")
        await lab.until(lambda: in_status(lab, held, "running"))
    finally:
        await asyncio.to_thread(worker.stop)
    await lab.until(lambda: in_status(lab, held, "pending"))
    assert (await lab.run(held))["failures"] == 0
    assert await lab.rows("SELECT * FROM workers") == []


async def test_loop_is_blocked_when_it_was_asked_to_turn_and_does_not_and_not_when_the_process_got_no_time(
    lab, monkeypatch
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("perdure.engine.worker.time", SimpleNamespace(monotonic=lambda: clock.now))
    worker = Worker(lab.engine.settings, lab.engine.registry, lab.dsn)
    worker._loop = asyncio.get_running_loop()
    assert worker.lag() == 0
    await asyncio.sleep(0)  # it turns
    clock.now += 60  # all of the process was stopped
    assert worker.lag() == 0
    clock.now += 6
    assert worker.lag() == 6
    clock.now += 1
    assert worker.lag() == 7
    await asyncio.sleep(0)
    assert worker.lag() == 0
