"""Progress can be watched by many, left and joined again; the API process may be killed meanwhile."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from graphs.progress import MAX_CHAPTERS, graph
from graphs.simulated.texts import progress as rule
from perdure.simulator import ChatRequest, Reply, RunningSimulator, start
from tests.conftest import Launch, Process

CONFIG: Any = {"configurable": {"thread_id": "job1"}}
JOB = {"topic": "durable execution", "pause_seconds": 0}
PATIENCE_SECONDS = 60.0


async def events(agent: Any, given: Any) -> list[tuple[int, int]]:
    """How much was done of how many, as announced."""
    announced = [chunk["payload"] async for chunk in agent.astream(given, CONFIG, stream_mode="custom")]
    return [(each["done"], each["of"]) for each in announced]


async def test_every_chapter_is_announced(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    assert await events(agent, JOB) == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    report = (await agent.aget_state(CONFIG)).values["answer"]
    assert report.startswith("## The problem\nThe problem, with regard to durable execution")
    assert report.count("## ") == 4
    assert len(simulator.requests) == 5


async def test_second_job_of_a_session_begins_anew(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    await agent.ainvoke(JOB, CONFIG)
    result = await agent.ainvoke({**JOB, "topic": "tea"}, CONFIG)
    assert result["answer"].count("## ") == result["answer"].count("with regard to tea") == 4


async def test_failure_announces_and_asks_nothing_again(simulator: RunningSimulator, served: Any) -> None:
    agent = served(graph)
    simulator.fail({"status": 500, "times": 3, "match": "Chapter: How it works"})
    with pytest.raises(Exception, match="500"):
        await agent.ainvoke(JOB, CONFIG)
    asked = len(simulator.requests)
    assert await events(agent, None) == [(3, 4), (4, 4)]
    assert len(simulator.requests) == asked + 2
    assert (await agent.aget_state(CONFIG)).values["answer"].count("## ") == 4


async def test_talkative_model_writes_no_endless_report(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(text: str) -> str:
        return "\n".join(map(str, range(1000)))

    monkeypatch.setattr("graphs.progress.ask", ask)
    result = await served(graph).ainvoke(JOB, CONFIG)
    assert result["answer"].count("## ") == MAX_CHAPTERS


# -- on a real server


@dataclass
class Reader:
    """Follows the session in a thread of its own, and comes back with the last id whenever it is cut off."""

    url: str
    last: str = "0"
    ids: list[str] = field(default_factory=list[str])
    done: list[int] = field(default_factory=list[int])
    cuts: int = 0
    over: bool = False

    def begin(self) -> threading.Thread:
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        return thread

    def _read(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.over and time.monotonic() < end:
            try:
                with httpx.stream("GET", self.url, headers={"Last-Event-ID": self.last}, timeout=10) as response:
                    event: dict[str, str] = {}
                    for line in response.iter_lines():
                        name, _, value = line.partition(": ")
                        if line:
                            event[name] = value
                        elif "id" in event:
                            self._take(**event)
                            event = {}
                            if self.over:
                                return
            except httpx.TransportError:
                self.cuts += 1
                time.sleep(0.05)  # as a browser's EventSource does

    def _take(self, id: str, event: str, data: str) -> None:  # names of the protocol
        self.last = id
        self.ids.append(id)
        content = json.loads(data)
        if event == "custom":
            self.done.append(content["payload"]["done"])
        self.over = event == "metadata" and content.get("status") == "run_done"

    def has_seen(self, done: int) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while done not in self.done:
            assert time.monotonic() < end, f"saw {self.done} only"
            time.sleep(0.02)  # looks again


@pytest.fixture
def gate() -> threading.Event:
    """The third chapter waits for it."""
    return threading.Event()


@pytest.fixture
def model(gate: threading.Event) -> Iterator[RunningSimulator]:
    def gated(request: ChatRequest) -> Reply | None:
        if "Chapter: How it works" in request.prompt:
            gate.wait(PATIENCE_SECONDS)
        return rule(request)

    with start(gated) as running:
        yield running


def test_readers_survive_a_kill_of_the_api_and_see_each_event_once(
    server: Launch, worker: Launch, free_port: Callable[[], int], model: RunningSimulator, gate: threading.Event
) -> None:
    env = {
        "OPENAI_API_KEY": "simulated",
        "OPENAI_BASE_URL": model.openai_url,
        "PERDURE_MODEL": "openai:simulated-1",
    }
    port = free_port()
    api: Process = server(slots=0, env=env, port=port)
    working: Process = worker(env=env)
    url = f"{api.url}/agents/progress/job1"
    sent = httpx.post(f"{url}/send", json=JOB, timeout=PATIENCE_SECONDS)
    assert sent.status_code == 202
    readers = [Reader(f"{url}/stream"), Reader(f"{url}/stream")]
    threads = [reader.begin() for reader in readers]
    for reader in readers:
        reader.has_seen(2)

    api.kill()
    gate.set()
    working.until(r'"finished"')  # the rest happens while nobody can watch
    server(slots=0, env=env, port=port)

    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    late = Reader(f"{url}/stream")
    late.begin().join(PATIENCE_SECONDS)
    assert late.done == [0, 1, 2, 3, 4]
    for reader in readers:
        assert reader.over
        assert reader.cuts >= 1
        assert reader.done == [0, 1, 2, 3, 4]
        assert reader.ids == late.ids
    assert len(set(late.ids)) == len(late.ids)
    assert len(model.requests) == 5
