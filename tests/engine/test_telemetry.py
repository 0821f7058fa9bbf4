"""Spans of runs and attempts: who tells of them, and only when it is committed; and whose trace they belong to."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from perdure import agent, approval, saga, step
from perdure.config import Settings
from perdure.engine import control, overdue, queue, stop, threads, tracing
from perdure.engine.aftercommit import Committing
from perdure.engine.timelimits import Limits
from perdure.engine.tracing import ids
from perdure.engine.tracing.export import Exporter
from tests.collector import Collector, collecting

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{CALLER}-00f067aa0ba902b7-01"


class State(TypedDict, total=False):
    text: str


@step
async def book() -> str:
    return "booked"


@step
async def cancel() -> str:
    return "cancelled"


async def quick(state: State) -> State:
    return {"text": "done"}


async def endless(state: State) -> State:
    await asyncio.Event().wait()
    return {}


async def ask(state: State) -> State:
    await approval("really?")
    return {"text": "answered"}


async def trip(state: State) -> State:
    async with saga() as s:
        s.undo(cancel)
        await book()
        await approval("pay?")
    return {}


async def calls(state: State) -> State:
    return await agent("ask", {})


def single(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


GRAPHS = {name: single(node) for name, node in globals().copy().items() if name in ("quick", "endless", "ask", "trip")}
GRAPHS["calls"] = single(calls)


@pytest.fixture(autouse=True)
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Traces are on before the lab opens its connections."""
    with collecting() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        exporter = Exporter(found.url)
        monkeypatch.setattr(tracing, "exporter", exporter)
        yield found
        exporter.close()


def told(collector: Collector, run: dict[str, Any]) -> list[tuple[str, str | None]]:
    """All that was said of the trace that a run began: attempts and runs, and how each ended, by name."""
    exporter = tracing.exporter
    assert exporter is not None
    exporter.close()  # sends all that there is
    spans = [span for span in collector.of(UUID(str(run["run_id"])).hex) if not span.name.startswith("node")]
    return sorted((span.name, span.about.get("perdure.outcome", span.about.get("perdure.status"))) for span in spans)


async def busy(lab: Any, graph: str = "endless") -> tuple[dict[str, Any], Any, asyncio.Task[None]]:
    """A run that is being executed, its attempt, and the task of that."""
    run = await lab.enqueue(None, {"text": ""}, assistant=graph, on_completion="keep")
    attempt = lab.attempt(await lab.claim_one())
    task = asyncio.create_task(attempt.execute())
    await lab.until(lambda: attempt._trace._open)
    return run, attempt, task


async def stopped(attempt: Any, task: asyncio.Task[None]) -> None:
    attempt.stop()
    with suppress(asyncio.CancelledError):
        await task


# -- who tells


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("cancel", [("attempt 1", "cancelled"), ("run endless", "interrupted")]),
        ("rollback", [("attempt 1", "cancelled"), ("run endless", "rolled back")]),
        ("delete", [("attempt 1", "deleted"), ("run endless", "deleted")]),
        ("pause", [("attempt 1", "paused")]),
        ("overdue", [("attempt 1", "paused")]),
        ("lost", [("attempt 1", "worker lost")]),
        ("hand back", [("attempt 1", "handed back")]),
    ],
)
async def test_who_takes_a_run_away_tells_of_its_attempt(
    collector: Collector, lab: Any, what: str, expected: list[tuple[str, str]]
) -> None:
    run, attempt, task = await busy(lab)
    keys = (lab.engine, run["thread_id"], run["run_id"])
    match what:
        case "cancel":
            await stop.cancel(*keys)
        case "rollback":
            await stop.cancel(*keys, "rollback")
        case "delete":
            await threads.delete(lab.engine, run["thread_id"])
        case "pause":
            await control.pause(*keys)
        case "overdue":
            await lab.execute("UPDATE runs SET overdue_at = now(), max_seconds = 1")
            await overdue.pause_all(lab.engine)
        case _:
            await lab.release(worker_id=lab.worker_id, lost=what == "lost")
    await stopped(attempt, task)
    assert told(collector, run) == expected


async def test_idle_attempt_tells_of_itself(collector: Collector, lab: Any) -> None:
    object.__setattr__(lab.engine.registry.graphs["endless"], "limits", Limits(idle=0.1))
    run = await lab.enqueue(None, {"text": ""}, assistant="endless", on_completion="keep")
    await lab.play(lab.attempt(await lab.claim_one()))
    assert told(collector, run) == [("attempt 1", "retried")]
    (span,) = collector.named(UUID(str(run["run_id"])).hex, "attempt 1")
    assert span.message.startswith("IdleTimeout")


async def test_what_is_rolled_back_is_not_told(collector: Collector, lab: Any) -> None:
    run = await lab.enqueue(None, {"text": ""}, assistant="quick", on_completion="keep")
    async with lab.engine.pool.connection() as conn:
        with suppress(ZeroDivisionError):
            async with conn.transaction():
                await queue.end_run(conn, run["thread_id"], run["run_id"], "success", None)
                raise ZeroDivisionError
    assert told(collector, run) == []


async def test_acts_follow_the_commit_of_the_outermost_block(lab: Any) -> None:
    done: list[str] = []
    async with lab.engine.pool.connection() as conn:
        assert isinstance(conn, Committing)
        async with conn.transaction():
            conn.after_commit(lambda: done.append("outer"))
            with suppress(ZeroDivisionError):
                async with conn.transaction():
                    conn.after_commit(lambda: done.append("rolled back"))
                    raise ZeroDivisionError
            async with conn.transaction():
                conn.after_commit(lambda: done.append("inner"))
            assert done == []
        assert done == ["outer", "inner"]
        conn.after_commit(lambda: done.append("alone"))
    assert done == ["outer", "inner", "alone"]


async def test_run_lasts_from_its_creation_to_its_end(collector: Collector, lab: Any) -> None:
    run = await lab.enqueue(None, {"text": ""}, assistant="quick", on_completion="keep")
    await lab.work()
    assert told(collector, run) == [("attempt 1", "finished"), ("run quick", "success")]
    (span,) = collector.named(UUID(str(run["run_id"])).hex, "run quick")
    row = await lab.run(run)
    micro = [int(row[name].timestamp() * 1_000_000) for name in ("created_at", "ended_at")]
    assert [span.start // 1000, span.end // 1000] == micro


# -- whose trace


async def test_answer_to_a_child_stays_in_the_trace(lab: Any) -> None:
    parent = await lab.enqueue(None, {}, assistant="calls", on_completion="keep")
    await lab.work()
    child = await lab.one("SELECT * FROM runs WHERE parent_run_id = %(id)s", id=parent["run_id"])
    above = ids.parse(child["trace"])
    assert above == ids.Parent(parent["run_id"].int, ids.attempt_span(parent["run_id"], 1))
    answer = await lab.enqueue(child["thread_id"], assistant="ask", command={"resume": {"decision": "approve"}})
    assert (await lab.run(answer))["trace"] == child["trace"]


async def test_request_that_comes_again_with_another_trace_is_the_same_request(lab: Any) -> None:
    thread_id = await lab.thread()
    found: list[Any] = []
    for trace in (PARENT, None, PARENT.replace("a", "b")):
        token = ids.caller.set(trace)
        found.append(await lab.enqueue(thread_id, {"text": ""}, assistant="quick", idempotency_key="once"))
        ids.caller.reset(token)
    assert len({run["run_id"] for run in found}) == 1
    assert (await lab.run(found[0]))["trace"] == PARENT


@pytest.mark.parametrize("trace", [None, PARENT])
async def test_compensation_stands_below_the_run_that_it_undoes(
    collector: Collector, lab: Any, trace: str | None
) -> None:
    thread_id = await lab.thread()
    token = ids.caller.set(trace)
    run = await lab.enqueue(thread_id, {"text": ""}, assistant="trip")
    ids.caller.reset(token)
    await lab.work()
    await lab.enqueue(thread_id, {"text": "new"}, assistant="quick")  # abandons the saga
    await lab.work()
    undo = await lab.one("SELECT * FROM runs WHERE metadata ? 'compensates'")
    assert ids.parse(undo["trace"]) == ids.Parent(ids.trace_of(run["run_id"], trace), ids.run_span(run["run_id"]))


async def test_child_of_a_trace_that_is_not_sampled_is_not_sampled(
    collector: Collector, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    monkeypatch.setattr(tracing, "exporter", Exporter(collector.url))
    parent = await lab.enqueue(None, {}, assistant="calls", on_completion="keep")
    await lab.work()
    child = await lab.one("SELECT * FROM runs WHERE parent_run_id = %(id)s", id=parent["run_id"])
    assert child["trace"].endswith("-00")
    assert told(collector, parent) == []


def test_sampler_takes_its_share_of_run_ids(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    from uuid_utils.compat import uuid7

    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    exporter = Exporter(collector.url)
    taken = sum(exporter.samples(uuid7(), None) for _ in range(4000))
    exporter.close()
    assert 850 < taken < 1150  # 1000 are expected; more than five standard deviations away is no chance


# -- ids and settings


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (PARENT, PARENT),
        (PARENT.replace("-01", "-ff"), PARENT),
        (PARENT.replace("-01", "-02"), PARENT.replace("-01", "-00")),
        (f"cc{PARENT[2:]}-what-comes-later", PARENT),
        (f"{PARENT}-more", None),
        (f"ff{PARENT[2:]}", None),
        (PARENT.upper(), None),
        (PARENT.replace(CALLER, "0" * 32), None),
        (PARENT.replace("00f067aa0ba902b7", "0" * 16), None),
        ("", None),
    ],
)
def test_traceparent_is_read_as_w3c_says(header: str, expected: str | None) -> None:
    assert ids.received([header]) == expected
    assert ids.received([header, header]) is None
    assert ids.received([]) is None


def test_runs_and_attempts_have_ids_of_their_own() -> None:
    run_id = uuid4()
    found = {ids.run_span(run_id), *(ids.attempt_span(run_id, n) for n in range(1, 100))}
    assert len(found) == 100
    assert all(0 < one < 2**64 for one in found)


@pytest.mark.parametrize(
    "url",
    [
        "tempo.example/{trace_id}",
        "javascript:{trace_id}",
        "https:///{trace_id}",
        "https://a.b/",
        "https://a.b/{traceid}",
    ],
)
def test_trace_url_is_checked(url: str) -> None:
    with pytest.raises(ValueError, match="PERDURE_TRACE_URL must"):
        Settings(trace_url=url)


def test_address_of_the_collector_is_shown_without_its_secrets() -> None:
    settings = Settings(otlp_endpoint="https://me:hunter2@otel.example:4318/x?key=sesame")
    assert settings.traces_to == "https://otel.example:4318/x"
    assert "hunter2" not in repr(settings)
    assert Settings(otlp_endpoint="http://otel.example", otel_disabled=True).traces_to is None
    with pytest.raises(ValueError, match="http://collector:4318"):
        Settings(otlp_endpoint="collector:4318")
