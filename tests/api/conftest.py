"""An app in the test's own process, for what needs no worker, and a real server for the rest."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import add
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import psycopg
import pytest
from fastapi import FastAPI
from langgraph.graph import START, StateGraph
from psycopg import sql
from psycopg.conninfo import make_conninfo
from starlette.testclient import TestClient
from typing_extensions import TypedDict

from perdure.api import create_app
from perdure.config import Settings
from perdure.engine.registry import GraphEntry, Registry
from tests.conftest import Process

GRAPHS = '''
"""Graphs of the API tests."""

import asyncio
from operator import add
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import approval


class State(TypedDict, total=False):
    log: Annotated[list[str], add]
    seconds: float
    hold: str  # a file: as long as it is there, the node waits
    answer: Any


async def work(state: State) -> State:
    await asyncio.sleep(state.get("seconds", 0))
    while "hold" in state and Path(state["hold"]).exists():
        await asyncio.sleep(0.02)
    return {"log": ["worked"]}


async def fail(state: State) -> State:
    raise ValueError("boom")


async def ask(state: State) -> State:
    return {"answer": interrupt("really?")}


async def approve(state: State) -> State:
    action = {"name": "pay", "args": {"to": "<script>alert(1)</script>"}, "description": "Pays"}
    answer = await approval("Pay <b>5 & 6</b>?", within=3600, action=action)
    return {"answer": {"approved": answer.approved, "reason": answer.reason}}


def single(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


works, fails, asks, approves = single(work), single(fail), single(ask), single(approve)
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


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A langgraph.json with graphs that work, fail and ask, for a real server."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "wired.py").write_text(GRAPHS)
    names = ("works", "fails", "asks", "approves")
    (folder / "langgraph.json").write_text(json.dumps({"graphs": {name: f"./wired.py:{name}" for name in names}}))
    return folder / "langgraph.json"


@pytest.fixture(scope="session")
def live(database_url: str, config: Path) -> Iterator[str]:
    """The address of a real server that the tests of this folder share; start-up takes seconds."""
    with serve(database_url, config) as url:
        yield url


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """A file that holds a run of `works` which names it in its input, until it is taken away."""
    (tmp_path / "hold").touch()
    return tmp_path / "hold"


@contextmanager
def serve(database_url: str, config: Path, **env: str) -> Iterator[str]:
    """A real server with a database of its own; its address. `env` are further settings."""
    name = f"test_{uuid4().hex}"
    _execute(database_url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    given = {"DATABASE_URL": make_conninfo(database_url, dbname=name), "PERDURE_HEARTBEAT_SECONDS": "0.3", **env}
    command = [sys.executable, "-m", "perdure.cli", "serve", "--config", str(config), "--port", "0"]
    log = config.parent / "serve.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command, cwd=config.parent, env={**os.environ, **given}, stdout=output, stderr=subprocess.STDOUT
        )
    process = Process(popen, log)
    try:
        yield process.until(r"http://127\.0\.0\.1:\d+")[0]
    finally:
        process.stop()
        _execute(database_url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement)
