"""Requests generated from our own OpenAPI description: no 5xx, and every answer is as described.

`make test` sends a few hundred, the same each time. `make fuzz` sends thousands, others each time.
"""

import os
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

BOUNDED_CASES = {GenerationMode.POSITIVE: 4, GenerationMode.NEGATIVE: 2}
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
GRAPHS = ("line", "chat", "asks", "nested", "two", "fails", "tone", "built")


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
                if mode is GenerationMode.NEGATIVE and not _can_be_malformed(operation):
                    continue
                number, text = _exercise(operation, mode, CASES or bounded, known, session)
                sent += number
                wrong += [f"{operation.label} ({mode.value}): {text}"] if text else []
    with capsys.disabled():
        print(f" {sent} requests", end="")
    assert not wrong, "\n\n".join(wrong)
    assert sent >= (3000 if CASES >= 30 else 300)
    assert httpx.get(f"{alone}/ok?check_db=true").status_code == 200


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
    except FailureGroup as exc:  # a BaseException
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
    if isinstance(case.query, dict):
        case.query.pop("delay", None)


def _check(case: Case, session: requests.Session) -> None:
    """A stream is looked at and left; any other answer is compared with its description."""
    sending = case.as_transport_kwargs()
    with session.request(**sending, stream=True, timeout=WAIT_SECONDS) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            assert answer.status_code == 200
            next(answer.iter_content(1), None)
            return
        case.validate_response(Response.from_requests(answer, verify=False), checks=CHECKS)
