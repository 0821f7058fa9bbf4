from collections.abc import Callable
from typing import Any

import httpx
import pytest

from graphs.fail_on_terminal import graph
from perdure import TerminalError
from perdure.simulator import RunningSimulator
from tests.conftest import Process

CONFIG: Any = {"configurable": {"thread_id": "1"}}
DENVER = {"prompt": "What is the weather like in Denver?"}


def prompt(city: str, **bounds: Any) -> dict[str, Any]:
    return {"prompt": f"What is the weather like in {city}?", **bounds}


async def test_weather_is_told(simulator: RunningSimulator, served: Any) -> None:
    assert "29.7" in (await served(graph).ainvoke(prompt("Miami"), CONFIG))["answer"]


async def test_ordinary_error_of_a_tool_goes_to_the_model(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    assert "No city is called 'Atlantis'" in (await agent.ainvoke(prompt("Atlantis"), CONFIG))["answer"]
    results = [m for m in (await agent.aget_state(CONFIG)).values["messages"] if m.type == "tool"]
    assert [result.status for result in results] == ["error"]
    assert len(simulator.requests) == 2


async def test_terminal_error_fails_the_run_and_the_model_is_not_asked_again(
    simulator: RunningSimulator, served: Any
) -> None:
    with pytest.raises(TerminalError, match="failed 2 times and is given up: The weather service of Denver") as failure:
        await served(graph).ainvoke(prompt("Denver", tool_attempts=2), CONFIG)
    assert failure.value.status == 424
    assert not failure.value.retryable
    assert len(simulator.requests) == 1


async def test_transient_error_within_the_bounds_is_no_error(simulator: RunningSimulator, served: Any) -> None:
    simulator.fail({"status": 500, "times": 4})
    assert "29.7" in (await served(graph).ainvoke(prompt("Miami", model_attempts=5), CONFIG))["answer"]


async def test_model_is_given_up_after_so_many_attempts(simulator: RunningSimulator, served: Any) -> None:
    simulator.fail({"status": 500, "times": 9})
    with pytest.raises(TerminalError, match="The model failed 2 times"):
        await served(graph).ainvoke(prompt("Miami", model_attempts=2), CONFIG)
    assert [entry.outcome for entry in simulator.requests] == ["500"] * 2


@pytest.mark.parametrize("bound", [0, 21, "3", True, 2.5, None])
async def test_bound_that_is_none_is_refused(simulator: RunningSimulator, served: Any, bound: Any) -> None:
    with pytest.raises(TerminalError, match="tool_attempts must be a number from 1 to 20"):
        await served(graph).ainvoke(prompt("Miami", tool_attempts=bound), CONFIG)
    assert simulator.requests == []


def test_caller_gets_text_and_status_and_the_run_is_not_tried_again(server: Callable[..., Process]) -> None:
    process = server()
    with httpx.Client(base_url=process.url, timeout=30) as http:
        failed = http.post("/agents/fail_on_terminal/run", json=prompt("Denver", tool_attempts=2))
        assert failed.status_code == 424
        assert failed.json()["detail"].startswith("TerminalError: current_weather failed 2 times")
        run = http.get(failed.headers["Content-Location"].removesuffix("/join")).json()
        assert run["status"] == "error"
        assert not run.get("paused")
