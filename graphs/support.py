"""Support: the model chooses between a local tool, a remote one, and one whose result comes later.

`my_account` is a query with parameters by a read-only role. `create_ticket` calls the assistant `crm` on its
own server: durably, once, and while that server is down this run waits. `create_ticket_later` returns at
once; a run of its own waits for the ticket and then tells its number in the customer's session. Who the
customer is comes from the request, never from the model. A tool that does not exist is told to the model.

Try it:  perdure invoke support --key user_12345 -i '{"user_id": "user_12345", "message": "On which plan am I?"}'
         make crm   (in another terminal: the second server)
         perdure invoke support --key user_12345
             -i '{"user_id": "user_12345", "message": "Create a ticket: the login fails"}'
"""

from typing import Annotated, Any, Literal, NotRequired

from langchain.agents import AgentState, create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.channels import EphemeralValue
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolRuntime
from typing_extensions import TypedDict

from graphs.models import chat_model
from graphs.tools import customers
from graphs.tools.tickets import CrmSettings
from graphs.tools.unknown import UnknownTools
from perdure import DurableModel, TerminalError, agent, step


class Wish(TypedDict):
    """A ticket that a customer wants."""

    title: str
    description: str


class Input(TypedDict):
    """A customer's message; or, from runs of this assistant: a ticket to wait for, news for the session."""

    user_id: str
    message: NotRequired[str]
    ticket: NotRequired[Wish]
    news: NotRequired[str]


class Output(TypedDict):
    answer: str


class Support(AgentState[Any]):
    user_id: str
    message: NotRequired[Annotated[str, EphemeralValue]]
    ticket: NotRequired[Annotated[Wish, EphemeralValue]]
    news: NotRequired[Annotated[str, EphemeralValue]]
    answer: NotRequired[str]


Runtime = ToolRuntime[None, Support]
"""Tools get it from LangGraph; the model neither sees nor fills it."""


@step
async def find_customer(user_id: str) -> customers.Customer | None:
    return await customers.find(user_id)


@tool
async def my_account(runtime: Runtime) -> customers.Customer | str:
    """Look up the account of the customer who is asking: name, plan, since when."""
    return await find_customer(runtime.state["user_id"]) or "This customer has no account."


async def ticket_of(user_id: str, wish: Wish) -> str:
    """Have the CRM open the ticket, however long it takes; what it refuses is said."""
    try:
        opened = await agent("crm", {"user_id": user_id, **wish}, server=CrmSettings().crm_url)
    except TerminalError as exc:
        return f"The ticket '{wish['title']}' could not be opened: {exc.message}"
    return f"Ticket {opened['ticket']} is open: {wish['title']}"


@tool
async def create_ticket(title: str, description: str, runtime: Runtime) -> str:
    """Open a ticket for the customer and wait for its number."""
    return await ticket_of(runtime.state["user_id"], {"title": title, "description": description})


@tool
async def create_ticket_later(title: str, description: str, runtime: Runtime) -> str:
    """Have a ticket opened in the background, for a customer who does not want to wait: they are told later."""
    wish = {"title": title, "description": description}
    await agent.send("support", {"user_id": runtime.state["user_id"], "ticket": wish})
    return "It is on its way; the customer will be told its number here."


def kind(state: Support) -> Literal["hear", "wait_for_ticket", "tell"]:
    user_id: Any = state.get("user_id")
    if not isinstance(user_id, str) or not 0 < len(user_id) <= 200:
        raise TerminalError(f"user_id must be a text of up to 200 characters, not {user_id!r}")
    if state.get("ticket"):
        return "wait_for_ticket"
    return "tell" if state.get("news") else "hear"


async def hear(state: Support) -> dict[str, Any]:
    message = state.get("message")
    if not message:
        raise TerminalError("A request to support has a message")
    return {"messages": [HumanMessage(message)]}


async def answer(state: Support) -> Output:
    return {"answer": state["messages"][-1].text}


async def wait_for_ticket(state: Support) -> Output:
    """On a thread of its own, so that the customer can go on talking meanwhile. Their session's key is their id."""
    news = await ticket_of(state["user_id"], state["ticket"])
    await agent.send("support", {"user_id": state["user_id"], "news": news}, key=state["user_id"])
    return {"answer": news}


async def tell(state: Support) -> dict[str, Any]:
    return {"messages": [AIMessage(state["news"])], "answer": state["news"]}


assistant = create_agent(
    chat_model(),
    tools=[my_account, create_ticket, create_ticket_later],
    system_prompt="You are a customer support agent. Use tools to answer questions and to open tickets.",
    middleware=[UnknownTools(), DurableModel(max_calls=10)],
    state_schema=Support,
)

builder = StateGraph(Support, input_schema=Input, output_schema=Output)
builder.add_node(hear)
builder.add_node("assistant", assistant)
builder.add_node("say", answer)
builder.add_node(wait_for_ticket)
builder.add_node(tell)
builder.add_conditional_edges(START, kind)
builder.add_edge("hear", "assistant")
builder.add_edge("assistant", "say")
graph = builder.compile()
