from typing import Any

import pytest

from graphs.stop_on_terminal import graph
from perdure.simulator import RunningSimulator

CONFIG: Any = {"configurable": {"thread_id": "1"}}


def prompt(cities: str) -> dict[str, Any]:
    return {"prompt": f"What is the weather like in {cities}?", "tool_attempts": 2}


async def test_loop_stops_and_the_answer_says_what_happened(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    answer = (await agent.ainvoke(prompt("Denver"), CONFIG))["answer"]
    assert answer.startswith("I stopped, because get_weather: current_weather failed 2 times")
    assert len(simulator.requests) == 1
    messages = (await agent.aget_state(CONFIG)).values["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[2].artifact == {"terminal": True, "status": 424}


async def test_what_other_tools_have_found_is_in_the_answer(simulator: RunningSimulator, served: Any) -> None:
    answer = (await served(graph).ainvoke(prompt("Denver and Boston"), CONFIG))["answer"]
    assert "Denver is down" in answer
    assert "18.9" in answer


async def test_ordinary_error_does_not_stop_the_loop(simulator: RunningSimulator, served: Any) -> None:
    answer = (await served(graph).ainvoke(prompt("Atlantis"), CONFIG))["answer"]
    assert "No city is called 'Atlantis'" in answer
    assert len(simulator.requests) == 2


async def test_next_prompt_of_the_thread_is_not_stopped(
    simulator: RunningSimulator, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = served(graph)
    await agent.ainvoke(prompt("Denver"), CONFIG)
    monkeypatch.setenv("FAIL_ON_DENVER", "false")
    assert "24.1" in (await agent.ainvoke(prompt("Denver"), CONFIG))["answer"]
