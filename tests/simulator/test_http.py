"""Faults, log and bad requests of the simulator over plain HTTP."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure.simulator import RunningSimulator, start
from tests.conftest import eventually

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two three four"}]}
CALL = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f"}}]}


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    with start([]) as running:
        yield running


@pytest.fixture
def http(simulator: RunningSimulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=simulator.base_url, timeout=30) as client:
        yield client


def outcomes(simulator: RunningSimulator) -> list[str]:
    return [entry.outcome for entry in simulator.requests]


def test_status_fault_counts_down_and_carries_retry_after(simulator: RunningSimulator, http: httpx.Client) -> None:
    http.post("/faults", json=[{"status": 429, "times": 2, "retry_after": 0.5}, {"status": 500}])
    first = http.post(CHAT, json=ASK)
    assert first.status_code == 429
    assert first.headers["retry-after"] == "0.5"
    assert first.json()["error"]["type"] == "rate_limit_error"
    assert http.get("/faults").json()[0] == {"status": 429, "retry_after": 0.5}
    assert [http.post(CHAT, json=ASK).status_code for _ in range(3)] == [429, 500, 200]
    assert outcomes(simulator) == ["429", "429", "500", "answered"]


@pytest.mark.parametrize("stream", [False, True])
def test_cut_breaks_the_answer_off(simulator: RunningSimulator, http: httpx.Client, stream: bool) -> None:
    simulator.fail({"cut": True})
    received: list[bytes] = []
    with http.stream("POST", CHAT, json=ASK | {"stream": stream}) as response:  # noqa: SIM117 - the cut comes inside
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(response.iter_raw())
    assert received
    assert b"[DONE]" not in b"".join(received)
    assert outcomes(simulator) == ["cut"]


def test_hang_says_nothing_until_the_client_gives_up(simulator: RunningSimulator, http: httpx.Client) -> None:
    simulator.fail({"hang": 30})
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=ASK, timeout=httpx.Timeout(30, read=1))
    eventually(lambda: simulator.simulator.faults.waiting() == [])
    assert http.post(CHAT, json=ASK).status_code == 200


def test_hang_ends_without_an_answer(simulator: RunningSimulator, http: httpx.Client) -> None:
    simulator.fail({"hang": 0.1})
    with pytest.raises(httpx.RemoteProtocolError):
        http.post(CHAT, json=ASK)
    assert outcomes(simulator) == ["hung"]


def test_stopping_does_not_wait_for_a_hanging_request() -> None:
    with start([]) as simulator:
        simulator.fail({"hang": 300})
        with httpx.Client(base_url=simulator.base_url) as http, pytest.raises(httpx.ReadTimeout):
            http.post(CHAT, json=ASK, timeout=httpx.Timeout(30, read=0.2))
        began = time.monotonic()
    assert time.monotonic() - began < 60


def test_delay_answers_late(simulator: RunningSimulator, http: httpx.Client) -> None:
    simulator.fail({"delay": 0.3})
    began = time.monotonic()
    assert http.post(CHAT, json=ASK).status_code == 200
    assert time.monotonic() - began >= 0.3


def test_fault_with_match_waits_for_its_request(simulator: RunningSimulator, http: httpx.Client) -> None:
    simulator.fail({"status": 503, "match": "three"})
    other = ASK | {"messages": [{"role": "user", "content": "other"}]}
    assert [http.post(CHAT, json=body).status_code for body in (other, ASK, ASK)] == [200, 503, 200]


@pytest.mark.parametrize("faults", [[{}], [{"status": 429, "cut": True}], [{"status": 200}], {"cut": True}])
def test_fault_that_makes_no_sense_is_refused(http: httpx.Client, faults: Any) -> None:
    assert http.post("/faults", json=faults).status_code == 400
    assert http.get("/faults").json() == []


def test_faults_and_log_can_be_cleared(simulator: RunningSimulator, http: httpx.Client) -> None:
    http.post("/faults", json=[{"status": 500}])
    assert http.delete("/faults").json() == []
    http.post(CHAT, json=ASK)
    [entry] = http.get("/requests").json()
    assert entry.keys() == {"time", "model", "messages", "tools", "stream", "outcome"}
    assert http.delete("/requests").json() == []
    assert simulator.requests == []


def test_client_that_hangs_up_is_logged() -> None:
    with start([], token_delay_seconds=5) as simulator:
        with (
            httpx.Client(base_url=simulator.base_url, timeout=30) as http,
            http.stream("POST", CHAT, json=ASK | {"stream": True}) as response,
        ):
            next(response.iter_raw())
        eventually(lambda: not simulator._server.server_state.tasks)  # the request is over
        assert outcomes(simulator) == ["left"]


def test_models_are_listed(http: httpx.Client) -> None:
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["simulated-1"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{nonsense",
        b"[]",
        {},
        {"model": "m"},
        {"model": "m", "messages": []},
        {"model": "m", "messages": "hi"},
        {"model": "m", "messages": [1]},
        {"model": "m", "messages": [{"role": "wizard", "content": "hi"}]},
        {"model": "m", "messages": [{"role": "user", "content": 7}]},
        {"model": "m", "messages": [{"role": "user", "content": [3]}]},
        {"model": "m", "messages": [{"role": "tool", "content": "x", "tool_call_id": "c1"}]},
        {"model": "m", "messages": [{"role": "tool", "content": "x", "tool_call_id": ["c1"]}]},
        {"model": "m", "messages": [CALL]},
        {"model": "m", "messages": [CALL, {"role": "user", "content": "hi"}]},
        {"model": "m", "messages": [{"role": "assistant", "tool_calls": [{}]}]},
        {"model": "m", "messages": [{"role": "assistant", "tool_calls": 5}]},
        ASK | {"tools": "f"},
        ASK | {"tools": [{"type": "function"}]},
        ASK | {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ASK | {"response_format": {"type": "yaml"}},
        ASK | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": 1, "a": []}}}},
        ASK | {"response_format": {"type": "json_schema", "json_schema": {"schema": {"required": 3}}}},
        ASK | {"stream_options": 3, "tool_choice": 8, "parallel_tool_calls": "x", "tools": None},
    ],
    ids=str,
)
def test_odd_request_never_crashes(simulator: RunningSimulator, http: httpx.Client, body: Any) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = http.post(CHAT, **sent)
    if response.status_code != 200:
        assert response.status_code == 400
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert outcomes(simulator) == ["rejected"]


def test_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text("WORD = 'from a file'\n")
    (tmp_path / "own.py").write_text(
        "from perdure.simulator import Reply\nfrom shared import WORD\n"
        "def say(request):\n    return Reply(text=WORD)\nrules = [say]\n"
    )
    command = [sys.executable, "-m", "perdure.simulator", "--rules", "./own.py:rules"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
            answer = httpx.post(url + CHAT, json=ASK, timeout=30).json()
            assert answer["choices"][0]["message"]["content"] == "from a file"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_rules_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("rules = []\n")
    with pytest.raises(FileNotFoundError, match=r"none\.py"):
        start("./none.py:rules", config_dir=tmp_path)
    with pytest.raises(ValueError, match="has no 'other'"):
        start("./own.py:other", config_dir=tmp_path)
    with pytest.raises(ValueError, match="must look like"):
        start("./own.py", config_dir=tmp_path)
