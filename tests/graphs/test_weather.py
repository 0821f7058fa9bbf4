from typing import Any

import pytest

from graphs.weather import graph
from perdure import RetryableError
from perdure.simulator import RunningSimulator

CONFIG: Any = {"configurable": {"thread_id": "1"}}


async def test_tells_the_weather_of_a_city(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    result = await agent.ainvoke({"prompt": "What is the weather like in San Francisco?"}, CONFIG)
    assert result.keys() == {"answer"}
    assert "16.4" in result["answer"]
    assert "San Francisco" in result["answer"]
    assert [entry.tools for entry in simulator.requests] == [["get_weather"], ["get_weather"]]
    kept = (await agent.aget_state(CONFIG)).values
    assert [message.type for message in kept["messages"]] == ["human", "ai", "tool", "ai"]
    assert all(message.id for message in kept["messages"])
    assert "prompt" not in kept


async def test_takes_the_messages_of_a_chat_front_end(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    await agent.ainvoke({"prompt": "What is the weather like in Paris?"}, CONFIG)
    question = {"type": "human", "id": "h1", "content": "And in London?"}
    result = await agent.ainvoke({"messages": [question]}, CONFIG)
    assert "London" in result["answer"]
    messages = (await agent.aget_state(CONFIG)).values["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"] * 2
    assert messages[4].id == "h1"


async def test_asks_for_several_cities_at_once(simulator: RunningSimulator, served: Any) -> None:
    result = await served(graph).ainvoke(
        {"prompt": "What is the weather like in New York, San Francisco, and Boston?"}, CONFIG
    )
    assert all(city in result["answer"] for city in ("New York", "San Francisco", "Boston"))
    assert len(simulator.requests) == 2


async def test_unknown_city_is_told_to_the_model(simulator: RunningSimulator, served: Any) -> None:
    result = await served(graph).ainvoke({"prompt": "What is the weather like in Atlantis?"}, CONFIG)
    assert "No city is called 'Atlantis'" in result["answer"]


async def test_denver_fails_until_it_is_fixed_and_the_model_is_not_asked_again(
    simulator: RunningSimulator, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = served(graph)
    with pytest.raises(RetryableError, match="Denver") as failure:
        await agent.ainvoke({"prompt": "What is the weather like in Denver?"}, CONFIG)
    assert failure.value.retryable
    assert len(simulator.requests) == 1
    monkeypatch.setenv("FAIL_ON_DENVER", "false")
    result = await agent.ainvoke(None, CONFIG)
    assert "24.1" in result["answer"]
    assert len(simulator.requests) == 2


async def test_failing_model_is_tried_again_by_its_step(simulator: RunningSimulator, served: Any) -> None:
    simulator.fail({"status": 500}, {"cut": True})
    result = await served(graph).ainvoke({"prompt": "What is the weather like in Berlin?"}, CONFIG)
    assert "15.6" in result["answer"]
    assert [entry.outcome for entry in simulator.requests] == ["500", "cut", "answered", "answered"]


async def test_tokens_stream_from_the_agent_itself(simulator: RunningSimulator, served: Any) -> None:
    tokens = [
        chunk.text
        async for chunk, metadata in served(graph).astream(
            {"prompt": "What is the weather like in Berlin?"}, CONFIG, stream_mode="messages"
        )
        if metadata["langgraph_node"] == "model"
    ]
    assert len([token for token in tokens if token]) > 5


def test_input_and_output_are_plain() -> None:
    assert set(graph.get_input_jsonschema()["properties"]) == {"prompt", "messages"}
    assert set(graph.get_output_jsonschema()["properties"]) == {"answer"}
