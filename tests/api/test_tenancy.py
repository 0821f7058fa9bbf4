"""What belongs to one user does not exist for another: by no verb, on no route, and nothing tells that it is there.

Alice has one thing of each kind on a real server, with the Auth file that LangGraph's documentation
shows: everything carries its owner. Bob, who may do as much with his own, tries them all; each answer is
compared with the one for an id that nobody has.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import Route
from starlette.testclient import TestClient
from websockets.asyncio.client import connect

from perdure.api import create_app
from perdure.api.auth import OPEN, OPEN_BELOW, routes_of
from perdure.api.gate import gate
from perdure.config import Settings
from perdure.engine.registry import GraphEntry, Registry
from tests.api.conftest import GRAPHS, serve
from tests.conftest import eventually

AUTH = '''
"""Everybody who gives a name is believed; everything belongs to who made it."""

from langgraph_sdk import Auth

auth = Auth()


@auth.authenticate
async def authenticate(headers):
    name = headers.get(b"x-api-key")
    if not name:
        raise Auth.exceptions.HTTPException(status_code=401, detail="Who are you?")
    return {"identity": name.decode(), "token": f"secret of {name.decode()}"}


@auth.on
async def own(ctx, value):
    value.setdefault("metadata", {})["owner"] = ctx.user.identity
    return {"owner": ctx.user.identity}


@auth.on.store
async def own_items(ctx, value):
    value["namespace"] = (ctx.user.identity, *(value["namespace"] or ()))
'''
ALICE, BOB = {"x-api-key": "alice"}, {"x-api-key": "bob"}
RUN = {"assistant_id": "asks", "input": {"log": ["bob was here"]}}
NOBODY = str(uuid4())


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "tenants_wired.py").write_text(GRAPHS)
    (folder / "tenants_auth.py").write_text(AUTH)
    graphs = {name: f"./tenants_wired.py:{name}" for name in ("works", "asks")}
    config = {"graphs": graphs, "auth": {"path": "./tenants_auth.py:auth", "disable_studio_auth": True}}
    (folder / "langgraph.json").write_text(json.dumps(config))
    with serve(database_url, folder / "langgraph.json") as url:
        yield url


@dataclass(frozen=True)
class Things:
    """One of each kind; `none` has ids that nobody has."""

    thread: str
    run: str
    ended: str
    assistant: str
    cron: str
    thread_cron: str
    token: str
    interrupt: str
    checkpoint: str
    working: str

    @classmethod
    def none(cls, like: "Things") -> "Things":
        ids = {name: str(uuid4()) for name in ("thread", "run", "ended", "assistant", "cron", "thread_cron", "working")}
        return cls(**ids, token="t" * len(like.token), interrupt="0" * 32, checkpoint=like.checkpoint)

    def blank(self, text: str) -> str:
        """A text in which these ids are not to be told from others."""
        for name, value in vars(self).items():
            text = text.replace(value, f"<{name}>")
        return text


@pytest.fixture(scope="module")
def alice(server: str) -> Things:
    with httpx.Client(base_url=server, headers=ALICE, timeout=30) as http:
        thread = http.post("/threads", json={"metadata": {"secret": "alice's"}}).json()["thread_id"]
        http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "asks", "input": {"log": ["secret"]}})
        runs = http.get(f"/threads/{thread}/runs").json()
        asked = http.get("/interrupts").json()
        state = http.get(f"/threads/{thread}/state").json()
        working = http.post("/threads", json={}).json()["thread_id"]
        run = http.post(f"/threads/{working}/runs", json={"assistant_id": "works", "input": {"seconds": 3600}}).json()
        path = f"/threads/{working}/runs/{run['run_id']}"
        eventually(lambda: http.get(path).json()["status"], lambda status: status == "running")
        assistant = http.post("/assistants", json={"graph_id": "works", "name": "secret"}).json()["assistant_id"]
        cron = {"assistant_id": "works", "schedule": "0 0 1 1 *"}
        made = http.post("/runs/crons", json=cron).json()
        on_thread = http.post(f"/threads/{thread}/runs/crons", json=cron).json()
        http.put("/store/items", json={"namespace": ["notes"], "key": "k", "value": {"secret": 1}})
        http.post("/agents/works/secret-key/run", json={"log": ["secret"]})
    return Things(
        thread=thread,
        run=run["run_id"],
        ended=runs[0]["run_id"],
        assistant=assistant,
        cron=made["cron_id"],
        thread_cron=on_thread["cron_id"],
        token=asked[0]["token"],
        interrupt=asked[0]["interrupt_id"],
        checkpoint=state["checkpoint_id"],
        working=working,
    )


@pytest.fixture
def bob(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, headers=BOB, timeout=30) as http:
        yield http


T, W = "/threads/{thread}", "/threads/{working}/runs/{run}"
NAMED: list[tuple[str, str, Any]] = [
    ("GET", T, None),
    ("GET", T + "?include=ttl", None),
    ("PATCH", T, {"metadata": {"owner": "bob"}}),
    ("DELETE", T, None),
    ("POST", T + "/copy", None),
    ("GET", T + "/state", None),
    ("POST", T + "/state", {"values": {"log": ["bob"]}, "as_node": "node"}),
    ("GET", T + "/state/{checkpoint}", None),
    ("POST", T + "/state/checkpoint", {"checkpoint": {"checkpoint_id": "{checkpoint}"}}),
    ("GET", T + "/history", None),
    ("POST", T + "/history", {"limit": 10}),
    ("GET", T + "/stream", None),
    ("POST", T + "/runs", RUN),
    ("POST", T + "/runs", {"assistant_id": "asks", "command": {"resume": "yes"}}),
    ("POST", T + "/runs", {"assistant_id": "no such graph"}),
    ("POST", T + "/runs/stream", RUN),
    ("POST", T + "/runs/wait", RUN),
    ("GET", T + "/runs", None),
    ("GET", W, None),
    ("DELETE", T + "/runs/{ended}", None),
    ("GET", T + "/runs/{ended}/join", None),
    ("GET", W + "/stream", None),
    ("GET", W + "/stream?cancel_on_disconnect=true", None),
    ("POST", W + "/cancel?wait=1", None),
    ("POST", W + "/cancel?action=rollback", None),
    ("POST", W + "/pause", None),
    ("POST", W + "/resume", None),
    ("POST", W + "/retry", None),
    ("POST", W + "/restart", {}),
    ("POST", T + "/runs/{ended}/restart", {}),
    ("POST", W + "/kill", None),
    ("GET", W + "/steps", None),
    ("GET", W + "/outcome", None),
    ("DELETE", W + "/outcome", None),
    ("POST", "/threads/{working}/messages", "hello"),
    ("POST", T + "/runs/crons", {"assistant_id": "works", "schedule": "* * * * *"}),
    ("GET", "/assistants/{assistant}", None),
    ("PATCH", "/assistants/{assistant}", {"name": "bob's"}),
    ("DELETE", "/assistants/{assistant}", None),
    ("DELETE", "/assistants/{assistant}?delete_threads=true", None),
    ("GET", "/assistants/{assistant}/graph", None),
    ("GET", "/assistants/{assistant}/schemas", None),
    ("GET", "/assistants/{assistant}/subgraphs", None),
    ("GET", "/assistants/{assistant}/subgraphs/x", None),
    ("POST", "/assistants/{assistant}/versions", {}),
    ("POST", "/assistants/{assistant}/latest", {"version": 1}),
    ("POST", "/runs", {"assistant_id": "{assistant}", "input": {}}),
    ("POST", "/runs/stream", {"assistant_id": "{assistant}", "input": {}}),
    ("POST", "/runs/wait", {"assistant_id": "{assistant}", "input": {}}),
    ("POST", "/runs/batch", [{"assistant_id": "{assistant}", "input": {}}]),
    ("POST", "/runs/crons", {"assistant_id": "{assistant}", "schedule": "* * * * *"}),
    ("POST", "/agents/{assistant}/run", {}),
    ("POST", "/agents/{assistant}/send", {}),
    ("POST", "/agents/{assistant}/secret-key/run", {}),
    ("POST", "/agents/{assistant}/secret-key/send", {}),
    ("POST", "/agents/{assistant}/secret-key/messages", {}),
    ("GET", "/agents/{assistant}/secret-key/state", None),
    ("GET", "/runs/crons/{cron}", None),
    ("PATCH", "/runs/crons/{cron}", {"enabled": False}),
    ("DELETE", "/runs/crons/{cron}", None),
    ("DELETE", "/runs/crons/{thread_cron}", None),
    ("GET", "/interrupts/{token}", None),
    ("POST", "/interrupts/{token}/resolve", True),
    ("POST", "/interrupts/{token}/reject", {"reason": "bob"}),
    ("GET", "/interrupts?cursor={token}", None),
    ("POST", "/runs/search", {"cursor": "{run}"}),
    ("POST", "/runs/cancel", {"thread_id": "{working}", "run_ids": ["{run}"]}),
]
"""Attempts at a thing by its id. None succeeds, and each is answered as for an id that nobody has."""


def ask(http: httpx.Client, things: Things, method: str, path: str, body: Any) -> tuple[int, str]:
    """Status and body; what an answer says of the ids that were asked for does not count."""
    path = path.format(**vars(things))
    text = None if body is None else re.sub(r"\{(\w+)\}", lambda m: getattr(things, m[1]), json.dumps(body))
    response = http.request(method, path, content=text)
    return response.status_code, things.blank(response.text)


@pytest.mark.parametrize("attempt", NAMED, ids=lambda attempt: f"{attempt[0]} {attempt[1]}")
def test_a_named_thing_of_another_is_not_there(
    server: str, alice: Things, bob: httpx.Client, attempt: tuple[str, str, Any]
) -> None:
    found = ask(bob, alice, *attempt)
    assert 400 <= found[0] < 500, found
    assert "secret" not in found[1].replace("secret-key", "")
    assert found == ask(bob, Things.none(alice), *attempt)


def everything(http: httpx.Client, things: Things) -> Any:
    """What the owner sees of all that was tried."""
    paths = (
        f"/threads/{things.thread}",
        f"/threads/{things.thread}/state",
        f"/threads/{things.thread}/runs",
        f"/threads/{things.working}/runs/{things.run}",
        f"/assistants/{things.assistant}",
        f"/runs/crons/{things.cron}",
        f"/runs/crons/{things.thread_cron}",
        f"/interrupts/{things.token}",
        "/store/items?namespace=notes&key=k",
        "/agents/works/secret-key/state",
    )
    answers = [http.get(path) for path in paths]
    assert [answer.status_code for answer in answers] == [200] * len(paths), [a.text for a in answers]
    return [answer.json() for answer in answers]


def test_searches_counts_and_bulk_calls_see_and_touch_only_ones_own(
    server: str, alice: Things, bob: httpx.Client
) -> None:
    with httpx.Client(base_url=server, headers=ALICE, timeout=30) as owner:
        before = everything(owner, alice)
    ids = [alice.thread, alice.working]
    assert bob.post("/threads/search", json={"ids": ids}).json() == []
    assert bob.post("/threads/search", json={"metadata": {"owner": "alice"}}).json() == []
    assert bob.post("/threads/search", json={"values": {"log": ["secret"]}}).json() == []
    assert bob.post("/threads/count", json={"metadata": {"secret": "alice's"}}).json() == 0
    for strategy in ("delete", "keep_latest"):
        assert bob.post("/threads/prune", json={"thread_ids": ids, "strategy": strategy}).json() == {"pruned_count": 0}
    names = {one["name"] for one in bob.post("/assistants/search", json={"limit": 100}).json()}
    assert names == {"works", "asks"}, "the graphs themselves, and nobody's assistants"
    assert bob.post("/assistants/count", json={"name": "secret"}).json() == 0
    assert bob.post("/runs/crons/search", json={}).json() == []
    assert bob.post("/runs/crons/search", json={"thread_id": alice.thread}).json() == []
    assert bob.post("/runs/crons/count", json={}).json() == 0
    assert bob.get("/interrupts").json() == []
    assert bob.get("/interrupts", params={"thread_id": alice.thread}).json() == []
    assert bob.post("/runs/search", json={}).json() == []
    assert bob.post("/runs/search", json={"thread_id": alice.thread}).json() == []
    for action in ("cancel", "kill", "pause", "resume", "retry", "delete"):
        body = {"action": action, "run_ids": [alice.run, alice.ended]}
        assert bob.post("/runs/bulk", json=body).json() == {"done": 0, "failed": 2}, action
    for status in ("pending", "running", "all"):
        assert bob.post("/runs/cancel", json={"status": status}).status_code == 204
    assert bob.post("/store/items/search", json={"namespace_prefix": []}).json() == {"items": []}
    assert bob.post("/store/items/search", json={"namespace_prefix": ["alice"]}).json() == {"items": []}
    assert bob.post("/store/namespaces", json={}).json() == {"namespaces": []}
    assert bob.post("/store/namespaces", json={"prefix": ["*"], "suffix": ["notes"]}).json() == {"namespaces": []}
    assert bob.get("/store/items", params={"namespace": "notes", "key": "k"}).json() is None
    assert bob.get("/store/items", params={"namespace": "alice.notes", "key": "k"}).json() is None
    mine = {"namespace": ["notes"], "key": "k"}
    assert bob.request("DELETE", "/store/items", json=mine).status_code == 204
    assert bob.request("DELETE", "/store/items", json={**mine, "namespace": ["alice", "notes"]}).status_code == 204
    assert bob.put("/store/items", json={**mine, "value": {"bob": 1}}).status_code == 204
    for path in ("history", "state"):
        assert not bob.get(f"/agents/works/secret-key/{path}").json()
    assert bob.delete("/agents/works/secret-key/state").status_code == 204
    assert bob.post("/agents/works/secret-key/messages", json="hi").status_code == 409, "as of one never called"
    assert {one["agent"] for one in bob.get("/agents").json()} == {"works", "asks"}
    bob.request("DELETE", "/store/items", json=mine)
    with httpx.Client(base_url=server, headers=ALICE, timeout=30) as owner:
        assert everything(owner, alice) == before


def test_an_id_that_is_taken_gives_nothing_away(server: str, alice: Things, bob: httpx.Client) -> None:
    taken = bob.post("/threads", json={"thread_id": alice.thread})
    kept = bob.post("/threads", json={"thread_id": alice.thread, "if_exists": "do_nothing"})
    steps = [{"updates": [{"values": {}, "as_node": "__input__"}]}]
    replayed = {
        "thread_id": alice.thread,
        "if_exists": "do_nothing",
        "supersteps": steps,
        "metadata": {"graph_id": "works"},
    }
    assert taken.status_code == kept.status_code == bob.post("/threads", json=replayed).status_code == 409
    assert taken.json() == kept.json() == {"detail": f"Thread with ID {alice.thread} already exists"}
    body = {"assistant_id": alice.assistant, "graph_id": "works"}
    taken, kept = (bob.post("/assistants", json=body | {"if_exists": how}) for how in ("raise", "do_nothing"))
    assert taken.status_code == kept.status_code == 409
    assert taken.json() == kept.json() == {"detail": f"Assistant with ID {alice.assistant} already exists"}
    made = bob.post(f"/threads/{alice.thread}/runs", json={**RUN, "if_not_exists": "create"})
    assert (made.status_code, made.json()) == (404, {"detail": f"Thread with ID {alice.thread} not found"})


def test_an_idempotency_key_is_ones_own(server: str, alice: Things, bob: httpx.Client) -> None:
    body, key = (
        {"assistant_id": "works", "input": {"log": ["same"]}, "on_completion": "keep"},
        {"Idempotency-Key": "k1"},
    )
    with httpx.Client(base_url=server, headers=ALICE, timeout=30) as owner:
        hers, again = (owner.post("/runs", json=body, headers=key).json() for _ in range(2))
    his = bob.post("/runs", json=body, headers=key).json()
    assert hers["run_id"] == again["run_id"] != his["run_id"]
    assert hers["thread_id"] != his["thread_id"]


def test_a_session_of_the_same_key_is_another_thread(server: str, alice: Things, bob: httpx.Client) -> None:
    assert bob.post("/agents/works/shared/run", json={"log": ["bob"]}).json()["log"] == ["bob", "worked"]
    with httpx.Client(base_url=server, headers=ALICE, timeout=30) as owner:
        assert owner.post("/agents/works/shared/run", json={"log": ["alice"]}).json()["log"] == ["alice", "worked"]


@pytest.mark.parametrize(
    "change", [{"owner": "alice"}, {"owner": None}, {"owner": {}}, {"owner": ["bob", "alice"]}, {"owner": ""}]
)
def test_a_row_keeps_its_owner(server: str, bob: httpx.Client, change: dict[str, Any]) -> None:
    thread = bob.post("/threads", json={"metadata": change}).json()
    assert thread["metadata"]["owner"] == "bob"
    patched = bob.patch(f"/threads/{thread['thread_id']}", json={"metadata": {**change, "x": 1}})
    assert patched.json()["metadata"] == {"owner": "bob", "x": 1}
    assistant = bob.post("/assistants", json={"graph_id": "works", "metadata": change}).json()
    assert assistant["metadata"]["owner"] == "bob"
    assert bob.patch(f"/assistants/{assistant['assistant_id']}", json={"metadata": change}).json()["metadata"] == {
        "owner": "bob"
    }
    cron = bob.post("/runs/crons", json={"assistant_id": "works", "schedule": "0 0 1 1 *", "metadata": change}).json()
    assert cron["metadata"]["owner"] == cron["user_id"] == "bob"
    assert bob.patch(f"/runs/crons/{cron['cron_id']}", json={"metadata": change}).json()["metadata"]["owner"] == "bob"
    copy = bob.post(f"/threads/{thread['thread_id']}/copy").json()
    assert copy["metadata"]["owner"] == "bob"
    run = bob.post("/runs", json={"assistant_id": "works", "input": {}, "metadata": change}).json()
    assert run["metadata"]["owner"] == "bob"
    assert bob.delete(f"/assistants/{assistant['assistant_id']}").status_code == 204
    assert bob.delete(f"/runs/crons/{cron['cron_id']}").status_code == 204


@pytest.mark.parametrize("path", ["", "/latest"])
def test_a_default_assistant_may_be_used_and_not_changed(server: str, bob: httpx.Client, path: str) -> None:
    [default] = [one for one in bob.post("/assistants/search", json={}).json() if one["name"] == "works"]
    place = f"/assistants/{default['assistant_id']}"
    assert bob.get(place).json()["assistant_id"] == default["assistant_id"]
    change = bob.post(place + path, json={"version": 1}) if path else bob.patch(place, json={"name": "bob's"})
    assert change.status_code == bob.delete(place).status_code == 404
    assert bob.post("/runs/wait", json={"assistant_id": "works", "input": {}}).json() == {"log": ["worked"]}


COMMANDS: list[tuple[str, dict[str, Any]]] = [
    ("input.respond", {"namespace": [], "interrupt_id": "{interrupt}", "response": True}),
    ("input.inject", {"message": {"role": "user", "content": "hi"}}),
    ("agent.getTree", {}),
    ("agent.getTree", {"run_id": "{ended}"}),
    ("state.get", {}),
    ("state.listCheckpoints", {}),
    ("state.fork", {"checkpoint_id": "{checkpoint}"}),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_finds_no_thread_of_another(
    server: str, alice: Things, bob: httpx.Client, command: tuple[str, dict[str, Any]]
) -> None:
    body = {"id": 1, "method": command[0], "params": command[1]}
    status, text = ask(bob, alice, "POST", T + "/commands", body)
    assert status == 200
    assert json.loads(text)["type"] == "error"
    assert (status, text) == ask(bob, Things.none(alice), "POST", T + "/commands", body)


def test_a_command_starts_nothing_on_a_thread_of_another(server: str, alice: Things, bob: httpx.Client) -> None:
    """The thread of `run.start` need not exist, so this answer tells that the id is taken, as making a thread does."""
    taken = bob.post("/threads", json={"thread_id": alice.thread}).json()["detail"]
    for params in (RUN, {**RUN, "multitaskStrategy": "reject"}, {**RUN, "metadata": {"owner": "alice"}}):
        body = {"id": 1, "method": "run.start", "params": params}
        answer = bob.post(f"/threads/{alice.thread}/commands", json=body).json()
        assert answer == {"type": "error", "id": 1, "error": "unknown_error", "message": taken}
    for params in ({"assistant_id": "no such graph"}, {"assistant_id": "works", "input": {}, "metadata": 1}, {}):
        body = {"id": 1, "method": "run.start", "params": params}
        found = ask(bob, alice, "POST", T + "/commands", body)
        assert json.loads(found[1])["type"] == "error"
        assert found == ask(bob, Things.none(alice), "POST", T + "/commands", body)


@pytest.mark.parametrize("refused", ["threads.create", "threads.create_run"])
def test_who_may_not_make_threads_cannot_tell_a_thread_of_another_from_none(
    app: FastAPI, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"partly_{tmp_path.name}_{refused.rpartition('.')[2]}"
    source = (
        f"{AUTH}\n\n@auth.on.{refused}\nasync def no(ctx, value):\n    return ctx.user.identity == 'alice' and None\n"
    )
    (tmp_path / f"{name}.py").write_text(source)
    served = app_of(dsn, tmp_path, app_entry(app), {"auth": {"path": f"./{name}.py:auth"}})
    with TestClient(served) as http:
        hers = http.post("/threads", json={}, headers=ALICE).json()["thread_id"]
        body = {"id": 1, "method": "run.start", "params": {"assistant_id": "echo", "input": {}}}
        answers = [
            http.post(f"/threads/{thread}/commands", json=body, headers=BOB).text.replace(thread, "<thread>")
            for thread in (hers, NOBODY)
        ]
        assert answers[0] == answers[1]
        assert '"type":"error"' in answers[0]


def test_tasks_of_another_agent_caller_are_not_listed(server: str, alice: Things, bob: httpx.Client) -> None:
    said = {"kind": "message", "role": "user", "messageId": "1", "parts": [{"kind": "data", "data": {"log": []}}]}
    send = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": said}}
    hers = httpx.post(f"{server}/a2a/works", json=send, headers=ALICE, timeout=30).json()["result"]
    his = bob.post("/a2a/works", json=send).json()["result"]

    def listed(headers: dict[str, str], **params: Any) -> dict[str, Any]:
        body = {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": params}
        return httpx.post(f"{server}/a2a/works", json=body, headers=headers, timeout=30).json()["result"]

    for headers, task in ((ALICE, hers), (BOB, his)):
        page = listed(headers)
        assert ([one["id"] for one in page["tasks"]], page["totalSize"]) == ([task["id"]], 1)
    assert listed(BOB, contextId=hers["contextId"]) == listed(BOB, contextId=str(uuid4()))


def frames(http: httpx.Client, path: str, body: Any, heartbeats: int = 4) -> list[str]:
    """What a stream shows until so many heartbeats have come, without them."""
    shown: list[str] = []
    with http.stream("POST" if body else "GET", path, json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            heartbeats -= line == ": heartbeat"
            if not heartbeats:
                return shown
            if line and not line.startswith(":"):
                shown.append(line)
    raise AssertionError("the stream has ended")


def test_event_streams_of_another_stay_as_silent_as_those_of_no_thread(alice: Things, bob: httpx.Client) -> None:
    wanted = {"channels": ["lifecycle", "values", "input"]}
    for thread in (alice.thread, NOBODY):
        assert frames(bob, f"/threads/{thread}/stream/events", wanted) == []
    assert frames(bob, "/agents/works/secret-key/stream", None) == []


def test_a_stream_that_was_opened_before_its_thread_shows_it(server: str, bob: httpx.Client) -> None:
    """Also with a filter, which finds the thread only once it is there."""
    thread = str(uuid4())
    wanted = {"channels": ["lifecycle"]}
    with httpx.stream(
        "POST", f"{server}/threads/{thread}/stream/events", json=wanted, headers=BOB, timeout=30
    ) as response:
        lines = response.iter_lines()
        assert "heartbeat" in next(lines)
        start = {"id": 1, "method": "run.start", "params": {"assistant_id": "works", "input": {}}}
        assert bob.post(f"/threads/{thread}/commands", json=start).json()["type"] == "success"
        for line in lines:
            if '"completed"' in line:
                break


async def test_a_socket_of_another_shows_nothing_and_commands_nothing(server: str, alice: Things) -> None:
    shown: dict[str, list[Any]] = {}
    for name, things in (("alice", alice), ("nobody", Things.none(alice))):
        address = f"{server.replace('http', 'ws')}/threads/{things.thread}/stream/events"
        async with connect(address, additional_headers=BOB) as socket:
            commands = [("subscription.subscribe", {"channels": ["lifecycle", "values", "input"]}), *COMMANDS]
            answers: list[Any] = []
            for number, (method, params) in enumerate(commands):
                text = json.dumps({"id": number, "method": method, "params": params})
                await socket.send(re.sub(r"\{(\w+)\}", lambda m, t=things: getattr(t, m[1]), text))
                answer = json.loads(things.blank(str(await asyncio.wait_for(socket.recv(), 30))))
                if method == "subscription.subscribe":
                    assert answer["result"].pop("subscription_id")
                answers.append(answer)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 1)
            shown[name] = answers
    assert shown["alice"] == shown["nobody"]
    assert shown["alice"][0]["result"] == {"replayed_events": 0}
    assert shown["alice"][0]["meta"] == {"applied_through_seq": 0}
    assert {answer["type"] for answer in shown["alice"][1:]} == {"error"}


# -- every route has a gate

PUBLIC = {"/", "/ok", "/info", "/metrics", "/callbacks/{token}", "/interrupts/link/{signed}"}
"""Routes that ask nobody: they tell nothing of anybody, or a token or a signature is the permission."""


def app_of(dsn: str, tmp_path: Path, graph: GraphEntry, config: dict[str, Any]) -> FastAPI:
    settings = Settings(config=tmp_path / "langgraph.json")
    return create_app(
        settings, Registry({"graphs": {"echo": "tests:graph"}, **config}, {"echo": graph}, [tmp_path]), dsn
    )


def asks(dependant: Any) -> bool:
    return dependant.call is gate or any(asks(one) for one in dependant.dependencies)


def test_every_route_has_a_gate_or_is_known_to_be_public(app: FastAPI) -> None:
    """A new route without one fails here: give its path parameter a type of `api/gate.py`, or ask the gate."""
    routes = [route for route in routes_of(app.routes) if isinstance(route, APIRoute | APIWebSocketRoute)]
    assert len(routes) > 60
    without = {route.path for route in routes if not asks(route.dependant)}
    assert without == PUBLIC
    others = {
        route.path for route in routes_of(app.routes) if isinstance(route, Route) and not isinstance(route, APIRoute)
    }
    assert others <= OPEN


BODIES: dict[str, Any] = {
    "/assistants": {"graph_id": "echo"},
    "/assistants/{assistant_id}/latest": {"version": 1},
    "/threads/prune": {"thread_ids": [], "strategy": "delete"},
    "/threads/{thread_id}/stream/events": {"channels": ["values"]},
    "/threads/{thread_id}/state/checkpoint": {"checkpoint": {}},
    "/runs/cancel": {"status": "all"},
    "/runs/batch": [{"assistant_id": "echo"}],
    "/runs/bulk": {"action": "cancel", "run_ids": []},
    "/store/items": {"namespace": ["a"], "key": "k", "value": {}},
    "/runs/crons": {"assistant_id": "echo", "schedule": "* * * * *"},
    "/threads/{thread_id}/runs/crons": {"assistant_id": "echo", "schedule": "* * * * *"},
}
LATER = {
    "/threads/{thread_id}/commands": "its answer is an envelope",
    "/mcp": "its answer is an envelope",
    "/a2a/{assistant_id}": "its answer is an envelope",
    "/a2a/{assistant_id}/.well-known/agent-card.json": "it may not be read, so it is not there",
    "/interrupts/{token}": "there is no such question",
    "/interrupts/{token}/resolve": "there is no such question",
    "/interrupts/{token}/reject": "there is no such question",
}
"""Routes where the refusal of a handler is no 403, and why."""

REFUSE = """
from langgraph_sdk import Auth

auth = Auth()


@auth.authenticate
async def authenticate():
    return "nobody"


@auth.on
async def refuse(ctx, value):
    return False
"""


def test_a_handler_that_refuses_everything_is_heard_on_every_route(
    app: FastAPI, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes a gate also asks it: each call that is not public is a 403."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"refuse_{tmp_path.name}.py").write_text(REFUSE)
    config = {"auth": {"path": f"./refuse_{tmp_path.name}.py:auth"}}
    refusing = app_of(dsn, tmp_path, app_entry(app), config)
    wrong: list[Any] = []
    with TestClient(refusing, raise_server_exceptions=False) as http:
        for route in routes_of(refusing.routes):
            if not isinstance(route, APIRoute) or route.path in PUBLIC or route.path in LATER:
                continue
            path = re.sub(r"\{agent\}", "echo", route.path)
            path = re.sub(r"\{\w+:path\}", "key", path)
            path = re.sub(r"\{\w+\}", NOBODY, path)
            run = {"assistant_id": "echo", "input": {}}
            for method in route.methods - {"HEAD"}:
                query = {"key": "k", "namespace": "a"} if path == "/store/items" and method == "GET" else None
                body = None if method == "GET" else BODIES.get(route.path, run)
                answer = http.request(method, path, params=query, json=body)
                if answer.status_code != 403 and (method, route.path) not in {("POST", "/threads/{thread_id}/copy")}:
                    wrong.append((method, route.path, answer.status_code, answer.text[:100]))
    assert wrong == []


def app_entry(app: FastAPI) -> GraphEntry:
    with TestClient(app):
        return app.state.engine.registry.graphs["echo"]


def test_without_an_auth_object_nothing_is_asked_of_the_database(client: TestClient, app: FastAPI) -> None:
    pool = app.state.engine.pool
    thread = client.post("/threads", json={}).json()["thread_id"]
    counted: list[str] = []
    original = pool.connection

    def connection(*args: Any, **kwargs: Any) -> Any:
        counted.append("connection")
        return original(*args, **kwargs)

    pool.connection = connection
    try:
        assert client.get(f"/threads/{thread}/runs").json() == []
    finally:
        pool.connection = original
    assert len(counted) == 2, "the thread, then its runs"
    assert app.state.auth is None
    assert not [one for one in app.user_middleware if one.cls.__name__ == "Authentication"]


def test_open_paths_are_those_of_public_routes() -> None:
    for path in PUBLIC:
        assert path in OPEN or path.startswith(OPEN_BELOW), path
