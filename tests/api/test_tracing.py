"""Traces of real servers: a run is one tree in the collector, whoever dies; without one runs are as ever."""

import html
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

from tests.api.conftest import serve
from tests.collector import Collector, Seen, collecting
from tests.conftest import Launch, eventually

GRAPHS = '''
"""Graphs of the tracing tests."""

import asyncio
import os
import sys
import threading
from operator import add
from pathlib import Path
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy
from typing_extensions import TypedDict

from perdure import DurableModel, RetryableError, TerminalError, agent, gather, step

HERE = Path(__file__).parent
tries = []

if "PATIENT" in os.environ:
    from perdure.engine.tracing import export

    export.CLOSE_SECONDS = 30


class State(TypedDict, total=False):
    log: Annotated[list[Any], add]
    name: str


@step
async def look_up(city: str) -> str:
    await asyncio.sleep(0.02)
    return "top secret 21"


@tool
async def weather(city: str) -> str:
    """The weather of a city."""
    return await look_up(city)


@step(retry=RetryPolicy(initial_interval=0.01, max_attempts=3))
def flaky(text: str) -> str:
    tries.append(text)
    if len(tries) % 2:
        raise ConnectionError("top secret 42")
    return "top secret 7"


def model() -> ChatOpenAI:
    return ChatOpenAI(model="simulated-1", stream_usage=True, max_retries=0)


forecast = create_agent(model(), [weather], middleware=[DurableModel()])


async def ask(state: State) -> State:
    found = await forecast.ainvoke({"messages": [("user", "top secret 1: weather of Paris")]})
    return {"log": [len(found["messages"])]}


def plain(state: State) -> State:
    return {"log": [threading.current_thread().name]}


async def both(state: State) -> State:
    return {"log": list(await asyncio.gather(flaky("top secret 3"), look_up("a"), look_up("b")))}


async def slow(state: State) -> State:
    await look_up(state["name"])
    await held(state["name"])
    return {"log": ["slow"]}


@step
async def held(name: str) -> str:
    (HERE / f"began-{name}").touch()
    while (HERE / f"hold-{name}").exists():
        await asyncio.sleep(0.02)
    return name


async def delegate(state: State) -> State:
    first, second = await gather(agent("plain", {"log": []}), agent("slow", {"log": [], "name": "child"}))
    await agent.send("plain", {"log": []})
    return {"log": [*first["log"], *second["log"]]}


async def fail(state: State) -> State:
    raise TerminalError("boom")


async def again(state: State) -> State:
    await look_up("top secret 6")
    if not (HERE / "again").exists():
        (HERE / "again").touch()
        raise RetryableError("not yet")
    return {"log": ["again"]}


async def modules(state: State) -> State:
    return {"log": sorted(name for name in sys.modules if name.startswith("opentelemetry"))}


def single(node: Any) -> Any:
    return StateGraph(State).add_node(node.__name__, node).add_edge(START, node.__name__).compile()


works = (
    StateGraph(State)
    .add_node(ask)
    .add_node(plain)
    .add_node(both)
    .add_edge(START, "ask")
    .add_edge(START, "plain")
    .add_edge("ask", "both")
    .compile()
)
plainly, slowly, delegates, fails, retries, loaded = (
    single(node) for node in (plain, slow, delegate, fail, again, modules)
)
'''

RULES = '''
"""What the simulated model answers."""

from perdure.simulator import ChatRequest, Reply, ToolCall


def weather(request: ChatRequest) -> Reply | None:
    if not request.tool_results:
        return Reply(tool_calls=[ToolCall("weather", {"city": "top secret 2"})])
    return Reply(text="top secret 4")


rules = [weather]
'''

NAMES = {
    "works": "works",
    "plain": "plainly",
    "slow": "slowly",
    "delegate": "delegates",
    "fails": "fails",
    "again": "retries",
    "modules": "loaded",
}
LOOK = 'https://tempo.example/<b>/{trace_id}?run={run_id}&thread={thread_id}&left={"a":1}'
CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
LOOKED_UP: dict[str, Any] = {"step look_up": {}}


@dataclass
class Traced:
    """A server with traces, and where they go."""

    url: str
    collector: Collector
    client: SyncLangGraphClient

    def run(self, graph: str, *, wait: bool = True, **given: Any) -> dict[str, Any]:
        """A run on a new thread, ended if `wait`."""
        return run_of(self.client, graph, wait=wait, **given)


def run_of(client: SyncLangGraphClient, graph: str, *, wait: bool = True, **given: Any) -> dict[str, Any]:
    thread = client.threads.create()["thread_id"]
    run: Any = client.runs.create(thread, graph, **{"input": {"log": []}, **given})
    if wait:
        client.runs.join(thread, run["run_id"])
    return run


def hexed(run: dict[str, Any]) -> str:
    """The id of the trace that a run begins."""
    return UUID(run["run_id"]).hex


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    (folder / "traced.py").write_text(GRAPHS)
    (folder / "answers.py").write_text(RULES)
    graphs = {name: f"./traced.py:{graph}" for name, graph in NAMES.items()}
    entries = {"graphs": graphs, "simulator": {"rules": "./answers.py:rules"}}
    (folder / "langgraph.json").write_text(json.dumps(entries))
    return folder / "langgraph.json"


@pytest.fixture(scope="module")
def traced(database_url: str, project: Path) -> Iterator[Traced]:
    with collecting() as collector:
        more = {"OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=acme", "OTEL_SERVICE_NAME": "shop", "PERDURE_TRACE_URL": LOOK}
        with serve(database_url, project, **collector.environment(**more)) as url, get_sync_client(url=url) as client:
            yield Traced(url, collector, client)


# -- one server and its collector


def test_run_is_one_tree_of_spans(traced: Traced) -> None:
    run = traced.run("works")
    trace = hexed(run)
    traced.collector.one(trace, "attempt 1")
    traced.collector.one(trace, "run works")
    model = {"step model": {"chat simulated-1": {}}}
    assert traced.collector.tree(trace) == {
        "run works": {
            "attempt 1": {
                "node plain": {},
                "node ask": {"node model": model, "node tools": {"execute_tool weather": LOOKED_UP}},
                "node both": {"step flaky": {}, "step look_up": {}},
            }
        }
    }
    spans = {span.id: span for span in traced.collector.of(trace)}
    for span in spans.values():
        if span.parent and not span.name.startswith("attempt"):  # those of the run are the database's
            above = spans[span.parent]
            assert above.start <= span.start <= span.end <= above.end, (span, above)
    assert len(traced.collector.named(trace, "chat simulated-1")) == 2
    assert len(traced.collector.named(trace, "step look_up")) == 3


def test_spans_hold_names_and_numbers_but_nothing_that_was_said(traced: Traced) -> None:
    run = traced.run("works")
    trace, collector = hexed(run), traced.collector
    whole = collector.one(trace, "run works")
    ids = {"perdure.run_id": run["run_id"], "perdure.thread_id": run["thread_id"]}
    assert whole.about == {
        **ids,
        "gen_ai.agent.name": "works",
        "gen_ai.conversation.id": run["thread_id"],
        "perdure.status": "success",
        "perdure.attempts": 1,
    }
    attempt = collector.one(trace, "attempt 1")
    worker = attempt.about.pop("perdure.worker")
    assert worker
    assert attempt.about == {**ids, "perdure.attempt": 1, "perdure.outcome": "finished"}
    chat = collector.named(trace, "chat simulated-1")[-1].about
    assert chat["gen_ai.operation.name"] == "chat"
    assert chat["gen_ai.provider.name"] == "openai"
    assert chat["gen_ai.request.model"] == "simulated-1"
    assert chat["gen_ai.usage.input_tokens"] > 0
    assert chat["gen_ai.usage.output_tokens"] > 0
    tool = collector.one(trace, "execute_tool weather").about
    assert tool.pop("gen_ai.tool.call.id")
    assert tool == {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather"}
    first, second = sorted(collector.named(trace, "step flaky"), key=lambda span: span.start)
    assert first.about == {"perdure.step": "flaky", "perdure.try": 1, "error.type": "ConnectionError"}
    assert (first.failed, first.message) == (True, "ConnectionError")
    assert (second.about, second.failed) == ({"perdure.step": "flaky", "perdure.try": 2}, False)
    assert {span.service for span in collector.of(trace)} == {"shop"}
    assert collector.headers[-1]["x-tenant"] == "acme"
    assert b"secret" not in collector.raw


def test_failed_attempt_tells_why_and_the_next_one_what_it_replays(traced: Traced) -> None:
    trace = hexed(traced.run("again"))
    first, second = (traced.collector.one(trace, f"attempt {n}") for n in (1, 2))
    whole = traced.collector.one(trace, "run again")
    assert (first.failed, first.message) == (True, "RetryableError: not yet")
    assert (first.about["perdure.outcome"], first.about["error.type"]) == ("retried", "RetryableError")
    assert (second.failed, second.about["perdure.outcome"]) == (False, "finished")
    assert {first.parent, second.parent} == {whole.id}
    nodes = {span.parent: span for span in traced.collector.named(trace, "node again")}
    assert (nodes[first.id].message, nodes[first.id].events) == ("RetryableError", [])
    assert nodes[second.id].events == [("step replayed", {"perdure.step": "look_up"})]
    assert traced.collector.one(trace, "step look_up").parent == nodes[first.id].id


def test_failed_run_tells_why(traced: Traced) -> None:
    trace = hexed(traced.run("fails"))
    for name in ("run fails", "attempt 1"):
        span = traced.collector.one(trace, name)
        assert (span.failed, span.message) == (True, "TerminalError: boom")
    assert traced.collector.one(trace, "run fails").about["perdure.status"] == "error"


def test_child_runs_stand_below_the_attempt_that_started_them(traced: Traced, project: Path) -> None:
    hold = project.parent / "hold-child"
    hold.touch()
    run, collector = traced.run("delegate", wait=False), traced.collector
    trace = hexed(run)
    eventually(lambda: traced.client.runs.get(run["thread_id"], run["run_id"]).get("suspended"))
    hold.unlink()
    whole = collector.one(trace, "run delegate")
    runs = ("run plain", "run plain", "run slow")
    eventually(lambda: sorted(span.name for span in collector.of(trace) if span.name in runs), lambda s: s == [*runs])
    children = [span for span in collector.of(trace) if span.name in runs]

    def attempts_of(above: Seen) -> list[Seen]:
        """Those of a run; the span of the last one is told after its run's."""
        return eventually(
            lambda: [span for span in collector.of(trace) if span.parent == above.id and "attempt" in span.name],
            lambda found: len(found) == above.about["perdure.attempts"],
        )

    attempts = attempts_of(whole)
    assert len(attempts) >= 2, "it waits for its children"
    assert {span.parent for span in children} <= {span.id for span in attempts}
    for child in children:
        (attempt,) = attempts_of(child)
        assert attempt.about["perdure.run_id"] == child.about["perdure.run_id"]


@pytest.mark.parametrize("path", ["/runs/wait", "/agents/plain/run", "/agents/plain/somebody/run"])
def test_trace_of_the_caller_goes_on(traced: Traced, path: str) -> None:
    trace = uuid4().hex
    body = {"log": []} if path.startswith("/agents") else {"assistant_id": "plain", "input": {"log": []}}
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    assert httpx.post(f"{traced.url}{path}", json=body, headers=headers, timeout=30).status_code == 200
    whole = traced.collector.one(trace, "run plain")
    assert whole.parent == "00f067aa0ba902b7"
    assert traced.collector.one(trace, "attempt 1").parent == whole.id


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{CALLER}-00f067aa0ba902b7",
        f"00-{CALLER}-00f067aa0ba902b7-01-more",
        f"00-{CALLER.upper()}-00f067aa0ba902b7-01",
        f"00-{CALLER}-0000000000000000-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"ff-{CALLER}-00f067aa0ba902b7-01",
    ],
)
def test_malformed_traceparent_is_ignored(traced: Traced, header: str) -> None:
    run = traced.run("plain", headers={"traceparent": header})
    assert traced.collector.one(hexed(run), "run plain").parent == ""


def test_trace_that_the_caller_does_not_sample_is_not_sent(traced: Traced) -> None:
    trace = uuid4().hex
    traced.run("plain", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-00"})
    traced.collector.one(hexed(traced.run("plain")), "run plain")  # came later, and is there
    assert traced.collector.of(trace) == []


def test_page_of_a_run_links_to_its_trace(traced: Traced) -> None:
    trace = uuid4().hex
    own = traced.run("plain")
    callers = traced.run("plain", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    for run, trace_id in ((own, hexed(own)), (callers, trace)):
        page = httpx.get(f"{traced.url}/console/runs/{run['thread_id']}/{run['run_id']}", timeout=30).text
        (link,) = re.findall(r'<a href="([^"]*)"([^>]*)>Trace</a>', page)
        address = f'https://tempo.example/<b>/{trace_id}?run={run["run_id"]}&thread={run["thread_id"]}&left={{"a":1}}'
        assert html.unescape(link[0]) == address
        assert "<b>" not in link[0]
        assert "noreferrer" in link[1]


def test_exporter_is_loaded_where_there_are_traces(traced: Traced) -> None:
    """What the test of a server without traces looks for is found in one with them."""
    found: Any = traced.client.runs.wait(None, "modules", input={"log": []})
    assert "opentelemetry.sdk.trace.export" in found["log"]


def test_doctor_says_where_traces_go(traced: Traced) -> None:
    page = httpx.get(f"{traced.url}/console/doctor", timeout=30).text
    assert f"go to {traced.collector.url}" in page
    assert "acme" not in page, "headers are secrets"


# -- workers that die, collectors that do not answer


def test_lost_attempt_is_told_by_who_takes_over(server: Launch, worker: Launch, project: Path, tmp_path: Path) -> None:
    name = "lost"
    hold = project.parent / f"hold-{name}"
    hold.touch()
    with collecting() as collector:
        env = collector.environment()
        api = server(config=project, slots=0, env=env)
        first = worker(config=project, env=env)
        with get_sync_client(url=api.url) as client:
            run = run_of(client, "slow", wait=False, input={"log": [], "name": name})
            eventually((project.parent / f"began-{name}").exists)
            trace = hexed(run)
            collector.one(trace, "step look_up")  # the first worker has said something
            first.kill()
            hold.unlink()
            second = worker(config=project, env=env)
            client.runs.join(run["thread_id"], run["run_id"])
            attempts = [collector.one(trace, f"attempt {n}") for n in (1, 2)]
            whole = collector.one(trace, "run slow")
            assert second.stop() == 0  # all that it has to say is said
    assert len(collector.named(trace, "run slow")) == 1
    assert {span.parent for span in attempts} == {whole.id}
    lost, done = attempts
    assert (lost.failed, lost.about["perdure.outcome"], lost.about["error.type"]) == (True, "worker lost", "WorkerLost")
    assert (done.failed, done.about["perdure.outcome"]) == (False, "finished")
    assert lost.about["perdure.worker"] != done.about["perdure.worker"]
    assert whole.start <= lost.start < lost.end <= done.start
    (node,) = collector.named(trace, "node slow")
    assert node.parent == done.id
    assert node.events == [("step replayed", {"perdure.step": "look_up"})]


def test_attempt_that_is_handed_back_is_told_before_the_process_ends(server: Launch, project: Path) -> None:
    hold = project.parent / "hold-handed"
    hold.touch()
    with collecting() as collector:
        # all is sent at the end, for which a busy machine may need longer than a process that stops takes
        process = server(config=project, env=collector.environment(OTEL_BSP_SCHEDULE_DELAY="60000", PATIENT="1"))
        with get_sync_client(url=process.url) as client:
            run = run_of(client, "slow", wait=False, input={"log": [], "name": "handed"})
            eventually((project.parent / "began-handed").exists)
        assert process.stop() == 0
    trace = hexed(run)
    (attempt,) = collector.named(trace, "attempt 1")
    assert (attempt.failed, attempt.about["perdure.outcome"]) == (False, "handed back")
    assert collector.tree(trace) == {"attempt 1": {"node slow": {"step look_up": {}, "step held": {}}}}
    (node,) = collector.named(trace, "node slow")
    assert node.about["perdure.outcome"] == "stopped"


@pytest.mark.parametrize("how", ["hangs", "refuses"])
def test_collector_that_is_away_costs_a_log_line(server: Launch, project: Path, how: str) -> None:
    with collecting() as collector:
        collector.hangs = True
        env = collector.environment(OTEL_EXPORTER_OTLP_TIMEOUT="3", OTEL_BSP_MAX_QUEUE_SIZE="20")
        env["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] = "10"
        if how == "refuses":
            env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://localhost:9"
        process = server(config=project, env=env)
        with get_sync_client(url=process.url) as client:
            run_of(client, "plain")  # what is imported at the first one is
            seconds: list[float] = []
            for _ in range(21):
                began = time.monotonic()
                run_of(client, "plain")
                seconds.append(time.monotonic() - began)
            assert median(seconds) < 2.5, "runs wait for the collector, which is given three seconds"
            process.until("traces are lost")
            if how == "hangs":
                eventually(lambda: collector.requests, lambda n: n >= 3)
            for _ in range(10):
                run_of(client, "plain")
        began = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - began < 20
    assert process.output.count("traces are lost") == 1
    assert process.output.count('"logger": "opentelemetry') <= 1, "the queue was full"


@pytest.mark.parametrize(
    "env", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:9", "OTEL_SDK_DISABLED": "true"}]
)
def test_nothing_is_loaded_when_there_are_no_traces(server: Launch, project: Path, env: dict[str, str]) -> None:
    process = server(config=project, env=env)
    with get_sync_client(url=process.url) as client:
        found: Any = client.runs.wait(None, "modules", input={"log": []})
    loaded = {name for name in found["log"] if name.startswith("opentelemetry.exporter.otlp")}
    assert loaded | ({"opentelemetry.sdk.trace.export"} & set(found["log"])) == set()
    assert '"event": "traces"' not in process.output


def test_env_files_say_where_traces_go(server: Launch, project: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        entries = json.loads(project.read_text())
        entries["env"] = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        config = project.parent / "langgraph.env.json"
        config.write_text(json.dumps(entries))
        (tmp_path / ".env").write_text("OTEL_SERVICE_NAME=from-a-file\n")
        process = server(config=config)
        assert collector.url in process.until(r"Traces +[^ ]+")[0]
        with get_sync_client(url=process.url) as client:
            run = run_of(client, "plain")
        assert collector.one(hexed(run), "run plain").service == "from-a-file"


def test_start_names_a_trace_url_that_cannot_be_used(launch: Launch) -> None:
    process = launch("serve", env={"PERDURE_TRACE_URL": "ftp://tempo.example/{trace_id}"})
    assert process.wait() != 0
    assert "PERDURE_TRACE_URL must begin with http" in process.output
