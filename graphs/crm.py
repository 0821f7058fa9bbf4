"""CRM: opens tickets, as an assistant of its own on another server, for other agents to call.

A ticket and the record that it was opened are committed together in this server's database: however often
the caller asks with the same idempotency key, and whatever crashes, there is one ticket.

Try it:  make crm
         PERDURE_URL=http://127.0.0.1:2025 perdure invoke crm -i '{"user_id": "user_12345", "title": "Login fails"}'
"""

from typing import NotRequired

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from graphs.tools.tickets import open_ticket
from perdure import TerminalError, step

LONGEST = {"user_id": 200, "title": 200, "description": 10_000}
"""Characters."""


class Request(TypedDict):
    """A ticket that is to be opened."""

    user_id: str
    title: str
    description: NotRequired[str]


class Opened(TypedDict):
    """The number under which it was opened."""

    ticket: str


class Ticket(Request, Opened):
    """The whole state of a ticket."""


@step
async def create(user_id: str, title: str, description: str) -> str:
    return await open_ticket(user_id, title, description)


async def take(state: Request) -> Opened:
    """Whoever calls may have been told by a model what to send: it is checked here."""
    fields = {name: state.get(name, "") for name in LONGEST}
    for name, text in fields.items():
        if not isinstance(text, str) or len(text) > LONGEST[name] or (name != "description" and not text.strip()):
            raise TerminalError(f"{name} must be a text of up to {LONGEST[name]} characters")
    return {"ticket": await create(**fields)}


builder = StateGraph(Ticket, input_schema=Request, output_schema=Opened)
builder.add_node(take)
builder.add_edge(START, "take")
graph = builder.compile()
