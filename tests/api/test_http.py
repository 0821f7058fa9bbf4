"""Headers, paging and documents: what does not need a run to be executed."""

from uuid import uuid4

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

ORIGIN = {"Origin": "http://localhost:3000"}


def test_preflight_is_200_and_allows_private_networks(client: TestClient) -> None:
    asks = {
        **ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key, last-event-id",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = client.options("/threads/x/runs/stream", headers=asks)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["access-control-allow-headers"] == "x-api-key, last-event-id"
    assert answer.headers["access-control-max-age"] == "600"
    assert "DELETE" in answer.headers["access-control-allow-methods"]


def test_every_answer_exposes_the_headers_that_clients_read(client: TestClient) -> None:
    for path in ("/ok", "/nothing/here", "/threads/not-a-uuid", f"/threads/{uuid4()}"):
        exposed = client.get(path, headers=ORIGIN).headers["access-control-expose-headers"]
        assert exposed == "content-location, location, x-pagination-total, x-pagination-next", path


def test_paging_tells_the_true_total_and_the_next_offset_only_if_there_is_one(client: TestClient) -> None:
    tag = {"tag": str(uuid4())}
    for _ in range(3):
        client.post("/threads", json={"metadata": tag})
    first = client.post("/threads/search", json={"metadata": tag, "limit": 2, "select": ["status"]})
    assert first.json() == [{"status": "idle"}, {"status": "idle"}]
    assert first.headers["x-pagination-total"] == "3"
    assert first.headers["x-pagination-next"] == "2"
    last = client.post("/threads/search", json={"metadata": tag, "limit": 2, "offset": 2})
    assert len(last.json()) == 1
    assert "x-pagination-next" not in last.headers
    beyond = client.post("/threads/search", json={"metadata": tag, "offset": 100})
    assert beyond.json() == []
    assert beyond.headers["x-pagination-total"] == "3"
    assert "x-pagination-next" not in beyond.headers


def test_extract_picks_single_values(client: TestClient) -> None:
    tag = {"tag": str(uuid4()), "n": {"x": [1, 2]}}
    client.post("/threads", json={"metadata": tag})
    asked = {"a": "metadata.n.x[1]", "b": "metadata.n.x[9]", "c": "values.messages[0].content"}
    [row] = client.post("/threads/search", json={"metadata": tag, "select": ["status"], "extract": asked}).json()
    assert row == {"status": "idle", "extracted": {"a": 2, "b": None, "c": None}}
    assert client.post("/threads/search", json={"extract": {"a": "config.x"}}).status_code == 422


def test_patch_can_be_silent(client: TestClient) -> None:
    thread = client.post("/threads", json={}).json()["thread_id"]
    answer = client.patch(f"/threads/{thread}", json={"metadata": {"a": 1}}, headers={"Prefer": "return=minimal"})
    assert answer.status_code == 204
    assert answer.content == b""
    assert client.get(f"/threads/{thread}").json()["metadata"] == {"a": 1}


def test_an_assistant_answers_to_the_name_of_its_graph(client: TestClient) -> None:
    by_name = client.get("/assistants/echo").json()
    assert client.get(f"/assistants/{by_name['assistant_id']}").json() == by_name
    assert client.get("/assistants/echo/schemas").json()["graph_id"] == "echo"
    assert {n["id"] for n in client.get("/assistants/echo/graph").json()["nodes"]} >= {"echo"}
    assert client.get("/assistants/echo/subgraphs").json() == {}
    assert client.get("/assistants/echo/graph?xray=maybe").status_code == 422


def test_supersteps_become_checkpoints_or_nothing_is_left(client: TestClient) -> None:
    steps = [
        {"updates": [{"values": {"log": ["in"]}, "as_node": "__input__"}]},
        {"updates": [{"values": {"log": ["in"]}, "as_node": "__start__"}]},
        {"updates": [{"values": {"log": ["out"]}, "as_node": "echo"}]},
    ]
    made = client.post("/threads", json={"metadata": {"graph_id": "echo"}, "supersteps": steps})
    assert made.status_code == 200
    assert made.json()["values"] == {"log": ["in", "out"]}
    bad = [{"updates": [{"values": {"log": []}, "as_node": "nobody"}]}]
    wanted = str(uuid4())
    body = {"thread_id": wanted, "metadata": {"graph_id": "echo"}, "supersteps": bad}
    assert client.post("/threads", json=body).status_code == 400
    assert client.get(f"/threads/{wanted}").status_code == 404


def test_created_runs_name_themselves(client: TestClient) -> None:
    thread = client.post("/threads", json={}).json()["thread_id"]
    answer = client.post(f"/threads/{thread}/runs", json={"assistant_id": "echo", "input": {"log": []}})
    run = answer.json()["run_id"]
    assert answer.headers["content-location"] == f"/threads/{thread}/runs/{run}"
    assert "location" not in answer.headers
    [listed] = client.get(f"/threads/{thread}/runs", params={"select": ["run_id", "status"]}).json()
    assert listed == {"run_id": run, "status": "pending"}
    assert client.get(f"/threads/{thread}/runs", params={"status": "odd"}).json() == []
    cancelled = client.post(f"/threads/{thread}/runs/{run}/cancel?wait=1")
    assert (cancelled.status_code, cancelled.json()) == (200, {})
    assert client.post(f"/threads/{thread}/runs/{run}/cancel").status_code == 404


def test_a_batch_with_an_unknown_graph_starts_nothing(client: TestClient) -> None:
    batch = [{"assistant_id": "echo", "input": {}}, {"assistant_id": "nope"}]
    before = client.post("/threads/count", json={}).json()
    assert client.post("/runs/batch", json=batch).status_code == 422
    assert client.post("/threads/count", json={}).json() == before
    assert len(client.post("/runs/batch", json=batch[:1] * 3).json()) == 3


def test_ok_info_and_docs(client: TestClient) -> None:
    assert client.get("/ok?check_db=1").json() == {"ok": True, "services": {}}
    assert client.head("/ok").status_code == 200
    assert client.get("/").json()["ok"] is True
    assert client.get("/info").json()["flags"]["assistants"] is True
    assert client.get("/docs").status_code == 200
    assert "/threads/{thread_id}/runs/stream" in client.get("/openapi.json").json()["paths"]


def test_ok_is_503_when_the_database_does_not_answer(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr("perdure.engine.assistants.count", broken)
    with capture_logs() as logs:
        assert client.get("/ok?check_db=1").status_code == 503
    assert [line["event"] for line in logs] == ["database_unreachable"]
