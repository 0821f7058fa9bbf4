from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from graphs.parallel_tools import graph
from perdure.simulator import RunningSimulator
from tests.durable.fakes import FakeJournal
from tests.graphs.claimants import CLAIM, SPECIALISTS, calls, dies, only

CONFIG: Any = {"configurable": {"thread_id": "1"}}


async def test_one_tool_call_makes_three_checks(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    result = await agent.ainvoke(CLAIM, CONFIG)
    assert result["answer"].startswith("Approved: hospital bill for a broken leg, 3000 USD.")
    assert calls(simulator) == {"claim adjuster": 2, **SPECIALISTS}
    messages = (await agent.aget_state(CONFIG)).values["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]


async def test_one_failed_check_rejects_the_claim(simulator: RunningSimulator, served: Any) -> None:
    answer = (await served(graph).ainvoke({**CLAIM, "category": "cosmetic"}, CONFIG))["answer"]
    assert answer.startswith("Rejected:")
    assert "does not cover cosmetic bills" in answer


async def test_checks_start_together(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail(*({"hang": 60, "match": only(specialist)} for specialist in SPECIALISTS))
    await dies(
        agent.ainvoke(CLAIM, journal.config()), lambda: calls(simulator, "left") == SPECIALISTS
    )  # each waits for its answer
    assert journal.named("assess") == []  # none of them had been answered


async def test_only_the_check_that_fails_is_tried_again(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"status": 500, "times": 3, "match": only("fraud")})
    with pytest.raises(Exception, match="500") as failure:
        await agent.ainvoke(CLAIM, journal.config())
    assert getattr(failure.value, "retryable", None) is True  # so the server tries the run again, later
    result = await agent.ainvoke(None, journal.restart().config())
    assert result["answer"].startswith("Approved:")
    assert calls(simulator) == {"claim adjuster": 2, **SPECIALISTS, "fraud": 3 + 1}
    assert len(journal.named("look_up")) == 3


async def test_crash_in_the_middle_keeps_the_finished_checks(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"hang": 60, "match": only("fraud")})
    process = agent.ainvoke(CLAIM, journal.config())
    await dies(process, lambda: len(journal.named("assess")) == 2 and calls(simulator)["fraud"] == 1)
    result = await agent.ainvoke(None, journal.restart().config())
    assert result["answer"].startswith("Approved:")
    assert calls(simulator) == {"claim adjuster": 2, **SPECIALISTS, "fraud": 1 + 1}
