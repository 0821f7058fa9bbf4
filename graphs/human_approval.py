"""A person's decision about a claim, as an assistant of its own that others call.

It asks, waits for as long as it takes, and gives the decision back; who pays is the caller's affair
(`sub_workflow.py`). Nobody waits in memory: the question is a row, and so is the caller's wait. When the
question is rejected the run succeeds, with `approved` false.

Try it:  perdure invoke human_approval --detach -i '{"claim": {"amount": 3000, "reason": "a broken leg"}}'
         perdure approvals approve TOKEN
"""

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from graphs.claims import Claim, read_claim
from perdure import approval


class Question(TypedDict):
    claim: Claim


class Decision(TypedDict):
    """`claim` is the one that was decided: the person may have corrected it."""

    approved: bool
    reason: str
    claim: Claim


class Review(Question, Decision, total=False): ...


async def ask(state: Question) -> Decision:
    """Runs again from its top when the answer comes; nothing here costs anything or has an effect."""
    claim = read_claim(state.get("claim", {}))
    answer = await approval(
        f"Approve this claim of {claim['amount']:g} USD for {claim['reason']}?",
        action={"name": "pay", "args": dict(claim)},
    )
    decided = Claim(**{**claim, **(answer.edited_args or {})})
    return {"approved": answer.approved, "reason": answer.reason or "", "claim": decided}


builder = StateGraph(Review, input_schema=Question, output_schema=Decision)
builder.add_node(ask)
builder.add_edge(START, "ask")
graph = builder.compile()
