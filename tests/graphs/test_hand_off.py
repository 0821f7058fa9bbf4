from typing import Any

from langgraph.checkpoint.memory import InMemorySaver

from graphs.hand_off import graph
from perdure.simulator import ChatRequest, Reply, RunningSimulator, ToolCall
from tests.durable.fakes import FakeJournal
from tests.graphs.claimants import CLAIM, calls, dies, only

CONFIG: Any = {"configurable": {"thread_id": "1"}}


async def desks(agent: Any, claim: Any, config: Any = CONFIG) -> tuple[list[str], str]:
    """The way of the claim, and the last words."""
    way: list[str] = []
    async for update in agent.astream(claim, config, stream_mode="updates"):
        way += [node for node in update if node in graph.nodes]
    return way, (await agent.aget_state(config)).values["answer"]


async def test_claim_is_handed_from_desk_to_desk(simulator: RunningSimulator, served: Any) -> None:
    way, answer = await desks(served(graph), CLAIM)
    assert way == ["intake", "eligibility", "rate_comparison", "fraud"]
    assert answer.startswith("Approved: hospital bill")
    offered = [entry.tools for entry in simulator.requests if "together" in entry.messages[0]["content"]]
    assert [len(tools) for tools in offered] == [3, 2, 1, 0]  # no desk sees it twice


async def test_whoever_has_the_claim_may_decide_it(simulator: RunningSimulator, served: Any) -> None:
    way, answer = await desks(served(graph), {**CLAIM, "category": "cosmetic"})
    assert way == ["intake", "eligibility"]
    assert answer.startswith("Rejected:")
    assert len(simulator.requests) == 3


async def test_next_claim_of_a_session_begins_at_the_intake(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    await desks(agent, {**CLAIM, "category": "cosmetic"})
    way, answer = await desks(agent, CLAIM)
    assert way == ["intake", "eligibility", "rate_comparison", "fraud"]
    assert answer.startswith("Approved:")


async def test_hand_off_that_was_not_offered_is_asked_again(simulator: RunningSimulator, served: Any) -> None:
    mistakes = ["the_moon", "eligibility"]  # which has seen the claim

    def mistaken(request: ChatRequest) -> Reply | None:
        if mistakes and request.offers("hand_off_to_fraud") and not request.offers("hand_off_to_eligibility"):
            return Reply(tool_calls=[ToolCall(f"hand_off_to_{mistakes.pop()}")])
        return None

    simulator.simulator.rules.insert(0, mistaken)
    way, _ = await desks(served(graph), CLAIM)
    assert way == ["intake", "eligibility", "rate_comparison", "fraud"]
    assert mistakes == []
    assert len(simulator.requests) == 7 + 2


async def test_crash_on_the_way_leaves_the_claim_on_its_desk(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"hang": 60, "match": only("rate comparison")})
    await dies(agent.ainvoke(CLAIM, journal.config()), lambda: calls(simulator)["rate comparison"] == 1)
    way, answer = await desks(agent, None, journal.restart().config())
    assert way == ["rate_comparison", "fraud"]
    assert answer.startswith("Approved:")
    assert len(simulator.requests) == 7 + 1
    assert len(journal.named("hand_on")) == 4
