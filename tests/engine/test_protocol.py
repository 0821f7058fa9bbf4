"""The event log as protocol events: what retries, cancels and large states look like to a subscriber."""

from collections import Counter
from typing import Any
from uuid import uuid4

import orjson
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure.engine import protocol, runs
from perdure.engine.protocol import CHANNELS, Shown, Wanted
from tests.engine.conftest import Lab

CALLS: Counter[str] = Counter()
ALL = Wanted(channels=frozenset(CHANNELS))


class State(TypedDict, total=False):
    key: str
    text: str
    answer: Any


class Flaky(Exception):
    retryable = True


async def flaky(state: State) -> State:
    CALLS[state["key"]] += 1
    if CALLS[state["key"]] < 3:
        raise Flaky("not yet")
    return {"text": "x" * 5000}


async def ask(state: State) -> State:
    return {"answer": interrupt("really?")}


def single(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


GRAPHS = {"flaky": single(flaky), "asks": single(ask)}


async def shown(lab: Lab, run: dict[str, Any], wanted: Wanted = ALL) -> list[Shown]:
    return await protocol.replay(lab.engine, run["thread_id"], wanted)


async def states(lab: Lab, run: dict[str, Any]) -> list[str]:
    events = await shown(lab, run, Wanted(channels=frozenset(["lifecycle"])))
    return [orjson.loads(event.data)["event"] for event in events]


async def tried_again(lab: Lab) -> dict[str, Any]:
    run = await lab.enqueue(await lab.thread(), {"key": uuid4().hex}, assistant="flaky", protocol=True)
    while (await lab.run(run))["status"] == "pending":
        await lab.execute("UPDATE runs SET ready_at = now()")
        await lab.work()
    return run


async def test_a_run_that_is_tried_again_is_running_once(lab: Lab) -> None:
    assert await states(lab, await tried_again(lab)) == ["running", "completed"]


async def test_a_large_state_is_read_from_its_checkpoint(lab: Lab) -> None:
    run = await tried_again(lab)
    values = [event for event in await shown(lab, run) if event.method == "values"]
    assert orjson.loads(values[-1].data)["text"] == "x" * 5000
    rows = [row for row in await lab.events(run) if row["event"] == "values"]
    assert rows[-1]["data"] is None
    event = orjson.loads(values[-1].json())
    assert event["event_id"] == f"{run['thread_id']}:{values[-1].seq}"
    assert event["params"]["namespace"] == []


async def test_a_cancelled_run_is_interrupted(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"key": "x"}, assistant="flaky", protocol=True)
    await runs.cancel(lab.engine, run["thread_id"], run["run_id"])
    assert await states(lab, run) == ["interrupted"]


async def test_a_paused_run_has_failed_and_runs_again_when_it_is_resumed(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"key": "paused"}, assistant="flaky", protocol=True)
    await lab.execute("UPDATE runs SET failures = 1000")
    await lab.work()
    assert await states(lab, run) == ["running", "failed"]
    await lab.execute("UPDATE runs SET status = 'pending', ready_at = now(), failures = 0")
    CALLS["paused"] = 5
    await lab.work()
    assert await states(lab, run) == ["running", "failed", "running", "completed"]


async def test_the_state_of_a_run_that_streams_other_modes_is_read_when_somebody_asks(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"text": "x" * 5000}, assistant="asks", stream_mode=["updates"])
    await lab.work()
    last = (await shown(lab, run))[-1]
    assert (last.method, orjson.loads(last.data)) == ("values", {"text": "x" * 5000})
    row = (await lab.events(run))[-1]
    assert (row["event"], row["data"]) == ("protocol/values", None)


async def test_an_answer_given_by_the_protocol_goes_to_the_assistant_that_asked(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {}, assistant="asks")
    await lab.work()
    [question] = [event for event in await shown(lab, run) if event.method == "input.requested"]
    answers = {orjson.loads(question.data)["interrupt_id"]: "yes"}
    answer, seq = await protocol.respond(
        lab.engine, run["thread_id"], answers, command={}, config={}, metadata={"m": 1}
    )
    await lab.work()
    assert (answer["assistant_id"], answer["metadata"]["m"]) == (run["assistant_id"], 1)
    later = await protocol.replay(lab.engine, run["thread_id"], ALL, since=seq)
    assert orjson.loads([e for e in later if e.method == "values"][-1].data)["answer"] == "yes"
    assert await states(lab, run) == ["running", "interrupted", "running", "completed"]
