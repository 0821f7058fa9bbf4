"""The coding agent works in its sandbox; on a real server it is queued, interrupted, steered and killed."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from graphs.coding_agent import graph, heard
from perdure.simulator import ChatRequest, RunningSimulator, start
from tests.conftest import ROOT, Launch, Process, eventually

CONFIG: Any = {"configurable": {"thread_id": "one"}}
HELLO = {"message": "Write hello.py that prints 'Hello, durable world!' and run it"}
BUSY = (
    {"message": "Write busy.txt 'started'"},
    {"message": "Run `echo $$ > pid; until test -e go; do sleep 0.01; done`"},
)
PATIENCE_SECONDS = 60.0


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODING_SANDBOX", str(tmp_path / "boxes"))
    return tmp_path / "boxes"


# -- in this process


async def test_agent_writes_a_file_and_runs_it(simulator: RunningSimulator, served: Any, boxes: Path) -> None:
    agent = served(graph)
    result = await agent.ainvoke(HELLO, CONFIG)
    assert result == {"answer": "Done. Wrote 31 bytes to hello.py Hello, durable world!"}
    assert (boxes / "one" / "hello.py").read_text() == "print('Hello, durable world!')\n"
    assert len(simulator.requests) == 3
    again = await agent.ainvoke({"message": "Let it print 'Goodbye' instead"}, CONFIG)
    assert again["answer"].endswith("Goodbye")
    assert (boxes / "one" / "hello.py").read_text() == "print('Goodbye')\n"


async def test_other_session_has_other_files(simulator: RunningSimulator, served: Any, boxes: Path) -> None:
    agent = served(graph)
    await agent.ainvoke(HELLO, CONFIG)
    other: Any = {"configurable": {"thread_id": "two"}}
    result = await agent.ainvoke({"messages": [{"role": "user", "content": "Run `ls`"}]}, other)
    assert result == {"answer": "Done. [no output]"}


async def test_refused_path_is_told_to_the_model(simulator: RunningSimulator, served: Any, boxes: Path) -> None:
    result = await served(graph).ainvoke({"message": "Write ../../out.txt 'x'"}, CONFIG)
    assert "no path inside of the sandbox" in result["answer"]
    assert not (boxes.parent / "out.txt").exists()


async def test_failing_model_repeats_no_finished_tool(simulator: RunningSimulator, served: Any, boxes: Path) -> None:
    agent = served(graph)
    simulator.fail({"status": 500, "times": 3, "match": "Wrote 31 bytes"})
    with pytest.raises(Exception, match="500"):
        await agent.ainvoke(HELLO, CONFIG)
    written = (boxes / "one" / "hello.py").stat().st_ino
    result = await agent.ainvoke(None, CONFIG)
    assert "Hello, durable world!" in result["answer"]
    assert (boxes / "one" / "hello.py").stat().st_ino == written


def test_messages_to_a_working_agent_may_be_any_json() -> None:
    given = ["a", {"message": "b"}, {"role": "user", "content": "c"}, {"x": 1}, 5]
    assert [message.text for message in heard(given)] == ["a", "b", "c", '{"x": 1}', "5"]


# -- on a real server


class Session:
    """A conversation with the agent over HTTP, its folder, and what the model was asked."""

    def __init__(self, http: httpx.Client, boxes: Path, model: RunningSimulator) -> None:
        self.http, self.boxes, self.model = http, boxes, model
        self.url = "/agents/coding_agent/repo1"
        self.thread = ""

    def send(self, message: Any, **query: str) -> str:
        """The id of the run."""
        sent = self.http.post(f"{self.url}/send", json=message, params=query)
        assert sent.status_code == 202, sent.text
        self.thread = sent.json()["thread_id"]
        return sent.json()["run_id"]

    def status(self, run: str) -> str:
        return self.http.get(f"/threads/{self.thread}/runs/{run}").json()["status"]

    def join(self, run: str) -> Any:
        eventually(lambda: self.status(run) not in ("pending", "running"))
        return self.http.get(f"/threads/{self.thread}/runs/{run}/join").json()

    @property
    def folder(self) -> Path:
        return self.boxes / self.thread

    def busy(self) -> tuple[str, int]:
        """Let it write a file, and then run a command that waits for `go`; the run, and the command's process."""
        self.join(self.send(BUSY[0]))
        run = self.send(BUSY[1])
        eventually(lambda: (self.folder / "pid").exists() and (self.folder / "pid").read_text().strip())
        return run, int((self.folder / "pid").read_text())

    def go(self) -> None:
        (self.folder / "go").touch()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def model() -> Iterator[RunningSimulator]:
    with start("./graphs/rules.py:rules", config_dir=ROOT) as running:
        yield running


@pytest.fixture
def env(model: RunningSimulator, tmp_path: Path) -> dict[str, str]:
    return {
        "OPENAI_API_KEY": "simulated",
        "OPENAI_BASE_URL": model.openai_url,
        "PERDURE_MODEL": "openai:simulated-1",
        "CODING_SANDBOX": str(tmp_path / "boxes"),
        "CODING_COMMAND_SECONDS": "600",  # a command that waits for the test is not to be killed
    }


@pytest.fixture
def session(server: Launch, env: dict[str, str], model: RunningSimulator, tmp_path: Path) -> Iterator[Session]:
    process: Process = server(env=env)
    with httpx.Client(base_url=process.url, timeout=PATIENCE_SECONDS) as http:
        yield Session(http, tmp_path / "boxes", model)


def test_queued_message_waits_and_then_knows_what_was_done(session: Session) -> None:
    first, _ = session.busy()
    second = session.send({"message": "Write after.txt 'later'"})
    assert (session.status(first), session.status(second)) == ("running", "pending")
    session.go()
    assert "after.txt" in session.join(second)["answer"]
    assert (session.status(first), session.status(second)) == ("success", "success")
    asked = [message["content"] for message in session.model.requests[-1].messages if message["role"] == "user"]
    assert asked == [BUSY[0]["message"], BUSY[1]["message"], "Write after.txt 'later'"]


def test_interrupting_message_cancels_the_task_and_starts_again_with_everything(session: Session) -> None:
    first, command = session.busy()
    second = session.send({"message": "Stop that. Write busy.txt 'anew'"}, multitask_strategy="interrupt")
    assert session.status(first) == "interrupted"
    assert session.join(second)["answer"] == "Done. Wrote 5 bytes to busy.txt"
    assert not alive(command)
    assert (session.folder / "busy.txt").read_text() == "anew\n"
    shown = session.http.get(f"/threads/{session.thread}/runs").json()
    assert [run["status"] for run in shown] == ["success", "interrupted", "success"]
    seen = session.model.requests[-2].messages  # the first that the new run has asked
    assert [message["role"] for message in seen if message["role"] != "system"] == [
        *("user", "assistant", "tool", "assistant"),  # what was done before
        *("user", "assistant", "tool"),  # the interrupted task, its call answered for the model
        "user",
    ]
    assert "cancelled before it had a result" in seen[-2]["content"]


def test_steering_message_reaches_the_working_run(session: Session) -> None:
    run, _ = session.busy()
    said = session.http.post(f"{session.url}/messages", json={"message": "Also write also.txt 'steered'"})
    assert said.status_code == 202
    assert said.json() == {"run_id": run}
    session.go()
    assert session.join(run)["answer"] == "Done. Wrote 8 bytes to busy.txt [no output] Wrote 8 bytes to also.txt"
    assert (session.folder / "also.txt").read_text() == "steered\n"
    assert len(session.http.get(f"/threads/{session.thread}/runs").json()) == 2
    asked = [entry.messages[-1]["content"] for entry in session.model.requests]
    assert asked.index("Also write also.txt 'steered'") == asked.index(BUSY[1]["message"]) + 1

    refused = session.http.post(f"{session.url}/messages", json={"message": "Still there?"})
    assert refused.status_code == 409
    assert "not executing" in refused.json()["detail"]


def test_steering_message_that_comes_with_the_last_answer_is_not_lost(session: Session) -> None:
    gate = threading.Event()

    def gated(request: ChatRequest) -> None:
        if request.tool_results:
            gate.wait(PATIENCE_SECONDS)

    session.model.simulator.rules.insert(0, gated)
    run = session.send({"message": "Write first.txt 'first'"})
    eventually(lambda: len(session.model.requests) == 2)  # it is giving its last answer
    said = session.http.post(f"/threads/{session.thread}/messages", json="Write second.txt 'second'")
    gate.set()
    assert said.json() == {"run_id": run}
    assert session.join(run)["answer"] == "Done. Wrote 6 bytes to first.txt Wrote 7 bytes to second.txt"
    assert sorted(path.name for path in session.folder.iterdir()) == ["first.txt", "second.txt"]


def test_killed_worker_costs_the_command_in_flight_only(
    server: Launch, worker: Launch, env: dict[str, str], model: RunningSimulator, tmp_path: Path
) -> None:
    api, first = server(slots=0, env=env), worker(env=env)
    with httpx.Client(base_url=api.url, timeout=PATIENCE_SECONDS) as http:
        session = Session(http, tmp_path / "boxes", model)
        run, command = session.busy()
        written, asked = (session.folder / "busy.txt").stat().st_ino, len(model.requests)
        (session.folder / "pid").unlink()
        first.kill()
        eventually(lambda: not alive(command))
        worker(env=env)
        eventually(lambda: (session.folder / "pid").exists())
        session.go()
        assert session.join(run)["answer"] == "Done. Wrote 8 bytes to busy.txt [no output]"
        assert http.get(f"/threads/{session.thread}/runs/{run}").json()["attempt"] == 2
        assert (session.folder / "busy.txt").stat().st_ino == written
        assert len(model.requests) == asked + 1
