"""Webhooks of a real server, to a real receiver."""

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from standardwebhooks import Webhook

from tests.conftest import eventually

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()

GRAPHS = '''
"""Graphs of the webhook tests."""

import time
from pathlib import Path

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict


class State(TypedDict, total=False):
    text: str


async def reply(state: State) -> State:
    return {"text": "re: " + state["text"]}


async def block(state: State) -> State:
    hold = Path(__file__).with_name("hold")
    while hold.exists():
        time.sleep(0.02)  # the node itself is what is tested: it holds the event loop of the attempts
    return {}


def single(node):
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


replies, blocks = single(reply), single(block)
'''


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "hooked.py").write_text(GRAPHS)
    section = {"url": {"disable_loopback": False, "require_https": False}}
    graphs = {"replies": "./hooked.py:replies", "blocks": "./hooked.py:blocks"}
    (folder / "langgraph.json").write_text(json.dumps({"graphs": graphs, "webhooks": section}))
    return folder / "langgraph.json"


class Sink:
    def __init__(self) -> None:
        self.url = ""
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.hold: threading.Event | None = None  # answers only once it is set

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            sink.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if sink.hold is not None:
                sink.hold.wait(30)
            try:
                self.send_response(204)
                self.end_headers()
            except OSError:
                pass  # the sender was killed

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    sink.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield sink
    server.shutdown()
    server.server_close()


def post(url: str, path: str, **body: Any) -> Any:
    response = httpx.post(url + path, json=body, timeout=30)
    response.raise_for_status()
    return response.json()


def test_every_kind_of_run_is_reported_quickly_though_author_code_blocks_the_worker(server, config, sink):
    process = server(config=config, env=None)
    thread = post(process.url, "/threads")["thread_id"]
    run: dict[str, Any] = {"assistant_id": "replies", "input": {"text": "hi"}, "webhook": sink.url}
    seconds: list[float] = []
    for number in range(5):  # each right after the one before: the next poll is 2 s away
        post(process.url, f"/threads/{thread}/runs/wait", **run)
        began = time.monotonic()
        eventually(lambda wanted=number + 1: len(sink.got) == wanted)
        seconds.append(time.monotonic() - began)
    assert min(seconds[1:]) < 1, "nobody is told, it waits for the poll"
    assert sink.bodies[0]["values"] == {"text": "re: hi"}
    post(process.url, "/runs/wait", **run)
    eventually(lambda: len(sink.got) == 6)
    assert sink.bodies[5]["values"] is None
    # a node that blocks the attempt loop: the cancelled run's webhook does not wait for it
    hold = config.with_name("hold")
    hold.touch()
    blocked = post(process.url, f"/threads/{thread}/runs", **{**run, "assistant_id": "blocks"})
    run_url = f"{process.url}/threads/{thread}/runs/{blocked['run_id']}"
    eventually(lambda: httpx.get(run_url, timeout=30).json()["status"] == "running")
    httpx.post(f"{run_url}/cancel", timeout=30).raise_for_status()
    eventually(lambda: len(sink.got) == 7)
    hold.unlink()
    assert sink.bodies[6]["status"] == "interrupted"
    assert sink.url not in process.output, "an address may hold a secret"


def test_killed_while_sending_is_sent_again_by_the_next_process_with_the_same_id(server, config, sink, dsn):
    env = {"DATABASE_URL": dsn, "PERDURE_WEBHOOK_SECRET": SECRET}
    sink.hold = threading.Event()
    first = server(config=config, env=env)
    post(first.url, "/runs/wait", assistant_id="replies", input={"text": "hi"}, webhook=sink.url)
    eventually(lambda: sink.got)
    first.kill()
    sink.hold.set()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("UPDATE webhooks SET next_at = now()")  # its lease has ended
        server(config=config, env=env)
        eventually(lambda: len(sink.got) == 2)
        eventually(lambda: conn.execute("SELECT status FROM webhooks").fetchone() == ("delivered",))
    (one, _), (two, body) = sink.got
    assert one["webhook-id"] == two["webhook-id"]
    assert Webhook(SECRET).verify(body, two)["status"] == "success"
    assert len(sink.got) == 2


def test_secret_that_cannot_be_used_ends_the_start_and_names_the_variable(launch, config, dsn):
    env = {"DATABASE_URL": dsn, "PERDURE_WEBHOOK_SECRET": "whsec_c2hvcnQ="}
    process = launch("serve", "--config", str(config), "--port", "0", env=env)
    assert process.wait() != 0
    assert "PERDURE_WEBHOOK_SECRET" in process.output
    assert "c2hvcnQ" not in process.output
