"""Approval with a deadline: a person decides claims above 1000 USD, within three hours.

The deadline is a row beside the question: restart the server while it waits, and the remaining time is kept.
When nobody answers in time the question is closed, a late answer is refused, and the agent goes on by
itself with "approval timed out, evaluate with AI". `within_seconds` in the request sets another deadline.

Try it:  perdure invoke approval_with_timeout --detach -i '{"prompt": "Process my hospital bill of 3000USD."}'
         perdure approvals approve TOKEN
         perdure invoke approval_with_timeout -i '{"prompt": "Pay my hospital bill of 3000USD.", "within_seconds": 5}'
"""

from datetime import timedelta
from typing import Any, NotRequired

from langchain.agents import AgentState
from langchain.agents.middleware import after_agent
from langchain.tools import ToolRuntime
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langgraph.runtime import Runtime

from graphs.claims import Claim
from graphs.models import chat_model
from graphs.prompt import Input, create_prompt_agent
from graphs.tools.payments import transfer
from perdure import ApprovalTimeout, DurableModel, approval, step

LIMIT = 1000
"""USD up to which the agent decides alone. The tools hold it, whatever the model says."""
WITHIN = timedelta(hours=3)
TIMED_OUT = "Approval timed out, evaluate with AI."


class Request(Input):
    """A claim in words, and how long a person may take to decide it: three hours unless the request says so."""

    within_seconds: NotRequired[float]


class Deadline(AgentState[Any]):
    within_seconds: NotRequired[float | None]


@step
async def pay(claim: Claim) -> str:
    return await transfer(claim["amount"], claim["reason"], idempotency_key=step.idempotency_key())


@tool
async def human_approval(claim: Claim, runtime: ToolRuntime[None, Deadline]) -> str:
    """Ask a person to decide a claim of more than 1000 USD. It is paid when they approve."""
    question = f"Approve this claim of {claim['amount']:g} USD for {claim['reason']}?"
    asked = runtime.state.get("within_seconds")
    within = WITHIN if asked is None else timedelta(seconds=asked)
    try:
        answer = await approval(question, within=within, action={"name": "pay", "args": dict(claim)})
    except ApprovalTimeout:
        return TIMED_OUT
    if not answer.approved:
        return f"Rejected by a person: {answer.reason or 'no reason was given'}"
    claim = Claim(**{**claim, **(answer.edited_args or {})})  # the person may have corrected it
    return f"Approved by a person and paid: {await pay(claim)}"


@tool
async def pay_claim(claim: Claim, runtime: ToolRuntime[None, Deadline]) -> str:
    """Pay a valid claim of up to 1000 USD, or exactly the one for which the approval has timed out."""
    if claim["amount"] > LIMIT and not timed_out(claim, runtime.state["messages"]):
        return f"Not paid: claims of more than {LIMIT} USD need human_approval."
    return f"Paid: {await pay(claim)}"


def timed_out(claim: Claim, messages: list[AnyMessage]) -> bool:
    """Whether a person was asked about this very claim, in this request, and did not answer in time."""
    request = max(n for n, message in enumerate(messages) if message.type == "human")
    calls = {call["id"]: call["args"] for message in messages if message.type == "ai" for call in message.tool_calls}
    answers = [message for message in messages[request:] if message.type == "tool" and message.text == TIMED_OUT]
    return any(calls.get(answer.tool_call_id, {}).get("claim") == claim for answer in answers)


@after_agent(state_schema=Deadline)
async def forget_deadline(state: Deadline, runtime: Runtime[Any]) -> dict[str, Any]:
    return {"within_seconds": None}  # the next request of a session gets three hours again


graph = create_prompt_agent(
    chat_model(),
    tools=[human_approval, pay_claim],
    system_prompt=(
        "You are an insurance claim evaluation agent. If the amount is more than 1000 USD, ask for human "
        "approval using tools. If the approval timed out, evaluate the claim yourself: pay it with the same "
        "data if it is plausible. Smaller claims decide by yourself. Say what was decided, and by whom."
    ),
    middleware=[forget_deadline, DurableModel()],
    input_schema=Request,
)
