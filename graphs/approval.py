"""Human approval: an agent decides small claims by itself, a person decides those above 1000 USD.

The question waits as a row in the database, for weeks if need be, and holds no memory and no worker. It
shows in the inbox and in the log with an unguessable token; whoever has the token answers it, once. The
server may be restarted while it waits. A claim is paid by a step: after a crash it is not paid again.

Try it:  perdure invoke approval --detach -i '{"prompt": "Process my hospital bill of 3000USD."}'
         perdure approvals list
         perdure approvals approve TOKEN
"""

from langchain_core.tools import tool

from graphs.claims import Claim
from graphs.models import chat_model
from graphs.prompt import create_prompt_agent
from graphs.tools.payments import transfer
from perdure import DurableModel, approval, step

LIMIT = 1000
"""USD up to which the agent decides alone. The tools hold it, whatever the model says."""


@step
async def pay(claim: Claim) -> str:
    return await transfer(claim["amount"], claim["reason"], idempotency_key=step.idempotency_key())


@tool
async def human_approval(claim: Claim) -> str:
    """Ask a person to decide a claim of more than 1000 USD. It is paid when they approve."""
    answer = await approval(
        f"Approve this claim of {claim['amount']:g} USD for {claim['reason']}?",
        action={"name": "pay", "args": dict(claim)},
    )
    if not answer.approved:
        return f"Rejected by a person: {answer.reason or 'no reason was given'}"
    claim = Claim(**{**claim, **(answer.edited_args or {})})  # the person may have corrected it
    return f"Approved by a person and paid: {await pay(claim)}"


@tool
async def pay_claim(claim: Claim) -> str:
    """Pay a claim of up to 1000 USD that you find valid."""
    if claim["amount"] > LIMIT:
        return f"Not paid: claims of more than {LIMIT} USD need human_approval."
    return f"Paid: {await pay(claim)}"


graph = create_prompt_agent(
    chat_model(),
    tools=[human_approval, pay_claim],
    system_prompt=(
        "You are an insurance claim evaluation agent. If the amount is more than 1000 USD, ask for human "
        "approval using tools. Otherwise decide by yourself and pay what is valid. Say what was decided."
    ),
    middleware=[DurableModel()],
)
