"""`perdure serve` as a process: what it says, what it starts, and that it stops cleanly at any moment."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from perdure.engine.postgres import location
from tests.conftest import ROOT, Launch, Process, eventually

CONFIG = str(ROOT / "langgraph.json")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="perdure-serve-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def postgres_of(data: Path) -> list[int]:
    cluster = str(location(data) / "postgres")
    found = psutil.process_iter(["name", "cmdline"])
    return [p.pid for p in found if p.info["name"] == "postgres" and cluster in (p.info["cmdline"] or [])]


def serve(launch: Launch, data: Path, *arguments: str) -> Process:
    env = {"PERDURE_DATA_DIR": str(data)}
    return launch("serve", "--config", CONFIG, "--port", "0", "--slots", "0", *arguments, env=env)


def test_banner_names_address_graphs_database_and_simulated_model(launch: Launch, folder: Path) -> None:
    process = serve(launch, folder)
    url = process.until(r"http://127\.0\.0\.1:\d+")[0]
    process.until("simulated-1")
    assert "weather" in process.output
    assert "embedded PostgreSQL" in process.output
    assert httpx.get(f"{url}/ok", timeout=30).json()["ok"] is True
    assert httpx.get(f"{url}/docs", timeout=30).status_code == 200
    assert process.stop() == 0
    assert postgres_of(folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_open_streams_and_stops_everything_in_seconds(
    launch: Launch, folder: Path, number: signal.Signals
) -> None:
    process = serve(launch, folder)
    url = process.until(r"http://127\.0\.0\.1:\d+")[0]
    thread = httpx.post(f"{url}/threads", json={}, timeout=30).json()["thread_id"]
    with httpx.stream("GET", f"{url}/threads/{thread}/stream", timeout=60) as stream:
        assert stream.status_code == 200
        sent = time.monotonic()
        os.kill(process.pid, number)
        assert process.wait() == 0
        assert time.monotonic() - sent < 25
    assert postgres_of(folder) == []


@pytest.mark.parametrize("after", [0.3, 1.5])
def test_signal_while_starting_stops_everything(launch: Launch, folder: Path, after: float) -> None:
    process = serve(launch, folder)
    time.sleep(after)  # a signal in the middle of the start: any moment of it must be safe
    code = process.stop()
    assert code in (0, -signal.SIGTERM)  # the latter: before Python had come as far as our handler
    assert postgres_of(folder) == []
    assert "Traceback" not in process.output


def test_killed_server_can_be_started_again_and_stopped(launch: Launch, folder: Path) -> None:
    first = serve(launch, folder)
    first.until(r"http://127\.0\.0\.1:\d+")
    first.kill()
    eventually(lambda: len(postgres_of(folder)) == 1)  # a process that it has just forked still has its name
    second = serve(launch, folder)
    second.until(r"http://127\.0\.0\.1:\d+")
    assert second.stop() == 0
    assert postgres_of(folder) == []


def test_port_in_use_is_one_line_and_starts_nothing(launch: Launch, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = serve(launch, folder, "--port", port)
        assert process.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}" in process.output
    assert "Traceback" not in process.output
    assert postgres_of(folder) == []


def test_missing_langgraph_json_is_one_line(launch: Launch, folder: Path, dsn: str) -> None:
    missing = str(folder / "nowhere.json")
    process = launch("serve", "--config", missing, "--port", "0", env={"DATABASE_URL": dsn})
    assert process.wait() == 1
    assert f"{missing} not found" in process.output
    assert "Traceback" not in process.output


def test_unreachable_database_is_one_line_without_the_password(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"postgresql://me:hunter2@127.0.0.1:{port}/perdure"
    process = launch("serve", "--config", CONFIG, "--port", "0", env={"DATABASE_URL": url})
    assert process.wait() == 5
    assert "the database cannot be reached" in process.output
    assert "hunter2" not in process.output
    assert "Traceback" not in process.output


def test_setting_that_does_not_fit_is_named(launch: Launch) -> None:
    process = launch("serve", env={"PERDURE_SLOTS": "many"})
    assert process.wait() == 1
    assert "PERDURE_SLOTS" in process.output
    assert "'many'" in process.output
