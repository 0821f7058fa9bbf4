"""Agents of one server that call agents of another: two real servers, each with a database of its own."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from starlette.testclient import TestClient

from tests.conftest import Launch, Process, eventually

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()

GRAPHS = '''
"""Graphs of both sides."""

import asyncio
from pathlib import Path
from typing import Any

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import TerminalError, agent, sleep


class State(TypedDict, total=False):
    server: str
    agent: str
    key: str
    given: Any
    out: Any
    failed: str


async def call(state: State) -> State:
    """Calls what the input says, where it says."""
    try:
        given = state.get("given") or {}
        return {"out": await agent(state["agent"], given, key=state.get("key"), server=state["server"])}
    except TerminalError as exc:
        return {"failed": f"{exc.status} {exc}"}


async def plan(state: State) -> State:
    await sleep(2)
    return {"out": "pro"}


async def held(state: State) -> State:
    while Path(__file__).with_name("hold").exists():
        await asyncio.sleep(0.02)
    return {"out": "let go"}


async def forever(state: State) -> State:
    await sleep(3600)
    return {}


async def ask(state: State) -> State:
    return {"out": interrupt("really?")}


async def fail(state: State) -> State:
    raise TerminalError("no such user", 404)


def single(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


calls, plans, helds, forevers = single(call), single(plan), single(held), single(forever)
asks, fails = single(ask), single(fail)
'''


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "distant.py").write_text(GRAPHS)
    graphs = {name: f"./distant.py:{name}s" for name in ("call", "plan", "held", "forever", "ask", "fail")}
    section = {"url": {"disable_loopback": False, "require_https": False}}
    (folder / "langgraph.json").write_text(json.dumps({"graphs": graphs, "webhooks": section}))
    return folder / "langgraph.json"


LOOK_LATER = """
UPDATE remote_calls SET next_at = now() + interval '1 hour' WHERE status = 'running' AND NOT speaking RETURNING 1
"""
AGE = "UPDATE remote_calls SET next_at = now() WHERE next_at IS NOT NULL RETURNING 1"
"""Time passes; or what a killed process was about to say would wait for its lease."""


class Pair:
    """Two servers; `near` calls `far`."""

    def __init__(self, server: Launch, config: Path, free_port: Callable[[], int], near: str, far: str) -> None:
        self._server, self._config = server, config
        self._dsn = {"near": near, "far": far}
        self.port = {"near": free_port(), "far": free_port()}
        self.url = {side: f"http://127.0.0.1:{port}" for side, port in self.port.items()}
        self.process: dict[str, Process] = {}

    def start(self, side: str, *, public: bool = True) -> None:
        env = {"DATABASE_URL": self._dsn[side], "PERDURE_WEBHOOK_SECRET": SECRET}
        if public:
            env["PERDURE_PUBLIC_URL"] = self.url[side]
        self.process[side] = self._server(config=self._config, port=self.port[side], env=env)

    def post(self, side: str, path: str, body: Any = None) -> Any:
        answer = httpx.post(self.url[side] + path, json=body, timeout=40)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def get(self, side: str, path: str) -> Any:
        answer = httpx.get(self.url[side] + path, timeout=40)
        assert answer.is_success, answer.text
        return answer.json()

    def call(self, agent: str, **given: Any) -> dict[str, Any]:
        """Let `near` call an agent of `far`, in the background."""
        return self.post("near", "/agents/call/send", {"server": self.url["far"], "agent": agent, **given})

    def run(self, run: dict[str, Any]) -> Any:
        return self.get("near", f"/threads/{run['thread_id']}/runs/{run['run_id']}")

    def result(self, run: dict[str, Any]) -> Any:
        return self.get("near", f"/threads/{run['thread_id']}/runs/{run['run_id']}/join")

    def children(self, graph: str, side: str = "far") -> list[dict[str, Any]]:
        """Runs of a graph over there, newest first."""
        return self.post(side, "/runs/search", {"agent": graph})

    def rows(self, side: str, query: Any) -> list[Any]:
        with psycopg.connect(self._dsn[side], autocommit=True) as conn:
            return conn.execute(query).fetchall()


@pytest.fixture
def pair(server: Launch, config: Path, free_port: Callable[[], int], dsn: str, second_dsn: str) -> Pair:
    return Pair(server, config, free_port, dsn, second_dsn)


@pytest.fixture
def second_dsn(empty_dsn: str) -> Iterator[str]:
    return empty_dsn


def test_a_child_over_there_is_waited_for_asked_cancelled_and_its_failure_told(pair: Pair, config: Path) -> None:
    pair.start("far")
    pair.start("near")
    # when it ends it says so: nobody would look for an hour
    hold = config.with_name("hold")
    hold.touch()
    run = pair.call("held")
    eventually(lambda: pair.run(run).get("suspended"))
    eventually(lambda: pair.rows("near", LOOK_LATER))
    hold.unlink()
    assert pair.result(run)["out"] == {"out": "let go"}
    eventually(lambda: pair.rows("far", "SELECT status FROM webhooks"), lambda rows: rows == [("delivered",)])

    assert pair.result(pair.call("fail"))["failed"].startswith(
        f"404 Agent 'fail' on {pair.url['far']} failed with TerminalError: no such user"
    )
    assert pair.result(pair.call("nobody"))["failed"].startswith(f"422 Agent 'nobody' on {pair.url['far']} failed with")

    # a question over there does not end it; the answer is given over there
    run = pair.call("ask", key="session")
    (question,) = eventually(lambda: pair.get("far", "/interrupts?status=open"))
    time.sleep(0.5)  # that something does not happen has no condition to wait for: it had time to
    assert pair.run(run)["status"] == "running"
    pair.post("far", f"/interrupts/{question['token']}/resolve", {"yes": True})
    assert pair.result(run)["out"] == {"out": {"yes": True}}

    # cancelled here: cancelled there, a question too
    for graph in ("forever", "ask"):
        before = {child["run_id"] for child in pair.children(graph)}
        run = pair.call(graph)
        found = eventually(
            lambda known=before, graph=graph: [one for one in pair.children(graph) if one["run_id"] not in known]
        )
        child = found[0]
        eventually(lambda run=run: pair.run(run).get("suspended"))
        if graph == "ask":
            eventually(lambda: pair.get("far", "/interrupts?status=open"))
        pair.post("near", f"/threads/{run['thread_id']}/runs/{run['run_id']}/cancel")
        path = f"/threads/{child['thread_id']}/runs/{child['run_id']}/outcome"
        eventually(lambda path=path: pair.get("far", path)["status"] == "cancelled")
        assert pair.get("far", "/interrupts?status=open") == []
    eventually(lambda: pair.rows("near", "SELECT 1 FROM remote_calls WHERE settled_at IS NULL") == [])

    # a session that is called by the call that it made itself
    inner = {"server": pair.url["near"], "agent": "call", "key": "loop", "given": {}}
    path, body = "/agents/call/loop/run", {"server": pair.url["far"], "agent": "call", "given": inner}
    assert "would wait for itself" in pair.post("near", path, body)["out"]["failed"]


def test_neither_server_needs_to_be_there_all_the_time(pair: Pair) -> None:
    pair.start("near", public=False)
    run = pair.call("plan", key="k")
    eventually(lambda: pair.rows("near", "SELECT 1 FROM remote_calls WHERE problem LIKE 'ConnectError%'"))
    assert pair.run(run)["suspended"] is True
    pair.process["near"].kill()
    pair.start("far")
    pair.start("near", public=False)
    pair.rows("near", AGE)
    eventually(lambda: pair.children("plan"))
    pair.process["far"].kill()
    pair.process["near"].kill()
    pair.start("near", public=False)
    pair.start("far")
    pair.rows("near", AGE)
    assert pair.result(run)["out"] == {"out": "pro"}
    assert len(pair.children("plan")) == 1


def test_routes_for_other_servers_refuse_what_they_do_not_know(client: TestClient) -> None:
    answer = client.post("/callbacks/unknown", json={"status": "success"})
    assert (answer.status_code, answer.json()) == (410, {"detail": "Nobody waits for this callback"})
    path = f"/threads/{uuid4()}/runs/{uuid4()}/outcome"
    assert client.get(path).json() == {"status": "gone", "output": None, "error": None}
    assert client.delete(path).status_code == 202
    run = client.post("/agents/echo/send", json={}).json()
    path = f"/threads/{run['thread_id']}/runs/{run['run_id']}/outcome"
    assert client.get(path).json()["status"] == "running"
    assert [client.delete(path).status_code for _ in range(2)] == [202, 202]
    assert client.get(path).json()["status"] == "cancelled"
    refused = client.post("/agents/echo/k/send?webhook=http://127.0.0.1/x", json={})
    assert (refused.status_code, refused.json()["detail"].split(":")[0]) == (422, "webhook")
    thread = client.post("/agents/echo/k/send", json={}).json()["thread_id"]
    waiting = {"perdure-callers": f"{uuid4()},{thread}"}
    assert client.post("/agents/echo/k/send", json={}, headers=waiting).status_code == 409
