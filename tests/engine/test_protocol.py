"""The event log as protocol events: what retries, cancels and large states look like to a subscriber."""

from collections import Counter
from typing import Any
from uuid import uuid4

import orjson
import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure.engine import events, protocol, runs, stop, sweeper
from perdure.engine.showing import CHANNELS, Shown, Wanted
from tests.engine.conftest import Lab

CALLS: Counter[str] = Counter()
ALL = Wanted(channels=frozenset(CHANNELS))


class State(TypedDict, total=False):
    key: str
    text: str
    answer: Any


class Flaky(Exception):
    retryable = True


async def flaky(state: State) -> State:
    CALLS[state["key"]] += 1
    if CALLS[state["key"]] < 3:
        raise Flaky("not yet")
    return {"text": "x" * 5000}


async def ask(state: State) -> State:
    return {"answer": interrupt("really?")}


async def talk(state: MessagesState) -> Any:
    for text in ("one two three", "four"):
        model = GenericFakeChatModel(messages=iter([AIMessage(text, id=f"m-{text[:3]}")]))
        await model.ainvoke(state["messages"])
    return {"messages": [AIMessage("not streamed", id="m-not")]}


async def mumble(state: MessagesState) -> Any:
    """Fails in the middle of a message."""
    model = GenericFakeChatModel(messages=iter([AIMessage("one two", id="m1")]))
    async for _ in model.astream(state["messages"]):
        raise ValueError("boom")


def single(node: Any, schema: Any = State) -> Any:
    return StateGraph(schema).add_node("node", node).add_edge(START, "node").compile()


def within(graph: Any) -> Any:
    return StateGraph(MessagesState).add_node("inner", graph).add_edge(START, "inner").compile()


talks, mumbles = single(talk, MessagesState), single(mumble, MessagesState)
GRAPHS = {"flaky": single(flaky), "asks": single(ask), "talks": talks, "mumbles": mumbles, "inside": within(talks)}


async def shown(lab: Lab, run: dict[str, Any], wanted: Wanted = ALL) -> list[Shown]:
    return [event async for event in protocol.replay(lab.engine, run["thread_id"], wanted)]


async def states(lab: Lab, run: dict[str, Any]) -> list[str]:
    events = await shown(lab, run, Wanted(channels=frozenset(["lifecycle"])))
    return [orjson.loads(event.data)["event"] for event in events]


async def tried_again(lab: Lab) -> dict[str, Any]:
    run = await lab.enqueue(await lab.thread(), {"key": uuid4().hex}, assistant="flaky", protocol=True)
    while (await lab.run(run))["status"] == "pending":
        await lab.execute("UPDATE runs SET ready_at = now()")
        await lab.work()
    return run


async def test_a_run_that_is_tried_again_is_running_once(lab: Lab) -> None:
    assert await states(lab, await tried_again(lab)) == ["running", "completed"]


async def test_a_large_state_is_read_from_its_checkpoint(lab: Lab) -> None:
    run = await tried_again(lab)
    values = [event for event in await shown(lab, run) if event.method == "values"]
    assert orjson.loads(values[-1].data)["text"] == "x" * 5000
    rows = [row for row in await lab.events(run) if row["event"] == "values"]
    assert rows[-1]["data"] is None
    event = orjson.loads(values[-1].json())
    assert event["event_id"] == f"{run['thread_id']}:{values[-1].seq}"
    assert event["params"]["namespace"] == []


async def test_a_cancelled_run_is_interrupted(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"key": "x"}, assistant="flaky", protocol=True)
    await stop.cancel(lab.engine, run["thread_id"], run["run_id"])
    assert await states(lab, run) == ["interrupted"]


async def test_a_paused_run_has_failed_and_runs_again_when_it_is_resumed(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"key": "paused"}, assistant="flaky", protocol=True)
    await lab.execute("UPDATE runs SET failures = 1000")
    await lab.work()
    assert await states(lab, run) == ["running", "failed"]
    await lab.execute("UPDATE runs SET status = 'pending', ready_at = now(), failures = 0")
    CALLS["paused"] = 5
    await lab.work()
    assert await states(lab, run) == ["running", "failed", "running", "completed"]


async def test_the_state_of_a_run_that_streams_other_modes_is_read_when_somebody_asks(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {"text": "x" * 5000}, assistant="asks", stream_mode=["updates"])
    await lab.work()
    last = (await shown(lab, run))[-1]
    assert (last.method, orjson.loads(last.data)) == ("values", {"text": "x" * 5000})
    row = (await lab.events(run))[-1]
    assert (row["event"], row["data"]) == ("protocol/values", None)


async def test_an_answer_given_by_the_protocol_goes_to_the_assistant_that_asked(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {}, assistant="asks")
    await lab.work()
    [question] = [event for event in await shown(lab, run) if event.method == "input.requested"]
    answers = {orjson.loads(question.data)["interrupt_id"]: "yes"}
    answer, seq = await protocol.respond(
        lab.engine, run["thread_id"], answers, command={}, config={}, metadata={"m": 1}
    )
    await lab.work()
    assert (answer["assistant_id"], answer["metadata"]["m"]) == (run["assistant_id"], 1)
    later = [event async for event in protocol.replay(lab.engine, run["thread_id"], ALL, since=seq)]
    assert orjson.loads([e for e in later if e.method == "values"][-1].data)["answer"] == "yes"
    assert await states(lab, run) == ["running", "interrupted", "running", "completed"]


# -- messages of runs that were not started by the protocol


async def said(lab: Lab, run: dict[str, Any], *, since: int = 0) -> list[Shown]:
    wanted = Wanted(channels=frozenset(["messages", "lifecycle"]))
    return [event async for event in protocol.replay(lab.engine, run["thread_id"], wanted, since=since)]


def blocks(shown: list[Shown]) -> list[Any]:
    """What the messages channel shows, without the ids that differ from run to run."""
    return [(len(e.namespace), orjson.loads(e.data)) for e in shown if e.method == "messages"]


@pytest.mark.parametrize("graph", ["talks", "inside", "mumbles"])
async def test_streamed_messages_of_any_run_are_content_blocks(lab: Lab, graph: str) -> None:
    given = {"messages": [{"type": "human", "content": "hi", "id": "h"}]}
    ours = await lab.enqueue(await lab.thread(), given, assistant=graph, protocol=True)
    modes = {"stream_mode": ["messages-tuple", "values"], "stream_subgraphs": True}
    other = await lab.enqueue(await lab.thread(), given, assistant=graph, **modes)
    await lab.work()
    shown = await said(lab, other)
    assert blocks(shown) == blocks(await said(lab, ours))
    assert len(blocks(shown)) >= 4
    assert len({orjson.loads(event.json())["event_id"] for event in shown}) == len(shown)
    assert shown[-1].method == "lifecycle", "what is open ends before the run does"


@pytest.mark.parametrize("graph", ["talks", "inside", "mumbles"])
async def test_content_blocks_are_the_same_from_wherever_a_reader_comes_back(lab: Lab, graph: str) -> None:
    given = {"messages": [{"type": "human", "content": "hi", "id": "h"}]}
    modes = {"stream_mode": ["messages-tuple"], "stream_subgraphs": True}
    run = await lab.enqueue(await lab.thread(), given, assistant=graph, **modes)
    await lab.work()
    whole = await said(lab, run)
    for since in range(whole[-1].seq + 1):
        assert await said(lab, run, since=since) == [event for event in whole if event.seq > since]


async def test_event_ids_do_not_depend_on_the_channels(lab: Lab) -> None:
    given = {"messages": [{"type": "human", "content": "hi", "id": "h"}]}
    run = await lab.enqueue(await lab.thread(), given, assistant="mumbles", stream_mode=["messages-tuple"])
    await lab.work()
    whole = await said(lab, run)
    for channel in ("messages", "lifecycle"):
        alone = await shown(lab, run, Wanted(channels=frozenset([channel])))
        assert alone == [event for event in whole if event.channel == channel]


# -- what is kept


async def purge(lab: Lab) -> None:
    await lab.execute("UPDATE purges SET purge_at = now() - interval '1 s'")
    async with lab.connection() as conn:
        await sweeper.retention(conn)


async def test_a_run_started_by_the_protocol_keeps_all_its_events(lab: Lab) -> None:
    run = await tried_again(lab)
    before = await shown(lab, run)
    await purge(lab)
    assert await shown(lab, run) == before


async def test_an_open_question_of_any_run_is_kept_and_shown_until_it_is_closed(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {}, assistant="asks")
    await lab.work()
    await purge(lab)
    assert [event["event"] for event in await lab.events(run)] == ["input.requested"]
    [question] = await shown(lab, run)
    assert orjson.loads(question.data)["payload"] == "really?"
    answers = {orjson.loads(question.data)["interrupt_id"]: "yes"}
    await lab.enqueue(run["thread_id"], command={"resume": answers}, assistant="asks")
    await lab.work()
    assert "input.requested" not in [event.method for event in await shown(lab, run)]


async def test_a_deleted_run_leaves_no_question(lab: Lab) -> None:
    run = await lab.enqueue(await lab.thread(), {}, assistant="asks")
    await lab.work()
    await purge(lab)
    await runs.delete(lab.engine, run["thread_id"], run["run_id"])
    await purge(lab)
    assert await lab.events(run) == []


async def test_a_replay_reads_one_state_at_a_time_and_only_those_that_are_wanted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await tried_again(lab)
    read: list[int] = []
    original = events.data_of

    async def counted(engine: Any, thread_id: Any, seq: int) -> bytes:
        read.append(seq)
        return await original(engine, thread_id, seq)

    monkeypatch.setattr(events, "data_of", counted)
    source = protocol.replay(lab.engine, run["thread_id"], Wanted(channels=frozenset(["values"])))
    sizes = [len((await anext(source)).data) for _ in range(1)]
    assert len(read) <= 1
    sizes += [len(event.data) async for event in source]
    assert max(sizes) > 5000
    assert len(read) == 1
    read.clear()
    assert [e async for e in protocol.replay(lab.engine, run["thread_id"], ALL, states=False)]
    assert [e async for e in protocol.replay(lab.engine, run["thread_id"], Wanted(channels=frozenset(["updates"])))]
    assert read == []


async def test_a_later_attempt_does_not_read_all_earlier_ones(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = await lab.enqueue(await lab.thread(), {}, assistant="flaky", protocol=True)
    again = [{"event": event, "attempt": n} for n in range(1, 50) for event in ("running", "retrying")]
    last = {"event": "completed", "error": "\x00", "final": True}
    async with lab.engine.pool.connection() as conn:
        frames = [events.Frame.of("lifecycle", told) for told in [*again, last]]
        await events.append(conn, run["thread_id"], run["run_id"], frames)

    async def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("reads the run's whole log")

    monkeypatch.setattr(events, "named", never)
    assert await states(lab, run) == ["running", "completed"]


async def test_the_ends_of_a_run_tell_which_run_by_their_ids(lab: Lab) -> None:
    run = await tried_again(lab)
    ids = [(e.method, orjson.loads(e.json())["event_id"], e.seq) for e in await shown(lab, run)]
    told = [ident == f"synth:{run['run_id']}:{seq}" for method, ident, seq in ids if method == "lifecycle"]
    assert told == [True, True]
    assert not any(ident.startswith("synth:") for method, ident, _ in ids if method != "lifecycle")
