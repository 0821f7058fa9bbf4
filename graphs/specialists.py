"""Insurance specialists for eligibility, rate comparison and fraud: small agents, which several patterns share.

Each looks into the insurer's books, then the model judges the claim by what stands there. Both are steps: a
model that fails is asked again without looking things up again, and what is finished survives a crash. A
specialist runs in three ways and need not know in which: called by itself, as a subgraph in another agent's
tool (graphs/multi_agent.py), or as a child run of another assistant (graphs/parallel_agents.py).

Try it:  perdure invoke fraud -i '{"date": "2024-03-14", "category": "dental", "reason": "two fillings",
             "amount": 240, "placeOfService": "Smile Dental Clinic"}'
"""

import json
from typing import Annotated, Any, cast

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from graphs.claims import Claim, ClaimInput, read_claim
from graphs.models import chat_model
from graphs.tools.insurance import BOOKS
from perdure import step

INSTRUCTIONS = {
    "eligibility": (
        "You are an insurance eligibility specialist. Check whether the policy was valid on the day of treatment "
        "and covers this category of bills."
    ),
    "rate_comparison": (
        "You are an insurance rate comparison specialist. Compare the claimed amount with the usual price. "
        "A claim passes unless it is clearly above what is usual."
    ),
    "fraud": (
        "You are an insurance fraud specialist. Compare the claim with those that were paid before. "
        "A claim passes unless it was paid already or is made up."
    ),
}


class Finding(TypedDict):
    """What a specialist has found."""

    passed: Annotated[bool, ..., "Whether the claim may be paid, as far as you can tell"]
    answer: Annotated[str, ..., "Why, in one sentence"]


class State(TypedDict):
    claim: Claim
    books: dict[str, Any]
    passed: bool
    answer: str


@step
async def look_up(specialist: str, claim: Claim) -> dict[str, Any]:
    """What the insurer's books say that matters to this specialist."""
    return await BOOKS[specialist](claim)


@step
async def assess(specialist: str, claim: Claim, books: dict[str, Any]) -> Finding:
    """What the specialist makes of it: one call of the model."""
    model = chat_model().with_structured_output(Finding)
    question = json.dumps({"claim": claim, **books})
    return cast("Finding", await model.ainvoke([("system", INSTRUCTIONS[specialist]), ("human", question)]))


def specialist(name: str) -> CompiledStateGraph[Any, Any, Any, Any]:
    async def research(state: ClaimInput) -> dict[str, Any]:
        claim = read_claim(state)
        return {"claim": claim, "books": await look_up(name, claim)}

    async def judge(state: State) -> Finding:
        return await assess(name, state["claim"], state["books"])

    builder = StateGraph(State, input_schema=ClaimInput, output_schema=Finding)
    builder.add_node(research)
    builder.add_node(judge)
    builder.add_edge(START, "research")
    builder.add_edge("research", "judge")
    return builder.compile(name=name)


eligibility = specialist("eligibility")
rate_comparison = specialist("rate_comparison")
fraud = specialist("fraud")
