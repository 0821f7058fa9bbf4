"""Streams: what a reader has seen once it sees nowhere twice, and misses nothing."""

import asyncio
import operator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import uuid4

import orjson
import pytest
from langchain_core.messages import AIMessage
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

from perdure.engine import events, hub, queue, stop, threads
from perdure.engine.core import Engine
from perdure.engine.errors import LeaseLost, RunNotFound, StorageError, ThreadNotFound
from perdure.engine.events import Frame
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.recording import Recording

BIG = "x" * 3 * events.INLINE_BYTES


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    big: str


class Narrow(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


def _steps(**nodes: Any) -> StateGraph:
    graph = StateGraph(Log)
    before = START
    for name, node in nodes.items():
        graph.add_node(name, node)
        graph.add_edge(before, name)
        before = name
    return graph


async def _gone(state: Log) -> Log:
    raise ValueError("no")


def big(name: str) -> Any:
    return lambda state: {"log": [name], "big": f"{name} {BIG}"}


_fan = StateGraph(Log)
_fan.add_node("split", big("split"))
_fan.add_node("part", lambda state: {"log": [f"part {BIG}"]})
_fan.add_node("join", big("join"))
_fan.add_edge(START, "split")
_fan.add_conditional_edges("split", lambda state: [Send("part", {}) for _ in range(3)], ["part"])
_fan.add_edge("part", "join")

_output = StateGraph(Log, output_schema=Narrow)
_output.add_node("a", lambda state: {"log": [BIG], "big": "not shown"})
_output.add_edge(START, "a")

_chat = StateGraph(MessagesState)
_chat.add_node("say", lambda state: {"messages": [AIMessage(BIG, id="m1", response_metadata={"a": 1})]})
_chat.add_edge(START, "say")


@entrypoint()
async def listing(given: Any) -> Any:
    return [BIG, given]


GRAPHS = {
    "default": _steps(a=lambda state: {"log": ["a"]}, b=lambda state: {"log": ["b"]}).compile(),
    "big": _steps(a=big("a"), b=big("b"), c=lambda state: {"log": ["c"]}).compile(),
    "fan": _fan.compile(),
    "nested": _steps(a=big("a"), child=_steps(x=big("x"), y=big("y")).compile(), b=big("b")).compile(),
    "asking": _steps(a=big("a"), ask=lambda state: {"log": [interrupt({"big": BIG})]}).compile(),
    "failing": _steps(a=big("a"), b=_gone).compile(),
    "narrow": _output.compile(),
    "chat": _chat.compile(),
    "listing": listing,
}


PATIENCE_SECONDS = 60.0


async def collect(
    lab, thread, run, *, engine: Engine | None = None, after: int | None = None, into: list[events.Event] | None = None
) -> list[events.Event]:
    """All events of a run until its end; `into` has those that have come so far."""
    found = [] if into is None else into
    stream = events.follow(engine or lab.engine, thread, run, after=after)
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(stream):
        async for event in stream:
            if event is not None:
                found.append(event)
    return found


async def reading(lab, thread, run, *engines: Engine) -> list["asyncio.Task[list[events.Event]]"]:
    """A reader at each engine; all of them have the run's first event."""
    seen: list[list[events.Event]] = [[] for _ in engines]
    tasks = [
        asyncio.create_task(collect(lab, thread, run, engine=engine, into=into))
        for engine, into in zip(engines, seen, strict=True)
    ]
    await lab.until(lambda: all(seen))
    return tasks


async def claimed(lab) -> tuple[Any, Any]:
    thread = await lab.thread()
    await lab.enqueue(thread, {})
    return thread, await lab.claim_one()


def outbox(lab, run, **given: Any) -> Recording:
    options: Any = {"flush_seconds": 0.001, "on_broken": lambda _: None, **given}
    group, reader = options.pop("group", None) or lab.group(), options.pop("hub", lab.engine.hub)
    return Recording(group, reader, run.thread_id, run.run_id, run.fence, **options)


async def end(lab, run, *left: Frame) -> None:
    """The transaction that ends an attempt, as the last one of a stream."""
    last = [*left, Frame.of("lifecycle", {"event": "completed", "final": True})]
    async with lab.engine.pool.connection() as conn, conn.transaction():
        await queue.settle_thread(
            conn, run.thread_id, run.run_id, fence=run.fence, status="idle", error=None, interrupts={}
        )
        await queue.end_run(conn, run.thread_id, run.run_id, "success", None)
        published = await events.append(conn, run.thread_id, run.run_id, last)
    lab.engine.hub.publish(run.thread_id, published)


@pytest.fixture
async def elsewhere(lab):
    """The engine of another process: it is fed by notifications only."""
    async with Engine.open(lab.engine.settings, lab.engine.registry, lab.dsn) as engine:
        yield engine


async def test_follow_replays_and_goes_live_without_loss_or_duplicates(lab, elsewhere):
    thread, run = await claimed(lab)
    box = outbox(lab, run)
    readers = []
    for n in range(150):
        box.add(Frame.of("custom", n))
        if n % 15 == 0:
            readers += [
                asyncio.create_task(collect(lab, thread, run.run_id, engine=e)) for e in (lab.engine, elsewhere)
            ]
        await asyncio.sleep(0.001 if n % 3 else 0)
    await end(lab, run, *await box.close(lab.engine.pool))
    late = await collect(lab, thread, run.run_id)
    assert [e.event for e in late] == ["lifecycle", *["custom"] * 150, "lifecycle"]
    assert [e.data for e in late[1:-1]] == [b"%d" % n for n in range(150)]
    assert [e.seq for e in late] == list(range(1, 153))
    for reader in readers:
        assert await reader == late


async def test_reader_may_come_back_after_any_event(lab, elsewhere):
    thread, run = await claimed(lab)
    box = outbox(lab, run)
    for n in range(10):
        box.add(Frame.of("custom", n))
    await end(lab, run, *await box.close(lab.engine.pool))
    whole = await collect(lab, thread, run.run_id)
    for seen in range(len(whole) + 3):
        assert await collect(lab, thread, run.run_id, after=seen, engine=elsewhere) == whole[seen:]
    assert await collect(lab, thread, run.run_id, after=10**12) == []


async def test_id_of_an_event_is_the_same_live_and_replayed(lab):
    thread, run = await claimed(lab)
    (live,) = await reading(lab, thread, run.run_id, lab.engine)
    await lab.play(lab.attempt(run))
    replayed = await collect(lab, thread, run.run_id)
    assert [e.id for e in await live] == [e.id for e in replayed]
    assert len({e.id for e in replayed}) == len(replayed)


async def test_reader_of_a_run_sees_nothing_of_the_other_runs_of_its_thread(lab):
    thread = await lab.thread()
    created = [await lab.enqueue(thread, {"log": []}) for _ in range(3)]
    readers = [asyncio.create_task(collect(lab, thread, run["run_id"])) for run in created]
    await lab.work()
    for run, reader in zip(created, readers, strict=True):
        found = await reader
        assert {e.run_id for e in found} == {run["run_id"]}
        assert orjson.loads(found[-1].data)["final"] is True
        assert [e.event for e in found].count("values") == 3


async def test_thread_is_followed_over_several_runs(lab, elsewhere):
    thread = await lab.thread()
    seen: dict[str, list[int]] = {"here": [], "elsewhere": []}

    async def read(name: str, engine: Engine) -> None:
        async with aclosing(events.follow_thread(engine, thread, after=0)) as stream:
            async for event in stream:
                if event:
                    seen[name].append(event.seq)

    readers = [asyncio.create_task(read("here", lab.engine)), asyncio.create_task(read("elsewhere", elsewhere))]
    for _ in range(2):
        await lab.enqueue(thread, {"log": []})
        await lab.work()
    last = (await lab.thread_row(thread))["event_seq"]
    await lab.until(lambda: all(len(numbers) >= last for numbers in seen.values()))
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert seen == {name: list(range(1, last + 1)) for name in seen}


async def test_thread_is_followed_from_now_on_by_default(lab):
    thread = await lab.thread()
    await lab.enqueue(thread, {})
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(events.follow_thread(lab.engine, thread)) as stream:
        assert await anext(stream) is None  # a heartbeat: it is there, and has nothing to tell
        run = await lab.enqueue(thread, {})
        event = None
        while event is None:
            event = await anext(stream)
    assert event.run_id == run["run_id"]


async def test_silence_is_a_heartbeat(lab):
    thread, run = await claimed(lab)
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(events.follow(lab.engine, thread, run.run_id)) as stream:
        assert (await anext(stream)).event == "lifecycle"
        assert [await anext(stream) for _ in range(2)] == [None, None]


async def test_unknown_run_or_thread_is_an_error_at_the_first_event(lab):
    thread = await lab.thread()
    with pytest.raises(RunNotFound):
        await anext(events.follow(lab.engine, thread, uuid4()))
    with pytest.raises(RunNotFound):
        await anext(events.ended(lab.engine, thread, uuid4()))
    with pytest.raises(ThreadNotFound):
        await anext(events.follow_thread(lab.engine, uuid4()))


@pytest.mark.parametrize("graph", ["big", "fan", "nested", "asking", "failing", "narrow", "chat", "listing"])
@pytest.mark.parametrize("modes", [["values"], ["values", "updates", "messages-tuple"]], ids=["one", "many"])
async def test_large_state_is_stored_once_and_replayed_as_it_was_shown(lab, graph, modes):
    thread = await lab.thread()
    given = {"messages": [{"role": "user", "content": BIG}]} if graph == "chat" else {"log": [BIG]}
    run = await lab.enqueue(thread, given, assistant=graph, stream_mode=modes, stream_subgraphs=graph == "nested")
    (live,) = await reading(lab, thread, run["run_id"], lab.engine)
    await lab.work()
    shown, replayed = await live, await collect(lab, thread, run["run_id"])
    assert [(e.seq, e.event) for e in shown] == [(e.seq, e.event) for e in replayed]
    for one, other in zip(shown, replayed, strict=True):
        assert orjson.loads(one.data) == orjson.loads(other.data), one.event
    large = [e.seq for e in shown if e.event == "values" and len(e.data) > events.INLINE_BYTES]
    assert large
    rows = {row["seq"]: row for row in await lab.events(run)}
    questions = [e.seq for e in shown if b"__interrupt__" in e.data]
    assert [seq for seq in large if rows[seq]["data"] is not None and seq not in questions] == []


async def test_small_state_is_stored_as_it_is(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"log": ["a"]})
    await lab.work()
    rows = [row for row in await lab.events(run) if row["event"] == "values"]
    assert len(rows) == 3
    assert all(row["data"] and row["checkpoint_id"] is None for row in rows)


async def test_reader_waits_for_a_run_that_has_not_started(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"log": []})
    (reader,) = await reading(lab, thread, run["run_id"], lab.engine)
    beats: list[int] = []
    waiter = asyncio.create_task(wait(lab, thread, run["run_id"], beats=beats))
    await lab.until(lambda: beats)
    assert not reader.done()
    assert not waiter.done()
    await lab.work()
    assert orjson.loads((await reader)[-1].data)["final"] is True
    await waiter


async def wait(lab, thread, run, engine: Engine | None = None, *, beats: list[int] | None = None) -> None:
    """Until the run has ended; each heartbeat adds to `beats`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for _ in events.ended(engine or lab.engine, thread, run):
            if beats is not None:
                beats.append(len(beats))


async def test_run_is_final_before_its_stream_or_a_wait_ends(lab, elsewhere):
    for engine in (lab.engine, elsewhere):
        thread = await lab.thread()
        run = await lab.enqueue(thread, {"log": []})

        async def status(reader: Any, run: Any = run) -> str:
            await reader
            return (await lab.run(run))["status"]

        seen: list[events.Event] = []
        beats: list[int] = []
        readers = [
            asyncio.create_task(status(collect(lab, thread, run["run_id"], engine=engine, into=seen))),
            asyncio.create_task(status(wait(lab, thread, run["run_id"], engine, beats=beats))),
        ]
        await lab.until(lambda seen=seen, beats=beats: seen and beats)
        await lab.work()
        assert await asyncio.gather(*readers) == ["success", "success"]


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_cancelled_run_ends_its_stream(lab, elsewhere, action):
    thread, run = await claimed(lab)
    readers = await reading(lab, thread, run.run_id, lab.engine, elsewhere)
    await stop.cancel(lab.engine, thread, run.run_id, action)
    for reader in readers:
        assert orjson.loads((await reader)[-1].data)["event"] == "cancelled"


async def test_deleted_thread_ends_its_streams(lab, monkeypatch):
    monkeypatch.setattr(events, "POLL_SECONDS", 0.2)
    thread, run = await claimed(lab)
    seen: list[Any] = []
    beats: list[int] = []

    async def read_thread() -> None:
        async for event in events.follow_thread(lab.engine, thread):
            seen.append(event)

    (reader,) = await reading(lab, thread, run.run_id, lab.engine)
    other = asyncio.create_task(read_thread())
    waiter = asyncio.create_task(wait(lab, thread, run.run_id, beats=beats))
    await lab.until(lambda: seen and beats)
    await threads.delete(lab.engine, thread)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await reader
        await other
        with pytest.raises(RunNotFound):
            await waiter


async def test_lost_listen_connection_is_made_anew_and_nothing_is_missed(lab, elsewhere):
    thread, run = await claimed(lab)
    (reader,) = await reading(lab, thread, run.run_id, elsewhere)
    listening = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%%' AND state = 'idle'"

    async def both_listen() -> bool:
        return len(await lab.rows("SELECT 1 " + listening)) == 2

    await lab.until(both_listen)
    gone = await lab.rows("SELECT pg_terminate_backend(pid, 30000) AS gone " + listening)
    assert gone == [{"gone": True}] * 2
    box = outbox(lab, run, hub=None)
    for n in range(5):
        box.add(Frame.of("custom", n))
    await end(lab, run, *await box.close(lab.engine.pool))
    assert [e.data for e in (await reader)[1:-1]] == [b"%d" % n for n in range(5)]


async def test_lost_notification_delays_a_reader_only(lab, monkeypatch):
    monkeypatch.setattr(events, "POLL_SECONDS", 0.2)
    thread, run = await claimed(lab)
    monkeypatch.setattr(lab.engine.hub, "_readers", {})  # nobody is told of anything
    beats: list[int] = []
    (reader,) = await reading(lab, thread, run.run_id, lab.engine)
    waiter = asyncio.create_task(wait(lab, thread, run.run_id, beats=beats))
    await lab.until(lambda: beats)
    monkeypatch.setattr(lab.engine.hub, "_readers", {})
    await end(lab, run, Frame.of("custom", 1))
    assert [e.event for e in await reader] == ["lifecycle", "custom", "lifecycle"]
    await waiter


async def test_slow_reader_with_a_full_mailbox_reads_from_the_table(lab, monkeypatch):
    monkeypatch.setattr(hub, "BACKLOG", 5)
    monkeypatch.setattr(events, "PAGE", 7)
    thread, run = await claimed(lab)
    box = outbox(lab, run)
    seen: list[events.Event] = []
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(events.follow(lab.engine, thread, run.run_id)) as stream:
        seen.append(await anext(stream))
        for n in range(60):
            box.add(Frame.of("custom", n))
            await asyncio.sleep(0.002)
        left = await box.close(lab.engine.pool)
        await asyncio.sleep(0.01)
        ended = False
        async for event in stream:
            if event is not None:
                seen.append(event)
            if not ended and len(seen) == 2:
                ended = True
                await end(lab, run, *left)
    assert [e.seq for e in seen] == list(range(1, 63))


async def test_one_flush_larger_than_a_mailbox_arrives(lab, monkeypatch):
    monkeypatch.setattr(hub, "BACKLOG", 5)
    thread, run = await claimed(lab)
    (reader,) = await reading(lab, thread, run.run_id, lab.engine)
    await end(lab, run, *(Frame.of("custom", n) for n in range(20)))
    assert len(await reader) == 22


async def test_first_frame_after_silence_goes_at_once_and_those_made_meanwhile_gather(lab):
    _, run = await claimed(lab)
    box = outbox(lab, run, flush_seconds=30)
    written = "SELECT data FROM run_events WHERE event = 'custom' ORDER BY seq"
    box.add(Frame.of("custom", 0))
    await asyncio.sleep(0)
    for n in range(1, 4):
        box.add(Frame.of("custom", n))
    await lab.until(lambda: lab.rows(written))
    await asyncio.sleep(0.05)
    assert len(await lab.rows(written)) == 1
    assert [frame.data for frame in await box.close(lab.engine.pool)] == [b"1", b"2", b"3"]


async def test_stale_owner_appends_no_event_and_is_told_to_stop(lab):
    thread, run = await claimed(lab)
    await lab.fence_off(thread)
    before = await lab.everything()
    told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    box = outbox(lab, run, on_broken=told.set_result)
    box.add(Frame.of("custom", 1))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert isinstance(await told, LeaseLost)
    assert await lab.everything() == before


async def test_frames_after_a_lost_flush_are_not_lost_in_silence(lab):
    """The database was away for a moment: either the attempt learns of it, or its later frames are written."""
    _, run = await claimed(lab)

    class Flaky(GroupCommit):
        broken = True

        def enqueue(self, write: Any) -> Any:
            if self.broken and write.events:
                self.broken = False
                write.done = asyncio.get_running_loop().create_future()
                write.done.set_exception(events_lost)
                return write.done
            return super().enqueue(write)

    events_lost = StorageError("away")
    group = Flaky(lab.engine.pool, origin="flaky")
    await lab.play(lab.attempt(run, group=group))
    row = await lab.run({"run_id": run.run_id})
    shown = [e["event"] for e in await lab.events({"run_id": run.run_id})]
    assert row["status"] == "pending" or shown.count("values") == 3, (row["status"], shown)


async def test_run_whose_last_frames_were_lost_is_settled_all_the_same(lab):
    """The database was away under the last batch: the graph has ended, and the attempt ends too."""
    _, run = await claimed(lab)

    class LosesTheLast(GroupCommit):
        lost = 0

        def enqueue(self, write: Any) -> Any:
            if not write.events or not any(row[2] == "values" for row in write.events):
                return super().enqueue(write)
            self.lost += 1
            write.done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.3, write.done.set_exception, StorageError("away"))
            return write.done

    group = LosesTheLast(lab.engine.pool, origin="loses")
    await lab.play(lab.attempt(run, group=group))
    assert group.lost
    assert (await lab.run({"run_id": run.run_id}))["status"] in ("success", "pending")
