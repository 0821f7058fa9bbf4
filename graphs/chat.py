"""Chat: a conversation per key that remembers, and that never answers two messages at once.

Messages for one key wait in line; other keys are answered in parallel, and reading the history never waits.
Each answer of the model is a step: a crash while it is written costs that one call, the rest of the
conversation is safe. The model is sent the last messages only, so a turn costs the same at message 1,000 as
at message 10.

Try it:  perdure invoke chat --key session123 -i '{"message": "make a poem about durable execution"}'
         perdure invoke chat --key session123 -i '{"message": "shorten it to 2 lines"}'
"""

from typing import Annotated, Any, NotRequired

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    trim_messages,
)
from langgraph.channels import EphemeralValue
from langgraph.graph import START, MessagesState, StateGraph
from typing_extensions import TypedDict

from graphs.models import chat_model
from perdure import step

WINDOW = 40
"""Messages that the model sees; what is older stays in the history."""


class Input(TypedDict):
    """One message, or messages from a chat front end."""

    message: NotRequired[str]
    messages: NotRequired[list[AnyMessage]]


class Output(TypedDict):
    answer: str


class Chat(MessagesState):
    message: NotRequired[Annotated[str, EphemeralValue]]
    answer: NotRequired[str]


@step
async def reply(conversation: list[BaseMessage]) -> AIMessage:
    return await chat_model().ainvoke([SystemMessage("You are a helpful assistant."), *conversation])


async def turn(state: Chat) -> dict[str, Any]:
    """Answer the newest message. If the model fails, the step tries again; the message is not lost."""
    message = state.get("message")
    said = [HumanMessage(message)] if message else []
    seen = [*state["messages"][-WINDOW:], *said]
    answer = await reply(trim_messages(seen, max_tokens=WINDOW, token_counter=len, strategy="last", start_on="human"))
    return {"messages": [*said, answer], "answer": answer.text}


builder = StateGraph(Chat, input_schema=Input, output_schema=Output)
builder.add_node(turn)
builder.add_edge(START, "turn")
graph = builder.compile()
