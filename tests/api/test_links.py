"""Signed links: a page that shows a question to people without a login, and takes their answer once."""

import re
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb
from starlette.testclient import TestClient

from perdure.engine.links import sign

HTML = "text/html; charset=utf-8"


@pytest.fixture
def http(live: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live, timeout=30) as client:
        yield client


def ask(http: httpx.Client, graph: str) -> dict[str, Any]:
    asked = http.post(f"/agents/{graph}/run", json={})
    assert asked.status_code == 202
    [question] = asked.json()["interrupts"]
    return question


def given(http: httpx.Client, question: dict[str, Any]) -> Any:
    """The graph's output once the answer has arrived, and who answered."""
    row = http.get(f"/interrupts/{question['token']}").json()
    runs = http.get(f"/threads/{question['thread_id']}/runs").json()
    values = http.get(f"/threads/{question['thread_id']}/runs/{runs[0]['run_id']}/join").json()
    return values["answer"], row["status"], row["answered_by"]


def test_looking_at_a_question_answers_nothing(http: httpx.Client) -> None:
    question = ask(http, "approves")
    for _ in range(3):  # a program that scans mails
        page = http.get(question["url"])
        assert (page.status_code, page.headers["content-type"]) == (200, HTML)
        http.head(question["url"])
    assert "Pay &lt;b&gt;5 &amp; 6&lt;/b&gt;?" in page.text
    assert "The agent approves asks" in page.text
    assert question["deadline"][:10] in page.text
    assert http.get(f"/interrupts/{question['token']}").json()["status"] == "open"


def test_the_page_shows_text_only_and_loads_nothing(http: httpx.Client) -> None:
    page = http.get(ask(http, "approves")["url"])
    assert "<script" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert "<b>" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "form-action 'self'" in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"(src|href|action)=", page.text)


def test_the_form_answers_once_and_then_tells_who_and_what(http: httpx.Client) -> None:
    question = ask(http, "approves")
    answered = http.post(question["url"], data={"decision": "approve", "name": "Ana <3"})
    assert answered.status_code == 303
    page = http.get(httpx.URL(answered.url).join(answered.headers["location"]))
    assert "has been answered by Ana &lt;3 (by link) on" in page.text
    assert "<form" not in page.text
    late = http.post(question["url"], data={"decision": "reject"})
    assert late.status_code == 409
    assert "has been answered by Ana" in late.text
    output = {"approved": True, "reason": None}
    assert given(http, question) == (output, "answered", "Ana <3 (by link)")


def test_rejecting_gives_the_reason(http: httpx.Client) -> None:
    question = ask(http, "approves")
    page = http.post(question["url"], data={"decision": "reject", "text": "too\0 much"}, follow_redirects=True)
    assert "has been rejected by link" in page.text
    assert "too much" in page.text
    assert given(http, question) == ({"approved": False, "reason": "too much"}, "rejected", "link")


@pytest.mark.parametrize(("text", "value"), [("blue", "blue"), ('{"a": [1]}', {"a": [1]}), ("ü{", "ü{")])
def test_a_question_for_data_takes_text_or_json(http: httpx.Client, text: str, value: Any) -> None:
    question = ask(http, "asks")
    for nothing in ({}, {"decision": "answer"}, {"decision": "?"}):
        assert http.post(question["url"], data=nothing).status_code == 422
    assert http.post(question["url"], content=b"\xff\x00=&decision=%FF").status_code == 422
    http.post(question["url"], data={"decision": "answer", "text": text})
    assert given(http, question) == (value, "answered", "link")


@pytest.mark.parametrize("text", ["[" * 1000 + "]" * 1000, '"\\u0000"', "[1e999]", "9" * 30], ids=len)
def test_what_the_api_would_refuse_as_json_is_a_text(http: httpx.Client, text: str) -> None:
    question = ask(http, "asks")
    answered = http.post(question["url"], data={"decision": "answer", "text": text})
    assert answered.status_code == 303
    assert given(http, question)[0] == text


def test_a_form_with_more_fields_than_ours_answers_nothing(http: httpx.Client) -> None:
    question = ask(http, "approves")
    answer = http.post(question["url"], content="decision=approve" + "&x=1" * 1000)
    assert answer.status_code == 422
    assert http.get(f"/interrupts/{question['token']}").json()["status"] == "open"


def test_an_answer_that_the_engine_refuses_is_told(http: httpx.Client) -> None:
    question = ask(http, "asks")
    refused = http.post(question["url"], data={"decision": "answer", "text": '{"__timeout__": 1}'})
    assert (refused.status_code, refused.headers["content-type"]) == (422, HTML)
    assert http.get(f"/interrupts/{question['token']}").json()["status"] == "open"


# -- without a worker: what a link is bound to


@pytest.fixture
def asked(client: TestClient, dsn: str) -> Any:
    """Stores a question as a run would; its record."""

    def store(question: Any = "really?") -> dict[str, Any]:
        thread = client.post("/threads", json={}).json()["thread_id"]
        token = uuid4().hex
        row = (thread, "c", "t", 0, "", "i", uuid4(), "echo", uuid4(), token, Jsonb(question))
        with psycopg.connect(dsn) as conn:
            conn.execute(
                "INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id, "
                "graph_id, assistant_id, token, question) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                row,
            )
        return client.get(f"/interrupts/{token}").json()

    return store


def test_of_many_actions_the_page_shows_the_first(client: TestClient, asked: Any) -> None:
    requests = [{"name": f"act-{n}", "args": {"text": "x" * 1000}} for n in range(2000)]
    page = client.get(asked({"action_requests": requests})["url"]).text
    assert (page.count("act-"), "and 1,950 more" in page) == (50, True)


def secret(dsn: str) -> bytes:
    with psycopg.connect(dsn) as conn:
        (value,) = conn.execute("SELECT value FROM secrets").fetchone()  # type: ignore[misc]
    return value


def test_a_link_that_was_changed_is_not_valid(client: TestClient, asked: Any) -> None:
    one, other = asked(), asked()
    path, _, signed = one["url"].rpartition("/")
    token, expires, signature = signed.split(".")
    elsewhere = other["url"].rpartition("/")[2].split(".")[2]
    for wrong in (
        f"{other['token']}.{expires}.{signature}",
        f"{token}.{int(expires) + 1}.{signature}",
        f"{token}.{expires}.{elsewhere}",
        f"{token}.{expires}.{signature[:-1]}",
        f"{token}.{expires}.",
        f"{token}.{expires}",
        *(token, "x", "é", "a.1.b", "%00", "%F0%9F", signature * 1000),
    ):
        for answer in (client.get(f"{path}/{wrong}"), client.post(f"{path}/{wrong}", content="decision=approve")):
            assert answer.status_code in (404, 422), wrong
    assert client.get(one["url"]).status_code == 200


def test_a_link_ends(client: TestClient, asked: Any, dsn: str) -> None:
    question = asked()
    ended = sign(secret(dsn), question["token"], int(time.time()) - 1)
    for answer in (
        client.get(f"/interrupts/link/{ended}"),
        client.post(f"/interrupts/link/{ended}", content="decision=approve"),
    ):
        assert answer.status_code == 410
        assert "ask for a new one" in answer.text
    assert client.get(f"/interrupts/{question['token']}").json()["status"] == "open"


def test_the_link_of_a_deleted_question_is_not_found(client: TestClient, asked: Any) -> None:
    question = asked()
    client.delete(f"/threads/{question['thread_id']}")
    assert client.get(question["url"]).status_code == 404


@pytest.mark.parametrize(
    "question",
    [
        *("", None, 5, [], {}, {"question": 1}, {"question": "q", "action_requests": 5}, "x" * 100_000),
        {"action_requests": [{"name": "pay", "args": {"<i>": 1}}, 5, None]},
        {"question": "q", "schema": {"type": "<b>"}, "problem": ["<b>"], "action_requests": [{"args": 1}]},
    ],
)
def test_any_question_can_be_shown(client: TestClient, asked: Any, question: Any) -> None:
    page = client.get(asked(question)["url"])
    assert page.status_code == 200
    assert "<form" in page.text
    assert "<b>" not in page.text
    assert "<i>" not in page.text


def test_a_form_is_limited_like_any_body(client: TestClient, asked: Any) -> None:
    assert client.post(asked()["url"], content=b"text=" + b"x" * 1_000_001).status_code == 413
