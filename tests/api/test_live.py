"""Calls, joins and reconnects against a real server, with the client that people use."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4, uuid5

import httpx
import pytest
from langgraph_sdk import get_sync_client

from perdure.engine.registry import ASSISTANT_NAMESPACE
from tests.conftest import eventually


@pytest.fixture
def http(live: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live, timeout=30) as client:
        yield client


def thread(http: httpx.Client) -> str:
    return http.post("/threads", json={}).json()["thread_id"]


def start(http: httpx.Client, thread_id: str, graph: str = "works", **body: Any) -> str:
    answer = http.post(f"/threads/{thread_id}/runs", json={"assistant_id": graph, "input": {}, **body})
    return answer.json()["run_id"]


def frames(text: str) -> list[tuple[str, str | None]]:
    """(event, id) of each frame."""
    found = []
    for block in text.split("\r\n\r\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\r\n") if not line.startswith(":") and line)
        if "event" in lines:
            found.append((lines["event"], lines.get("id")))
    return found


def test_agent_calls(http: httpx.Client) -> None:
    done = http.post("/agents/works/run", json={"log": ["in"]})
    assert (done.status_code, done.json()) == (200, {"log": ["in", "worked"]})
    where = done.headers["content-location"]
    assert http.get(where).json()["status"] == "success"
    failed = http.post("/agents/fails/run", json={})
    assert failed.status_code == 422
    assert failed.json()["detail"] == "ValueError: boom"
    assert failed.headers["content-location"].endswith(failed.json()["run_id"])
    assert http.post("/agents/nobody/run", json={}).status_code == 404
    assert http.post("/agents/works/run").json() == {"detail": "Invalid JSON in request body"}


def test_a_question_is_a_202_and_its_first_answer_wins(http: httpx.Client) -> None:
    asked = http.post("/agents/asks/run", json={})
    assert asked.status_code == 202
    [question] = asked.json()["interrupts"]
    assert question["question"] == "really?"
    inbox = {"status": "open", "thread_id": asked.json()["thread_id"]}
    assert http.get("/interrupts", params=inbox).json() == [question]
    answered = http.post(f"/interrupts/{question['token']}/resolve", json={"yes": True})
    assert answered.status_code == 202
    assert http.get(f"{answered.headers['content-location']}/join").json() == {
        "log": [],
        "answer": {"yes": True},
    }
    assert http.post(f"/interrupts/{question['token']}/resolve", json=1).status_code == 409
    assert http.post(f"/interrupts/{question['token']}/reject").status_code == 409
    assert http.get(f"/interrupts/{question['token']}").json()["answer"] == {"yes": True}


def test_sessions_keep_their_state_until_cleared(http: httpx.Client) -> None:
    name = f"user {uuid4()}/a"
    key = f"/agents/works/{quote(name, safe='')}"
    assert http.get(f"{key}/state").json() == {}
    http.post(f"{key}/run", json={"log": ["1"]})
    sent = http.post(f"{key}/send", json={"log": ["2"]}).json()
    http.get(f"/threads/{sent['thread_id']}/runs/{sent['run_id']}/join")
    assert http.get(f"{key}/state").json() == {"log": ["1", "worked", "2", "worked"]}
    default = uuid5(ASSISTANT_NAMESPACE, "works")
    assert sent["thread_id"] == str(uuid5(default, f"\0{name}"))
    assert http.delete(f"{key}/state").status_code == 204
    assert http.delete(f"{key}/state").status_code == 204
    assert http.get(f"{key}/state").json() == {}
    assert http.post(f"/agents/works/{'k' * 201}/run", json={}).status_code == 422


def test_send_with_a_delay_and_an_idempotency_key(http: httpx.Client) -> None:
    once = {"Idempotency-Key": str(uuid4())}
    first = http.post("/agents/works/send?delay=PT1H", json={"log": []}, headers=once)
    assert (first.status_code, first.json()["status"]) == (202, "pending")
    assert http.post("/agents/works/send?delay=PT1H", json={"log": []}, headers=once).json() == first.json()
    assert http.post("/agents/works/send?delay=PT1H", json={"log": [1]}, headers=once).status_code == 422
    assert http.post("/agents/works/send?delay=soon", json={}).status_code == 422


def test_wait_sends_headers_at_once_and_newlines_meanwhile(http: httpx.Client, hold: Path) -> None:
    body = {"assistant_id": "works", "input": {"hold": str(hold)}}
    with http.stream("POST", f"/threads/{thread(http)}/runs/wait", json=body) as answer:
        assert answer.headers["location"].endswith("/join")
        chunks = answer.iter_text()
        text = ""
        while len(text) < 2:
            text += next(chunks)
        assert text.strip() == ""
        hold.unlink()
        text += "".join(chunks)
    assert json.loads(text) == {"log": ["worked"], "hold": str(hold)}


def test_a_resumable_stream_can_be_read_again_from_anywhere(http: httpx.Client) -> None:
    tid = thread(http)
    body = {"assistant_id": "works", "input": {"log": ["in"]}, "stream_resumable": True}
    whole = http.post(f"/threads/{tid}/runs/stream", json=body)
    seen = frames(whole.text)
    assert [name for name, _ in seen] == ["metadata", "values", "values"]
    again = whole.headers["location"]
    assert frames(http.get(again, headers={"Last-Event-ID": "-1"}).text) == seen
    assert frames(http.get(again, headers={"Last-Event-ID": seen[0][1] or ""}).text) == seen[1:]
    assert http.get(again).text == ""
    assert http.get(again, headers={"Last-Event-ID": "nonsense"}).status_code == 422


def test_a_finished_run_without_ids_joins_to_an_empty_stream(http: httpx.Client) -> None:
    tid = thread(http)
    run = start(http, tid)
    http.get(f"/threads/{tid}/runs/{run}/join")
    for headers in ({}, {"Last-Event-ID": "-1"}):
        assert http.get(f"/threads/{tid}/runs/{run}/stream", headers=headers).text == ""
    for part in ("join", "stream"):
        assert http.get(f"/threads/{tid}/runs/{uuid4()}/{part}").status_code == 404


def test_who_joins_a_pending_run_misses_nothing(http: httpx.Client, hold: Path) -> None:
    tid = thread(http)
    start(http, tid, input={"hold": str(hold)})
    run = start(http, tid, input={"log": ["in"]})
    with http.stream("GET", f"/threads/{tid}/runs/{run}/stream") as answer:
        chunks = answer.iter_text()
        text = ""
        while ": heartbeat\r\n\r\n" not in text:
            text += next(chunks)
        assert frames(text) == []
        hold.unlink()
        text += "".join(chunks)
    assert [name for name, _ in frames(text)] == ["metadata", "values", "values"]


def test_a_joiner_may_cancel_by_leaving(http: httpx.Client) -> None:
    tid = thread(http)
    run = start(http, tid, input={"seconds": 60})
    for cancel, ends in (("false", "running"), ("true", "interrupted")):
        eventually(lambda: http.get(f"/threads/{tid}/runs/{run}").json()["status"] != "pending")
        url = f"/threads/{tid}/runs/{run}/stream?cancel_on_disconnect={cancel}"
        with http.stream("GET", url) as answer:
            assert answer.status_code == 200
        eventually(lambda ends=ends: http.get(f"/threads/{tid}/runs/{run}").json()["status"] == ends)


def test_streams_end_when_the_server_stops_and_the_run_goes_on_later(server: Callable[..., Any], config: Path) -> None:
    process = server(config=config)
    body = {"assistant_id": "works", "input": {"seconds": 60}, "on_disconnect": "cancel"}
    with httpx.Client(base_url=process.url, timeout=30) as http:
        tid = thread(http)
        with http.stream("POST", f"/threads/{tid}/runs/stream", json=body) as answer:
            chunks = answer.iter_raw()
            next(chunks)
            process.popen.terminate()
            list(chunks)
    process.wait()
    assert "Exception" not in process.output
    again = server(config=config)
    [run] = httpx.get(f"{again.url}/threads/{tid}/runs", timeout=30).json()
    assert run["status"] in ("pending", "running")


def test_the_sdk_reads_pages_streams_and_errors(http: httpx.Client) -> None:
    with get_sync_client(url=str(http.base_url), api_key=None) as client:
        made = client.threads.create()
        created: list[Any] = []
        parts = list(client.runs.stream(made["thread_id"], "works", input={"log": []}, on_run_created=created.append))
        assert [part.event for part in parts] == ["metadata", "values", "values"]
        assert created[0]["run_id"] == parts[0].data["run_id"]
        with pytest.raises(Exception, match="ValueError: boom"):
            client.runs.wait(made["thread_id"], "fails", input={})


def test_a_run_past_its_max_duration_is_paused(http: httpx.Client, hold: Path) -> None:
    thread_id = thread(http)
    body = {"assistant_id": "works", "input": {"hold": str(hold)}, "max_duration": 0.5}
    failed = http.post(f"/threads/{thread_id}/runs/wait", json=body).json()["__error__"]
    assert (failed["error"], failed["message"][:47]) == (
        "MaxDuration",
        "The run took longer than its max_duration of 0.",
    )
    [run] = http.get(f"/threads/{thread_id}/runs").json()
    assert (run["status"], run["paused"], run["kwargs"]["max_duration"]) == ("error", True, 0.5)
    assert http.post(f"/threads/{thread_id}/runs/{run['run_id']}/cancel").status_code == 202
