"""Sub-workflow: the agent hands large claims to another assistant, which asks a person, and pays afterwards.

`agent("human_approval", …)` starts a run of its own: own thread, timeline, question and retries. This run is
suspended meanwhile, a row without a slot or memory, and goes on in the transaction that ends the other. Kill
any worker at any time: the question is asked once, the claim is paid once. Cancelling this run cancels the
question. Each side can be deployed and scaled alone; they meet in the name and in the schema.

Try it:  perdure invoke sub_workflow --detach -i '{"prompt": "Process my hospital bill of 3000USD."}'
         perdure approvals approve TOKEN
"""

from langchain_core.tools import tool

from graphs.claims import Claim
from graphs.models import chat_model
from graphs.prompt import create_prompt_agent
from graphs.tools.payments import transfer
from perdure import DurableModel, agent, step

LIMIT = 1000
"""USD up to which the agent decides alone. The tools hold it, whatever the model says."""


@step
async def pay(claim: Claim) -> str:
    return await transfer(claim["amount"], claim["reason"], idempotency_key=step.idempotency_key())


@tool
async def request_review(claim: Claim) -> str:
    """Have a claim of more than 1000 USD reviewed by the approval department. It is paid when they approve."""
    decision = await agent("human_approval", {"claim": claim})
    if not decision["approved"]:
        return f"Rejected in the review: {decision['reason'] or 'no reason was given'}"
    return f"Approved in the review and paid: {await pay(decision['claim'])}"


@tool
async def pay_small_claim(claim: Claim) -> str:
    """Pay a claim of up to 1000 USD that you find valid."""
    if claim["amount"] > LIMIT:
        return f"Not paid: claims of more than {LIMIT} USD need request_review."
    return f"Paid: {await pay(claim)}"


graph = create_prompt_agent(
    chat_model(),
    tools=[request_review, pay_small_claim],
    system_prompt=(
        "You are an insurance claim evaluation agent. If the amount is more than 1000 USD, have the claim "
        "reviewed using tools. Otherwise decide by yourself and pay what is valid. Say what was decided."
    ),
    middleware=[DurableModel()],
)
