"""The wire contract of runs: results, failures, questions, strategies, cancelling, stateless runs, webhooks."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import eventually

UNKNOWN = "01900000-0000-7000-8000-000000000000"


def wait(http: httpx.Client, thread: str, graph: str, **body: Any) -> Any:
    answer = http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": graph, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def start(http: httpx.Client, thread: str, graph: str, **body: Any) -> Any:
    answer = http.post(f"/threads/{thread}/runs", json={"assistant_id": graph, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def in_node(http: httpx.Client, thread: str, node: str) -> None:
    eventually(lambda: http.get(f"/threads/{thread}/state").json()["next"], lambda following: node in following)


def status(http: httpx.Client, thread: str, run: Any) -> str:
    return http.get(f"/threads/{thread}/runs/{run['run_id']}").json()["status"]


# Results


def test_a_run_is_accepted_and_shown(http: httpx.Client, thread: str, hold: Path) -> None:
    made = http.post(
        f"/threads/{thread}/runs",
        json={"assistant_id": "slow", "input": {"hold": str(hold)}, "metadata": {"a": 1}, "config": {"tags": ["x"]}},
    )
    run = made.json()
    assert made.headers["content-location"] == f"/threads/{thread}/runs/{run['run_id']}"
    assert run["status"] == "pending"
    assert (run["metadata"]["a"], run["metadata"]["graph_id"]) == (1, "slow")
    assert run["kwargs"]["input"] == {"hold": str(hold)}
    assert http.get(f"/threads/{thread}").json()["status"] == "busy"
    hold.unlink()
    assert http.get(f"/threads/{thread}/runs/{run['run_id']}/join").json()["log"] == ["begin", "waited"]
    assert status(http, thread, run) == "success"
    [listed] = http.get(f"/threads/{thread}/runs").json()
    assert listed["run_id"] == run["run_id"]
    assert http.get(f"/threads/{thread}/runs?status=error").json() == []


def test_wait_names_its_run(http: httpx.Client, thread: str) -> None:
    answer = http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": "line", "input": {"log": []}})
    run = answer.headers["content-location"]
    assert run.startswith(f"/threads/{thread}/runs/")
    assert answer.headers["location"] == f"{run}/join"
    assert answer.json() == http.get(f"{run}/join").json() == {"log": ["a", "b", "c"]}


def test_fan_out_and_reducers(http: httpx.Client, thread: str) -> None:
    assert wait(http, thread, "fan", input={"n": 5})["total"] == 30


def test_a_failure_is_an_answer_and_the_run_can_be_mended(http: httpx.Client, thread: str) -> None:
    failed = wait(http, thread, "fails", input={"log": []})
    assert failed["__error__"] == {"error": "ValueError", "message": "boom happened"}
    assert http.get(f"/threads/{thread}/runs").json()[0]["status"] == "error"
    after = http.get(f"/threads/{thread}").json()
    assert (after["status"], after["error"]["error"]) == ("error", "ValueError")
    assert "boom happened" in http.get(f"/threads/{thread}/state").json()["tasks"][0]["error"]
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "mended"}})
    assert wait(http, thread, "fails", input=None)["log"] == ["good", "boom"]


def test_no_input_and_the_recursion_limit_are_failures(http: httpx.Client, thread: str) -> None:
    assert wait(http, thread, "line")["__error__"]["error"] == "EmptyInputError"
    endless = wait(http, thread, "endless", input={"log": []}, config={"recursion_limit": 5})
    assert endless["__error__"]["error"] == "GraphRecursionError"


def test_what_does_not_exist_is_refused_and_leaves_nothing(http: httpx.Client, thread: str) -> None:
    for assistant, code in (("nothing", 422), (UNKNOWN, 404)):
        assert http.post(f"/threads/{thread}/runs", json={"assistant_id": assistant}).status_code == code
    assert http.get(f"/threads/{thread}/runs").json() == []
    new, body = str(uuid4()), {"assistant_id": "line", "input": {"log": []}}
    assert http.post(f"/threads/{new}/runs/wait", json=body).status_code == 404
    made = http.post(f"/threads/{new}/runs/wait", json={**body, "if_not_exists": "create"})
    assert made.json() == {"log": ["a", "b", "c"]}
    assert http.get(f"/threads/{thread}/runs/{UNKNOWN}").status_code == 404
    assert http.get(f"/threads/{thread}/runs/{UNKNOWN}/join").status_code == 404


def test_a_run_is_deleted_once(http: httpx.Client, thread: str) -> None:
    run = start(http, thread, "line", input={"log": []})
    http.get(f"/threads/{thread}/runs/{run['run_id']}/join")
    path = f"/threads/{thread}/runs/{run['run_id']}"
    assert [http.delete(path).status_code, http.delete(path).status_code] == [204, 404]


def test_context_comes_from_the_assistant_and_the_run(http: httpx.Client, thread: str) -> None:
    made = http.post("/assistants", json={"graph_id": "tone", "context": {"tone": "dry"}}).json()["assistant_id"]
    assert wait(http, thread, made, input={"text": "x"})["heard"] == "dry"
    assert wait(http, thread, made, input={"text": "x"}, context={"tone": "warm"})["heard"] == "warm"
    by_config = wait(http, thread, "tone", input={"text": "x"}, config={"configurable": {"tone": "cold"}})
    assert by_config["heard"] == "cold"


def test_stateless_runs_leave_no_thread_unless_asked(http: httpx.Client) -> None:
    body = {"assistant_id": "line", "input": {"log": []}}
    gone = http.post("/runs/wait", json=body)
    assert gone.json() == {"log": ["a", "b", "c"]}
    of_thread = gone.headers["content-location"].rpartition("/runs/")[0]
    eventually(lambda: http.get(of_thread).status_code, lambda code: code == 404)
    kept = http.post("/runs/wait", json={**body, "on_completion": "keep"})
    assert http.get(kept.headers["content-location"].rpartition("/runs/")[0]).status_code == 200
    runs = http.post("/runs/batch", json=[body, body]).json()
    assert len({run["thread_id"] for run in runs}) == 2


def test_a_run_from_an_older_state_forks(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "line", input={"log": []})
    history = http.post(f"/threads/{thread}/history", json={"limit": 10}).json()
    after_a = history[2]["checkpoint"]
    assert wait(http, thread, "line", input=None, checkpoint=after_a)["log"] == ["a", "b", "c"]
    forked = wait(http, thread, "line", input={"log": ["x"]}, checkpoint_id=after_a["checkpoint_id"])
    assert forked["log"] == ["a", "x", "a", "b", "c"]


# Questions


def test_a_question_is_seen_everywhere(http: httpx.Client, thread: str) -> None:
    [question] = wait(http, thread, "asks", input={"log": []})["__interrupt__"]
    state = http.get(f"/threads/{thread}/state").json()
    assert state["next"] == ["ask"]
    assert state["interrupts"] == state["tasks"][0]["interrupts"] == [{k: question[k] for k in ("id", "value")}]
    shown = http.get(f"/threads/{thread}").json()
    assert shown["status"] == "interrupted"
    assert [row["id"] for rows in shown["interrupts"].values() for row in rows] == [question["id"]]
    assert http.get(f"/threads/{thread}/runs").json()[0]["status"] == "success"


@pytest.mark.parametrize("answer", ["yes", None, 0, False, {"a": [1]}])
def test_any_value_answers(http: httpx.Client, thread: str, answer: Any) -> None:
    [question] = wait(http, thread, "asks", input={"log": []})["__interrupt__"]
    by_id = {"resume": {question["id"]: answer}}
    done = wait(http, thread, "asks", command=by_id)
    assert (done.get("answer"), done["log"]) == (answer, ["before", "asked", "after"])
    assert http.get(f"/threads/{thread}").json()["status"] == "idle"


def test_two_questions_need_their_names(http: httpx.Client, thread: str) -> None:
    questions = wait(http, thread, "two", input={"log": []})["__interrupt__"]
    assert wait(http, thread, "two", command={"resume": "which?"})["__error__"]["error"] == "RuntimeError"
    first = wait(http, thread, "two", command={"resume": {questions[0]["id"]: 1}})
    assert [question["id"] for question in first["__interrupt__"]] == [questions[1]["id"]]
    done = wait(http, thread, "two", command={"resume": {questions[1]["id"]: 2}})
    assert len(done["log"]) == 2


def test_stopping_before_and_after_nodes(http: httpx.Client, thread: str) -> None:
    before = wait(http, thread, "line", input={"log": []}, interrupt_before=["b"])
    assert before == {"log": ["a"]}
    assert http.get(f"/threads/{thread}").json()["status"] == "interrupted"
    assert wait(http, thread, "line", input=None, interrupt_after="*")["log"] == ["a", "b"]
    assert wait(http, thread, "line", input=None)["log"] == ["a", "b", "c"]


def test_a_command_updates_and_goes_where_it_says(http: httpx.Client, thread: str) -> None:
    assert wait(http, thread, "router", input={"topic": "blue"})["log"] == ["choose", "blue"]
    command = {"update": {"log": ["hand"]}, "goto": "red"}
    assert wait(http, thread, "router", command=command)["log"] == ["choose", "blue", "hand", "red"]


def test_a_command_of_nothing_is_none(http: httpx.Client, thread: str) -> None:
    for command in ({}, {"goto": []}, {"update": {}}, {"update": []}, {"resume": None, "update": None, "goto": None}):
        assert wait(http, thread, "line", input={"log": []}, command=command)["log"][-3:] == ["a", "b", "c"]
    wait(http, thread, "asks", input={"log": []})
    answer = {"graph": None, "update": None, "resume": "yes", "goto": []}  # as RemoteGraph sends it
    assert wait(http, thread, "asks", command=answer)["answer"] == "yes"


# Several at once


def test_runs_of_a_thread_wait_for_each_other(http: httpx.Client, thread: str) -> None:
    runs = [start(http, thread, "line", input={"log": [name]}) for name in ("first", "second")]
    last = http.get(f"/threads/{thread}/runs/{runs[1]['run_id']}/join").json()
    assert last["log"] == ["first", "a", "b", "c", "second", "a", "b", "c"]
    assert [run["run_id"] for run in http.get(f"/threads/{thread}/runs").json()] == [r["run_id"] for r in runs[::-1]]


def test_reject_interrupt_and_rollback(http: httpx.Client, thread: str) -> None:
    busy = start(http, thread, "slow", input={"seconds": 60})
    in_node(http, thread, "wait")
    again: Any = {"assistant_id": "slow", "input": {"seconds": 0, "log": ["again"]}}
    refused = http.post(f"/threads/{thread}/runs", json={**again, "multitask_strategy": "reject"})
    assert refused.status_code == 409
    assert len(http.get(f"/threads/{thread}/runs").json()) == 1
    done = wait(http, thread, "slow", **again, multitask_strategy="interrupt")
    assert done["log"] == ["begin", "again", "begin", "waited"]
    assert status(http, thread, busy) == "interrupted"

    busy = start(http, thread, "slow", input={"seconds": 60, "log": ["lost"]})
    in_node(http, thread, "wait")
    again["input"]["log"] = ["kept"]
    done = wait(http, thread, "slow", **again, multitask_strategy="rollback")
    assert done["log"][4:] == ["kept", "begin", "waited"]
    assert http.get(f"/threads/{thread}/runs/{busy['run_id']}").status_code == 404


def test_cancel_by_interrupt_can_go_on(http: httpx.Client, thread: str) -> None:
    run = start(http, thread, "slow", input={"seconds": 60})
    in_node(http, thread, "wait")
    cancelled = http.post(f"/threads/{thread}/runs/{run['run_id']}/cancel?wait=1")
    assert (cancelled.status_code, cancelled.json()) == (200, {})
    shown = http.get(f"/threads/{thread}").json()
    assert (shown["status"], shown["error"]["error"]) == ("interrupted", "UserInterrupt")
    assert http.post(f"/threads/{thread}/runs/{run['run_id']}/cancel").status_code == 404
    http.post(f"/threads/{thread}/state", json={"values": {"seconds": 0}, "as_node": "begin"})
    assert wait(http, thread, "slow", input=None)["log"] == ["begin", "waited"]


def test_cancel_by_rollback_forgets_the_run(http: httpx.Client, thread: str) -> None:
    run = start(http, thread, "slow", input={"seconds": 60})
    in_node(http, thread, "wait")
    path = f"/threads/{thread}/runs/{run['run_id']}"
    assert http.post(f"{path}/cancel?wait=true&action=rollback").status_code == 200
    assert http.get(path).status_code == 404
    assert http.post(f"/threads/{thread}/history", json={"limit": 9}).json() == []
    assert http.get(f"/threads/{thread}").json()["status"] == "idle"


def test_cancelling_many(http: httpx.Client, thread: str) -> None:
    runs = [start(http, thread, "slow", input={"seconds": 60}) for _ in range(2)]
    ids = [run["run_id"] for run in runs]
    assert http.post("/runs/cancel", json={"thread_id": thread, "run_ids": ids}).status_code == 204
    for run in runs:
        eventually(lambda run=run: status(http, thread, run), lambda found: found == "interrupted")
    assert http.post("/runs/cancel", json={"thread_id": thread, "run_ids": [UNKNOWN]}).status_code == 404
    assert http.post("/runs/cancel", json={}).status_code == 422


def test_a_delayed_run_waits_and_is_overtaken(http: httpx.Client, thread: str) -> None:
    later = start(http, thread, "line", input={"log": ["later"]}, after_seconds=3600)
    assert http.get(f"/threads/{thread}").json()["status"] == "busy"
    assert wait(http, thread, "line", input={"log": ["now"]})["log"][0] == "now"
    assert status(http, thread, later) == "pending"
    assert http.post(f"/threads/{thread}/runs/{later['run_id']}/cancel").status_code == 202


# Webhooks


@pytest.fixture
def received() -> Iterator[tuple[str, list[Any]]]:
    """The address of a receiver, and what it has received."""
    bodies: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/told?who=me", bodies
        server.shutdown()
        thread.join()


def test_a_webhook_is_told(http: httpx.Client, thread: str, received: tuple[str, list[Any]]) -> None:
    url, bodies = received
    run = start(http, thread, "fails", input={"log": []}, webhook=url)
    [(path, body)] = eventually(lambda: list(bodies))
    assert path == "/told?who=me"
    assert (body["run_id"], body["status"]) == (run["run_id"], "error")
    assert body["error"] == {"error": "ValueError", "message": "boom happened"}
    assert body["values"]["log"] == ["good"]
    for bad in ("/relative", "ftp://example.com"):
        refused = http.post(f"/threads/{thread}/runs", json={"assistant_id": "line", "webhook": bad})
        assert refused.status_code == 422
