"""`perdure tour`: every example of a running server, and what it says when one goes wrong."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Launch, Process

Perdure = Callable[..., tuple[int, str]]
TOUR_SECONDS = 180.0

GRAPHS = '''
"""Graphs of the tour's tests."""

import asyncio
from typing import Any

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import TerminalError, agent, step


class State(TypedDict, total=False):
    prompt: str
    answer: Any


@step
async def say(text: str) -> str:
    return text.upper()


async def echo(state: State) -> State:
    return {"answer": await say(state["prompt"])}


async def ask(state: State) -> State:
    return {"answer": [interrupt("first?"), interrupt("second?")]}


async def delegate(state: State) -> State:
    return {"answer": (await agent("asks", {}))["answer"]}


async def fail(state: State) -> State:
    raise TerminalError("no such thing", 424)


def single(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


echoes, asks, delegates, fails = single(echo), single(ask), single(delegate), single(fail)
'''


@pytest.fixture
def perdure(launch: Launch) -> Perdure:
    """Run a command to its end: exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        process = launch(*arguments)
        return process.wait(TOUR_SECONDS), process.output

    return run


def project(folder: Path, **examples: list[object]) -> Path:
    (folder / "toured.py").write_text(GRAPHS)
    graphs = {name: {"path": f"./toured.py:{name}", "examples": found} for name, found in examples.items()}
    (folder / "langgraph.json").write_text(json.dumps({"graphs": graphs}))
    return folder / "langgraph.json"


def test_every_example_is_played_and_judged(perdure: Perdure, server: Launch, tmp_path: Path) -> None:
    config = project(
        tmp_path,
        echoes=[{"input": {"prompt": "hello"}}, {"key": "a key/of two", "input": {"prompt": "again"}}],
        asks=[{"input": {}, "answer": 7}],
        delegates=[{"input": {}, "answer": "yes"}],
        fails=[{"input": {}, "status": 424}, {"input": {}}],
    )
    process: Process = server(config=config)
    code, text = perdure("tour", "--url", process.url, "--json")
    assert code == 1, text
    report = json.loads(text)
    assert (report["ok"], report["failed"]) == (False, 1)
    assert [(row["agent"], row["ok"], row["status"]) for row in report["rows"]] == [
        ("echoes", True, 200),
        ("echoes", True, 200),
        ("asks", True, 200),
        ("delegates", True, 200),
        ("fails", True, 424),
        ("fails", False, 424),
    ]
    echoes, _, asks, delegates, *_ = report["rows"]
    assert (echoes["answer"]["answer"], echoes["steps"], echoes["model_calls"]) == ("HELLO", 1, 0)
    assert (asks["answer"]["answer"], asks["questions"]) == ([7, 7], 2)
    assert (delegates["answer"]["answer"], delegates["questions"]) == (["yes", "yes"], 2)
    assert delegates["runs"] > asks["runs"] == 3

    code, text = perdure("tour", "--url", process.url, "--only", "echoes,fails")
    assert code == 1
    assert "✓ echoes" in text
    assert "hello → HELLO" in text
    assert "✗ fails" in text
    assert "expected 200, got 424 TerminalError: no such thing" in text
    assert "1 of 4 examples failed" in text

    code, text = perdure("tour", "--url", process.url, "--only", "echoes")
    assert code == 0, text
    assert "2 examples, 0 model calls, 2 steps" in text
    code, text = perdure("tour", "--url", process.url, "--only", "nobody")
    assert code == 4
    assert "the server has: echoes, asks, delegates, fails" in text


def test_without_a_server_it_says_how_to_start_one(perdure: Perdure) -> None:
    code, text = perdure("tour", "--url", "http://127.0.0.1:9")
    assert code == 5
    assert "start it with `perdure serve`" in text


def test_a_server_that_an_example_needs_runs_for_the_duration(
    perdure: Perdure, server: Launch, free_port: Callable[[], int]
) -> None:
    port = free_port()
    process: Process = server(env={"CRM_URL": f"http://127.0.0.1:{port}"})
    code, text = perdure("tour", "--url", process.url, "--only", "support", "--needs-port", str(port), "--json")
    assert code == 0, text
    assert "T-1001" in str([row["answer"] for row in json.loads(text)["rows"]])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
