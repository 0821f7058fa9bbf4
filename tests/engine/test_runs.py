"""Accepting, cancelling and forgetting runs, and what is left of a thread afterwards."""

import asyncio
import operator
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

import orjson
import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from psycopg import sql
from typing_extensions import TypedDict

from perdure.engine import events, finding, idempotency, queue, runs, state, stop, sweeper, threads
from perdure.engine.errors import (
    AssistantNotFound,
    GraphNotFound,
    IdempotencyMismatch,
    InvalidInput,
    LeaseLost,
    RunFinished,
    RunNotFound,
    RunRejected,
    ThreadNotFound,
)
from perdure.engine.groupcommit import Write


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    answer: str


def _line(**nodes: Any) -> Any:
    graph = StateGraph(Log)
    before = START
    for name, node in nodes.items():
        graph.add_node(name, node)
        graph.add_edge(before, name)
        before = name
    graph.add_edge(before, END)
    return graph.compile()


GRAPHS = {
    "default": _line(a=lambda given: {"log": ["a"]}, b=lambda given: {"log": ["b"]}),
    "asking": _line(a=lambda given: {"log": ["a"]}, ask=lambda given: {"answer": interrupt("?")}),
    "child": _line(inner=_line(x=lambda given: {"log": [interrupt("x?")]})),
}
ERROR = {"error": "Broken", "message": "it broke"}


async def values(lab, thread: Any) -> Any:
    return await state.values(lab.engine, await threads.get(lab.engine, thread))


async def retrying(lab, run: queue.Claimed, *, paused: bool = False) -> None:
    async with lab.engine.pool.connection() as conn:
        await queue.retry(conn, run, error=ERROR, delay=3600, paused=paused, frames=[events.Frame.of("lifecycle", {})])


async def in_state(lab, thread: Any, how: str, **given: Any) -> dict[str, Any]:
    """A run of this thread that is pending, running, waiting for its retry, or paused."""
    run = await lab.enqueue(thread, {"log": ["in"]}, **given)
    if how != "pending":
        claimed = await lab.claim_one()
        if how in ("retrying", "paused"):
            await retrying(lab, claimed, paused=how == "paused")
    return run


# --- accepting


async def test_accepted_run_is_durable_with_its_whole_input(lab):
    thread = await lab.thread(metadata={"who": "thread"})
    given = {"log": ["text", "é\u2028"], "deep": {"a": [1, None, {"b": 2.5}]}}
    run = await lab.enqueue(thread, given, metadata={"mine": 1}, config={"tags": ["t"], "configurable": {"k": 1}})
    row = await lab.run(run)
    assert row["kwargs"]["input"] == given
    assert row["kwargs"]["config"] == {"tags": ["t"], "configurable": {"k": 1}}
    assert row["metadata"]["mine"] == 1
    assert row["metadata"]["who"] == "thread"
    assert (run["status"], run["attempt"]) == ("pending", 0)
    assert await runs.get(lab.engine, thread, run["run_id"]) == run
    assert await finding.thread_of(lab.engine, run["run_id"]) == thread
    assert (await threads.get(lab.engine, thread))["status"] == "busy"
    assert [e["event"] for e in await lab.events(run)] == ["lifecycle"]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"assistant": "nobody"}, GraphNotFound),
        ({"assistant": "17c13773-5684-4a76-a245-6d69f7b9553b"}, AssistantNotFound),
        ({"after_seconds": -1}, InvalidInput),
        ({"after_seconds": 1e12}, InvalidInput),
        ({"after_seconds": float("nan")}, InvalidInput),
    ],
    ids=str,
)
async def test_refused_run_leaves_nothing(lab, given, error):
    thread = await lab.thread()
    before = await lab.everything()
    for place in (thread, None):
        with pytest.raises(error):
            await lab.enqueue(place, {"log": []}, idempotency_key="key", if_not_exists="create", **given)
    assert await lab.everything() == before


async def test_unknown_thread_is_refused_or_made(lab):
    thread = uuid4()
    with pytest.raises(ThreadNotFound):
        await lab.enqueue(thread, {"log": []})
    await lab.enqueue(thread, {"log": []}, if_not_exists="create")
    await lab.work()
    assert await values(lab, thread) == {"log": ["a", "b"]}


async def test_runs_are_listed_newest_first_by_status_in_pages(lab):
    thread = await lab.thread()
    created = [(await lab.enqueue(thread, {"log": []}))["run_id"] for _ in range(3)]
    await retrying(lab, await lab.claim_one(), paused=True)

    async def listed(**given: Any) -> list[Any]:
        return [run["run_id"] for run in await finding.list_runs(lab.engine, thread, **given)]

    assert await listed() == created[::-1]
    assert await listed(limit=1, offset=1) == [created[1]]
    assert await listed(status="pending") == created[:0:-1]
    assert await listed(status="error") == created[:1]
    with pytest.raises(ThreadNotFound):
        await finding.list_runs(lab.engine, uuid4())


async def test_retrying_run_shows_its_error_and_when_it_is_due_and_a_paused_one_that_it_is(lab):
    thread = await lab.thread()
    run = await in_state(lab, thread, "retrying")
    shown = await runs.get(lab.engine, thread, run["run_id"])
    assert (shown["status"], shown["attempt"], shown["error"]) == ("pending", 1, ERROR)
    assert shown["next_at"] == (await lab.run(run))["ready_at"]
    await lab.retries_are_due()
    await retrying(lab, await lab.claim_one(), paused=True)
    shown = await runs.get(lab.engine, thread, run["run_id"])
    assert (shown["status"], shown["paused"], shown["attempt"], shown["error"]) == ("error", True, 2, ERROR)


# --- several runs on one thread


@pytest.mark.parametrize("how", ["pending", "running", "retrying", "paused"])
async def test_busy_thread_may_reject_a_run(lab, how):
    thread = await lab.thread()
    await in_state(lab, thread, how)
    before = await lab.everything()
    with pytest.raises(RunRejected):
        await lab.enqueue(thread, {"log": []}, multitask_strategy="reject")
    assert await lab.everything() == before


async def test_of_many_runs_at_once_that_reject_each_other_one_is_accepted(lab):
    thread = await lab.thread()
    ends = await asyncio.gather(
        *(lab.enqueue(thread, {"log": []}, multitask_strategy="reject") for _ in range(8)), return_exceptions=True
    )
    assert [type(end) for end in ends].count(RunRejected) == 7
    assert len(await finding.list_runs(lab.engine, thread)) == 1


@pytest.mark.parametrize("how", ["pending", "running", "retrying", "paused"])
@pytest.mark.parametrize("strategy", ["interrupt", "rollback"])
async def test_new_run_takes_the_place_of_those_before_it(lab, how, strategy):
    thread = await lab.thread()
    first = await in_state(lab, thread, how)
    second = await lab.enqueue(thread, {"log": []})
    fence = (await lab.thread_row(thread))["fence"]
    third = await lab.enqueue(thread, {"log": ["new"]}, multitask_strategy=strategy)
    left = {run["run_id"]: run["status"] for run in await finding.list_runs(lab.engine, thread)}
    ended = {} if strategy == "rollback" else {first["run_id"]: "interrupted", second["run_id"]: "interrupted"}
    assert left == {third["run_id"]: "pending", **ended}
    row = await lab.thread_row(thread)
    assert (row["status"], row["run_id"]) == ("busy", None)
    assert row["fence"] > fence or how == "pending"
    assert await lab.work() == 1
    assert await values(lab, thread) == {"log": ["new", "a", "b"]}
    assert (await lab.thread_row(thread))["status"] == "idle"


async def test_many_runs_at_once_that_take_each_others_place_leave_one(lab):
    thread = await lab.thread()
    await asyncio.gather(
        *(lab.enqueue(thread, {"log": []}, multitask_strategy=("interrupt", "rollback")[n % 2]) for n in range(8))
    )
    pending = await finding.list_runs(lab.engine, thread, status="pending")
    assert len(pending) == 1
    assert await lab.work() == 1
    assert await values(lab, thread) == {"log": ["a", "b"]}


async def test_calls_by_key_that_came_before_a_question_was_asked_wait_behind_it(lab):
    """Both were accepted while the thread was idle; the first one asks."""
    thread = await lab.thread()
    await lab.enqueue(thread, {"log": []}, assistant="asking", behind_question=True)
    second = await lab.enqueue(thread, {"log": []}, assistant="asking", behind_question=True)
    assert await lab.work() == 1
    await lab.enqueue(thread, assistant="asking", command={"resume": "yes"})
    await lab.work()
    assert (await lab.run(second))["status"] == "success"
    asked = await lab.rows("SELECT status FROM interrupts ORDER BY created_at")
    assert [row["status"] for row in asked] == ["answered", "open"]


async def test_answer_goes_before_the_calls_that_wait_behind_the_question(lab):
    thread = await lab.thread()
    await lab.enqueue(thread, {"log": []}, assistant="asking")
    await lab.work()
    held = await lab.enqueue(thread, {"log": ["held"]}, assistant="asking", behind_question=True)
    assert await lab.work() == 0
    answer = await lab.enqueue(thread, assistant="asking", command={"resume": "yes"})
    assert (await lab.claim_one()).run_id == answer["run_id"]
    assert await lab.release(worker_id=lab.worker_id, lost=False)
    assert await lab.work() == 2
    assert (await lab.run(held))["status"] == "success"
    assert (await values(lab, thread))["log"] == ["a", "held", "a"]


# --- cancelling


@pytest.mark.parametrize("how", ["pending", "running", "retrying", "paused"])
@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_cancelled_run_is_over_at_once_and_the_next_one_may_start(lab, how, action):
    thread = await lab.thread()
    run = await in_state(lab, thread, how)
    following = await lab.enqueue(thread, {"log": ["next"]})
    await stop.cancel(lab.engine, thread, run["run_id"], action)
    if action == "interrupt":
        row = await lab.run(run)
        assert (row["status"], row["ready_at"], row["worker_id"]) == ("interrupted", None, None)
    else:
        with pytest.raises(RunNotFound):
            await runs.get(lab.engine, thread, run["run_id"])
    last = (await lab.events(run))[-1]
    told = {"event": "cancelled", "action": action, "graph_name": lab.graph, "final": True}
    assert orjson.loads(last["data"]) == told
    with pytest.raises(RunNotFound):
        await stop.cancel(lab.engine, thread, run["run_id"], action)
    assert (await lab.claim_one()).run_id == following["run_id"]


@pytest.mark.parametrize("how", ["pending", "running", "retrying", "paused"])
@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_thread_can_be_used_again_after_its_only_run_was_cancelled(lab, how, action):
    thread = await lab.thread()
    run = await in_state(lab, thread, how)
    await stop.cancel(lab.engine, thread, run["run_id"], action)
    row = await lab.thread_row(thread)
    assert (row["status"], row["run_id"]) == ("idle", None)
    await lab.enqueue(thread, {"log": ["new"]})
    await lab.work()
    assert await values(lab, thread) == {"log": ["new", "a", "b"]}


async def test_worker_of_a_cancelled_run_is_fenced_off(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"log": []})
    claimed = await lab.claim_one()
    await stop.cancel(lab.engine, thread, run["run_id"])
    before = await lab.everything()
    attempt = lab.attempt(claimed)
    await lab.play(attempt)
    assert attempt.lost
    assert await lab.everything() == before


async def test_rollback_removes_the_checkpoints_of_the_run_and_no_other(lab):
    thread = await lab.thread()
    await lab.enqueue(thread, {"log": ["kept"]})
    await lab.work()
    before = await lab.everything()
    run = await lab.enqueue(thread, {"log": ["gone"]}, assistant="child")
    await lab.work_until_killed(9)
    tables = ("checkpoints", "checkpoint_writes")
    meanwhile = await lab.everything()
    assert all(len(meanwhile[table]) > len(before[table]) for table in tables)
    await stop.cancel(lab.engine, thread, run["run_id"], "rollback")
    after = await lab.everything()
    for table in tables:
        assert after[table] == before[table], table
    assert await values(lab, thread) == {"log": ["kept", "a", "b"]}


async def test_many_runs_are_cancelled_by_thread_id_or_status(lab):
    one, two = await lab.thread(), await lab.thread()
    created = [await lab.enqueue(thread, {"log": []}) for thread in (one, one, two, two)]
    await lab.claim_one()
    assert await stop.cancel_many(lab.engine, thread_id=one, run_ids=[created[2]["run_id"]]) == 0
    assert await stop.cancel_many(lab.engine, run_ids=[created[3]["run_id"]]) == 1
    assert await stop.cancel_many(lab.engine, thread_id=one, status="running") == 1
    assert await stop.cancel_many(lab.engine, status="all") == 2
    assert await stop.cancel_many(lab.engine) == 0
    states = await lab.rows("SELECT DISTINCT status FROM runs")
    assert states == [{"status": "interrupted"}]


async def test_cancel_and_the_end_of_the_run_at_the_same_time_leave_one_of_them(lab):
    for _ in range(5):
        thread = await lab.thread()
        run = await lab.enqueue(thread, {"log": []})
        attempt = lab.attempt(await lab.claim_one())
        task = asyncio.create_task(lab.play(attempt))
        await lab.until(
            lambda run=run: lab.rows(
                "SELECT 1 FROM run_events WHERE event = 'values' AND run_id = %(id)s", id=run["run_id"]
            )
        )
        ends = await asyncio.gather(stop.cancel(lab.engine, thread, run["run_id"]), task, return_exceptions=True)
        status = (await lab.run(run))["status"]
        assert status == ("interrupted" if ends[0] is None else "success")
        finals = [e for e in await lab.events(run) if '"final":true' in e["data"]]
        assert len(finals) == 1
        assert finals[0] == (await lab.events(run))[-1]


async def test_run_is_deleted_when_it_has_ended_only(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"log": []})
    with pytest.raises(RunFinished):
        await runs.delete(lab.engine, thread, run["run_id"])
    await lab.work()
    await runs.delete(lab.engine, thread, run["run_id"])
    for call in (runs.get, runs.delete, runs.outcome):
        with pytest.raises(RunNotFound):
            await call(lab.engine, thread, run["run_id"])
    assert await values(lab, thread) == {"log": ["a", "b"]}


# --- idempotency keys


async def test_same_key_and_request_give_the_first_run_again(lab):
    for thread in (await lab.thread(), None):
        key = f"key of {thread}"
        first = await lab.enqueue(thread, {"log": [1]}, idempotency_key=key)
        assert await lab.enqueue(thread, {"log": [1]}, idempotency_key=key) == first
        await lab.work()
        again = await lab.enqueue(thread, {"log": [1]}, idempotency_key=key)
        assert (again["run_id"], again["status"]) == (first["run_id"], "success")
        assert await lab.work() == 0


async def test_same_key_with_another_request_is_refused(lab):
    thread = await lab.thread()
    await lab.enqueue(thread, {"log": [1]}, idempotency_key="key")
    before = await lab.everything()
    others = [(thread, {"log": [2]}), (None, {"log": [1]}), (await lab.thread(), {"log": [1]})]
    for place, given in others[:2]:
        with pytest.raises(IdempotencyMismatch):
            await lab.enqueue(place, given, idempotency_key="key")
    assert len(before["runs"]) == len((await lab.everything())["runs"]) == 1


@pytest.mark.parametrize("stateless", [False, True])
async def test_equal_requests_at_the_same_time_make_one_run(lab, stateless):
    thread = None if stateless else await lab.thread()
    calls = (lab.enqueue(thread, {"log": [1]}, idempotency_key="key") for _ in range(8))
    made = await asyncio.gather(*calls)
    assert len({run["run_id"] for run in made}) == 1
    assert await lab.work() == 1
    assert len(await lab.rows("SELECT 1 FROM threads")) == 1


async def test_key_of_a_refused_request_may_be_used_again(lab):
    with pytest.raises(ThreadNotFound):
        await lab.enqueue(uuid4(), {"log": []}, idempotency_key="key")
    assert await lab.enqueue(await lab.thread(), {"log": []}, idempotency_key="key")


async def test_key_is_kept_for_a_day(lab):
    await lab.enqueue(await lab.thread(), {"log": []}, idempotency_key="key")
    for age, left in (("23 hours", 1), ("25 hours", 0)):
        await lab.execute(
            sql.SQL("UPDATE idempotency_keys SET created_at = now() - interval {}").format(sql.Literal(age))
        )
        async with lab.engine.pool.connection() as conn:
            await idempotency.expire(conn)
        assert len((await lab.everything())["idempotency_keys"]) == left


async def test_answer_to_a_key_outlives_the_thread_of_a_stateless_run(lab):
    first = await lab.enqueue(None, {"log": []}, idempotency_key="key")
    await lab.work()
    await lab.execute("UPDATE threads SET expires_at = expires_at - interval '1 hour'")
    async with lab.connection() as conn:
        await sweeper.expired_threads(conn)
    again = await lab.enqueue(None, {"log": []}, idempotency_key="key")
    assert again["run_id"] == first["run_id"]


# --- stateless runs, deleted threads


async def test_thread_of_a_stateless_run_is_there_for_its_run_and_then_deleted(lab):
    run = await lab.enqueue(None, {"log": []})
    thread = run["thread_id"]
    assert (await threads.get(lab.engine, thread))["status"] == "busy"
    await lab.work()
    with pytest.raises(ThreadNotFound):
        await threads.get(lab.engine, thread)
    assert await threads.search(lab.engine) == ([], 0)
    assert await runs.outcome(lab.engine, thread, run["run_id"]) == {"log": ["a", "b"]}
    row = await lab.thread_row(thread)
    assert (row["expires_at"] - row["updated_at"]).total_seconds() == 10
    async with lab.connection() as conn:
        for left, deleted in (("1 min", 0), ("-1 s", 1)):
            await lab.execute("UPDATE threads SET expires_at = now() + %(left)s::interval", left=left)
            assert await sweeper.expired_threads(conn) == deleted
    assert await left_of(lab, thread) == {}


async def test_thread_of_a_stateless_run_may_be_kept(lab):
    run = await lab.enqueue(None, {"log": []}, on_completion="keep")
    await lab.work()
    assert (await threads.get(lab.engine, run["thread_id"]))["status"] == "idle"
    assert (await lab.thread_row(run["thread_id"]))["expires_at"] is None


async def left_of(lab, thread: Any) -> dict[str, int]:
    """How many rows of which table still name this thread."""
    columns = await lab.rows(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = 'public' AND column_name LIKE '%%thread_id%%'"
    )
    assert len(columns) >= 8
    found = {}
    for row in columns:
        statement = sql.SQL("SELECT count(*) AS n FROM {} WHERE {}::text = {}").format(
            sql.Identifier(row["table_name"]), sql.Identifier(row["column_name"]), sql.Literal(str(thread))
        )
        if count := (await lab.one(statement))["n"]:
            found[row["table_name"]] = count
    return found


async def test_nothing_is_left_of_a_deleted_thread(lab):
    thread = await lab.thread(metadata={"a": 1})
    await lab.enqueue(thread, {"log": []}, assistant="asking", idempotency_key="key")
    await lab.work()
    await lab.enqueue(thread, {"log": []}, assistant="child")
    await lab.work()
    run = await lab.enqueue(thread, {"log": []})
    claimed = await lab.claim_one()
    row = ("scope", "pay", "same", 0, 0, run["run_id"], False, "done", "bytes", b"", None, "[]", None, False)
    await lab.group().submit(Write(thread, claimed.fence, steps=[row]))
    used = await left_of(lab, thread)
    wanted = {"threads", "runs", "run_events", "steps", "interrupts", "idempotency_keys"}
    assert used.keys() >= wanted | {"checkpoints", "checkpoint_blobs", "checkpoint_writes"}
    await threads.delete(lab.engine, thread)
    assert await left_of(lab, thread) == {}
    # and nothing comes back
    with pytest.raises(LeaseLost):
        await lab.group().submit(Write(thread, claimed.fence, steps=[row]))
    attempt = lab.attempt(replace(claimed))
    await lab.play(attempt)
    assert await left_of(lab, thread) == {}
    with pytest.raises(ThreadNotFound):
        await threads.delete(lab.engine, thread)


async def test_outcome_is_the_values_the_question_or_the_error(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"log": []}, assistant="asking")
    await lab.work()
    asked = await runs.outcome(lab.engine, thread, run["run_id"])
    assert asked["log"] == ["a"]
    assert [question["value"] for question in asked["__interrupt__"]] == ["?"]
    run = await lab.enqueue(thread, assistant="asking", command={"resume": "yes"})
    await lab.work()
    assert await runs.outcome(lab.engine, thread, run["run_id"]) == {"log": ["a"], "answer": "yes"}
    run = await lab.enqueue(thread, 7)
    await lab.work()
    failed = await runs.outcome(lab.engine, thread, run["run_id"])
    assert list(failed) == ["__error__"]
    assert (await lab.thread_row(thread))["status"] == "error"
