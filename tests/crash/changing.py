"""Graphs whose code or whose order of calls is another one when a run goes on."""

import os
from typing import Any

from langchain.tools import tool
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import interrupt

from perdure import sleep, step
from tests.crash.scenarios import State, effect, hold, work

CITIES = ("Bonn", "Rome", "Oslo")


# -- three calls of one tool; each worker makes them in the order that its environment says


@tool
@step
async def get_weather(city: str) -> str:
    """The weather of a city."""
    effect(city)
    await hold(city)
    return f"weather of {city}"


async def call_tools(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
    order = [int(place) for place in os.environ["ORDER"].split()]
    calls = [{"name": "get_weather", "args": {"city": CITIES[n]}, "id": f"call-{CITIES[n]}"} for n in order]
    return await ToolNode([get_weather]).ainvoke({"messages": [AIMessage("", tool_calls=calls)]}, config)


builder = StateGraph(MessagesState)
builder.add_node("tools", call_tools)
builder.add_edge(START, "tools")
builder.add_edge("tools", END)
tools = builder.compile()


# -- a graph before and after a release, with runs that wait in it


@step
async def audit(what: str) -> str:
    effect(f"audit {what}")
    return f"audited {what}"


async def prepare(state: State) -> State:
    return {"log": [await work("prepare")]}


async def wait(state: State) -> State:
    before = await work("before")
    heard = await _wait(state)
    return {"log": [before, heard, await work("after")]}


async def wait_anew(state: State) -> State:
    audited = await audit("wait")
    before = await work("before")
    heard = await _wait(state)
    return {"log": [audited, before, heard, await work("after, anew")]}


async def _wait(state: State) -> str:
    if state["log"][0] == "ask":
        return interrupt("Go on?")
    await sleep(2)
    return "slept"


async def close(state: State) -> State:
    return {"log": [await work("close")]}


def release(*nodes: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("prepare", prepare)
    builder.add_edge(START, "prepare")
    previous = "prepare"
    for name, node in nodes:
        builder.add_node(name, node)
        builder.add_edge(previous, name)
        previous = name
    builder.add_edge(previous, END)
    return builder.compile()


first_release = release(("wait", wait))
second_release = release(("wait", wait_anew), ("close", close))
