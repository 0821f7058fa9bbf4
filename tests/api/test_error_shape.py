"""Every route, with malformed ids, unknown ids and bodies of every wrong kind: the errors have one shape.

No answer may be a 5xx, and whatever is 400 or above is `{"detail": "<text>"}` as JSON.
"""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from structlog.testing import capture_logs

BODIES = [None, b"", b"{oops", b"null", b"[]", b'"text"', b"1", b"{}", b'{"a":"\\u0000"}', b"[[1]]", b'{"x":NaN}']
VALUES: list[Any] = ["x", "", 0, -1, 2**63 - 1, 1.5, 1e300, True, [], ["x"], [1], {}, {"a": 1}, {"$": []}, "a.b"]
IDS = ("thread_id", "run_id", "assistant_id", "checkpoint_id", "agent", "key", "token", "namespace", "cron_id")
WAITS = ("/wait", "/join", "/stream")  # would wait for a worker if they were given something that exists


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return ((method.upper(), path) for path, methods in paths.items() for method in methods)


def fill(path: str, **ids: str) -> str:
    for name in IDS:
        path = path.replace(f"{{{name}}}", ids.get(name, "no-such-thing"))
    assert "{" not in path
    return path


def check(answer: httpx.Response, what: object) -> None:
    assert answer.status_code < 500, (what, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/json", what
        assert isinstance(answer.json()["detail"], str), what
        assert answer.json()["detail"], what


def fields(app: FastAPI, method: str, path: str) -> list[str]:
    """The names of what a body may hold."""
    operation = app.openapi()["paths"][path][method.lower()]
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    names: list[str] = []
    for part in [schema, *schema.get("anyOf", [])]:
        if "$ref" in part:
            name = part["$ref"].rsplit("/", 1)[1]
            names += app.openapi()["components"]["schemas"][name]["properties"]
    return names


def test_every_route_answers_bad_ids_and_bodies_with_a_detail(app: FastAPI, client: TestClient) -> None:
    for method, path in routes(app):
        for ids in ({}, {name: str(uuid4()) for name in ("thread_id", "run_id", "assistant_id")}):
            for body in BODIES:
                what = (method, path, ids, body)
                check(client.request(method, fill(path, **ids), content=body), what)


def test_every_field_of_every_body_may_have_a_wrong_type(app: FastAPI, client: TestClient) -> None:
    thread = client.post("/threads", json={"metadata": {"graph_id": "echo"}}).json()["thread_id"]
    assistant = client.post("/assistants", json={"graph_id": "echo"}).json()["assistant_id"]
    for method, path in routes(app):
        ids = {"thread_id": thread, "assistant_id": assistant}
        if path.endswith(WAITS) and "runs" not in path:
            ids = {}
        for name in fields(app, method, path):
            needed = {} if path.endswith(WAITS) else {"graph_id": "echo", "assistant_id": "echo"}
            for value in VALUES:
                body = {k: v for k, v in needed.items() if k != name or "assistants" in path} | {name: value}
                if "assistants" in path and name != "assistant_id":
                    body.pop("assistant_id", None)
                check(client.request(method, fill(path, **ids), json=body), (method, path, body))


def test_every_query_parameter_may_be_nonsense(app: FastAPI, client: TestClient) -> None:
    thread = client.post("/threads", json={}).json()["thread_id"]
    for method, path in routes(app):
        ids = {} if path.endswith(WAITS) else {"thread_id": thread, "assistant_id": "echo"}
        for parameter in app.openapi()["paths"][path][method.lower()].get("parameters", []):
            if parameter["in"] == "path":
                continue
            for value in ("x", "-1", "99999999999999999999", "[", "1e5", "%F0%9F"):
                name = parameter["name"]
                url = fill(path, **ids)
                if parameter["in"] == "query":
                    answer = client.request(method, f"{url}?{name}={value}", content=b"{}")
                else:
                    answer = client.request(method, url, headers={name: value}, content=b"{}")
                check(answer, (method, path, name, value))


def test_malformed_ids_are_422_and_unknown_ones_404(client: TestClient) -> None:
    unknown = str(uuid4())
    for path, noun in (("/threads/{}", "thread"), ("/threads/{}/state", "thread"), ("/assistants/{}", "assistant")):
        malformed = client.get(path.format("nope"))
        assert malformed.status_code == 422
        assert malformed.json()["detail"].startswith(f"Invalid {noun} ID: must be a UUID")
        missing = client.get(path.format(unknown))
        assert missing.status_code == 404
        assert missing.json()["detail"] == f"{noun.capitalize()} with ID {unknown} not found"
    assert client.get(f"/threads/{unknown}/runs/nope").json()["detail"] == "Invalid run ID: must be a UUID"


def test_validation_errors_name_the_field(client: TestClient) -> None:
    for path, body, detail in [
        ("/threads/search", {"limit": 1001}, "limit: Input should be less than or equal to 1000"),
        ("/threads/search", {"limit": "5"}, "limit: Input should be a valid integer"),
        ("/threads/search", {"status": "odd"}, "status: Input should be 'idle', 'busy', 'interrupted' or 'error'"),
        ("/assistants/search", {"select": ["nope"]}, "select[0]: "),
        ("/threads", {"thread_id": "nope"}, "Invalid thread ID: must be a UUID"),
        ("/threads/prune", {"thread_ids": ["nope"]}, "Invalid thread ID: must be a UUID"),
        ("/runs", {}, "assistant_id: Field required"),
        ("/runs", {"assistant_id": "echo", "stream_mode": "odd"}, "stream_mode[0]: "),
        ("/runs", {"assistant_id": "echo", "config": {"recursion_limit": 0}}, "config.recursion_limit: "),
        ("/runs", {"assistant_id": "nope"}, "Graph 'nope' not found"),
        ("/runs", {"assistant_id": "echo", "webhook": "/relative"}, "webhook: must be an absolute"),
        ("/runs/batch", [{"assistant_id": "echo"}, {"assistant_id": 1}], "[1].assistant_id: "),
        ("/runs/cancel", {}, "Either status, or thread_id and run_ids, must be given"),
    ]:
        refused = client.post(path, json=body)
        assert refused.status_code == 422, (path, body, refused.text)
        assert refused.json()["detail"].startswith(detail), (path, body, refused.text)


def test_configurable_beside_context_is_400(client: TestClient) -> None:
    for path, more in (("/runs", {"assistant_id": "echo"}), ("/assistants", {"graph_id": "echo"})):
        both = {"config": {"configurable": {"a": 1}}, "context": {"b": 2}}
        assert client.post(path, json={**more, **both}).status_code == 400


def test_null_means_absent_and_unknown_fields_are_ignored(client: TestClient) -> None:
    body = {"thread_id": None, "metadata": None, "if_exists": None, "ttl": None, "whatever": {"x": [1]}}
    assert client.post("/threads", json=body).status_code == 200


def test_bodies_are_json_whatever_the_client_calls_them(client: TestClient) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        answer = client.post("/threads", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 200, kind
    assert client.post("/threads").json() == {"detail": "Invalid JSON in request body"}
    assert client.post("/threads", content=b"null").status_code == 422


def test_unknown_routes_and_methods(client: TestClient) -> None:
    assert client.get("/no/such/path").json() == {"detail": "Not Found"}
    assert client.post("/no/such/path", content=b"{oops").status_code in (404, 422)
    refused = client.put("/threads", json={})
    assert refused.status_code == 405
    assert refused.json() == {"detail": "Method Not Allowed"}


def test_an_unexpected_exception_is_a_500_that_tells_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr("perdure.engine.threads.get", broken)
    with capture_logs() as logs:
        answer = client.get(f"/threads/{uuid4()}", headers={"Origin": "http://localhost:3000"})
    assert [(line["event"], line["log_level"]) for line in logs] == [("request_failed", "error")]
    assert answer.status_code == 500
    assert answer.json() == {"detail": "Internal Server Error"}
    assert answer.headers["access-control-allow-origin"] == "*"
