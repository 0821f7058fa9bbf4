"""/metrics: what it counts, what it costs, and that nobody can make it grow without end."""

import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from perdure.engine import meters, metrics
from tests.conftest import WAIT_SECONDS, Launch

Sample = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Sample:
    """Every sample by its name and labels; the parser is Prometheus' own."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until(place: str, name: str, least: float, **labels: str) -> Sample:
    """What is shown once a number is so high: a run has ended before its attempt is counted."""
    end = time.monotonic() + WAIT_SECONDS
    while value(shown := read(httpx.get(place, timeout=30).text), name, **labels) < least:
        assert time.monotonic() < end, shown
        time.sleep(0.02)  # the counters of another process can only be asked again
    return shown


def value(samples: Sample, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the database each time."""
    monkeypatch.setattr(metrics, "KEPT_SECONDS", -1.0)


def test_the_queue_is_counted_as_it_is(client: TestClient, dsn: str) -> None:
    thread = client.post("/threads", json={}).json()["thread_id"]
    for delay in (0, 0, 3600):
        body = {"assistant_id": "echo", "input": {}, "after_seconds": delay}
        assert client.post(f"/threads/{thread}/runs", json=body).status_code == 200
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("UPDATE runs SET ready_at = now() - interval '90 s' WHERE ready_at <= now()")
        conn.execute("INSERT INTO workers (worker_id, lock_key, name, slots) VALUES (gen_random_uuid(), 1, 'w', 7)")
    found = client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = read(found.text)
    assert value(samples, "perdure_runs", status="pending") == 3
    assert value(samples, "perdure_runs", status="running") == 0
    assert value(samples, "perdure_queue_ready") == 1  # the second one waits for the first
    assert 90 <= value(samples, "perdure_queue_oldest_seconds") < 200
    assert value(samples, "perdure_queue_scheduled") == 1
    assert (value(samples, "perdure_workers"), value(samples, "perdure_slots")) == (1, 7)
    assert value(samples, "perdure_pool_connections", pool="api", state="idle") >= 1

    told = client.get("/metrics?format=json").json()
    assert set(told) == {"queue", "api"}
    assert told["queue"]["runs"] == {"pending": 3, "running": 0, "suspended": 0, "paused": 0}
    assert told["api"]["perdure_api_requests_total"] >= 4
    assert client.get("/metrics?format=xml").status_code == 422


def test_requests_are_counted_by_route_and_status(client: TestClient) -> None:
    before = read(client.get("/metrics").text)
    client.get("/threads/nope")
    for number in range(20):
        client.get(f"/made/up/{number}")
        client.request(f"METHOD{number}", "/ok")
    client.post("/threads", content=b"{oops")
    after = read(client.get("/metrics").text)

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert more("perdure_api_requests_total", method="GET", route="/threads/{thread_id}", status="422") == 1
    assert more("perdure_api_requests_total", method="GET", route="other", status="404") == 20
    assert more("perdure_api_requests_total", method="POST", route="other", status="422") == 1
    assert more("perdure_api_answer_seconds_count", method="GET", route="/threads/{thread_id}") == 1
    new = {key for key in set(after) - set(before) if key[0] == "perdure_api_requests_total"}
    assert len(new) <= 5, new  # whatever paths and methods were made up


def test_the_statements_read_no_finished_runs(client: TestClient, dsn: str) -> None:
    client.get("/ok")  # the app is up
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET enable_seqscan = off")
        for statement in (metrics.BY_STATUS, metrics.QUEUE):
            rows = conn.execute("EXPLAIN " + statement).fetchall()  # pyright: ignore[reportArgumentType] (a constant)
            plan = "\n".join(row[0] for row in rows)
            assert "Seq Scan on runs" not in plan, plan
            assert "Seq Scan on interrupts" not in plan, plan
            assert "Seq Scan on webhooks" not in plan, plan


def test_asking_often_asks_the_database_once(client: TestClient, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 60.0)
    first = read(client.get("/metrics").text)
    client.post("/runs", json={"assistant_id": "echo", "input": {}})
    again = read(client.get("/metrics").text)
    assert value(first, "perdure_queue_ready") == value(again, "perdure_queue_ready")
    monkeypatch.setattr(metrics, "KEPT_SECONDS", -1.0)
    assert value(read(client.get("/metrics").text), "perdure_queue_ready") == value(first, "perdure_queue_ready") + 1


def test_names_of_steps_do_not_grow_without_end(app: FastAPI) -> None:
    tries: list[dict[str, Any]] = [{"started_at": "2026-01-01T00:00:00+00:00", "seconds": 0.5}]
    for number in range(meters.MAX_STEP_NAMES + 50):
        meters.step(f"made up {number}", "done", tries)
    meters.step("no call", "done", [])
    names = {s.labels["step"] for family in meters.step_seconds.collect() for s in family.samples}
    assert len(names) <= meters.MAX_STEP_NAMES + 1
    assert meters.OTHER in names
    assert "no call" not in names


def test_a_real_server_counts_attempts(live: str) -> None:
    with httpx.Client(base_url=live, timeout=30) as http:
        before = read(http.get("/metrics").text)
        assert http.post("/agents/works/run", json={}).status_code == 200
        assert http.post("/agents/fails/run", json={}).status_code == 422
    for outcome in ("finished", "failed"):
        name = "perdure_attempts_total"
        after = until(f"{live}/metrics", name, value(before, name, outcome=outcome) + 1, outcome=outcome)
    assert value(after, "perdure_claims_total") >= value(before, "perdure_claims_total") + 2
    assert value(after, "perdure_attempt_seconds_count", graph="works") >= 1
    assert value(after, "perdure_workers") == 1
    for loop in ("attempts", "api"):
        assert 0 <= value(after, "perdure_loop_lag_seconds", loop=loop) < 60


def test_a_worker_without_an_api_shows_its_own_numbers_where_the_setting_says(
    server: Launch, worker: Launch, launch: Launch, config: Path, dsn: str
) -> None:
    url = server(config=config, slots=0).url
    process = worker(config=config, env={"DATABASE_URL": dsn, "PERDURE_METRICS_PORT": "0"})
    place = process.until(r"http://127\.0\.0\.1:(\d+)/metrics")
    assert httpx.post(f"{url}/agents/works/run", json={}, timeout=30).status_code == 200
    shown = until(place[0], "perdure_attempts_total", 1, outcome="finished")
    assert value(shown, "perdure_pool_connections", pool="attempts", state="idle") >= 0
    assert not [name for name, _ in shown if name.startswith("perdure_queue")]  # the API's to tell, not each worker's
    taken = launch("worker", "--config", str(config), env={"DATABASE_URL": dsn, "PERDURE_METRICS_PORT": place[1]})
    assert taken.wait() == 1
    assert f"cannot show metrics on 127.0.0.1:{place[1]}" in " ".join(taken.output.split())
    assert process.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(place[0])


def test_without_the_setting_a_worker_listens_nowhere(worker: Launch, config: Path, dsn: str) -> None:
    process = worker(config=config, env={"DATABASE_URL": dsn})
    listening = [one for one in psutil.Process(process.pid).net_connections(kind="tcp") if one.status == "LISTEN"]
    assert listening == []
