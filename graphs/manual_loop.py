"""The agent loop written by hand: a plain loop of model calls and tool calls, with nothing hidden.

Each model call and each tool call is a step, so the loop may be killed anywhere: it runs again from its top,
what is finished comes from the journal, and it goes on with the first call that is not. The tool calls of one
answer run at the same time; if one fails, only that one is tried again. The loop ends when the model has no
more tool calls, after 8 answers, or when a person says no: with `"review": true` one is asked after every
round of tool calls, and the wait costs nothing.

Try it:  perdure invoke manual_loop -i '{"prompt": "What is the weather like in New York and San Francisco?"}'
"""

from typing import Annotated, Any, NotRequired

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.tools import tool
from langgraph.channels import EphemeralValue
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import ValidationError
from typing_extensions import TypedDict

from graphs.models import chat_model
from graphs.tools.open_meteo import Weather, current_weather
from perdure import approval, gather, step

MAX_ANSWERS = 8
"""Model calls for one request."""
SYSTEM = SystemMessage("You are a helpful agent that provides weather updates.")


class Request(TypedDict):
    """A prompt, or messages from a chat front end; `review`: a person decides after each round of tool calls."""

    prompt: NotRequired[str]
    messages: NotRequired[list[AnyMessage]]
    review: NotRequired[bool]


class Output(TypedDict):
    answer: str


class Loop(MessagesState):
    prompt: NotRequired[Annotated[str, EphemeralValue]]
    review: NotRequired[Annotated[bool, EphemeralValue]]
    answer: NotRequired[str]


@tool
async def get_weather(city: str) -> Weather | str:
    """Get the current weather in a city."""
    return await current_weather(city)


TOOLS = {each.name: each for each in [get_weather]}


@step
async def ask_model(messages: list[AnyMessage]) -> AIMessage:
    return await chat_model().bind_tools(list(TOOLS.values())).ainvoke([SYSTEM, *messages])


@step
async def call_tool(call: ToolCall) -> ToolMessage:
    """A wrong call is told to the model; an error of the tool is retried by this step, then by the run."""
    if call["name"] not in TOOLS:
        return ToolMessage(f"Tool not found: {call['name']}", tool_call_id=call["id"], status="error")
    try:
        return await TOOLS[call["name"]].ainvoke(call)
    except ValidationError as exc:
        return ToolMessage(f"Wrong arguments: {exc}", tool_call_id=call["id"], status="error")


async def loop(state: Loop) -> dict[str, Any]:
    prompt = state.get("prompt")
    new: list[AnyMessage] = [HumanMessage(prompt)] if prompt else []
    for _ in range(MAX_ANSWERS):
        answer = await ask_model([*state["messages"], *new])
        new.append(answer)
        if not answer.tool_calls:
            return {"messages": new, "answer": answer.text}
        results = await gather(*[call_tool(call) for call in answer.tool_calls])
        new += results
        if state.get("review"):
            decision = await approval(f"The tools say: {' '.join(result.text for result in results)} Go on?")
            if not decision.approved:
                return {"messages": new, "answer": f"Stopped by a person: {decision.reason or 'no reason was given'}"}
    return {"messages": new, "answer": f"Stopped after {MAX_ANSWERS} answers that all wanted more tool calls."}


builder = StateGraph(Loop, input_schema=Request, output_schema=Output)
builder.add_node(loop)
builder.add_edge(START, "loop")
graph = builder.compile()
