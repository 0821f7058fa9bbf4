"""Parallel work inside of a tool: one tool call fans out into three checks with `Send`.

They start together and each is a task of its own. One that fails is tried again alone, later and with what it
had looked up; the others keep their findings, over a crash too. The model sees one tool with one result.

Try it:  perdure invoke parallel_tools -i '{"date": "2024-10-01", "category": "orthopedic",
             "reason": "hospital bill for a broken leg", "amount": 3000, "placeOfService": "General Hospital"}'
"""

import json
import operator
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.types import Send
from typing_extensions import TypedDict

from graphs.claims import Claim, claim_agent
from graphs.models import chat_model
from graphs.specialists import Finding, assess, look_up
from perdure import DurableModel

CHECKS = {"eligibility": "eligibility", "cost": "rate_comparison", "fraud": "fraud"}
"""Each check, and the specialist who makes it."""


class Checks(TypedDict):
    claim: Claim
    findings: Annotated[dict[str, Finding], operator.or_]


def check(name: str) -> Any:
    async def run(state: Claim) -> dict[str, Any]:
        books = await look_up(CHECKS[name], state)
        return {"findings": {name: await assess(CHECKS[name], state, books)}}

    return run


def all_checks(state: Checks) -> list[Send]:
    return [Send(name, state["claim"]) for name in CHECKS]


fan_out = StateGraph(Checks)
for name in CHECKS:
    fan_out.add_node(name, check(name))
fan_out.add_conditional_edges(START, all_checks, list(CHECKS))
checks = fan_out.compile(name="checks")


@tool
async def check_claim(claim: Claim) -> str:
    """Check a claim in every way: eligibility, cost and fraud."""
    done = await checks.ainvoke({"claim": claim, "findings": {}})
    return json.dumps({name: done["findings"][name] for name in CHECKS})


adjuster = create_agent(
    chat_model(),
    tools=[check_claim],
    system_prompt=(
        "You are an insurance claim adjuster. Have each claim checked with your tool. Then approve it if it has "
        "passed all checks, or else reject it. Say why."
    ),
    middleware=[DurableModel(max_calls=10)],
    name="adjuster",
)

graph = claim_agent(adjuster)
