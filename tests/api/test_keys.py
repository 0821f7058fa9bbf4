"""Built-in authentication with keys: made by the command line, stored as hashes, ended at once; owners apart."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from perdure.api import create_app
from perdure.config import Settings
from perdure.engine import keys
from perdure.engine.db import connect
from perdure.engine.registry import Registry

Make = Callable[..., dict[str, Any]]


def locked(app: FastAPI, dsn: str, tmp_path: Path, **given: Any) -> FastAPI:
    """The API of `app` behind keys."""
    with TestClient(app):
        graphs = app.state.engine.registry.graphs
    settings = Settings(config=tmp_path / "langgraph.json", auth="keys", **given)
    return create_app(settings, Registry({"graphs": {}}, graphs), dsn)


@pytest.fixture
def http(app: FastAPI, dsn: str, tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(locked(app, dsn, tmp_path), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
async def make(dsn: str) -> Any:
    async with await connect(dsn) as conn:

        async def create(owner: str, **given: Any) -> dict[str, Any]:
            return await keys.create(conn, name=f"key of {owner}", owner=owner, **given)

        yield create


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {key['key']}"}


def api_key(key: dict[str, Any]) -> dict[str, str]:
    return {"x-api-key": key["key"]}


async def test_only_a_valid_key_opens(http: TestClient, make: Any, dsn: str) -> None:
    good, ended = await make("alice"), await make("alice", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for headers in (api_key(good), bearer(good)):
        assert http.get("/assistants/echo", headers=headers).status_code == 200
    wrong: list[dict[str, str]] = [
        {},
        {"x-api-key": ""},
        {"x-api-key": good["key"][:-1]},
        {"x-api-key": good["key"] + "x"},
        {"x-api-key": good["hint"]},
        {"Authorization": f"Basic {good['key']}"},
        {"x-auth-scheme": "langsmith"},
        api_key(ended),
    ]
    for headers in wrong:
        answer = http.get("/assistants/echo", headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), headers
    for path in ("/ok", "/info", "/docs", "/openapi.json", "/"):
        assert http.get(path).status_code == 200, path
    assert http.get("/no-such-route").status_code == 401
    async with await connect(dsn) as conn:
        assert await keys.revoke(conn, good["key_id"])
        assert await keys.revoke(conn, good["key_id"]) is None
    assert http.get("/assistants/echo", headers=api_key(good)).status_code == 401, "from the next request on"


async def test_a_key_is_nowhere_in_the_database(http: TestClient, make: Any, dsn: str) -> None:
    made = await make("alice")
    assert http.get("/assistants/echo", headers=api_key(made)).status_code == 200
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT to_jsonb(k)::text, last_used_at IS NOT NULL FROM api_keys k").fetchall()
    [(text, used)] = rows
    assert used
    assert made["key"] not in text
    assert made["key"][4:] not in text
    assert len(made["key"]) == 47


async def test_owners_see_their_own_and_share_what_is_theirs(http: TestClient, make: Any) -> None:
    alice, phone, bob = await make("alice"), await make("alice"), await make("bob")
    thread = http.post("/threads", json={"metadata": {"owner": "bob"}}, headers=api_key(alice)).json()
    assert thread["metadata"] == {"owner": "alice"}
    path = f"/threads/{thread['thread_id']}"
    assert http.get(path, headers=api_key(phone)).status_code == 200, "another key of the same owner"
    assert http.get(path, headers=api_key(bob)).status_code == 404
    assert len(http.post("/threads/search", json={}, headers=api_key(phone)).json()) == 1
    assert http.post("/threads/search", json={}, headers=api_key(bob)).json() == []
    run = http.post("/runs", json={"assistant_id": "echo", "input": {}}, headers=api_key(bob))
    assert run.status_code == 200
    assert run.json()["metadata"]["owner"] == "bob"


@pytest.mark.parametrize("owners", [("alice", "bob"), ("a.b@c.de", "a"), ("*", "alice"), ("ä%", "ä%25")])
async def test_each_owner_has_a_store_of_its_own(http: TestClient, make: Any, owners: tuple[str, str]) -> None:
    """Namespaces look as if nobody else were there."""
    one, other = api_key(await make(owners[0])), api_key(await make(owners[1]))
    for headers, value in ((one, 1), (other, 2)):
        item = {"namespace": ["notes", "today"], "key": "k", "value": {"is": value}}
        assert http.put("/store/items", json=item, headers=headers).status_code == 204
    for headers, value in ((one, 1), (other, 2)):
        item = http.get("/store/items", params={"namespace": "notes.today", "key": "k"}, headers=headers).json()
        assert (item["namespace"], item["value"]) == (["notes", "today"], {"is": value})
        found = http.post("/store/items/search", json={"namespace_prefix": []}, headers=headers).json()["items"]
        assert [(one["namespace"], one["value"]) for one in found] == [(["notes", "today"], {"is": value})]
        for given, shown in (({}, ["notes", "today"]), ({"max_depth": 1}, ["notes"]), ({"prefix": ["notes"]}, None)):
            listed = http.post("/store/namespaces", json=given, headers=headers).json()["namespaces"]
            assert listed == [shown or ["notes", "today"]]
        assert http.post("/store/namespaces", json={"prefix": ["*", "notes"]}, headers=headers).json() == {
            "namespaces": []
        }
    assert (
        http.request(
            "DELETE", "/store/items", json={"namespace": ["notes", "today"], "key": "k"}, headers=one
        ).status_code
        == 204
    )
    assert http.get("/store/items", params={"namespace": "notes.today", "key": "k"}, headers=other).json()


async def test_a_key_may_call_as_often_as_its_limit_says_on_all_servers_together(
    app: FastAPI, dsn: str, tmp_path: Path, make: Any
) -> None:
    limited, plain = await make("alice", rate_limit=3), await make("alice")
    with TestClient(locked(app, dsn, tmp_path)) as one, TestClient(locked(app, dsn, tmp_path)) as other:
        codes = [http.get("/assistants/echo", headers=api_key(limited)).status_code for http in (one, other) * 3]
        assert codes == [200, 200, 200, 429, 429, 429]
        refused = other.get("/assistants/echo", headers=api_key(limited))
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert "3 requests in a minute" in refused.json()["detail"]
        assert one.get("/assistants/echo", headers=api_key(plain)).status_code == 200, "another key of the same owner"
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("UPDATE rate_limits SET filled_at = filled_at - interval '20 s'")
        codes = [http.get("/assistants/echo", headers=api_key(limited)).status_code for http in (one, other)]
        assert codes == [200, 429], "one more every twenty seconds"
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("UPDATE rate_limits SET filled_at = filled_at - interval '1 day'")
        codes = [one.get("/assistants/echo", headers=api_key(limited)).status_code for _ in range(4)]
        assert codes == [200, 200, 200, 429], "a bucket holds no more than a minute's"
        assert one.get("/ok").status_code == 200


async def test_the_setting_limits_keys_that_have_no_limit_of_their_own(
    app: FastAPI, dsn: str, tmp_path: Path, make: Any
) -> None:
    mine, special = await make("alice"), await make("alice", rate_limit=5)
    with TestClient(locked(app, dsn, tmp_path, rate_limit_per_minute=2)) as http:
        assert [http.get("/agents", headers=api_key(mine)).status_code for _ in range(3)] == [200, 200, 429]
        assert [http.get("/agents", headers=api_key(special)).status_code for _ in range(3)] == [200] * 3


def perdure(dsn: str, *arguments: str, code: int = 0) -> Any:
    env = {**os.environ, "DATABASE_URL": dsn}
    command = [sys.executable, "-m", "perdure.cli", "keys", *arguments, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def test_the_command_makes_lists_and_revokes(dsn: str, http: TestClient) -> None:
    made = perdure(dsn, "create", "laptop", "--owner", "alice", "--days", "30", "--rate-limit", "100")
    assert made["key"].startswith("prk_")
    assert (made["owner"], made["name"], made["rate_limit"]) == ("alice", "laptop", 100)
    assert http.get("/agents", headers=api_key(made)).status_code == 200
    [listed] = perdure(dsn, "list")
    assert listed["key_id"] == made["key_id"]
    assert "key" not in listed
    assert "hash" not in listed
    assert perdure(dsn, "revoke", made["key_id"])["revoked_at"]
    assert "no key with the id" in perdure(dsn, "revoke", made["key_id"], code=4)
    assert http.get("/agents", headers=api_key(made)).status_code == 401
