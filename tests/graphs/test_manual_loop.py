import asyncio
from collections import Counter
from typing import Any

import pytest
from langgraph.types import Command

from graphs import manual_loop
from graphs.manual_loop import call_tool, graph
from graphs.tools.open_meteo import current_weather
from perdure import RetryableError
from perdure.simulator import RunningSimulator

CONFIG: Any = {"configurable": {"thread_id": "1"}}
TWO_CITIES = {"prompt": "What is the weather like in New York and San Francisco?"}


async def kinds(agent: Any) -> list[str]:
    return [message.type for message in (await agent.aget_state(CONFIG)).values["messages"]]


async def test_calls_all_tools_of_an_answer_at_once(
    simulator: RunningSimulator, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_are_there = asyncio.Barrier(2)

    async def meet(city: str) -> Any:
        async with asyncio.timeout(60):
            await both_are_there.wait()
        return await current_weather(city)

    monkeypatch.setattr(manual_loop, "current_weather", meet)
    agent = served(graph)
    result = await agent.ainvoke(TWO_CITIES, CONFIG)
    assert result["answer"].index("21.8") < result["answer"].index("16.4")
    assert await kinds(agent) == ["human", "ai", "tool", "tool", "ai"]
    assert len(simulator.requests) == 2


async def test_conversation_goes_on_with_what_was_found(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    await agent.ainvoke(TWO_CITIES, CONFIG)
    question = {"type": "human", "content": "And what is it like in London?"}
    assert "14.2" in (await agent.ainvoke({"messages": [question]}, CONFIG))["answer"]
    assert await kinds(agent) == ["human", "ai", "tool", "tool", "ai", "human", "ai", "tool", "ai"]


async def test_only_the_tool_call_that_failed_is_tried_again(
    simulator: RunningSimulator, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counter[str]()

    async def fail_at_first(city: str) -> Any:
        asked[city] += 1
        if city == "New York" and asked[city] <= 3:  # as often as its step tries: the run has to try again
            raise RetryableError("down", after=0)
        return await current_weather(city)

    monkeypatch.setattr(manual_loop, "current_weather", fail_at_first)
    agent = served(graph)
    with pytest.raises(RetryableError, match="down"):
        await agent.ainvoke(TWO_CITIES, CONFIG)
    assert "21.8" in (await agent.ainvoke(None, CONFIG))["answer"]
    assert asked == {"New York": 4, "San Francisco": 1}
    assert len(simulator.requests) == 2


@pytest.mark.parametrize(
    ("decision", "answer", "model_calls"),
    [
        (True, "Here is the current weather. New York", 2),
        ({"approved": False, "reason": "enough"}, "Stopped by a person: enough", 1),
    ],
)
async def test_a_person_decides_between_two_rounds(
    simulator: RunningSimulator, served: Any, decision: Any, answer: str, model_calls: int
) -> None:
    agent = served(graph)
    await agent.ainvoke(TWO_CITIES | {"review": True}, CONFIG)
    [question] = (await agent.aget_state(CONFIG)).interrupts
    assert "21.8" in question.value["question"]
    assert question.value["question"].endswith("Go on?")
    result = await agent.ainvoke(Command(resume=decision), CONFIG)
    assert result["answer"].startswith(answer)
    assert len(simulator.requests) == model_calls


async def test_loop_ends_although_the_model_wants_more(
    simulator: RunningSimulator, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manual_loop, "MAX_ANSWERS", 1)
    agent = served(graph)
    assert (await agent.ainvoke(TWO_CITIES, CONFIG))["answer"].startswith("Stopped after 1 answers")
    assert await kinds(agent) == ["human", "ai", "tool", "tool"]
    assert len(simulator.requests) == 1


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [("get_time", {}, "Tool not found: get_time"), ("get_weather", {"town": "Paris"}, "Wrong arguments: ")],
)
async def test_wrong_call_is_told_to_the_model(name: str, args: Any, told: str) -> None:
    message = await call_tool({"name": name, "args": args, "id": "1", "type": "tool_call"})
    assert message.text.startswith(told)
    assert (message.tool_call_id, message.status) == ("1", "error")
