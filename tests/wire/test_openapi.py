"""Requests generated from our own OpenAPI description: no 5xx, and every answer is as described.

`make test` sends a few hundred, the same each time. `make fuzz` sends thousands, others each time.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.wire.conftest import WAIT_SECONDS, serving

CASES = int(os.environ.get("FUZZ_CASES", "0"))
"""Of each call and kind, well-formed and malformed; 0 is the bounded form."""

BOUNDED_CASES = {GenerationMode.POSITIVE: 4, GenerationMode.NEGATIVE: 0}
"""What is malformed takes Hypothesis long to find: it is for the long form. `HOSTILE` stands in."""

HOSTILE = [
    b"",
    b"null",
    b"[]",
    b"5",
    b'"text"',
    b"{",
    b"\xff\xfe",
    b'{"a": NaN}',
    b'{"metadata": {"a": 1e999}}',
    b'{"limit": 99999999999999999999, "version": -9223372036854775809, "assistant_id": 1}',
    b'{"assistant_id": "line\\u0000", "graph_id": "\\u0000", "message": "\\u0000"}',
    b'{"metadata": {"a\\ud800": "\\udfff"}, "namespace": ["\\ud800"]}',
    b'{"end_time": "9999-12-31T23:59:60-24:00", "schedule": "* * 31 2 *", "assistant_id": "line"}',
    b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b"[" * 100_000,
]
HOSTILE_PATHS = ["%00", "%ff", "..%2f..", "%F0%9F%92%A9", "-1", "1e400", "x" * 5000, "'; drop table runs; --", " "]
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
GRAPHS = ("line", "chat", "fails", "tone", "built", "asks", "nested", "two")
THAT_ASK = GRAPHS[-3:]


@pytest.fixture(scope="module")
def alone(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own: what is generated cancels and deletes whatever it finds."""
    with serving(database_url, tmp_path_factory.mktemp("alone"), PERDURE_HEARTBEAT_SECONDS="0.5") as process:
        yield process.url


@pytest.fixture(scope="module")
def known(alone: str) -> dict[str, list[str]]:
    """Ids that exist, by the name of the path's part, so that not every case ends in a 404."""
    with httpx.Client(base_url=alone, timeout=WAIT_SECONDS) as http:
        known: dict[str, list[str]] = {"thread_id": [], "run_id": [], "agent": list(GRAPHS), "key": ["ada"]}
        for graph in GRAPHS:
            thread = http.post("/threads", json={}).json()["thread_id"]
            run = http.post(f"/threads/{thread}/runs", json={"assistant_id": graph, "input": {"topic": "tea"}}).json()
            http.get(f"/threads/{thread}/runs/{run['run_id']}/join")
            known["thread_id"].append(thread)
            known["run_id"].append(run["run_id"])
        made = [http.post("/assistants", json={"graph_id": graph}).json() for graph in GRAPHS]
        known["assistant_id"] = [row["assistant_id"] for row in made]
        cron = http.post("/runs/crons", json={"assistant_id": "line", "schedule": "0 5 * * *"}).json()
        known["cron_id"] = [cron["cron_id"]]
        known["token"] = [row["token"] for row in http.get("/interrupts").json()]
        return known


def test_what_is_generated_from_the_description_is_answered_as_described(
    alone: str, known: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    schema = schemathesis.openapi.from_url(f"{alone}/openapi.json")
    schema.config.update(base_url=alone)
    wrong: list[str] = []
    sent = 0
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode, bounded in BOUNDED_CASES.items():
                cases = CASES or bounded
                if not cases or (mode is GenerationMode.NEGATIVE and not _can_be_malformed(operation)):
                    continue
                number, text = _exercise(operation, mode, cases, known, session)
                sent += number
                wrong += [f"{operation.label} ({mode.value}): {text}"] if text else []
    with capsys.disabled():
        print(f" {sent} requests", end="")
    assert not wrong, "\n\n".join(wrong)
    assert sent >= (3000 if CASES >= 30 else 300)
    assert httpx.get(f"{alone}/ok?check_db=true", timeout=WAIT_SECONDS).status_code == 200


def test_no_body_and_no_path_is_too_strange(alone: str, known: dict[str, list[str]]) -> None:
    """The server refuses it in its own words, and the next request is served."""
    wrong: list[str] = []
    with httpx.Client(base_url=alone, timeout=WAIT_SECONDS) as http:
        described = http.get("/openapi.json").json()["paths"]
        calls = [(method, path, call) for path, calls in described.items() for method, call in calls.items()]
        for method, path, call in calls:
            there = re.sub(r"\{(\w+)\}", lambda part: known.get(part[1], ["x"])[0], path)
            sent: list[tuple[str, bytes]] = [(there, body) for body in HOSTILE] if "requestBody" in call else []
            sent += [
                (re.sub(r"\{\w+\}", lambda _, text=text: text, path), b"{}") for text in HOSTILE_PATHS if "{" in path
            ]
            for url, body in sent:
                with http.stream(method.upper(), url, content=body) as answer:
                    if answer.is_server_error or (answer.is_client_error and not _is_an_error(answer)):
                        wrong.append(f"{method} {url[:80]} {body[:40]!r}: {answer.status_code} {answer.read()[:200]!r}")
    assert not wrong, "\n".join(wrong)


def _is_an_error(answer: httpx.Response) -> bool:
    body = json.loads(answer.read())
    return isinstance(body.get("detail"), str) or {"error", "jsonrpc"} <= set(body) or body.get("type") == "error"


def _can_be_malformed(operation: APIOperation) -> bool:
    """It takes seconds to find out that no text is an impossible path and no JSON an impossible body of any kind."""
    body = operation.definition.raw.get("requestBody", {}).get("content", {})
    return any(content["schema"] for content in body.values())


def _exercise(
    operation: APIOperation, mode: GenerationMode, cases: int, known: dict[str, list[str]], session: requests.Session
) -> tuple[int, str]:
    """Send generated requests of one call; how many, and what was wrong with the smallest bad one."""
    sent = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=not CASES,
        phases=(Phase.generate, Phase.shrink) if CASES else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    def answered_as_described(case: Case) -> None:
        nonlocal sent
        _make_known(case, known)
        sent += 1
        _check(case, session)

    try:
        answered_as_described()
    except Unsatisfiable:  # nothing about this call can be malformed
        pass
    except (FailureGroup, AssertionError) as exc:
        return sent, str(exc)
    return sent, ""


def _make_known(case: Case, known: dict[str, list[str]]) -> None:
    """Give most cases ids that exist; which ones depends on the case only, so that it can be shrunk."""
    chance = zlib.crc32(repr((case.body, case.query, case.path_parameters)).encode(errors="replace"))
    deletes = case.method == "DELETE" and chance % 8
    for name in case.path_parameters or {}:
        if name in known and chance % 4 and not deletes:
            case.path_parameters[name] = known[name][(chance >> 8) % len(known[name])]
    if isinstance(case.body, dict):
        if "assistant_id" in case.body and chance % 4:
            case.body["assistant_id"] = GRAPHS[(chance >> 8) % len(GRAPHS)]
        case.body.pop("after_seconds", None)  # nobody waits for that
    if "key" in (case.path_parameters or {}) and case.path_parameters["agent"] in THAT_ASK:
        case.path_parameters["agent"] = "line"  # a second call would wait for the answer to the first one's question
    if isinstance(case.query, dict):
        case.query.pop("delay", None)


def _check(case: Case, session: requests.Session) -> None:
    """A stream is looked at and left; any other answer is compared with its description."""
    sending = case.as_transport_kwargs()
    try:
        with session.request(**sending, stream=True, timeout=WAIT_SECONDS) as answer:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                assert answer.status_code == 200
                next(answer.iter_content(1), None)
                return
            case.validate_response(Response.from_requests(answer, verify=False), checks=CHECKS)
    except requests.RequestException as exc:
        raise AssertionError(f"{exc!r}: {case.as_curl_command()}") from exc
