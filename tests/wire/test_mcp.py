"""MCP: the official client and raw requests against a real server."""

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import mcp
import pytest
from mcp import ClientSession
from mcp.client import streamable_http

from tests.conftest import Database, Process
from tests.wire.assistants import NAMES, WAIT_SECONDS, get, make_project, post, rpc, served

connect = getattr(streamable_http, "streamable_http_client", None) or streamable_http.streamablehttp_client
VERSION = "2026-07-28"
META = "io.modelcontextprotocol/"
ENVELOPE = {META + "protocolVersion": VERSION, META + "clientCapabilities": {}}


@pytest.fixture(scope="module")
def process(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    config = make_project(tmp_path_factory.mktemp("mcp"))
    with Database(database_url) as (_, dsn), served(dsn, config) as process:
        yield process


@pytest.fixture
def url(process: Process) -> str:
    return f"{process.url}/mcp"


@asynccontextmanager
async def session(url: str) -> AsyncIterator[ClientSession]:
    """A client after its handshake, whichever generation of the SDK is installed."""
    async with connect(url) as (read, write, *_), ClientSession(read, write) as client:
        await client.initialize()
        yield client


def plain(result: Any) -> dict[str, Any]:
    return result.model_dump(by_alias=True, mode="json", exclude_none=True)


def modern(url: str, method: str, params: dict[str, Any], **headers: str) -> httpx.Response:
    """A request of the revision without a handshake."""
    named = {"mcp-name": params["name"]} if "name" in params else {}
    sent = {"mcp-protocol-version": VERSION, "mcp-method": method, **named, **headers}
    body = {"jsonrpc": "2.0", "id": "a", "method": method, "params": {"_meta": ENVELOPE, **params}}
    return httpx.post(url, json=body, headers=sent, timeout=WAIT_SECONDS)


async def test_the_official_client_lists_the_assistants_and_calls_one(url: str) -> None:
    async with session(url) as client:
        await client.send_ping()
        tools = {tool["name"]: tool for tool in plain(await client.list_tools())["tools"]}
        assert set(NAMES) <= set(tools)
        assert tools["works"]["description"] == "The agent that works."
        assert tools["works"]["inputSchema"]["properties"]["prompt"]["type"] == "string"
        messages = tools["talks"]["inputSchema"]["properties"]["messages"]
        assert messages["items"]["required"] == ["role", "content"]
        assert "$defs" not in tools["talks"]["inputSchema"]

        result = plain(await client.call_tool("works", {"prompt": "dishes"}))
        assert result["structuredContent"] == {"prompt": "dishes", "answer": "did dishes"}
        assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
        assert not result["isError"]


@pytest.mark.skipif(not hasattr(mcp, "Client"), reason="the installed SDK is of the generation before")
async def test_the_client_without_a_handshake_negotiates_the_newest_revision(url: str) -> None:
    async with mcp.Client(url) as client:
        assert client.protocol_version == VERSION
        assert set(NAMES) <= {tool.name for tool in (await client.list_tools()).tools}
        result = plain(await client.call_tool("works", {"prompt": "dishes"}))
        assert result["structuredContent"]["answer"] == "did dishes"


async def test_a_failing_run_is_an_error_of_the_tool_not_of_the_protocol(url: str) -> None:
    async with session(url) as client:
        result = plain(await client.call_tool("fails", {"prompt": "soup"}))
    assert result["isError"]
    assert result["content"][0]["text"] == "TerminalError: the stove is broken"


async def test_a_question_comes_back_with_its_link_and_is_answered_once(process: Process, url: str) -> None:
    async with session(url) as client:
        result = plain(await client.call_tool("asks", {"prompt": "eat"}))
    assert not result["isError"]
    told = result["structuredContent"]
    (question,) = told["interrupts"]
    assert told["status"] == "input_required"
    assert "May I eat?" in result["content"][0]["text"]
    assert question["url"] in result["content"][0]["text"]
    run = f"{process.url}/threads/{told['thread_id']}/runs"
    answered = post(f"{process.url}/interrupts/{question['token']}/resolve", False)
    assert answered.status_code == 202
    assert get(f"{run}/{answered.json()['run_id']}/join")["answer"] == "refused: None"
    assert post(f"{process.url}/interrupts/{question['token']}/resolve", False).status_code == 409


async def test_an_assistant_of_any_name_is_a_tool_under_a_name_of_its_own(process: Process, url: str) -> None:
    made = [
        post(f"{process.url}/assistants", {"graph_id": "works", "name": name}).json()
        for name in ("works", "works", "Ünïcode näme / with <signs> and far more characters than a tool may have")
    ]
    async with session(url) as client:
        tools = {tool["name"]: tool for tool in plain(await client.list_tools())["tools"]}
        for assistant in made:
            name = next(name for name in tools if name.endswith(uuid.UUID(assistant["assistant_id"]).hex))
            assert len(name) <= 64
            assert tools[name]["title"] == assistant["name"]
            assert plain(await client.call_tool(name, {"prompt": "x"}))["structuredContent"]["answer"] == "did x"


def test_many_tools_come_in_pages(process: Process, url: str) -> None:
    before = len(rpc(url, "tools/list")["result"]["tools"])
    for _ in range(101):
        assert post(f"{process.url}/assistants", {"graph_id": "works"}).status_code == 200
    names: list[str] = []
    cursor: dict[str, str] = {}
    pages = 0
    while True:
        page = rpc(url, "tools/list", cursor)["result"]
        pages += 1
        names += [tool["name"] for tool in page["tools"]]
        if "nextCursor" not in page:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert pages == 2
    assert len(names) == len(set(names)) == before + 101
    for bad in ("x", "-1", "9" * 30, 5, ""):
        assert rpc(url, "tools/list", {"cursor": bad})["error"]["code"] == -32602
    assert rpc(url, "tools/list", {"cursor": "999999999"})["result"] == {"tools": []}


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (b"{oops", -32700, 400),
        (b"", -32700, 400),
        (b"null", -32600, 400),
        (b"[]", -32600, 400),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600, 400),
        (b'{"id":1,"method":"ping"}', -32600, 400),
        (b'{"jsonrpc":"2.0","id":1}', -32600, 400),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, 400),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, 400),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}', -32602, 200),
        (b'{"jsonrpc":"2.0","id":1,"method":"resources/list"}', -32601, 200),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}', -32602, 200),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"nope"}}', -32602, 200),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"works","arguments":[]}}', -32602, 200),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"works","arguments":{"a":"\\u0000"}}}',
         -32600, 400),
    ],
)  # fmt: skip
def test_what_is_wrong_gets_its_code(url: str, body: bytes, code: int, status: int) -> None:
    answer = httpx.post(url, content=body, timeout=WAIT_SECONDS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.json()["jsonrpc"] == "2.0"
    assert (status == 200) == ("detail" not in answer.json())


def test_a_body_that_is_too_large_is_a_413(url: str) -> None:
    answer = httpx.post(url, content=b'{"x":"' + b"x" * 9 * 1024 * 1024 + b'"}', timeout=WAIT_SECONDS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, -32600)


def test_notifications_responses_and_other_methods(url: str) -> None:
    for body in ({"method": "notifications/initialized"}, {"id": 3, "result": {}}):
        answer = httpx.post(url, json={"jsonrpc": "2.0", **body}, timeout=WAIT_SECONDS)
        assert (answer.status_code, answer.content) == (202, b"")
    for method, status in (("GET", 405), ("DELETE", 404)):
        answer = httpx.request(method, url, headers={"accept": "text/event-stream"}, timeout=WAIT_SECONDS)
        assert answer.status_code == status
    assert httpx.post(f"{url}/", json={}, timeout=WAIT_SECONDS).status_code == 307
    assert httpx.post(url, json={}, headers={"accept": "text/html"}, timeout=WAIT_SECONDS).status_code == 406


def test_an_older_client_gets_its_revision_and_an_unknown_one_ours(url: str) -> None:
    for wanted, given in (("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("1999-01-01", "2025-11-25")):
        info = {"protocolVersion": wanted, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        assert rpc(url, "initialize", info)["result"]["protocolVersion"] == given


def test_requests_without_a_handshake_are_held_to_their_headers(url: str) -> None:
    found = modern(url, "server/discover", {}).json()["result"]
    assert VERSION in found["supportedVersions"]
    assert found["resultType"] == modern(url, "tools/list", {}).json()["result"]["resultType"] == "complete"
    called = modern(url, "tools/call", {"name": "works", "arguments": {"prompt": "x"}})
    assert called.json()["result"]["structuredContent"]["answer"] == "did x"
    for headers in ({"mcp-method": "ping"}, {"mcp-name": "fails"}, {"mcp-name": "=?base64?///?="}):
        refused = modern(url, "tools/call", {"name": "works"}, **headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, -32020)
    unknown = modern(url, "tools/list", {"_meta": {**ENVELOPE, META + "protocolVersion": "2031-01-01"}},
                     **{"mcp-protocol-version": "2031-01-01"})  # fmt: skip
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, -32022)
    assert unknown.json()["error"]["data"] == {"supported": [VERSION], "requested": "2031-01-01"}
    assert modern(url, "resources/list", {}).status_code == 404
    assert modern(url, "tools/list", {"_meta": {}}).json()["error"]["code"] == -32602
    assert modern(url, "tools/call", {"name": "nope"}).status_code == 400


def test_the_same_idempotency_key_calls_once(process: Process, url: str, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    arguments = {"name": "works", "arguments": {"prompt": "x", "effects": str(effects)}}
    for _ in range(2):
        answer = rpc(url, "tools/call", arguments, **{"idempotency-key": f"mcp-{tmp_path.name}"})
        assert answer["result"]["structuredContent"]["answer"] == "did x"
    assert effects.read_text().splitlines() == ["before", "after"]


def test_a_client_that_leaves_does_not_stop_its_call(url: str, process: Process, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "works", "arguments": {"seconds": 1, "effects": str(effects)}}}  # fmt: skip
    with httpx.stream("POST", url, json=body, timeout=WAIT_SECONDS) as answer:
        where = answer.headers["content-location"]
        assert next(answer.iter_raw()) == b"\n"  # a heartbeat: it is at work
    Path(f"{effects}.go").touch()
    assert httpx.get(f"{process.url}{where}/join", timeout=WAIT_SECONDS).json()["answer"] == "did None"
    assert effects.read_text().splitlines() == ["before", "after"]


def test_killing_the_worker_in_a_call_leaves_it_to_another_one(
    database_url: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, other = (make_project(tmp_path_factory.mktemp(name)) for name in ("api", "worker"))
    effects = tmp_path / "effects"
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "works", "arguments": {"seconds": 1, "effects": str(effects)}}}  # fmt: skip
    with (
        Database(database_url) as (_, dsn),
        served(dsn, config, slots=0) as api,
        served(dsn, other, command="worker") as worker,
        httpx.stream("POST", f"{api.url}/mcp", json=body, timeout=WAIT_SECONDS) as answer,
    ):
        chunks = answer.iter_raw()
        while not Path(f"{effects}.held").exists():
            assert next(chunks) == b"\n"
        worker.kill()
        Path(f"{effects}.go").touch()
        with served(dsn, other, command="worker"):
            result = json.loads(b"".join(chunks))["result"]
    assert result["structuredContent"]["answer"] == "did None"
    assert effects.read_text().splitlines() == ["before", "after"]


def test_the_oldest_assistant_of_a_name_is_the_tool_of_that_name(process: Process, url: str) -> None:
    name = f"house.keeper-{uuid.uuid4().hex[:6]}"
    first, second = (
        post(f"{process.url}/assistants", {"graph_id": graph, "name": name}).json()["assistant_id"]
        for graph in ("works", "fails")
    )
    own = f"{name}_{uuid.UUID(second).hex}"

    def call(tool: str) -> Any:
        return rpc(url, "tools/call", {"name": tool, "arguments": {"prompt": "x"}})

    def delete(assistant: str) -> None:
        httpx.delete(f"{process.url}/assistants/{assistant}", timeout=WAIT_SECONDS).raise_for_status()

    assert [call(tool)["result"]["isError"] for tool in (name, own)] == [False, True]
    delete(first)
    assert call(name)["result"]["isError"]
    delete(second)
    assert call(name)["error"]["code"] == -32602


def test_a_tool_has_the_name_of_its_assistant_if_no_other_tool_has_it(process: Process, url: str) -> None:
    name = f"house.keeper-{uuid.uuid4().hex[:6]}"
    made = [post(f"{process.url}/assistants", {"graph_id": "works", "name": name}).json() for _ in range(2)]
    names: list[str] = []
    page: dict[str, Any] = {"nextCursor": "0"}
    while "nextCursor" in page:
        page = rpc(url, "tools/list", {"cursor": page["nextCursor"]})["result"]
        names += [tool["name"] for tool in page["tools"] if tool["title"] == name]
    assert names == [name, f"{name}_{uuid.UUID(made[1]['assistant_id']).hex}"]
