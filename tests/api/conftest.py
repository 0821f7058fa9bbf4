"""An app in the test's own process, on a fresh database: for everything that needs no worker."""

from collections.abc import Iterator
from operator import add
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import FastAPI
from langgraph.graph import START, StateGraph
from starlette.testclient import TestClient
from typing_extensions import TypedDict

from perdure.api import create_app
from perdure.config import Settings
from perdure.engine.registry import GraphEntry, Registry

GRAPHS = '''
"""Graphs of the API tests."""

import asyncio
from operator import add
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict


class State(TypedDict, total=False):
    log: Annotated[list[str], add]
    seconds: float
    answer: Any


async def work(state: State) -> State:
    await asyncio.sleep(state.get("seconds", 0))
    return {"log": ["worked"]}


async def fail(state: State) -> State:
    raise ValueError("boom")


async def ask(state: State) -> State:
    return {"answer": interrupt("really?")}


def single(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


works, fails, asks = single(work), single(fail), single(ask)
'''


class State(TypedDict, total=False):
    log: Annotated[list[str], add]


def _echo(state: State) -> State:
    return {"log": ["echo"]}


@pytest.fixture
def app(dsn: str, tmp_path: Path) -> FastAPI:
    """The API with one graph, `echo`, and nobody who executes runs."""
    graph = StateGraph(State).add_node("echo", _echo).add_edge(START, "echo").compile()
    entry = GraphEntry("echo", "tests:graph", None, graph)
    settings = Settings(config=tmp_path / "langgraph.json", max_body_bytes=1_000_000)
    return create_app(settings, Registry({"graphs": {"echo": "tests:graph"}}, {"echo": entry}), dsn)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A langgraph.json with graphs that work, fail and ask, for a real server."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "wired.py").write_text(GRAPHS)
    (folder / "langgraph.json").write_text(
        '{"graphs": {"works": "./wired.py:works", "fails": "./wired.py:fails", "asks": "./wired.py:asks"}}'
    )
    return folder / "langgraph.json"
