"""The timeline of a run over HTTP, against a real server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import Launch, Process, eventually
from tests.crash.fleet import HERE

PATIENCE_SECONDS = 30.0

Api = httpx.Client


@pytest.fixture
def api(server: Launch, tmp_path: Path) -> Iterator[Api]:
    process: Process = server(config=HERE / "langgraph.json", env={"EFFECTS": str(tmp_path / "effects")})
    with httpx.Client(base_url=process.url, timeout=PATIENCE_SECONDS) as client:
        yield client


def start(api: Api, graph: str, **body: Any) -> str:
    """The path of a new run."""
    thread = api.post("/threads", json={}).json()["thread_id"]
    run = api.post(f"/threads/{thread}/runs", json={"assistant_id": graph, "input": {"log": ["in"]}, **body}).json()
    return f"/threads/{thread}/runs/{run['run_id']}"


def ended(api: Api, run: str) -> str:
    """The run, once it has ended."""
    eventually(lambda: api.get(run).json()["status"], lambda status: status not in ("pending", "running"))
    return run


def happens(effects: Path, name: str) -> None:
    """Wait until a step has had its effect."""
    eventually(lambda: effects.read_text().splitlines() if effects.exists() else [], lambda done: name in done)


def steps(api: Api, run: str, **query: Any) -> list[dict[str, Any]]:
    answer = api.get(f"{run}/steps", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(api: Api, run: str, kind: str) -> dict[str, Any]:
    """Wait for an entry of this kind."""
    return eventually(lambda: [entry for entry in steps(api, run) if entry["kind"] == kind])[0]


def names(entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(entry["kind"], entry["name"], entry["status"]) for entry in entries]


def test_steps_are_listed_in_order_with_their_attempts(api: Api) -> None:
    run = ended(api, start(api, "errors"))
    entries = steps(api, run)
    assert names(entries) == [
        ("step", "shaky", "done"),
        ("step", "work", "done"),
        ("step", "refuse", "failed"),
        ("step", "work", "done"),
    ]
    shaky, refuse = entries[0], entries[2]
    assert [attempt["error"] and attempt["error"]["error"] for attempt in shaky["attempts"]] == [
        "ConnectionError",
        "ConnectionError",
        None,
    ]
    assert shaky["path"] == ["try_hard"]
    assert shaky["scope"].startswith("try_hard:")
    assert shaky["seconds"] >= sum(attempt["seconds"] for attempt in shaky["attempts"])
    assert refuse["error"]["message"] == "No such thing"
    assert [entry["started_at"] for entry in entries] == sorted(entry["started_at"] for entry in entries)
    assert all("value" not in entry for entry in entries)


def test_values_are_there_when_asked_for_and_long_ones_are_cut(api: Api, tmp_path: Path) -> None:
    run = ended(api, start(api, "sequential"))
    entries = steps(api, run, values=True)
    assert [entry["value"] for entry in entries] == ["did a", "did b", "did c"]
    assert [entry["input"] for entry in entries] == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert not any("input" in entry or "input" in entry["attempts"][0] for entry in steps(api, run))

    shown = []
    for length in (5_000, 100_000):
        hold = tmp_path / "effects.hold.turn 0"
        hold.touch()
        run = start(api, "listening")
        happens(tmp_path / "effects", "turn 0")
        assert api.post(f"{run.rpartition('/runs/')[0]}/messages", json="x" * length).status_code == 202
        hold.unlink()
        entries = steps(api, ended(api, run), values=True)
        assert names(entries)[1] == ("messages", "mailbox", "done")
        shown.append((entries[1]["value"], entries[1]["truncated"]))
        assert "truncated" not in entries[0]
        (tmp_path / "effects").unlink()
    assert shown == [('["' + "x" * 1998, True), (None, True)]


def test_pages_follow_one_another(api: Api) -> None:
    run = ended(api, start(api, "sequential"))
    seen, offset = [], "0"
    while offset:
        answer = api.get(f"{run}/steps", params={"limit": 2, "offset": offset})
        seen += [entry["path"] for entry in answer.json()]
        offset = answer.headers.get("x-pagination-next")
    assert seen == [["a"], ["b"], ["c"]]


def test_children_waits_and_sagas_are_told_apart(api: Api) -> None:
    parent = ended(api, start(api, "parent"))
    entries = steps(api, parent)
    children = [entry for entry in entries if entry["kind"] == "child"]
    assert names(entries) == [
        ("child", "sequential", "done"),
        *[("child", "small", "done")] * 3,
        ("step", "work", "done"),
    ]
    first = children[0]["child"]
    assert len(steps(api, f"/threads/{first['thread_id']}/runs/{first['run_id']}")) == 3
    assert children[0]["seconds"] > 0

    race = steps(api, ended(api, start(api, "racing")))
    assert sorted(names(race)) == [
        ("child", "slow", "cancelled"),
        ("child", "small", "done"),
        ("race", "race", "done"),
        ("step", "work", "done"),
    ]
    trip = steps(api, ended(api, start(api, "trip")))
    assert ("saga", "saga", "failed") in names(trip)
    assert [entry["name"] for entry in trip].count("undo") == 2

    sleeping = start(api, "slow")
    wait = until(api, sleeping, "wait")
    assert wait["name"] == "sleep"
    assert wait["until"] > wait["started_at"]
    api.post(f"{sleeping}/cancel", params={"wait": True})


def test_a_child_that_works_has_no_end_yet(api: Api) -> None:
    run = start(api, "delegate")
    child = until(api, run, "child")
    assert (child["name"], child["status"], child["ended_at"], child["seconds"]) == ("questions", "started", None, None)
    theirs = f"/threads/{child['child']['thread_id']}/runs/{child['child']['run_id']}"
    assert until(api, theirs, "question")["status"] == "open"
    api.post(f"{run}/cancel", params={"wait": True})


def test_a_question_is_an_entry_of_the_run_that_asked_it(api: Api) -> None:
    run = ended(api, start(api, "deadline"))
    [deadline, question] = steps(api, run, values=True)
    assert (deadline["name"], deadline["key"]) == ("approval", "deadline")
    assert (question["kind"], question["status"], question["ended_at"]) == ("question", "open", None)
    assert question["question"]["question"]["question"] == "Pay?"
    [token] = [row["token"] for row in api.get("/interrupts").json()]
    answering = api.post(f"/interrupts/{token}/resolve", json=True).json()
    again = ended(api, f"/threads/{answering['thread_id']}/runs/{answering['run_id']}")
    assert names(steps(api, again)) == [("step", "work", "done")]
    answered = steps(api, run, values=True)[1]
    assert (answered["status"], answered["question"]["answer"]) == ("answered", True)
    assert answered["seconds"] > 0
    assert token not in str(answered)


def test_an_unknown_run_is_a_404(api: Api) -> None:
    run = start(api, "slow")
    assert api.get(f"{run.rpartition('/')[0]}/{uuid4()}/steps").status_code == 404
    assert api.get(f"{run}/steps", params={"limit": 1001}).status_code == 422
    api.post(f"{run}/cancel", params={"wait": True})


def test_calls_of_the_model_and_of_tools_are_told_apart(server: Launch) -> None:
    process: Process = server()
    with httpx.Client(base_url=process.url, timeout=PATIENCE_SECONDS) as api:
        run = api.post("/agents/weather/send", json={"prompt": "What is the weather like in San Francisco?"}).json()
        entries = steps(api, ended(api, f"/threads/{run['thread_id']}/runs/{run['run_id']}"), values=True)
    assert names(entries) == [("model", "model", "done"), ("tool", "get_weather", "done"), ("model", "model", "done")]
    [attempt] = entries[0]["attempts"]
    assert attempt["model"]["calls"] == 1
    assert attempt["model"]["input_tokens"] > 0
    assert entries[0]["model"] == "simulated-1"
    assert (entries[0]["model_calls"], entries[0]["cost"]) == (1, None)
    assert entries[0]["input_tokens"] == attempt["model"]["input_tokens"]
    assert "model" not in entries[1]
