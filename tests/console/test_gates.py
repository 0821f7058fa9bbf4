"""No page shows what the API would not: every route asks the gate, and things of another owner are not there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from langgraph.graph import START, StateGraph
from psycopg.types.json import Jsonb
from starlette.testclient import TestClient
from typing_extensions import TypedDict

from perdure.api import create_app
from perdure.api.auth import routes_of
from perdure.api.gate import gate
from perdure.config import Settings
from perdure.console import install
from perdure.console.permit import _admin as admin
from perdure.engine import keys
from perdure.engine.registry import GraphEntry, Registry

PUBLIC = {"/console/login", "/console/logout", "/console/login/callback", "/console/login/start"}
"""Routes for those who are not signed in yet."""
SECRET = "alices-secret"


class State(TypedDict, total=False):
    text: str


def app_of(dsn: str, tmp_path: Path, **settings: Any) -> FastAPI:
    graph = StateGraph(State).add_node("echo", lambda state: state).add_edge(START, "echo").compile()
    registry = Registry({"graphs": {"echo": "tests:graph"}}, {"echo": GraphEntry("echo", "tests:graph", None, graph)})
    given = Settings(config=tmp_path / "langgraph.json", **settings)
    app = create_app(given, registry, dsn)
    install(app, registry)
    return app


@pytest.fixture
def app(dsn: str, tmp_path: Path) -> FastAPI:
    """The API and the console with keys, and nobody who executes runs."""
    return app_of(dsn, tmp_path, auth="keys", admins="root")


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def pages(app: FastAPI) -> list[APIRoute]:
    return [r for r in routes_of(app.routes) if isinstance(r, APIRoute) and r.path.startswith("/console")]


def asks(dependant: Any) -> bool:
    return dependant.call in (gate, admin) or any(asks(one) for one in dependant.dependencies)


def test_every_page_asks_the_gate(app: FastAPI) -> None:
    assert len(pages(app)) > 20
    assert {route.path for route in pages(app) if not asks(route.dependant)} <= PUBLIC


def test_no_page_is_part_of_the_described_api(app: FastAPI) -> None:
    assert not [path for path in app.openapi()["paths"] if path.startswith("/console")]


def key_of(client: TestClient, owner: str) -> dict[str, str]:
    async def create() -> dict[str, Any]:
        async with client.app.state.engine.pool.connection() as conn:
            return await keys.create(conn, name=owner, owner=owner)

    assert client.portal
    return {"x-api-key": client.portal.call(create)["key"]}


def things(client: TestClient, dsn: str, alice: dict[str, str]) -> dict[str, str]:
    """One thing of each kind, each with the secret in it."""
    made = client.post("/threads", json={"metadata": {"note": SECRET, "graph_id": "echo"}}, headers=alice).json()
    thread = made["thread_id"]
    values = {"values": {"text": SECRET}, "as_node": "echo"}
    state = client.post(f"/threads/{thread}/state", json=values, headers=alice)
    assert state.status_code == 200, state.text
    body = {"assistant_id": "echo", "input": {"text": SECRET}, "metadata": {"note": SECRET}}
    run = client.post(f"/threads/{thread}/runs", json=body, headers=alice).json()
    cron = client.post("/runs/crons", json={**body, "schedule": "0 0 29 2 *"}, headers=alice).json()
    item = {"namespace": [SECRET], "key": SECRET, "value": {"text": SECRET}}
    assert client.put("/store/items", json=item, headers=alice).status_code == 204
    token = uuid4().hex
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id, "
            "graph_id, assistant_id, token, question) VALUES (%s, 'c', 't', 0, '', 'i', %s, 'echo', %s, %s, %s)",
            (thread, run["run_id"], run["assistant_id"], token, Jsonb(SECRET)),
        )
    return {
        "thread_id": thread,
        "run_id": run["run_id"],
        "cron_id": cron["cron_id"],
        "token": token,
        "checkpoint_id": state.json()["checkpoint"]["checkpoint_id"],
        "agent": "echo",
        "key_id": str(uuid4()),
        "assistant_id": run["assistant_id"],
        "path": "nowhere",
    }


def filled(path: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: values.get(match[1], str(uuid4())), path)


def rows(dsn: str) -> dict[str, Any]:
    """All that could have been changed."""
    with psycopg.connect(dsn) as conn:
        return {
            table: conn.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY 1").fetchall()  # type: ignore[arg-type]
            for table in ("threads", "runs", "interrupts", "crons", "store", "assistants", "checkpoints")
        }


def test_pages_show_nothing_of_another_owner_and_change_nothing(app: FastAPI, client: TestClient, dsn: str) -> None:
    """Bob opens every page with Alice's ids in it, and sends every form."""
    alice, bob = key_of(client, "alice"), key_of(client, "bob")
    values = things(client, dsn, alice)
    before = rows(dsn)
    seen: list[tuple[str, str, int]] = []
    for route in pages(app):
        if route.path in PUBLIC or route.path == "/console/live":
            continue
        path = filled(route.path, values)
        for query in ("", f"?thread={values['thread_id']}", f"?thread_id={values['thread_id']}&key=k&agent=echo"):
            answer = client.get(path + query, headers=bob) if "GET" in route.methods else None
            if answer is not None:
                assert answer.status_code < 500, (path, answer.text)
                if SECRET in answer.text:
                    seen.append(("GET", path + query, answer.status_code))
        if "POST" in route.methods:
            ids = {"ticked": f"{values['thread_id']}/{values['run_id']}", **values}
            answer = client.post(path, data=ids, headers=bob)
            assert answer.status_code < 500, (path, answer.text)
            if SECRET in answer.text:
                seen.append(("POST", path, answer.status_code))
    assert seen == []
    assert _without_new(rows(dsn), before) == before


def _without_new(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What was there before, as it is now: Bob may well have made things of his own."""
    known = {table: {_identity(row) for row in found} for table, found in before.items()}
    return {table: [row for row in found if _identity(row) in known[table]] for table, found in after.items()}


def _identity(row: Any) -> str:
    names = ("thread_id", "run_id", "cron_id", "assistant_id", "checkpoint_id", "prefix", "key", "token")
    return json.dumps([row[0].get(name) for name in names])


def test_its_owner_sees_all_of_it(app: FastAPI, client: TestClient, dsn: str) -> None:
    """Otherwise the test above could not fail."""
    alice = key_of(client, "alice")
    values = things(client, dsn, alice)
    with_secret = {
        route.path
        for route in pages(app)
        if "GET" in route.methods and route.path not in (*PUBLIC, "/console/live")
        if SECRET in client.get(filled(route.path, values), headers=alice).text
    }
    assert {"/console/inbox", "/console/inbox/{token}", "/console/threads/{thread_id}"} <= with_secret


def test_without_a_key_every_page_leads_to_the_login(app: FastAPI, client: TestClient) -> None:
    for route in pages(app):
        if route.path in PUBLIC:
            continue
        for method in route.methods - {"HEAD"}:
            answer = client.request(method, filled(route.path, {}))
            assert answer.status_code == 303, (method, route.path, answer.status_code)
            assert answer.headers["location"].startswith("/console/login?next=")


def test_forms_of_another_site_are_refused_without_authentication_too(dsn: str, tmp_path: Path) -> None:
    app = app_of(dsn, tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        for route in pages(app):
            if "POST" in route.methods:
                answer = client.post(filled(route.path, {}), headers={"sec-fetch-site": "cross-site"})
                assert answer.status_code == 403, route.path
