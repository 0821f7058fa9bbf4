"""`get_client()` without a URL in graphs: it reaches the API of this deployment, from a server and from a worker."""

import json
from pathlib import Path

import httpx
import pytest

from tests.conftest import Launch

GRAPHS = """
from typing import Any

from langgraph.graph import START, StateGraph
from langgraph_sdk import get_client
from typing_extensions import TypedDict


class State(TypedDict, total=False):
    text: str
    answer: Any


EARLY = get_client()


async def shout(state: State) -> State:
    return {"answer": state["text"].upper()}


async def call(state: State) -> State:
    late = get_client()
    waited = await EARLY.runs.wait(None, "shouts", input={"text": state["text"]})
    modes = [part.event async for part in late.runs.stream(None, "shouts", input={"text": "b"}, stream_mode="values")]
    try:
        await late.threads.get("00000000-0000-4000-8000-000000000000")
    except Exception as exc:
        missing = type(exc).__name__
    return {"answer": [waited["answer"], modes[0], modes[-1], missing]}


shouts = StateGraph(State).add_node("node", shout).add_edge(START, "node").compile()
calls = StateGraph(State).add_node("node", call).add_edge(START, "node").compile()
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "looped.py").write_text(GRAPHS)
    graphs = {name: f"./looped.py:{name}" for name in ("shouts", "calls")}
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": graphs}))
    return tmp_path / "langgraph.json"


EXPECTED = ["A", "metadata", "values", "NotFoundError"]


def test_clients_of_graphs_reach_their_own_server(server: Launch, config: Path) -> None:
    url = server(config=config).url
    answer = httpx.post(f"{url}/agents/calls/run", json={"text": "a"}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["answer"] == EXPECTED


def test_those_of_a_worker_without_an_api_reach_the_address_that_the_setting_names(
    server: Launch, worker: Launch, config: Path, dsn: str
) -> None:
    url = server(config=config, slots=0).url
    worker(config=config, env={"DATABASE_URL": dsn, "PERDURE_URL": f"{url}/"})
    answer = httpx.post(f"{url}/agents/calls/run", json={"text": "a"}, timeout=30)
    assert answer.json()["answer"] == EXPECTED
