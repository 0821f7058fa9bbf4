"""One agent and its tools: a large claim goes to a person, a small one is paid."""

import re
from typing import Any

from perdure.simulator import ChatRequest, Reply, ToolCall

KINDS = ("hospital", "dental", "pharmacy")


def approval_with_timeout(request: ChatRequest) -> Reply | None:
    """graphs/approval_with_timeout.py: as `approval`, but pays what nobody has decided in time."""
    if not request.offers("human_approval", "pay_claim") or "timed out" not in request.system:
        return None
    if request.tool_results and "timed out" in request.tool_results[-1].content:
        return Reply(tool_calls=[ToolCall("pay_claim", request.tool_results[-1].args)])
    return approval(request)


def approval(request: ChatRequest) -> Reply | None:
    """graphs/approval.py: a claim above 1000 USD goes to a person, a smaller one is paid."""
    if not request.offers("human_approval"):
        return None
    return _decided(request, "human_approval", "pay_claim")


def sub_workflow(request: ChatRequest) -> Reply | None:
    """graphs/sub_workflow.py: a claim above 1000 USD is reviewed, a smaller one is paid."""
    if not request.offers("request_review", "pay_small_claim"):
        return None
    return _decided(request, "request_review", "pay_small_claim")


def _decided(request: ChatRequest, ask: str, pay: str) -> Reply:
    if request.tool_results:
        return Reply(text=f"Your claim has been decided. {request.tool_results[-1].content}")
    claim = _claim(request.prompt)
    if claim is None:
        return Reply(text="Which amount do you claim, and what for?")
    tool = ask if claim["amount"] > 1000 or not request.offers(pay) else pay
    return Reply(tool_calls=[ToolCall(tool, {"claim": claim})])


def _claim(prompt: str) -> dict[str, Any] | None:
    """The claim that a prompt describes, None without an amount."""
    amount = re.search(r"\d[\d,]*(?:\.\d+)?", prompt)
    if not amount:
        return None
    reason = re.search(r"\bfor (?:a |an |the )?([^.?!]+)", prompt)
    return {
        "amount": float(amount[0].replace(",", "")),
        "reason": reason[1].strip() if reason else prompt,
        "category": next((kind for kind in KINDS if kind in prompt.lower()), "other"),
    }


rules = [approval_with_timeout, approval, sub_workflow]
