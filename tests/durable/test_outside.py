"""agent where there is no perdure server: graphs by name in this process, and plain HTTP to another server."""

import asyncio
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from structlog.testing import capture_logs

from perdure import TerminalError, agent, gather, race
from perdure.durable import outside
from tests.durable.fakes import graph_of

GRAPHS = """
from contextlib import asynccontextmanager

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

seen = []


class State(TypedDict, total=False):
    text: str


async def reply(state):
    seen.append(state["text"])
    return {"text": "re: " + state["text"]}


async def ask(state):
    return {"text": interrupt("really?")}


async def fail(state):
    raise ValueError("boom")


def builder(node):
    return StateGraph(State).add_node("node", node).add_edge(START, "node")


replies, asks, fails, raw = builder(reply).compile(), builder(ask).compile(), builder(fail).compile(), builder(reply)


def factory():
    return builder(reply)


async def with_config(config):
    return builder(reply).compile()


@asynccontextmanager
async def managed():
    yield builder(reply).compile()
"""


@pytest.fixture(params=["LANGSERVE_GRAPHS", "langgraph.json"])
def project(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with graphs, known as `langgraph dev` makes them known or by a langgraph.json."""
    name = f"outside_{request.param.replace('.', '_').lower()}"
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / f"{name}.py").write_text(GRAPHS)
    where = f"./agents/{name}.py"
    graphs = {one: f"{where}:{one}" for one in ("asks", "fails", "raw", "factory", "with_config", "managed")}
    graphs |= {"replies": {"path": f"{where}:replies", "description": "says re"}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("LANGSERVE_GRAPHS", raising=False)
    if request.param == "LANGSERVE_GRAPHS":
        monkeypatch.setenv("LANGSERVE_GRAPHS", json.dumps(graphs))
    else:
        (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": graphs}))
    yield tmp_path
    for module in [module for module in sys.modules if module.split(".")[0] == "agents"]:
        del sys.modules[module]


@pytest.mark.parametrize("name", ["replies", "raw", "factory", "with_config", "managed"])
async def test_a_name_is_the_graph_that_langgraph_knows_executed_in_this_process(project: Path, name: str):
    async def node() -> Any:
        return (await agent(name, {"text": "hi"}, key="ignored"))["text"]

    assert await graph_of(node).ainvoke({}) == {"out": "re: hi"}
    assert (await agent(name, {"text": "no graph around"}))["text"] == "re: no graph around"


async def test_a_question_of_the_child_is_a_question_of_the_caller(project: Path):
    async def node() -> Any:
        return (await agent("asks", {}))["text"]

    graph, config = graph_of(node, saver=InMemorySaver()), {"configurable": {"thread_id": "t"}}
    asked = await graph.ainvoke({}, config)
    assert asked["__interrupt__"][0].value == "really?"
    assert await graph.ainvoke(Command(resume="yes"), config) == {"out": "yes"}


async def test_gather_and_race_take_names_too(project: Path):
    both = await gather(agent("replies", {"text": "a"}), agent("raw", {"text": "b"}))
    assert [one["text"] for one in both] == ["re: a", "re: b"]
    assert (await race(agent("fails", {"text": "a"}), agent("raw", {"text": "b"})))["text"] == "re: b"


async def test_send_goes_on_in_the_background_and_says_that_it_is_not_durable(project: Path):
    begun: list[asyncio.Task[Any]] = []

    async def node() -> str:
        run_id = await agent.send("replies", {"text": "later"}, delay=0.05)
        begun.extend(outside._started)
        return run_id

    with capture_logs() as logs:
        run_id = (await graph_of(node).ainvoke({}))["out"]
    assert [(log["log_level"], log["run_id"]) for log in logs] == [("warning", run_id)]
    (task,) = begun
    await task
    await asyncio.sleep(0)
    module = next(module for name, module in sys.modules.items() if name.startswith("agents.outside"))
    assert module.seen == ["later"]
    assert not outside._started
    with capture_logs() as logs:
        await agent.send("fails", {"text": "x"})
        (task,) = outside._started
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert "nobody tries it again" in logs[-1]["event"]
    assert "boom" in logs[-1]["error"]


async def test_an_unknown_name_is_an_error_that_names_the_others(project: Path):
    for call in (agent("other", {}), agent.send("other", {})):
        with pytest.raises(RuntimeError, match=r"agent\('other'\): no such graph; .* knows: asks, fails"):
            await call


async def test_without_anything_that_knows_names_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LANGSERVE_GRAPHS", raising=False)
    with pytest.raises(RuntimeError, match=r"needs a perdure server, or a langgraph\.json"):
        await agent("x", {})


# -- another server


class Far:
    """A server that answers as told and remembers what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[tuple[int, Any]] = []
        self.got: list[tuple[str, dict[str, str], Any]] = []


@pytest.fixture
def far() -> Iterator[Far]:
    far = Far()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            far.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            status, answer = far.answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    far.url = f"http://127.0.0.1:{server.server_port}"
    yield far
    server.shutdown()
    server.server_close()


async def test_another_server_is_called_by_plain_http_again_with_the_same_key(
    far: Far, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PERDURE_REMOTE_KEYS", json.dumps({f"{far.url}/": "geheim", "http://other": "other"}))
    far.answers = [(503, {}), (200, {"plan": "pro"})]

    async def node() -> Any:
        return await agent("crm", {"user": 1}, key="a/b", server=far.url)

    assert await graph_of(node).ainvoke({}) == {"out": {"plan": "pro"}}
    assert [(path, body) for path, _, body in far.got] == [("/agents/crm/a%2Fb/run", {"user": 1})] * 2
    assert far.got[0][1]["idempotency-key"] == far.got[1][1]["idempotency-key"]
    assert far.got[0][1]["x-api-key"] == "geheim"
    far.answers = [(202, {"run_id": "r1"})]
    assert await agent.send("crm", {}, delay=1.5, server=far.url) == "r1"
    assert far.got[-1][0] == "/agents/crm/send?delay=1.5s"


async def test_failures_of_another_server_are_terminal_and_tell_what_it_said(far: Far):
    far.answers = [(402, {"detail": "CardDeclined: no money"}), (202, {"run_id": "r", "interrupts": []})]
    with pytest.raises(TerminalError, match="failed with CardDeclined: no money") as caught:
        await agent("pay", {}, server=far.url)
    assert caught.value.status == 402
    with pytest.raises(TerminalError, match=r"asks a person .*/interrupts"):
        await agent("pay", {}, server=far.url)
