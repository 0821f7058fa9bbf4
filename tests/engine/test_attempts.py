"""What is told of a run's attempts and nodes: from its events and checkpoints, as long as it is there."""

import operator
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from perdure.engine import interrupts, sweeper
from perdure.engine.views import questions, rundetail
from tests.engine.conftest import Lab
from tests.engine.test_sweeper import registered


class State(TypedDict, total=False):
    text: str
    log: Annotated[list[str], operator.add]


def three() -> Any:
    """split, two tasks of `part` at the same time, then a question."""
    builder = StateGraph(State)
    builder.add_node("split", lambda state: {"log": ["split"]})
    builder.add_node("part", lambda state: {"log": ["part"]})
    builder.add_node("ask", lambda state: {"log": [interrupt("Go on?")]})
    builder.add_edge(START, "split")
    builder.add_conditional_edges("split", lambda _: [Send("part", {}), Send("part", {})], ["part"])
    builder.add_edge("part", "ask")
    builder.add_edge("ask", END)
    return builder.compile()


def failing() -> Any:
    def fail(state: State) -> State:
        raise ValueError("no")

    return StateGraph(State).add_node("fail", fail).add_edge(START, "fail").compile()


GRAPHS = {"default": three(), "failing": failing()}


async def story(lab: Lab, run: dict[str, Any]) -> dict[str, Any]:
    found = await rundetail.describe(lab.engine, run["thread_id"], run["run_id"])
    return await rundetail.story(lab.engine, found, limit=100, offset=0)


async def test_a_lost_worker_and_who_took_over_are_told_also_when_the_events_have_gone(lab: Lab) -> None:
    _, _, (run,) = await registered(lab, 1)
    async with lab.connection() as conn:
        await sweeper.dead_workers(lab.engine, conn, lab.worker_id)
    assert await lab.work() == 1
    for _ in range(2):
        found = (await story(lab, run))["attempts"]
        assert [(one["attempt"], one["ended"], one["recovers"]) for one in found] == [
            (1, "lost", False),
            (2, "question", True),
        ]
        assert found[0]["ended_at"] <= found[1]["started_at"] < found[1]["ended_at"]
        await lab.execute("UPDATE purges SET purge_at = now() - interval '1 s'")
        async with lab.connection() as conn:
            await sweeper.retention(conn)
    assert {row["event"] for row in await lab.events(run)} == {"lifecycle", "input.requested"}


async def test_of_a_run_with_one_attempt_no_event_stays_and_its_row_tells(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"text": ""}, assistant="failing")
    await lab.work()
    await lab.execute("UPDATE purges SET purge_at = now() - interval '1 s'")
    async with lab.connection() as conn:
        await sweeper.retention(conn)
    assert await lab.events(run) == []
    (only,) = (await story(lab, run))["attempts"]
    assert (only["attempt"], only["ended"], only["error"]) == (1, "error", "no")


async def test_nodes_are_told_from_checkpoints_with_their_number_and_end(lab: Lab) -> None:
    thread = await lab.thread()
    first = await lab.enqueue(thread, {"text": ""})
    await lab.work()
    nodes = (await story(lab, first))["nodes"]
    assert [(one["node"], one["count"], one["ended"]) for one in nodes] == [
        ("split", 1, "done"),
        ("part", 2, "done"),
        ("ask", 1, "question"),
    ]
    (question,) = await questions.search(lab.engine, status="open", thread_id=thread)
    second = await interrupts.resolve(lab.engine, question["token"], "yes")
    waiting = (await story(lab, second))["nodes"]
    assert waiting == []  # it has not started
    await lab.work()
    nodes = (await story(lab, second))["nodes"]
    assert [(one["node"], one["count"], one["ended"]) for one in nodes] == [("ask", 1, "done")]
    row = await lab.run(second)
    assert row["started_at"] <= nodes[0]["started_at"] <= nodes[0]["ended_at"]


async def test_the_node_that_failed_is_told(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"text": ""}, assistant="failing")
    await lab.work()
    (node,) = (await story(lab, run))["nodes"]
    assert (node["node"], node["ended"]) == ("fail", "error")
    assert node["ended_at"] is not None
