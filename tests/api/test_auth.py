"""`langgraph_sdk.Auth`: who is asked what, what answers mean, what nodes see; and the user's own HTTP app."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from langgraph_sdk import Auth
from starlette.testclient import TestClient

from perdure.api import create_app
from perdure.api.auth import User
from perdure.api.gate import handler_of
from perdure.config import Settings
from perdure.engine import ticks, urls
from perdure.engine.access import NOTHING, containment, kept, owned
from perdure.engine.errors import InvalidInput
from perdure.engine.registry import ConfigError, Registry
from tests.api.conftest import serve

Build = Callable[..., FastAPI]


@pytest.fixture
def build(app: FastAPI, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """The API of `app` with an Auth object, written as a module of this test's own."""
    with TestClient(app):
        graphs = app.state.engine.registry.graphs
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str, *, settings: dict[str, Any] | None = None, **config: Any) -> FastAPI:
        name = f"auth_{uuid4().hex}"
        (tmp_path / f"{name}.py").write_text("from langgraph_sdk import Auth\n\nauth = Auth()\n" + source)
        config = {"graphs": {}, "auth": {"path": f"./{name}.py:auth"}, **config}
        return create_app(Settings(**(settings or {})), Registry(config, graphs, [tmp_path]), dsn)

    return make


NAMED = """
@auth.authenticate
async def authenticate(authorization):
    return authorization
"""


def named(name: str) -> dict[str, str]:
    return {"Authorization": name}


def test_the_most_specific_handler_is_asked() -> None:
    auth = Auth()

    def handler() -> Any:
        async def asked(ctx: Any, value: Any) -> None: ...

        return asked

    everything, threads, reading, read_thread = (handler() for _ in range(4))
    assert handler_of(auth, "threads", "read") is None
    auth.on(everything)
    auth.on(actions="read")(reading)
    assert handler_of(auth, "threads", "read") is reading
    auth.on.threads(threads)
    assert handler_of(auth, "threads", "read") is threads
    auth.on.threads.read(read_thread)
    assert handler_of(auth, "threads", "read") is read_thread
    assert handler_of(auth, "threads", "delete") is threads
    assert handler_of(auth, "crons", "read") is reading
    assert handler_of(auth, "crons", "delete") is everything


def test_filters_are_containment() -> None:
    given = {"a": "x", "b": {"$eq": "y"}, "c": {"$contains": "z"}, "d": {"$contains": ["p", "q"]}, "e": {"f": 1}}
    assert containment(given) == {"a": "x", "b": "y", "c": ["z"], "d": ["p", "q"], "e": {"f": 1}}
    for wrong in ({"a": {"$ne": 1}}, {"a": {"$eq": 1, "$contains": 2}}, {"a": {"$eq": 1, "b": 2}}):
        with pytest.raises(ValueError, match="'a'"):
            containment(wrong)


def test_what_is_made_lies_within_the_filter() -> None:
    within = {"owner": "me", "team": ["red"]}
    assert owned({}, within) == within
    assert owned({"owner": "you", "team": ["blue"], "x": 1}, within) == {"owner": "me", "team": ["blue", "red"], "x": 1}
    assert owned({"team": "red"}, within) == within
    assert owned({"x": 1}, None) == owned({"x": 1}, NOTHING) == {"x": 1}
    assert kept({"x": 1}, within) == {"x": 1}
    assert kept({"team": []}, within) == {"team": ["red"]}


def test_a_user_is_a_name_a_dict_or_an_object() -> None:
    class Person:
        identity = "me"

        def __init__(self) -> None:
            self.email = "a@b"

    for given in ("me", {"identity": "me", "email": "a@b"}, Person()):
        user = User(given)
        assert (user.identity, user.display_name, user.permissions, user.is_authenticated) == ("me", "me", [], True)
        assert "identity" in user
        assert user["identity"] == user.record["identity"] == "me"
        json.dumps(user.record)
    assert User(Person()).email == User({"identity": "me", "email": "a@b"}).get("email") == "a@b"
    with pytest.raises(AttributeError):
        _ = User("me").email
    for wrong in ({}, {"identity": ""}, {"identity": 1}, object()):
        with pytest.raises(TypeError, match="identity"):
            User(wrong)


def test_authenticate_is_given_what_it_names(build: Build) -> None:
    source = """
seen = {}

@auth.authenticate
def authenticate(request, body, path, method, path_params, query_params, headers, authorization, other=1):
    seen.update(locals(), request=type(request).__name__)
    return "me"
"""
    app = build(source)
    seen = __import__(app.state.auth._authenticate_handler.__module__).seen
    with TestClient(app) as http:
        thread = uuid4()
        body = {"metadata": {"a": 1}}
        assert http.patch(f"/threads/{thread}?x=1", json=body, headers=named("token")).status_code == 404
    assert seen["body"] == body
    assert seen["path"] == f"/threads/{thread}"
    assert seen["method"] == "PATCH"
    assert seen["path_params"] == {"thread_id": str(thread)}
    assert seen["query_params"] == {"x": "1"}
    assert seen["headers"][b"authorization"] == b"token"
    assert (seen["authorization"], seen["other"], seen["request"]) == ("token", 1, "Request")


@pytest.mark.parametrize(
    ("source", "status", "detail"),
    [
        ("    return None", 401, "Unauthorized"),
        ("    raise Auth.exceptions.HTTPException(status_code=402, detail='Pay', headers={'x-why': 'y'})", 402, "Pay"),
        ("    raise ValueError('a secret')", 500, "Internal Server Error"),
        ("    return {'name': 'nobody'}", 500, "Internal Server Error"),
    ],
)
def test_who_is_not_known_gets_no_further(build: Build, source: str, status: int, detail: str) -> None:
    app = build(f"\n@auth.authenticate\nasync def authenticate():\n{source}\n")
    with TestClient(app, raise_server_exceptions=False) as http:
        answer = http.get("/agents", headers={"Origin": "http://x"})
        assert (answer.status_code, answer.json()) == (status, {"detail": detail})
        assert answer.headers["access-control-allow-origin"] == "*", "a page may read why"
        assert http.get("/ok").status_code == 200
        asked = {"Origin": "http://x", "Access-Control-Request-Method": "POST"}
        assert http.options("/threads", headers=asked).status_code == 200
        if status == 402:
            assert answer.headers["x-why"] == "y"
        with http.websocket_connect(f"/threads/{uuid4()}/stream/events") if status != 500 else _no_socket() as socket:
            if socket is not None:
                assert socket.receive() == {"type": "websocket.close", "code": 4000 + status, "reason": detail}


class _no_socket:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None


def test_what_handlers_answer(build: Build) -> None:
    source = (
        NAMED
        + """
@auth.on
async def everything(ctx, value):
    return False

@auth.on.threads
async def threads(ctx, value):
    return True

@auth.on.threads.search
async def search(ctx, value):
    raise Auth.exceptions.HTTPException(status_code=418, detail=f"{ctx.resource} {ctx.action} {ctx.user.identity}")

@auth.on.threads.delete
async def delete(ctx, value):
    return {"owner": {"$unknown": 1}}

@auth.on.crons.search
async def crons(ctx, value):
    return "yes"
"""
    )
    with TestClient(build(source), raise_server_exceptions=False) as http:
        http.headers["Authorization"] = "me"
        thread = http.post("/threads", json={"metadata": {"mine": 1}}).json()
        assert thread["metadata"] == {"mine": 1}, "nothing is added without a filter"
        assert http.get("/agents").json() == {"detail": "Forbidden"}
        assert http.get("/agents").status_code == 403
        teapot = http.post("/threads/search", json={})
        assert (teapot.status_code, teapot.json()) == (418, {"detail": "threads search me"})
        assert http.delete(f"/threads/{thread['thread_id']}").status_code == 500, "a filter that nobody understands"
        assert http.get(f"/threads/{thread['thread_id']}").status_code == 200
        assert http.post("/runs/crons/search", json={}).status_code == 403, "neither bool nor filter"
        run = http.post("/runs", json={"assistant_id": "echo", "input": {}})
        assert run.status_code == 200, "who may not read assistants may still run the graphs"


def test_a_thread_may_be_shared_by_a_list(build: Build) -> None:
    source = (
        NAMED
        + """
@auth.on.threads
async def members(ctx, value):
    return {"members": {"$contains": ctx.user.identity}}
"""
    )
    with TestClient(build(source)) as http:
        made = http.post("/threads", json={"metadata": {"members": ["bob"]}}, headers=named("alice")).json()
        assert made["metadata"] == {"members": ["bob", "alice"]}
        path = f"/threads/{made['thread_id']}"
        statuses = [http.get(path, headers=named(name)).status_code for name in ("alice", "bob", "carol")]
        assert statuses == [200, 200, 404]
        http.patch(path, json={"metadata": {"members": ["carol"]}}, headers=named("bob"))
        statuses = [http.get(path, headers=named(name)).status_code for name in ("alice", "bob", "carol")]
        assert statuses == [404, 200, 200], "who changes the list stays in it"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("auth = 1", "is a int"),
        ("", "no @auth.authenticate"),
        ("\n@auth.authenticate\nasync def authenticate(password):\n    return 'me'\n", "wants 'password'"),
        ("import no_such_module", "cannot be loaded"),
    ],
)
def test_an_auth_file_that_cannot_work_is_refused_at_start(build: Build, source: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(source)


def test_two_ways_to_authenticate_are_one_too_many(build: Build) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        build(NAMED, settings={"auth": "keys"})


def test_a_limit_without_authentication_is_one_of_addresses(app: FastAPI, dsn: str) -> None:
    with TestClient(app):
        graphs = app.state.engine.registry.graphs
    limited = create_app(Settings(rate_limit_per_minute=2), Registry({"graphs": {}}, graphs), dsn)
    with TestClient(limited) as http:
        assert [http.get("/agents").status_code for _ in range(3)] == [200, 200, 429]
    with TestClient(limited, client=("10.0.0.9", 1)) as http:
        assert http.get("/agents").status_code == 200


def test_routes_may_be_left_out(app: FastAPI, dsn: str) -> None:
    config = {"graphs": {}, "http": {"disable_store": True, "disable_assistants": True}}
    with TestClient(create_app(Settings(), Registry(config, {}), dsn)) as http:
        assert http.post("/store/namespaces", json={}).status_code == 404
        assert http.post("/assistants/search", json={}).status_code == 404
        assert http.post("/threads/search", json={}).status_code == 200


def test_what_the_server_says_about_itself_may_be_left_out(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> int:
        raise ConnectionError

    monkeypatch.setattr("perdure.api.system.assistants.count", broken)
    paths = ("/info", "/metrics", "/docs", "/openapi.json", "/docs/oauth2-redirect")
    config = {"graphs": {}, "http": {"disable_meta": True}}
    with TestClient(create_app(Settings(), Registry({"graphs": {}}, {}), dsn)) as http:
        assert [http.get(path).status_code for path in paths] == [200] * len(paths)
        assert http.get("/ok?check_db=true").status_code == 503
    app = create_app(Settings(), Registry(config, {}), dsn)
    with TestClient(app, raise_server_exceptions=False) as http:
        assert [http.get(path).status_code for path in paths] == [404] * len(paths)
        assert http.get("/ok?check_db=true").json()["ok"] is True  # nobody looks


def test_with_webhooks_off_runs_are_taken_and_nobody_is_called(app: FastAPI, dsn: str) -> None:
    with TestClient(app):
        graphs = app.state.engine.registry.graphs
    config = {"graphs": {}, "http": {"disable_webhooks": True}}
    run = {"assistant_id": "echo", "input": {}, "webhook": "https://example.com/hook"}
    with TestClient(create_app(Settings(), Registry(config, graphs), dsn)) as http:
        made = http.post("/runs", json=run)
        assert made.status_code == 200, made.text
        assert made.json()["kwargs"]["webhook"] is None
        sent = http.post("/agents/echo/send?webhook=https://example.com/hook", json={})
        assert sent.status_code == 202
        assert not http.get("/.well-known/agent-card.json").json()["capabilities"]["pushNotifications"]
    with pytest.raises(InvalidInput, match="switched off"):  # one that was accepted before, as deliveries see it
        urls.check_url("https://example.com/hook", config)


# -- on a real server

WIRED = '''
"""Graphs that tell for whom they work."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import agent


class State(TypedDict, total=False):
    ask: bool
    by: dict[str, Any]
    child: dict[str, Any]


async def tell(state: State, config: RunnableConfig) -> State:
    seen = config["configurable"]
    if state.get("ask"):
        interrupt("really?")
    names = ("langgraph_auth_user", "langgraph_auth_user_id", "user_id", "x-tenant", "x-other", "x-api-key")
    return {"by": {name: seen[name] for name in names if name in seen}}


async def call(state: State) -> State:
    return {"child": (await agent("tells", {}, key="k"))["by"]}


def single(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


tells, calls = single(tell), single(call)
'''
HTTP = """
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

events = []


@asynccontextmanager
async def lifespan(app):
    events.append("started")
    yield


app = FastAPI(lifespan=lifespan)


@app.middleware("http")
async def stamp(request, call_next):
    response = await call_next(request)
    response.headers["x-stamp"] = "seen"
    return response


@app.get("/hello")
async def hello(request: Request):
    return {"events": events, "user": request.user.identity}


@app.get("/info")
async def info():
    return {"mine": True}


@app.post("/echo")
async def echo(request: Request):
    return await request.json()
"""
AUTHENTICATED = """
from langgraph_sdk import Auth

auth = Auth()


@auth.authenticate
async def authenticate(request, headers):
    await request.body()
    name = headers.get(b"x-api-key", b"").decode()
    return {"identity": name, "token": f"token of {name}"} if name else None


@auth.on
async def own(ctx, value):
    return {"owner": ctx.user.identity}
"""


@pytest.fixture(scope="module")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("authenticated")
    for name, source in (("tells_wired", WIRED), ("tells_http", HTTP), ("tells_auth", AUTHENTICATED)):
        (folder / f"{name}.py").write_text(source)
    config = {
        "graphs": {name: f"./tells_wired.py:{name}" for name in ("tells", "calls")},
        "auth": {"path": "./tells_auth.py:auth"},
        "http": {
            "app": "./tells_http.py:app",
            "enable_custom_route_auth": True,
            "configurable_headers": {"includes": ["x-*"], "excludes": ["x-other"]},
        },
    }
    (folder / "langgraph.json").write_text(json.dumps(config))
    with serve(database_url, folder / "langgraph.json") as url:
        yield url


@pytest.fixture
def alice(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, headers={"x-api-key": "alice"}, timeout=30) as http:
        yield http


FORGED = {"langgraph_auth_user": {"identity": "bob"}, "langgraph_auth_user_id": "bob", "user_id": "bob"}


@pytest.mark.parametrize("forged", [{}, {"config": {"configurable": FORGED}}, {"context": FORGED}])
def test_nodes_know_the_user_and_nobody_can_pretend(alice: httpx.Client, forged: dict[str, Any]) -> None:
    by = alice.post("/runs/wait", json={"assistant_id": "tells", "input": {}, **forged}).json()["by"]
    assert by["langgraph_auth_user"] == {
        "identity": "alice",
        "token": "token of alice",
        "display_name": "alice",
        "is_authenticated": True,
        "permissions": [],
    }
    assert (by["langgraph_auth_user_id"], by["user_id"]) == ("alice", "alice")


def test_what_authentication_knows_is_not_shown_to_clients(alice: httpx.Client) -> None:
    thread = alice.post("/threads", json={}).json()["thread_id"]
    alice.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "calls", "input": {}})
    [run] = alice.get(f"/threads/{thread}/runs").json()
    assert "token of alice" not in json.dumps(run)
    assert run["metadata"]["owner"] == "alice"
    states = alice.get(f"/threads/{thread}/history?limit=10").json()
    assert "token of alice" not in json.dumps([state["metadata"] for state in states])


def test_child_runs_act_for_the_same_user_and_are_hers(server: str, alice: httpx.Client) -> None:
    child = alice.post("/agents/calls/run", json={}).json()["child"]
    assert child["langgraph_auth_user_id"] == "alice"
    assert alice.get("/agents/tells/k/state").json()["by"]["user_id"] == "alice", "her session of that key"
    rows = alice.post("/runs/search", json={"agent": "tells"}).json()
    assert {row["metadata"]["owner"] for row in rows} == {"alice"}
    with httpx.Client(base_url=server, headers={"x-api-key": "bob"}, timeout=30) as bob:
        assert bob.get("/agents/tells/k/state").json() == {}
        assert bob.post("/agents/calls/run", json={}).json()["child"]["user_id"] == "bob"


@pytest.mark.parametrize("by_thread", [False, True])
def test_a_run_that_goes_on_with_an_answer_acts_for_who_asked(alice: httpx.Client, by_thread: bool) -> None:
    asked = alice.post("/agents/tells/run", json={"ask": True}).json()
    thread, [question] = asked["thread_id"], asked["interrupts"]
    if by_thread:
        body = {"assistant_id": "tells", "command": {"resume": True}}
        run = alice.post(f"/threads/{thread}/runs", json=body).json()
    else:
        run = alice.post(f"/interrupts/{question['token']}/resolve", json=True).json()
        assert alice.get(f"/interrupts/{question['token']}").json()["answered_by"] == "alice"
    values = alice.get(f"/threads/{thread}/runs/{run['run_id']}/join").json()
    assert values["by"]["langgraph_auth_user_id"] == "alice"


def test_the_runs_of_a_cron_act_for_who_made_it(build: Build, dsn: str) -> None:
    source = (
        NAMED
        + """
@auth.on
async def own(ctx, value):
    return {"owner": ctx.user.identity}
"""
    )
    app = build(source)
    with TestClient(app) as http, psycopg.connect(dsn, autocommit=True) as conn:
        http.headers["Authorization"] = "alice"
        cron = http.post("/runs/crons", json={"assistant_id": "echo", "schedule": "0 0 1 1 *"}).json()
        conn.execute("UPDATE crons SET next_run_at = now()")
        assert http.portal is not None
        assert http.portal.call(ticks.fire_due, app.state.engine) == 1
        [run] = http.post("/runs/search", json={}).json()
        assert (run["metadata"]["owner"], run["metadata"]["cron_id"]) == ("alice", cron["cron_id"])
        assert http.get(f"/threads/{run['thread_id']}").json()["metadata"]["owner"] == "alice"
        assert http.post("/runs/search", json={}, headers=named("bob")).json() == []
        acts = conn.execute("SELECT actor -> 'user' ->> 'identity' FROM runs").fetchall()
    assert acts == [("alice",)]


def test_headers_go_along_if_langgraph_json_says_so(alice: httpx.Client) -> None:
    headers = {"x-tenant": "red", "x-other": "no"}
    by = alice.post("/runs/wait", json={"assistant_id": "tells", "input": {}}, headers=headers).json()["by"]
    assert by["x-tenant"] == "red"
    assert "x-other" not in by
    assert "x-api-key" not in by, "a secret goes only if it is named"


def test_the_users_own_app_is_around_ours(server: str, alice: httpx.Client) -> None:
    hello = alice.get("/hello")
    assert hello.json() == {"events": ["started"], "user": "alice"}
    assert alice.get("/info").json() == {"mine": True}, "its routes come first"
    assert alice.post("/echo", json={"read": "twice"}).json() == {"read": "twice"}
    ours = alice.get("/agents")
    assert (ours.status_code, ours.headers["x-stamp"]) == (200, "seen"), "its middleware sees our routes"
    assert "/threads" in alice.get("/openapi.json").json()["paths"]
    with httpx.Client(base_url=server, timeout=30) as nobody:
        assert nobody.get("/hello").status_code == 401
        assert nobody.get("/agents").status_code == 401
        assert nobody.get("/ok").status_code == 200
        answer = nobody.get("/hello", headers={"Origin": "http://x"})
        assert answer.headers["access-control-allow-origin"] == "*"


def test_a_stream_passes_the_users_middleware_frame_by_frame(alice: httpx.Client) -> None:
    with alice.stream("POST", "/runs/stream", json={"assistant_id": "tells", "input": {}}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "event: values" in "".join(response.iter_text())
