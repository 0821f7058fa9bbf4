"""Parallel agents: three assistants look at a claim at the same time, then one model call decides.

Each specialist is a child run, with its own thread, timeline and retries, on whichever worker has a free slot.
This run is suspended meanwhile: no slot, no memory, a row. Kill any worker: every child is started once, and
one that has finished is not asked again. Cancel this run, and the children are cancelled with it.

Try it:  perdure invoke parallel_agents -i '{"date": "2024-10-01", "category": "orthopedic",
             "reason": "hospital bill for a broken leg", "amount": 3000, "placeOfService": "General Hospital"}'
"""

import json
from typing import Any

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from graphs.claims import Claim, ClaimInput, Decision, read_claim
from graphs.models import chat_model
from graphs.specialists import Finding
from perdure import agent, gather, step

PROMPT = (
    "You decide insurance claims by the findings of specialists. Approve a claim that has passed all checks, or "
    "else reject it. Say why, in one or two sentences."
)


class State(TypedDict):
    claim: Claim
    findings: dict[str, Finding]
    answer: str


async def ask_specialists(state: ClaimInput) -> dict[str, Any]:
    """Executed again from its top when the children have ended; their answers stand in the journal."""
    claim = read_claim(state)
    eligibility, rates, fraud = await gather(
        agent("eligibility", claim), agent("rate_comparison", claim), agent("fraud", claim)
    )
    return {"claim": claim, "findings": {"eligibility": eligibility, "rate_comparison": rates, "fraud": fraud}}


@step
async def decision(claim: Claim, findings: dict[str, Finding]) -> str:
    question = json.dumps({"claim": claim, "findings": findings})
    return (await chat_model().ainvoke([("system", PROMPT), ("human", question)])).text


async def decide(state: State) -> Decision:
    return {"answer": await decision(state["claim"], state["findings"])}


builder = StateGraph(State, input_schema=ClaimInput, output_schema=Decision)
builder.add_node(ask_specialists)
builder.add_node(decide)
builder.add_edge(START, "ask_specialists")
builder.add_edge("ask_specialists", "decide")
graph = builder.compile()
