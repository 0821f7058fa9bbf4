"""Pause, resume, retry, restart, kill, steer and find, over HTTP against a real server."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import Launch, Process, eventually
from tests.crash.fleet import HERE


@pytest.fixture
def api(server: Launch, tmp_path: Any) -> Iterator[httpx.Client]:
    process: Process = server(config=HERE / "langgraph.json", env={"EFFECTS": str(tmp_path / "effects")})
    with httpx.Client(base_url=process.url, timeout=30) as client:
        yield client


def start(api: httpx.Client, graph: str, **body: Any) -> str:
    thread = api.post("/threads", json={}).json()["thread_id"]
    run = api.post(f"/threads/{thread}/runs", json={"assistant_id": graph, "input": {"log": ["in"]}, **body}).json()
    return f"/threads/{thread}/runs/{run['run_id']}"


def until(api: httpx.Client, run: str, **wanted: Any) -> dict[str, Any]:
    """The run as soon as it is like that."""
    return eventually(lambda: api.get(run).json(), lambda shown: wanted.items() <= shown.items())


def happens(folder: Any, effect: str) -> None:
    """Wait until a step has had its effect."""
    file = folder / "effects"
    eventually(lambda: file.read_text().split() if file.exists() else [], lambda effects: effect in effects)


def test_a_paused_run_goes_on_where_it_was(api: httpx.Client, tmp_path: Any) -> None:
    hold = tmp_path / "effects.hold.b"
    hold.touch()
    run = start(api, "sequential")
    until(api, run, status="running")
    happens(tmp_path, "b")
    paused = api.post(f"{run}/pause")
    assert paused.status_code == 202
    assert paused.json()["paused"] is True
    assert paused.json()["status"] == "error"
    assert api.get(f"{run}/join").json()["__error__"]["error"] == "RunPaused"
    assert api.post(f"{run}/pause").status_code == 409
    hold.unlink()
    resumed = api.post(f"{run}/resume")
    assert resumed.status_code == 202
    assert resumed.json()["status"] == "pending"
    assert api.get(f"{run}/join").json()["log"] == ["in", "did a", "did b", "did c"]
    assert (tmp_path / "effects").read_text().split() == ["a", "b", "b", "c"]
    assert api.post(f"{run}/resume").status_code == 409


def test_the_queue_behind_a_paused_run_waits(api: httpx.Client, tmp_path: Any) -> None:
    hold = tmp_path / "effects.hold.b"
    hold.touch()
    run = start(api, "sequential")
    happens(tmp_path, "b")
    assert api.post(f"{run}/pause").status_code == 202
    thread = run.split("/")[2]
    behind = api.post(f"/threads/{thread}/runs", json={"assistant_id": "small", "input": {"log": ["x"]}}).json()
    assert api.get(f"/threads/{thread}/runs/{behind['run_id']}").json()["status"] == "pending"
    hold.unlink()
    assert api.post(f"{run}/resume").status_code == 202
    joined = api.get(f"/threads/{thread}/runs/{behind['run_id']}/join").json()
    assert joined["log"][-1].startswith("did small")
    assert "did c" in joined["log"]


def test_an_ended_run_is_started_again_as_a_new_one(api: httpx.Client) -> None:
    run = start(api, "small")
    until(api, run, status="success")
    again = api.post(f"{run}/restart").json()
    assert again["kwargs"]["input"] == {"log": ["in"]}
    assert again["metadata"]["restart_of"] == run.split("/")[-1]
    thread = run.split("/")[2]
    assert api.get(f"/threads/{thread}/runs/{again['run_id']}/join").json()["log"].count("in") == 2


def test_kill_undoes_nothing_and_cancel_does(api: httpx.Client, tmp_path: Any) -> None:
    (tmp_path / "effects.hold.car").touch()
    for command, undone in (("kill", False), ("cancel", True)):
        effects = tmp_path / "effects"
        effects.unlink(missing_ok=True)
        run = start(api, "long_trip")
        happens(tmp_path, "car")
        assert api.post(f"{run}/{command}").status_code == 202
        until(api, run, status="interrupted")
        assert ("undo hotel" in effects.read_text()) is undone


def test_steering_an_idle_thread_is_a_conflict(api: httpx.Client) -> None:
    thread = api.post("/threads", json={}).json()["thread_id"]
    answer = api.post(f"/threads/{thread}/messages", json={"text": "left"})
    assert answer.status_code == 409
    assert "executing" in answer.json()["detail"]
    assert api.post(f"/threads/{uuid4()}/messages", json="x").status_code == 404


def test_runs_are_found_by_status_agent_and_error(api: httpx.Client) -> None:
    good, bad = start(api, "small"), start(api, "slow")
    until(api, good, status="success")
    until(api, bad, suspended=True)
    ids = [run["run_id"] for run in api.post("/runs/search", json={"agent": "small"}).json()]
    assert ids == [good.split("/")[-1]]
    found = api.post("/runs/search", json={"status": ["suspended"], "limit": 1}).json()
    assert [run["run_id"] for run in found] == [bad.split("/")[-1]]
    done = api.post("/runs/bulk", json={"action": "cancel", "run_ids": [found[0]["run_id"], str(uuid4())]}).json()
    assert done == {"done": 1, "failed": 1}
    assert api.post("/runs/search", json={"error": "%"}).json() == []
    for body, field in (({"limit": 0}, "limit"), ({"status": ["odd"]}, "status"), ({"cursor": "x"}, "cursor")):
        refused = api.post("/runs/search", json=body)
        assert refused.status_code == 422
        assert field in refused.json()["detail"]


def test_a_run_that_has_not_started_can_be_paused(api: httpx.Client) -> None:
    run = start(api, "small", after_seconds=3600)
    assert api.post(f"{run}/pause").json()["paused"] is True
    thread = run.split("/")[2]
    behind = api.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "small", "input": {"log": ["x"]}}).json()
    assert behind["log"][0] == "x", "it is not due yet, so it holds nobody up"
    resumed = api.post(f"{run}/resume").json()
    assert (resumed["status"], resumed["attempt"]) == ("pending", 0)
    assert api.get(f"/threads/{thread}").json()["status"] == "busy"


def test_a_thread_tells_its_time_to_live_when_asked(api: httpx.Client) -> None:
    thread = api.post("/threads", json={"ttl": {"ttl": 90, "strategy": "keep_latest"}}).json()
    assert "ttl" not in thread
    path = f"/threads/{thread['thread_id']}"
    assert "ttl" not in api.get(path).json()
    shown = api.get(path, params={"include": "ttl"}).json()
    expires = datetime.fromisoformat(shown["ttl"].pop("expires_at"))
    assert shown["ttl"] == {"strategy": "keep_latest", "ttl_minutes": 90}
    assert expires - datetime.fromisoformat(shown["updated_at"]) == timedelta(minutes=90)
    api.patch(path, json={"ttl": 5})
    assert api.get(path, params={"include": "ttl"}).json()["ttl"]["ttl_minutes"] == 5
    plain = api.post("/threads", json={}).json()["thread_id"]
    assert api.get(f"/threads/{plain}", params={"include": "ttl"}).json()["ttl"] is None


def test_pruning_a_busy_thread_is_a_conflict(api: httpx.Client) -> None:
    idle, busy = start(api, "small"), start(api, "slow")
    until(api, idle, status="success")
    until(api, busy, suspended=True)
    ids = [run.split("/")[2] for run in (idle, busy)]
    refused = api.post("/threads/prune", json={"thread_ids": ids, "strategy": "keep_latest"})
    assert refused.status_code == 409
    assert ids[1] in refused.json()["detail"]
    assert len(api.post(f"/threads/{ids[0]}/history", json={"limit": 10}).json()) > 1
    pruned = api.post("/threads/prune", json={"thread_ids": [ids[0], str(uuid4())], "strategy": "keep_latest"})
    assert pruned.json() == {"pruned_count": 1}
    assert len(api.post(f"/threads/{ids[0]}/history", json={"limit": 10}).json()) == 1
    assert api.post("/threads/prune", json={"thread_ids": ids, "strategy": "delete"}).json() == {"pruned_count": 2}


def test_threads_live_as_long_as_langgraph_json_says(server: Launch, tmp_path: Any) -> None:
    config = tmp_path / "langgraph.json"
    graphs = {"small": f"{HERE / 'scenarios.py'}:small"}
    config.write_text(json.dumps({"graphs": graphs, "checkpointer": {"ttl": {"default_ttl": 0.02}}}))
    process: Process = server(config=config, env={"EFFECTS": str(tmp_path / "effects")})
    with httpx.Client(base_url=process.url, timeout=30) as client:
        path = f"/threads/{client.post('/threads', json={}).json()['thread_id']}"
        eventually(lambda: client.get(path).status_code, lambda code: code == 404)
        own = client.post("/threads", json={"ttl": 60}).json()["thread_id"]
        assert client.get(f"/threads/{own}").status_code == 200
