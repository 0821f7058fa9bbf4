"""What a call by key does while the session is at work: wait, take its place, undo it, be refused, or speak to it."""

import threading
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.conftest import eventually

BUSY = {"log": ["first"], "seconds": 60}
NEXT = {"log": ["second"], "seconds": 0}


@pytest.fixture
def http(live: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live, timeout=30) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"/agents/works/{uuid4()}"


def run_of(http: httpx.Client, sent: httpx.Response) -> str:
    assert sent.status_code == 202, sent.text
    return f"/threads/{sent.json()['thread_id']}/runs/{sent.json()['run_id']}"


def busy(http: httpx.Client, key: str) -> str:
    run = run_of(http, http.post(f"{key}/send", json=BUSY))
    eventually(lambda: http.get(f"{key}/state").json().get("log") == ["first"])
    return run


def test_a_call_waits_in_line_unless_it_says_otherwise(http: httpx.Client, key: str) -> None:
    first = busy(http, key)
    second = run_of(http, http.post(f"{key}/send", json=NEXT))
    assert http.get(second).json()["status"] == "pending"
    assert http.post(f"{first}/cancel").status_code == 202
    assert http.get(f"{second}/join").json()["log"] == ["first", "second", "worked"]


def test_interrupt_cancels_what_is_there_and_starts_on_top_of_it(http: httpx.Client, key: str) -> None:
    first = busy(http, key)
    queued = run_of(http, http.post(f"{key}/send", json={"log": ["queued"]}))
    done = http.post(f"{key}/run?multitask_strategy=interrupt", json=NEXT)
    assert (done.status_code, done.json()["log"]) == (200, ["first", "second", "worked"])
    assert http.get(first).json()["status"] == http.get(queued).json()["status"] == "interrupted"


def test_rollback_takes_back_what_is_there_and_tells_who_waits_for_it(http: httpx.Client, key: str) -> None:
    waited: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: waited.append(http.post(f"{key}/run", json=BUSY)))
    waiting.start()
    eventually(lambda: http.get(f"{key}/state").json().get("log") == ["first"])
    done = http.post(f"{key}/run?multitask_strategy=rollback", json=NEXT)
    assert (done.status_code, done.json()["log"]) == (200, ["second", "worked"])
    waiting.join(30)
    assert waited[0].status_code == 409
    assert waited[0].json()["detail"] == "The run was rolled back or deleted"


def test_interrupt_tells_who_waits_for_the_run(http: httpx.Client, key: str) -> None:
    waited: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: waited.append(http.post(f"{key}/run", json=BUSY)))
    waiting.start()
    eventually(lambda: http.get(f"{key}/state").json().get("log") == ["first"])
    assert http.post(f"{key}/run?multitask_strategy=interrupt", json=NEXT).status_code == 200
    waiting.join(30)
    assert waited[0].status_code == 409
    assert waited[0].json()["detail"] == "The run was cancelled"


def test_reject_is_refused_and_leaves_nothing(http: httpx.Client, key: str) -> None:
    first = busy(http, key)
    assert http.post(f"{key}/send?multitask_strategy=reject", json=NEXT).status_code == 409
    assert len(http.get(first.rpartition("/")[0]).json()) == 1
    http.post(f"{first}/cancel")
    assert http.post(f"{key}/run?multitask_strategy=reject", json=NEXT).status_code == 200


def test_interrupt_supersedes_an_open_question_and_enqueue_waits_behind_it(http: httpx.Client) -> None:
    key = f"/agents/asks/{uuid4()}"
    asked = http.post(f"{key}/run", json={})
    assert asked.status_code == 202
    behind = run_of(http, http.post(f"{key}/send", json={}))
    assert http.get(behind).json()["status"] == "pending"
    anew = http.post(f"{key}/run?multitask_strategy=interrupt", json={})
    assert anew.status_code == 202
    assert http.get(behind).json()["status"] == "interrupted"
    old, new = (answer.json()["interrupts"][0]["token"] for answer in (asked, anew))
    assert http.get(f"/interrupts/{old}").json()["status"] == "superseded"
    assert http.post(f"/interrupts/{old}/resolve", json=True).status_code == 409
    assert http.post(f"/interrupts/{new}/resolve", json=True).status_code == 202


@pytest.mark.parametrize("call", ["run", "send"])
def test_unknown_strategy_is_refused(http: httpx.Client, key: str, call: str) -> None:
    refused = http.post(f"{key}/{call}?multitask_strategy=later", json=NEXT)
    assert refused.status_code == 422
    assert "multitask_strategy" in refused.json()["detail"]
    assert http.get(f"{key}/state").json() == {}


def test_message_needs_a_session_that_works(http: httpx.Client, key: str) -> None:
    assert http.post("/agents/nobody/key/messages", json="hello").status_code == 404
    never = http.post(f"{key}/messages", json="hello")
    assert never.status_code == 409
    assert "has never been called; use send or run" in never.json()["detail"]
    first = busy(http, key)
    assert http.post(f"{key}/messages", json={"any": ["json"]}).json() == {"run_id": first.rpartition("/")[2]}
    http.post(f"{first}/cancel")
    assert http.post(f"{key}/messages", json="hello").status_code == 409
