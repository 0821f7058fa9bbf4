"""Hand-off: a claim moves from desk to desk, and whoever has it decides it or hands it on with `Command(goto=…)`.

Nobody stands above the desks: each specialist looks at the claim, and then the model either calls a hand-off
tool or says the last word. The claim visits each desk once, which bounds the way. Kill the server on the way:
the claim lies on the desk that it had reached, with the findings of those before.

Try it:  perdure invoke hand_off -i '{"date": "2024-10-01", "category": "orthopedic",
             "reason": "hospital bill for a broken leg", "amount": 3000, "placeOfService": "General Hospital"}'
"""

import json
from typing import Any, Literal, cast

from langgraph.graph import START, StateGraph
from langgraph.types import Command
from typing_extensions import TypedDict

from graphs import specialists
from graphs.claims import Claim, ClaimInput, Decision, read_claim
from graphs.models import chat_model
from graphs.specialists import Finding
from perdure import step

PROMPT = (
    "You handle an insurance claim together with other desks. If a check has failed, reject the claim at once. If "
    "the claim needs another check, hand it off. Otherwise approve it. Say why, in one or two sentences."
)
DESKS = {
    "eligibility": "Checks whether the policy covers the claim. Every claim must pass here first.",
    "rate_comparison": "Checks whether the amount is usual. For claims of 500 USD or more.",
    "fraud": "Checks whether the claim is honest. For claims of 200 USD or more.",
}
Desk = Literal["eligibility", "rate_comparison", "fraud", "__end__"]


class State(TypedDict):
    claim: Claim
    findings: dict[str, Finding]
    answer: str


class Turn(TypedDict):
    """Where the claim goes next; at the end, the decision."""

    desk: Desk
    answer: str


@step
async def hand_on(claim: Claim, findings: dict[str, Finding]) -> Turn:
    """Let the model hand the claim to a desk that has not seen it, or decide it."""
    nothing = {"type": "object", "properties": {}}
    tools = [
        {"type": "function", "function": {"name": f"hand_off_to_{name}", "description": task, "parameters": nothing}}
        for name, task in DESKS.items()
        if name not in findings
    ]
    model = chat_model().bind_tools(tools) if tools else chat_model()
    said = await model.ainvoke([("system", PROMPT), ("human", json.dumps({"claim": claim, "findings": findings}))])
    for call in said.tool_calls:
        desk = call["name"].removeprefix("hand_off_to_")
        if desk not in DESKS or desk in findings:
            raise ValueError(f"The model hands off by '{call['name']}', which it was not offered")  # it is asked again
        return {"desk": cast("Desk", desk), "answer": ""}
    return {"desk": "__end__", "answer": said.text}


async def intake(state: ClaimInput) -> Command[Desk]:
    claim = read_claim(state)
    turn = await hand_on(claim, {})
    return Command(goto=turn["desk"], update={"claim": claim, "findings": {}, "answer": turn["answer"]})


def desk(name: str) -> Any:
    async def take(state: State) -> Command[Desk]:
        finding = await getattr(specialists, name).ainvoke(state["claim"])  # a subgraph, with its own steps
        findings = {**state["findings"], name: finding}
        turn = await hand_on(state["claim"], findings)
        return Command(goto=turn["desk"], update={"findings": findings, "answer": turn["answer"]})

    return take


builder = StateGraph(State, input_schema=ClaimInput, output_schema=Decision)
builder.add_node(intake)
for name in DESKS:
    builder.add_node(name, desk(name))
builder.add_edge(START, "intake")
graph = builder.compile()
