"""MCP and A2A with authentication: what belongs to one user does not exist for another."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api.conftest import GRAPHS, serve
from tests.api.test_tenancy import ALICE, AUTH, BOB


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("offered")
    (folder / "offered_wired.py").write_text(GRAPHS)
    (folder / "offered_auth.py").write_text(AUTH)
    graphs = {name: f"./offered_wired.py:{name}" for name in ("works", "asks")}
    config = {"graphs": graphs, "auth": {"path": "./offered_auth.py:auth"}}
    (folder / "langgraph.json").write_text(json.dumps(config))
    with serve(database_url, folder / "langgraph.json") as url:
        yield url


def ask(url: str, who: dict[str, str], method: str, params: dict[str, Any]) -> dict[str, Any]:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return httpx.post(url, json=body, headers=who, timeout=30).json()


def message(**more: Any) -> dict[str, Any]:
    part = {"kind": "data", "data": {"log": ["x"]}}
    return {"message": {"role": "user", "messageId": str(uuid4()), "parts": [part], **more}}


def test_a_task_is_its_owners(server: str) -> None:
    url = f"{server}/a2a/asks"
    assert httpx.post(url, json={}, timeout=30).status_code == 401
    assert httpx.get(f"{server}/.well-known/agent-card.json?assistant_id=asks", timeout=30).status_code == 401
    said = message()
    task = ask(url, ALICE, "message/send", said)["result"]
    assert task["status"]["state"] == "input-required"
    for method, params in (
        ("tasks/get", {"id": task["id"]}),
        ("tasks/cancel", {"id": task["id"]}),
        ("tasks/resubscribe", {"id": task["id"]}),
        ("message/send", message(taskId=task["id"])),
        ("tasks/pushNotificationConfig/list", {"id": task["id"]}),
    ):
        assert ask(url, BOB, method, params)["error"]["code"] == -32001, method
    intruding = ask(url, BOB, "message/send", message(contextId=task["contextId"]))
    assert intruding["error"]["code"] == -32602
    same = ask(url, BOB, "message/send", said)["result"]  # Alice's message id tells Bob nothing
    assert same["id"] != task["id"]
    answered = ask(url, ALICE, "message/send", message(taskId=task["id"]))["result"]
    assert answered["status"]["state"] == "completed"


def test_a_tool_of_another_user_is_unknown(server: str) -> None:
    url = f"{server}/mcp"
    assert httpx.post(url, json={}, timeout=30).status_code == 401
    body = {"graph_id": "works", "name": "mine"}
    made = httpx.post(f"{server}/assistants", json=body, headers=ALICE, timeout=30).json()
    listed = {
        who["x-api-key"]: {tool["name"] for tool in ask(url, who, "tools/list", {})["result"]["tools"]}
        for who in (ALICE, BOB)
    }
    assert listed == {"alice": {"works", "asks", "mine"}, "bob": {"works", "asks"}}
    for name in ("mine", f"mine_{made['assistant_id'].replace('-', '')}"):
        assert ask(url, BOB, "tools/call", {"name": name, "arguments": {}})["error"]["code"] == -32602
        assert not ask(url, ALICE, "tools/call", {"name": name, "arguments": {}})["result"]["isError"]
