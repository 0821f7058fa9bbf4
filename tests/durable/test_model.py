"""The model of an agent is never asked the same again."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, wrap_model_call
from langchain.agents.structured_output import ToolStrategy
from langchain.tools import tool
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import RetryPolicy
from pydantic import BaseModel

from perdure import DurableModel, TerminalError
from tests.durable.fakes import FakeJournal, Killed, ScriptedModel, tool_call


class Weather(BaseModel):
    city: str
    degrees: float


class KilledAfterwards(AgentMiddleware[Any, Any, Any]):
    """Dies when the model has answered and the node is about to end."""

    alive = False

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        response = await handler(request)
        if not self.alive:
            raise Killed
        return response


class Bench:
    def __init__(self, model: Any, **options: Any) -> None:
        self.killer, self.journal = KilledAfterwards(), FakeJournal()
        durable = options.pop("durable", DurableModel())
        middleware = [self.killer, *options.pop("outer", []), durable]
        options.setdefault("tools", [])
        self.agent: Any = create_agent(model, middleware=middleware, checkpointer=InMemorySaver(), **options)

    async def run(self, text: str | None = "weather?") -> Any:
        entry = None if text is None else {"messages": [HumanMessage(text)]}
        return await self.agent.ainvoke(entry, self.journal.restart().config(), durability="sync")

    async def crash_and_run(self) -> Any:
        self.killer.alive = False
        with pytest.raises(Killed):
            await self.run()
        self.killer.alive = True
        return await self.run(None)


async def test_recorded_response_is_returned_without_calling_the_model():
    model = ScriptedModel(answer=lambda _: AIMessage("sunny", response_metadata={"model": "m"}))
    bench = Bench(model)
    state = await bench.crash_and_run()
    assert state["messages"][-1].text == "sunny"
    assert state["messages"][-1].response_metadata == {"model": "m"}
    assert len(model.calls) == 1


async def test_structured_response_comes_back_in_its_class():
    call = tool_call("Weather", "c1", city="SF", degrees=18)
    model = ScriptedModel(answer=lambda _: AIMessage("", tool_calls=[call]))
    state = await Bench(model, response_format=ToolStrategy(Weather)).crash_and_run()
    assert state["structured_response"] == Weather(city="SF", degrees=18)
    assert len(model.calls) == 1


async def test_system_prompt_that_tells_the_time_does_not_disturb_a_replay():
    times = iter(["noon", "one o'clock"])

    @wrap_model_call
    async def clock(request: Any, handler: Any) -> Any:
        return await handler(request.override(system_prompt=f"It is {next(times)}."))

    model = ScriptedModel(answer=lambda _: AIMessage("sunny"))
    await Bench(model, outer=[clock]).crash_and_run()
    assert len(model.calls) == 1


async def test_tokens_stream_on_the_first_execution():
    model = GenericFakeChatModel(messages=iter([AIMessage("it is sunny today", id="m1")]))
    bench = Bench(model)
    bench.killer.alive = True
    parts = [
        chunk.text
        async for chunk, _ in bench.agent.astream(
            {"messages": [HumanMessage("hi")]}, bench.journal.config(), stream_mode="messages"
        )
        if chunk.type == "AIMessageChunk"
    ]
    assert len(parts) > 3
    assert "".join(parts) == "it is sunny today"


async def test_model_error_that_cannot_be_retried_ends_the_run_at_once():
    def refuse(_: Any) -> AIMessage:
        raise ModelInvalidRequestError("context too long")

    model = ScriptedModel(answer=refuse)
    bench = Bench(model, durable=DurableModel(retry=RetryPolicy(initial_interval=0.001)))
    with pytest.raises(ModelInvalidRequestError) as caught:
        await bench.run()
    assert caught.value.retryable is False  # type: ignore[attr-defined]
    assert len(model.calls) == 1


async def test_agent_that_does_not_come_to_an_end_is_stopped():
    @tool
    async def look() -> str:
        """Look."""
        return "nothing"

    def answer(messages: Any) -> AIMessage:
        return AIMessage("", tool_calls=[tool_call("look", f"c{len(messages)}")])

    model = ScriptedModel(answer=answer)
    bench = Bench(model, tools=[look], durable=DurableModel(max_calls=3))
    bench.killer.alive = True
    with pytest.raises(TerminalError, match="called its model 3 times"):
        await bench.run()
    assert len(model.calls) == 3
    with pytest.raises(TerminalError):  # a new human message: three more
        await bench.run("again")
    assert len(model.calls) == 6


def test_sync_invoke_says_what_to_do():
    model = ScriptedModel(answer=lambda _: AIMessage("sunny"))
    agent: Any = create_agent(model, [], middleware=[DurableModel()])
    with pytest.raises(RuntimeError, match="ainvoke"):
        agent.invoke({"messages": [HumanMessage("hi")]})


async def test_without_a_journal_the_agent_works_as_ever():
    model = ScriptedModel(answer=lambda _: AIMessage("sunny"))
    agent: Any = create_agent(model, [], middleware=[DurableModel()], checkpointer=InMemorySaver())
    state = await agent.ainvoke({"messages": [HumanMessage("hi")]}, {"configurable": {"thread_id": "t"}})
    assert state["messages"][-1].text == "sunny"
