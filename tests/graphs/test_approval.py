from pathlib import Path
from typing import Any

import orjson
import pytest
from langgraph.types import Command

from graphs.approval import graph, pay_claim
from perdure.simulator import RunningSimulator

CONFIG: Any = {"configurable": {"thread_id": "1"}}
LARGE = {"prompt": "Process my hospital bill of 3000USD for a broken leg."}


@pytest.fixture
def paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The amounts that the payment service was asked to pay, so far."""
    ledger = tmp_path / "ledger.jsonl"
    ledger.touch()
    monkeypatch.setenv("PAYMENTS_LEDGER", str(ledger))
    return lambda: [orjson.loads(line)["amount"] for line in ledger.read_bytes().splitlines()]


async def test_large_claim_waits_for_a_person_below_the_tool_call(
    simulator: RunningSimulator, served: Any, paid: Any
) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    state = await agent.aget_state(CONFIG)
    [question] = state.interrupts
    assert question.value["question"] == "Approve this claim of 3000 USD for broken leg?"
    assert question.value["action_requests"][0]["name"] == "pay"
    assert state.values["messages"][-1].tool_calls[0]["name"] == "human_approval"
    assert len(simulator.requests) == 1
    assert paid() == []


@pytest.mark.parametrize("answer", [True, {"decisions": [{"type": "approve"}]}])
async def test_approved_claim_is_paid_once(simulator: RunningSimulator, served: Any, paid: Any, answer: Any) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    result = await agent.ainvoke(Command(resume=answer), CONFIG)
    assert "Approved by a person and paid: receipt-" in result["answer"]
    assert paid() == [3000]
    assert len(simulator.requests) == 2
    messages = (await agent.aget_state(CONFIG)).values["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]


async def test_rejected_claim_is_not_paid(simulator: RunningSimulator, served: Any, paid: Any) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    result = await agent.ainvoke(Command(resume={"approved": False, "reason": "no receipt"}), CONFIG)
    assert "Rejected by a person: no receipt" in result["answer"]
    assert paid() == []


async def test_person_may_correct_the_claim(simulator: RunningSimulator, served: Any, paid: Any) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    edit = {"type": "edit", "edited_action": {"name": "pay", "args": {"amount": 2500}}}
    await agent.ainvoke(Command(resume={"decisions": [edit]}), CONFIG)
    assert paid() == [2500]


async def test_small_claim_is_decided_by_the_agent(simulator: RunningSimulator, served: Any, paid: Any) -> None:
    result = await served(graph).ainvoke({"prompt": "Process my dental bill of 300USD."}, CONFIG)
    assert "Paid: receipt-" in result["answer"]
    assert paid() == [300]


async def test_crash_after_the_payment_does_not_pay_again(simulator: RunningSimulator, served: Any, paid: Any) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    simulator.fail({"status": 500, "times": 3})
    with pytest.raises(Exception, match="500"):
        await agent.ainvoke(Command(resume=True), CONFIG)
    result = await agent.ainvoke(None, CONFIG)
    assert "Approved by a person and paid" in result["answer"]
    assert paid() == [3000]


async def test_tool_holds_the_limit_whatever_the_model_says(paid: Any) -> None:
    claim = {"amount": 3000, "reason": "broken leg"}
    assert "need human_approval" in await pay_claim.ainvoke({"claim": claim})
    assert paid() == []
