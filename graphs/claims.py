"""An insurance claim, as the claim patterns pass it around: plain JSON, so it may stand in graph state.

`claim_agent` is for agents that get a claim as their whole input and give back {"answer": "…"}.
"""

import json
from typing import Annotated, Any, NotRequired

from langchain_core.messages import HumanMessage
from langgraph.channels import EphemeralValue
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from perdure import TerminalError

Amount = Annotated[float, Field(gt=0, description="Claimed amount in USD")]
Reason = Annotated[str, Field(description="What happened")]
Category = Annotated[str, Field(description="Kind of bill: hospital, dental, …")]
Date = Annotated[str, Field(description="Day of treatment, YYYY-MM-DD")]
PlaceOfService = Annotated[str, Field(description="Who treated the patient, and where")]


class Claim(TypedDict):
    """An insurance claim."""

    amount: Amount
    reason: Reason
    category: NotRequired[Category]
    date: NotRequired[Date]
    placeOfService: NotRequired[PlaceOfService]


class ClaimInput(TypedDict):
    """A claim as the whole input of a graph. Only the first node sees it: the next one on the thread starts anew."""

    amount: Annotated[Amount, EphemeralValue]
    reason: Annotated[Reason, EphemeralValue]
    category: NotRequired[Annotated[Category, EphemeralValue]]
    date: NotRequired[Annotated[Date, EphemeralValue]]
    placeOfService: NotRequired[Annotated[PlaceOfService, EphemeralValue]]


def read_claim(given: ClaimInput) -> Claim:
    """The claim in the input of a graph. Raises TerminalError, which names every field that is wrong."""
    try:
        return TypeAdapter(Claim).validate_python(given)
    except ValidationError as exc:
        wrong = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
        raise TerminalError(f"The claim can't be read: {wrong}") from exc


class Decision(TypedDict):
    """What has become of a claim, in the agent's words."""

    answer: str


class ClaimState(MessagesState):
    answer: NotRequired[str]


def claim_agent(adjuster: CompiledStateGraph[Any, Any, Any, Any]) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A graph that tells a claim to an agent of messages, and gives back the agent's last words."""

    async def intake(state: ClaimInput) -> dict[str, Any]:
        return {"messages": [HumanMessage(f"Decide about this claim: {json.dumps(read_claim(state))}")]}

    async def reply(state: ClaimState) -> Decision:
        return {"answer": state["messages"][-1].text}

    builder = StateGraph(ClaimState, input_schema=ClaimInput, output_schema=Decision)
    builder.add_node(intake)
    builder.add_node("adjuster", adjuster)
    builder.add_node(reply)
    builder.add_edge(START, "intake")
    builder.add_edge("intake", "adjuster")
    builder.add_edge("adjuster", "reply")
    return builder.compile()
