"""The commands that talk to a server: what they print, and their exit codes."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import Launch, Process

Perdure = Callable[..., tuple[int, str]]


@pytest.fixture
def perdure(launch: Launch) -> Perdure:
    """Run a command to its end: exit code and output."""

    def run(*arguments: str, url: str = "http://127.0.0.1:9", **env: str) -> tuple[int, str]:
        process = launch(*arguments, env={"PERDURE_URL": url, **env})
        return process.wait(), process.output

    return run


@pytest.fixture
def api(server: Callable[..., Process]) -> str:
    """A server that accepts runs and executes none."""
    return server(slots=0).url


def test_runs_and_threads_can_be_listed_described_and_cancelled(perdure: Perdure, api: str) -> None:
    code, text = perdure("invoke", "weather", "--detach", "--json", "-i", '{"prompt": "Denver"}', url=api)
    assert code == 0, text
    sent = json.loads(text)

    code, text = perdure("runs", "list", "--json", url=api)
    assert code == 0, text
    assert [row["run_id"] for row in json.loads(text)] == [sent["run_id"]]
    code, text = perdure("runs", "describe", sent["run_id"], "--json", url=api)
    assert code == 0, text
    assert json.loads(text)["thread_id"] == sent["thread_id"]
    code, text = perdure("threads", "list", url=api)
    assert code == 0, text
    assert sent["thread_id"] in text
    assert "weather" in text
    code, text = perdure("threads", "state", sent["thread_id"], url=api)
    assert code == 0, text
    assert "values" in json.loads(text)

    code, text = perdure("runs", "cancel", sent["run_id"], url=api)
    assert code == 0, text
    code, text = perdure("approvals", "list", "--json", url=api)
    assert (code, json.loads(text)) == (0, [])


def test_agents_can_be_listed_and_drawn_with_their_schemas(perdure: Perdure, api: str) -> None:
    code, text = perdure("agents", "list", "--json", url=api)
    assert code == 0, text
    weather = next(row for row in json.loads(text) if row["agent"] == "weather")
    assert {"agent", "assistant_id", "description", "examples", "input_schema"} == weather.keys()
    code, text = perdure("agents", "list", url=api)
    assert (code, "weather" in text) == (0, True), text

    code, text = perdure("agents", "graph", "weather", url=api)
    assert code == 0, text
    assert "model ··> tools" in text.splitlines()
    assert "tools ··> model" in text.splitlines() or "tools --> model" in text.splitlines()
    code, text = perdure("agents", "graph", "weather", "--json", url=api)
    assert {"nodes", "edges"} <= json.loads(text).keys()

    code, text = perdure("agents", "schema", "weather", url=api)
    assert "prompt" in json.loads(text)["properties"]
    code, text = perdure("agents", "schema", "weather", "--all", url=api)
    assert {"input_schema", "output_schema", "state_schema"} <= json.loads(text).keys()
    code, text = perdure("agents", "schema", "no_such_agent", url=api)
    assert code == 4
    assert "weather" in text  # those that exist


def test_refusals_have_exit_code_4_and_the_words_of_the_server(perdure: Perdure, api: str) -> None:
    code, text = perdure("invoke", "no_such_graph", url=api)
    assert code == 4
    assert "weather" in text  # the graphs that exist
    assert perdure("threads", "state", str(uuid4()), url=api)[0] == 4
    assert perdure("runs", "describe", str(uuid4()), url=api)[0] == 4
    assert perdure("approvals", "approve", "no-such-token", url=api)[0] == 4
    assert perdure("approvals", "reject", "no-such-token", "--reason", "no", url=api)[0] == 4


def test_no_server_has_exit_code_5_and_a_way_out(perdure: Perdure) -> None:
    code, text = perdure("runs", "list")
    assert code == 5
    assert "perdure serve" in text
    assert "Traceback" not in text


def test_wrong_usage_has_exit_code_2(perdure: Perdure) -> None:
    assert perdure("invoke", "weather", "-i", "{not json")[0] == 2
    assert perdure("invoke", "weather", "--stream", "--detach")[0] == 2
    assert perdure("runs", "list", "--limit", "0")[0] == 2


class Scripted(BaseHTTPRequestHandler):
    """A server whose every answer is `answer`; a stand-in for outcomes that need a worker and a model."""

    answer: tuple[int, Any] = (200, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, body = self.answer
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Callable[[int, Any], str]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()

        def answer(status: int, body: Any) -> str:
            Scripted.answer = (status, body)
            return f"http://127.0.0.1:{http.server_port}"

        yield answer
        http.shutdown()


def test_invoke_tells_done_failed_and_waiting_apart(perdure: Perdure, scripted: Callable[[int, Any], str]) -> None:
    code, text = perdure("invoke", "weather", url=scripted(200, {"answer": "sunny"}))
    assert (code, json.loads(text)) == (0, {"answer": "sunny"})

    failed = {"detail": "TerminalError: no such city", "run_id": str(uuid4())}
    code, text = perdure("invoke", "weather", url=scripted(422, failed))
    assert code == 1
    assert "no such city" in text

    asking = {"run_id": str(uuid4()), "interrupts": [{"token": "tok", "question": "Pay 3000 USD?"}]}
    code, text = perdure("invoke", "approval", url=scripted(202, asking))
    assert code == 3
    assert "Pay 3000 USD?" in text
    assert "perdure approvals approve tok" in text


def test_migrate_says_what_it_did_and_can_be_repeated(perdure: Perdure, empty_dsn: str) -> None:
    code, text = perdure("migrate", DATABASE_URL=empty_dsn)
    assert code == 0, text
    assert "applied 0001" in text
    code, text = perdure("migrate", DATABASE_URL=empty_dsn)
    assert code == 0, text
    assert "up to date" in text


def test_doctor_reports_database_and_migrations(perdure: Perdure, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "langgraph.json").write_text('{"graphs": {"weather": "./weather.py:graph"}}')
    code, text = perdure("doctor", "--json", DATABASE_URL=dsn)
    assert code == 0, text
    report = json.loads(text)
    assert {check["name"]: check["ok"] for check in report["checks"]} == {
        "versions": True,
        "graphs": True,
        "model": None,
        "traces": True,
        "database": True,
        "migrations": True,
        "connections": True,
        "workers": None,
        "queue": True,
    }
    assert all(check["fix"] for check in report["checks"] if check["ok"] is not True)


def test_doctor_does_not_repeat_a_url_that_is_none(perdure: Perdure, tmp_path: Path) -> None:
    (tmp_path / "langgraph.json").write_text('{"graphs": {}}')
    code, text = perdure("doctor", DATABASE_URL="me:hunter2@somewhere")
    assert code == 1
    assert "FAIL  database" in text
    assert "hunter2" not in text


def test_sql_reads_the_database(perdure: Perdure, dsn: str) -> None:
    code, text = perdure("sql", "SELECT 1", DATABASE_URL=dsn)
    assert code == 4
    assert "PERDURE_SQL_URL" in text


def test_sql_of_the_embedded_database_prints_rows_and_refuses_to_write(perdure: Perdure, tmp_path: Path) -> None:
    assert perdure("migrate", PERDURE_DATA_DIR=str(tmp_path / "data"))[0] == 0
    code, text = perdure("sql", "SELECT 1 AS one, 'b' AS letter", "--json", PERDURE_DATA_DIR=str(tmp_path / "data"))
    assert code == 0, text
    assert json.loads(text)["rows"] == [["1", "b"]]
    code, text = perdure("sql", "SELECT 1 AS one, 'b' AS letter", PERDURE_DATA_DIR=str(tmp_path / "data"))
    assert text.split() == ["one", "letter", "1", "b"]
    code, text = perdure("sql", "DELETE FROM runs", PERDURE_DATA_DIR=str(tmp_path / "data"))
    assert code == 4
    assert "Only SELECT" in text


def test_doctor_fails_without_a_database_and_hides_secrets(perdure: Perdure, tmp_path: Path) -> None:
    (tmp_path / "langgraph.json").write_text('{"graphs": {}}')
    url = "postgresql://me:hunter2@127.0.0.1:9/perdure"
    code, text = perdure("doctor", DATABASE_URL=url, PERDURE_API_KEY="sesame")
    assert code == 1
    assert "FAIL  database" in text
    assert "hunter2" not in text
    assert "sesame" not in text
