"""Multi-agent: an adjuster decides a claim, and the model picks the specialists that it wants to hear first.

Each specialist is an agent of its own behind a tool: a subgraph with its own steps, which stand below the tool
call in the timeline. Those that the model asks for at once work in parallel. Kill the server while one of them
thinks: the others have answered, and neither they nor the adjuster's model are called again.

Try it:  perdure invoke multi_agent -i '{"date": "2024-10-01", "category": "orthopedic",
             "reason": "hospital bill for a broken leg", "amount": 3000, "placeOfService": "General Hospital"}'
"""

import json

from langchain.agents import create_agent
from langchain_core.tools import tool

from graphs import specialists
from graphs.claims import Claim, claim_agent
from graphs.models import chat_model
from perdure import DurableModel


@tool
async def check_eligibility(claim: Claim) -> str:
    """Ask the eligibility specialist whether the policy covers a claim. Every claim needs this."""
    return json.dumps(await specialists.eligibility.ainvoke(claim))


@tool
async def compare_rates(claim: Claim) -> str:
    """Ask the rate comparison specialist whether a claim is as high as usual. For claims of 500 USD or more."""
    return json.dumps(await specialists.rate_comparison.ainvoke(claim))


@tool
async def check_fraud(claim: Claim) -> str:
    """Ask the fraud specialist whether a claim is honest. For claims of 200 USD or more."""
    return json.dumps(await specialists.fraud.ainvoke(claim))


adjuster = create_agent(
    chat_model(),
    tools=[check_eligibility, compare_rates, check_fraud],
    system_prompt=(
        "You are an insurance claim adjuster. Ask the specialists whom a claim needs, all at once, with the whole "
        "claim. Then approve it if it has passed all of their checks, or else reject it. Say why."
    ),
    middleware=[DurableModel(max_calls=10)],
    name="adjuster",
)

graph = claim_agent(adjuster)
