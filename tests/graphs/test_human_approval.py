from typing import Any

import pytest
from langgraph.types import Command

from graphs.human_approval import graph
from perdure import TerminalError

CONFIG: Any = {"configurable": {"thread_id": "1"}}
CLAIM = {"amount": 3000, "reason": "a broken leg"}


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (True, {"approved": True, "reason": "", "claim": CLAIM}),
        ({"approved": False, "reason": "no receipt"}, {"approved": False, "reason": "no receipt", "claim": CLAIM}),
        (
            {"decisions": [{"type": "edit", "edited_action": {"name": "pay", "args": {"amount": 2500}}}]},
            {"approved": True, "reason": "", "claim": {**CLAIM, "amount": 2500}},
        ),
    ],
)
async def test_decision_is_given_back(served: Any, answer: Any, decision: Any) -> None:
    assistant = served(graph)
    await assistant.ainvoke({"claim": CLAIM}, CONFIG)
    [question] = (await assistant.aget_state(CONFIG)).interrupts
    assert question.value["question"] == "Approve this claim of 3000 USD for a broken leg?"
    assert question.value["action_requests"][0]["args"] == CLAIM
    assert await assistant.ainvoke(Command(resume=answer), CONFIG) == decision


@pytest.mark.parametrize(
    ("given", "wrong"), [({}, "amount: Field required"), ({"claim": {"amount": -1}}, "amount: Input")]
)
async def test_wrong_claim_is_refused_by_name(served: Any, given: Any, wrong: str) -> None:
    with pytest.raises(TerminalError, match=wrong):
        await served(graph).ainvoke(given, CONFIG)
