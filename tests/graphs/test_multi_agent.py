from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from graphs.multi_agent import graph
from perdure.simulator import RunningSimulator
from tests.durable.fakes import FakeJournal
from tests.graphs.claimants import CLAIM, SPECIALISTS, calls, dies, only

CONFIG: Any = {"configurable": {"thread_id": "1"}}


async def test_model_asks_the_specialists_that_the_claim_needs(simulator: RunningSimulator, served: Any) -> None:
    result = await served(graph).ainvoke(CLAIM, CONFIG)
    assert result.keys() == {"answer"}
    assert result["answer"].startswith("Approved: hospital bill for a broken leg, 3000 USD.")
    assert calls(simulator) == {"claim adjuster": 2, **SPECIALISTS}


async def test_small_claim_needs_fewer_specialists(simulator: RunningSimulator, served: Any) -> None:
    small = {**CLAIM, "category": "dental", "amount": 80}
    assert (await served(graph).ainvoke(small, CONFIG))["answer"].startswith("Approved:")
    assert calls(simulator) == {"claim adjuster": 2, "eligibility": 1}


async def test_one_failed_check_rejects_the_claim(simulator: RunningSimulator, served: Any) -> None:
    answer = (await served(graph).ainvoke({**CLAIM, "amount": 30_000}, CONFIG))["answer"]
    assert answer.startswith("Rejected:")
    assert "30000 USD is far above" in answer


async def test_each_specialist_is_a_subgraph_below_its_tool_call(simulator: RunningSimulator, served: Any) -> None:
    below: dict[tuple[str, ...], list[str]] = {}
    async for namespace, update in served(graph).astream(CLAIM, CONFIG, stream_mode="updates", subgraphs=True):
        below.setdefault(namespace, []).extend(update)
    specialists = [nodes for namespace, nodes in below.items() if len(namespace) == 2]
    assert specialists == [["look_up", "research", "assess", "judge"]] * 3
    places = [namespace for namespace in below if len(namespace) == 2]
    assert {tuple(part.split(":")[0] for part in place) for place in places} == {("adjuster", "tools")}


async def test_crash_while_one_specialist_thinks_keeps_what_the_others_have_found(
    simulator: RunningSimulator,
) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"hang": 60, "match": only("fraud")})
    process = agent.ainvoke(CLAIM, journal.config())
    await dies(process, lambda: len(journal.named("assess")) == 2 and calls(simulator)["fraud"] == 1)
    result = await agent.ainvoke(None, journal.restart().config())
    assert result["answer"].startswith("Approved:")
    assert calls(simulator) == {"claim adjuster": 2, **SPECIALISTS, "fraud": 2}  # one was cut off
    assert len(journal.named("look_up")) == 3
    # Its steps stand in the journal below adjuster, tool call and node
    scopes = [scope for scope, name in journal.rows if name == "assess"]
    assert {tuple(part.split(":")[0] for part in scope.split("|")) for scope in scopes} == {
        ("adjuster", "tools", "judge")
    }
