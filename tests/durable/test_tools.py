"""A step is a good tool: under @tool, in ToolNode, in create_agent, with what the runtime injects."""

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime, tool
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from perdure import DurableModel, TerminalError, step
from tests.durable.fakes import FakeJournal, Killed, ScriptedModel, tool_call


def test_tool_shows_name_description_and_arguments_of_the_function_below():
    @tool
    @step
    async def get_weather(city: str, runtime: ToolRuntime, config: RunnableConfig, days: int = 1) -> str:
        """The weather of a city."""
        return city

    @tool
    @step(name="renamed", timeout=5)
    def get_time(city: str) -> str:
        """The time in a city."""
        return city

    assert (get_weather.name, get_weather.description) == ("get_weather", "The weather of a city.")
    assert set(get_weather.args) == {"city", "days"}
    assert get_weather.coroutine is not None  # type: ignore[attr-defined]
    assert (get_time.name, set(get_time.args)) == ("get_time", {"city"})
    assert get_time.coroutine is not None  # type: ignore[attr-defined]


def test_step_above_tool_is_refused():
    with pytest.raises(TypeError, match="put @tool above @step"):

        @step
        @tool
        def wrong(x: int) -> int:
            """Wrong."""
            return x


async def test_three_concurrent_tools_of_one_node_are_each_executed_once():
    calls: list[str] = []
    alive = False

    @tool
    @step
    async def get_weather(city: str, runtime: ToolRuntime) -> str:
        """The weather of a city."""
        if city == "NYC" and not alive:
            while len(journal.saves) < 2:  # noqa: ASYNC110  # the journal has no event to wait for
                await asyncio.sleep(0.001)
            raise Killed
        await asyncio.sleep({"NYC": 0.0, "SF": 0.0, "BOS": 0.01}[city])
        calls.append(city)
        return f"{city}: sunny for {runtime.tool_call_id}"

    async def ask(state: MessagesState) -> Any:
        asked = [tool_call("get_weather", f"c{n}", city=city) for n, city in enumerate(["NYC", "SF", "BOS"])]
        return {"messages": [AIMessage("", tool_calls=asked)]}

    builder = StateGraph(MessagesState).add_node("ask", ask).add_node("tools", ToolNode([get_weather]))
    graph: Any = builder.add_edge(START, "ask").add_edge("ask", "tools").compile(InMemorySaver())
    journal = FakeJournal()
    with pytest.raises(Killed):
        await graph.ainvoke({"messages": [HumanMessage("weather?")]}, journal.config(), durability="sync")
    assert calls == ["SF", "BOS"]
    alive = True
    state = await graph.ainvoke(None, journal.restart().config(), durability="sync")
    answers = [message.text for message in state["messages"][-3:]]
    assert answers == ["NYC: sunny for c0", "SF: sunny for c1", "BOS: sunny for c2"]
    assert calls == ["SF", "BOS", "NYC"]


async def test_agent_calls_neither_model_nor_tool_again_after_a_crash():
    calls: list[str] = []
    alive = False

    @tool
    @step
    async def get_weather(city: str) -> str:
        """The weather of a city."""
        calls.append(city)
        return f"{city}: sunny"

    @tool
    async def report(city: str) -> str:
        """Report the weather."""
        if not alive:
            raise Killed
        return "reported"

    def answer(messages: Any) -> AIMessage:
        match sum(message.type == "tool" for message in messages):
            case 0:
                return AIMessage("", tool_calls=[tool_call("get_weather", "c1", city="SF")])
            case 1:
                return AIMessage("", tool_calls=[tool_call("report", "c2", city="SF")])
            case _:
                return AIMessage("It is sunny.")

    model = ScriptedModel(answer=answer)
    agent: Any = create_agent(model, [get_weather, report], middleware=[DurableModel()], checkpointer=InMemorySaver())
    journal = FakeJournal()
    with pytest.raises(Killed):
        await agent.ainvoke({"messages": [HumanMessage("weather?")]}, journal.config(), durability="sync")
    alive = True
    state = await agent.ainvoke(None, journal.restart().config(), durability="sync")
    assert state["messages"][-1].text == "It is sunny."
    assert (calls, len(model.calls)) == (["SF"], 3)


async def test_terminal_error_of_a_tool_ends_the_agent():
    @tool
    @step
    async def pay(amount: int) -> str:
        """Pay."""
        raise TerminalError("declined", status=402)

    model = ScriptedModel(answer=lambda _: AIMessage("", tool_calls=[tool_call("pay", "c1", amount=1)]))
    agent: Any = create_agent(model, [pay], middleware=[DurableModel()], checkpointer=InMemorySaver())
    with pytest.raises(TerminalError, match="declined"):
        await agent.ainvoke({"messages": [HumanMessage("pay")]}, FakeJournal().config())
    assert len(model.calls) == 1
