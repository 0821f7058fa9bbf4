"""Nothing that a browser can send to the console makes it fail, and nothing that is stored gets out of its text."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from fastapi.routing import APIRoute
from psycopg.types.json import Jsonb
from starlette.testclient import TestClient

from perdure.console.runs import Filter
from tests.console.test_gates import app_of, filled, key_of, pages, things

MARKUP = "\"'><script>alert(1)</script>{{7*7}}"
VALUES = [
    quote(value)
    for value in (
        "",
        " ",
        MARKUP,
        "-1",
        "9" * 400,
        str(2**63),
        "1e308",
        "nan",
        "-inf",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "not-an-id",
        "0" * 32,
        "[" * 300,
        '{"\\ud800": "\\u0000"}',
        '{"a": {"$gt": {}}}',
        "." * 300,
        "to=x&root=y",
        "http://[",
        "\r\nX-Header: y",
        "x" * 5_000,
    )
]
VALUES += ["%ff%fe", "%ed%a0%80", "%%0000", "%00"]
"""As they stand in an address or a form: the last ones are no UTF-8, and NUL characters."""
WORST = ["1e308", quote("9999-12-31T23:59:59-14:00"), quote('{"\\ud800": 1}')]
"""Those that each field of a form is sent with alone."""

FIELDS = {
    "values": "{}",
    "checkpoint_id": "",
    "as_node": "",
    "metadata": "{}",
    "minutes": "5",
    "namespace": "a",
    "key": "k",
    "value": "{}",
    "ttl": "",
    "q": "SELECT 1",
    "name": "n",
    "action": "retry",
    "ticked": "",
    "filter": "",
    "thread_id": "",
    "schedule": "* * * * *",
    "timezone": "",
    "end_time": "",
    "input": "{}",
    "agent": "echo",
    "thread": "",
    "decision": "",
    "text": "",
    "next": "",
    "header": "x-api-key",
    "credential": "x",
    "days": "",
    "rate_limit": "",
}
"""Fields of any form, each with a value that one of them takes."""


@pytest.fixture
def open_client(dsn: str, tmp_path: Path) -> Iterator[TestClient]:
    """A console without authentication."""
    with TestClient(app_of(dsn, tmp_path), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def routes(client: TestClient) -> list[APIRoute]:
    return [route for route in pages(client.app) if route.path != "/console/live"]  # type: ignore[arg-type]


def address(route: APIRoute, ids: dict[str, str], name: str, value: str) -> str:
    """The path of a route with `value` as it is in one place, and what is there in the others."""
    return filled(route.path, {**ids, name: value})


def source_of(route: APIRoute) -> str:
    return Path(route.endpoint.__code__.co_filename).read_text(encoding="utf-8")


def test_no_address_makes_a_page_fail(open_client: TestClient, dsn: str) -> None:
    """Odd values in each part of each path, and in each field of each query, with and without htmx."""
    ids = {**things(open_client, dsn, {}), "entry_id": "x"}
    failed: list[str] = []
    for route in routes(open_client):
        if "GET" not in route.methods:
            continue
        urls = [address(route, ids, name, value) for name in ids if f"{{{name}" in route.path for value in VALUES]
        names = {one.alias for one in route.dependant.query_params}
        if route.path == "/console/runs":
            names = set(Filter.model_fields)
        path = filled(route.path, ids)
        urls += [f"{path}?{name}={value}" for name in sorted(names) for value in VALUES]
        urls += [f"{path}?{name}=1&{name}=2&{name}" for name in sorted(names)]
        for number, url in enumerate(urls):
            answer = open_client.get(url, headers={"hx-request": "true"} if number % 2 else {})
            if answer.status_code >= 500 or "<script>alert" in answer.text:
                failed.append(f"{answer.status_code} {url[:120]}")
    assert failed == []


def test_no_form_makes_a_page_fail(open_client: TestClient, dsn: str) -> None:
    """Odd values in each field of each form; nothing at all; bytes that are no form."""
    failed: list[str] = []
    for route in routes(open_client):
        if "POST" not in route.methods:
            continue
        ids = {**things(open_client, dsn, {}), "action": "pause"}
        path, source = filled(route.path, ids), source_of(route)
        known = {name: value for name, value in FIELDS.items() if f'"{name}"' in source}
        bodies = ["", "\0&&==;%", "a=1&a=2&a"]
        bodies += ["&".join(f"{name}={value}" for name in known) for value in VALUES]
        for name in known:
            rest = "&".join(f"{other}={quote(one)}" for other, one in known.items() if other != name)
            bodies += [f"{rest}&{name}={value}" for value in WORST]
        for number, body in enumerate(bodies):
            htmx = {"hx-request": "true", "hx-current-url": "http://[" if number % 4 == 1 else "http://x/console/"}
            answer = open_client.post(path, content=body, headers=htmx if number % 2 else {})
            if answer.status_code >= 500 or "<script>alert" in answer.text:
                failed.append(f"{answer.status_code} {path[:60]} {body[:120]}")
    assert failed == []


def test_a_raw_nul_in_a_form_is_dropped(open_client: TestClient) -> None:
    for sent in (b"k\0", b"k%00", b"k%%0000"):
        answer = open_client.post("/console/store/put", content=b"namespace=a&value={}&key=" + sent)
        assert answer.status_code == 303, answer.text
    items = open_client.post("/store/items/search", json={"namespace_prefix": ["a"]}).json()["items"]
    assert {item["key"] for item in items} == {"k", "k%00"}


@pytest.mark.parametrize("origin", ["http://[", "null", "http://elsewhere", "//"])
def test_a_form_of_an_origin_that_is_no_address_is_refused(open_client: TestClient, origin: str) -> None:
    answer = open_client.post("/console/store/delete", data={"namespace": "a"}, headers={"origin": origin})
    assert answer.status_code == 403


def test_where_nobody_signs_in_the_login_form_leads_to_the_first_page(open_client: TestClient) -> None:
    answer = open_client.post("/console/login", data={"header": "x-api-key", "credential": "x"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/")


def test_a_filter_may_name_anything(open_client: TestClient) -> None:
    given = {"action": "retry", "filter": "to=x&root=y&status=error"}
    answer = open_client.post("/console/runs", data=given)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/runs?status=error")


SLOW = {
    "pairs": "/console/threads?metadata=%3D" + "+" * 700 + "%7Bx",
    "comments": "/console/sql?q=" + "/**/" * 24,
}
"""What takes a careless regular expression 10 s; of a full-sized one nobody would see the end."""


@pytest.mark.parametrize("url", SLOW.values(), ids=SLOW)
def test_no_address_is_worth_seconds_of_work(open_client: TestClient, url: str) -> None:
    open_client.get("/console/threads")  # whatever takes its time only once
    started = time.process_time()
    answer = open_client.get(url)
    assert time.process_time() - started < 2
    assert answer.status_code < 500


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a=1", {"a": "1"}),
        (" a = 1 , b=,", {"a": "1", "b": ""}),
        ("a=b=c", {"a": "b=c"}),
        ('{"a": "x=y"}', {"a": "x=y"}),
    ],
)
def test_metadata_is_found_by_pairs_and_by_json(open_client: TestClient, text: str, found: dict[str, str]) -> None:
    made = [open_client.post("/threads", json={"metadata": one}).json()["thread_id"] for one in (found, {"a": "0"})]
    page = open_client.get("/console/threads", params={"metadata": text}).text
    assert [thread in page for thread in made] == [True, False]


@pytest.mark.parametrize("text", ["a=1, b", "=1", "a={", 'a="1"'])
def test_what_is_neither_pairs_nor_json_is_refused(open_client: TestClient, text: str) -> None:
    assert open_client.get("/console/threads", params={"metadata": text}).status_code == 422


@pytest.mark.parametrize("usage", [{"input_tokens": "many"}, {"output_tokens": {"a": 1}}, [1]])
def test_a_message_may_say_anything_about_its_tokens(open_client: TestClient, usage: Any) -> None:
    message = {"type": "ai", "content": "Here I am", "usage_metadata": usage}
    thread = thread_with(open_client, [message])
    answer = open_client.get(f"/console/threads/{thread}?tab=chat")
    assert answer.status_code == 200
    assert "Here I am" in answer.text


LARGE = {f"key-{n}": {f"{m}": {"text": "x" * 40, "list": [1, 2, 3]} for m in range(80)} for n in range(100)}
"""Half a megabyte, 50,000 values."""
MOST_BYTES = 1_500_000


def test_pages_show_a_part_of_what_is_too_large(open_client: TestClient, dsn: str) -> None:
    ids = things(open_client, dsn, {})
    run = {"assistant_id": "echo", "input": {"text": LARGE}, "metadata": {"m": LARGE}}
    run_id = open_client.post(f"/threads/{ids['thread_id']}/runs", json=run).json()["run_id"]
    cron = open_client.post("/runs/crons", json={**run, "schedule": "0 0 * * *"}).json()
    for question in (LARGE, {"action_requests": [{"name": "act", "args": LARGE}]}):
        with psycopg.connect(dsn) as conn:
            conn.execute("UPDATE interrupts SET question = %s", (Jsonb(question),))
        shown_in_part(open_client, f"/console/inbox/{ids['token']}")
    shown_in_part(open_client, f"/console/schedules/{cron['cron_id']}")
    shown_in_part(open_client, f"/console/runs/{ids['thread_id']}/{run_id}?tab=values")
    shown_in_part(open_client, f"/console/threads/{thread_with(open_client, LARGE)}?tab=state")


def shown_in_part(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, path
    assert len(answer.content) < MOST_BYTES, path
    assert "left out here: the API has the whole" in answer.text, path


def thread_with(client: TestClient, text: Any) -> str:
    """A new thread with this in its state."""
    thread: str = client.post("/threads", json={"metadata": {"graph_id": "echo"}}).json()["thread_id"]
    values = {"values": {"text": text}, "as_node": "echo"}
    assert client.post(f"/threads/{thread}/state", json=values).status_code == 200
    return thread


def test_a_decision_that_the_agent_does_not_take_is_no_answer(open_client: TestClient, dsn: str) -> None:
    token = things(open_client, dsn, {})["token"]
    configs = [{"action_name": "act", "allowed_decisions": ["reject"]}]
    question = {"action_requests": [{"name": "act", "args": {"n": 1}}], "review_configs": configs}
    with psycopg.connect(dsn) as conn:
        conn.execute("UPDATE interrupts SET question = %s", (Jsonb(question),))
    for decision in ("approve", "edit", "respond"):
        answer = open_client.post(f"/console/inbox/{token}", data={"decision": decision, "text": "x", "args.0.n": "1"})
        assert answer.status_code == 422, decision


def test_a_schedule_keeps_an_input_that_is_too_large_for_its_form(open_client: TestClient) -> None:
    cron = {"assistant_id": "echo", "schedule": "0 0 * * *", "input": {"text": LARGE}}
    path = f"/console/schedules/{open_client.post('/runs/crons', json=cron).json()['cron_id']}"
    assert 'name="input"' not in open_client.get(path).text
    form = {"schedule": "0 1 * * *", "timezone": "UTC", "end_time": "", "enabled": "true"}
    assert open_client.post(path, data=form).status_code == 303
    found = open_client.post("/runs/crons/search", json={}).json()[0]
    assert (found["schedule"], found["payload"]["input"]) == ("0 1 * * *", {"text": LARGE})


@pytest.mark.parametrize("wanted", ["/console/\r\nX-Other: y", "/console/\u4e2d", "http://[", "//elsewhere/console"])
def test_after_the_login_no_page_that_was_wanted_gets_out_of_its_header(dsn: str, tmp_path: Path, wanted: str) -> None:
    with TestClient(app_of(dsn, tmp_path, auth="keys"), raise_server_exceptions=False) as client:
        form = {"header": "x-api-key", "credential": key_of(client, "ann")["x-api-key"], "next": wanted}
        answer = client.post("/console/login", data=form, headers={"hx-request": "true"})
        assert answer.status_code == 200
        to = answer.headers["hx-redirect"]
        assert to.startswith("/console/")
        assert (to.isascii(), to.isprintable()) == (True, True)
