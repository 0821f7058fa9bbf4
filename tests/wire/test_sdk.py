"""The Python SDK against a real server: threads, runs, streams, questions, cancelling, state, store, crons."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langgraph_sdk import get_client, get_sync_client
from langgraph_sdk.client import LangGraphClient, SyncLangGraphClient
from langgraph_sdk.errors import ConflictError, NotFoundError

from tests.conftest import eventually
from tests.wire.conftest import WAIT_SECONDS


@pytest.fixture(scope="module")
def sync(wire: str) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=wire, api_key=None, timeout=WAIT_SECONDS) as client:
        yield client


@pytest.fixture
async def client(wire: str) -> AsyncIterator[LangGraphClient]:
    async with get_client(url=wire, api_key=None, timeout=WAIT_SECONDS) as client:
        yield client


def test_sync_assistants(sync: SyncLangGraphClient) -> None:
    made = sync.assistants.create("tone", context={"tone": "dry"}, metadata={"team": "wire"}, name="Dry")
    known = made["assistant_id"]
    assert sync.assistants.search(metadata={"team": "wire"})[0]["assistant_id"] == known
    assert sync.assistants.update(known, context={"tone": "warm"})["version"] == 2
    assert sync.runs.wait(None, known, input={"text": "hello"})["heard"] == "warm"
    assert [row["version"] for row in sync.assistants.get_versions(known)] == [2, 1]
    assert sync.assistants.set_latest(known, 1)["context"] == {"tone": "dry"}
    assert {node["id"] for node in sync.assistants.get_graph(known)["nodes"]} == {"__start__", "hear", "__end__"}
    assert "tone" in sync.assistants.get_schemas(known)["context_schema"]["properties"]
    sync.assistants.delete(known)
    with pytest.raises(NotFoundError):
        sync.assistants.get(known)


def test_sync_runs_streams_and_history(sync: SyncLangGraphClient) -> None:
    thread = sync.threads.create(metadata={"topic": "history"})["thread_id"]
    parts = list(sync.runs.stream(thread, "line", input={"log": ["in"]}, stream_mode=["updates", "values"]))
    assert parts[0].event == "metadata"
    assert [part.data for part in parts if part.event == "updates"] == [{n: {"log": [n]}} for n in "abc"]
    assert parts[-1].data["log"] == ["in", "a", "b", "c"]

    history = sync.threads.get_history(thread, limit=10)
    assert [state["metadata"]["step"] for state in history] == [3, 2, 1, 0, -1]
    at_a = history[2]["checkpoint"]["checkpoint_id"]
    assert sync.threads.get_state(thread, checkpoint_id=at_a)["next"] == ["b"]
    assert sync.runs.wait(thread, "line", input=None, checkpoint_id=at_a)["log"] == ["in", "a", "b", "c"]
    sync.threads.update_state(thread, {"log": ["by hand"]}, as_node="b")
    assert sync.threads.get_state(thread)["next"] == ["c"]
    assert len(sync.runs.list(thread)) == 2

    copy = sync.threads.copy(thread)
    assert copy["thread_id"] != thread
    sync.threads.delete(thread)
    assert sync.threads.get(copy["thread_id"])["values"]["log"][-1] == "by hand"


def test_sync_failure_is_raised_and_the_thread_can_go_on(sync: SyncLangGraphClient) -> None:
    thread = sync.threads.create()["thread_id"]
    with pytest.raises(Exception, match="ValueError: boom happened"):
        sync.runs.wait(thread, "fails", input={"log": []})
    assert sync.threads.get(thread)["status"] == "error"
    sync.threads.update_state(thread, {"topic": "mended"})
    assert sync.runs.wait(thread, "fails", input=None)["log"] == ["good", "boom"]


async def test_messages_are_streamed_word_by_word(client: LangGraphClient) -> None:
    thread = await client.threads.create()
    words, ids = "", set[str]()
    said: Any = {"messages": [{"role": "user", "content": "hello"}]}
    async for part in client.runs.stream(thread["thread_id"], "chat", input=said, stream_mode="messages-tuple"):
        if part.event == "messages":
            chunk, metadata = part.data
            words += chunk["content"]
            ids.add(chunk["id"])
            assert metadata["langgraph_node"] == "talk"
    assert words == "You said hello: w0 w1 w2"
    state = await client.threads.get_state(thread["thread_id"])
    assert {state["values"]["messages"][-1]["id"]} == ids


async def test_questions_are_answered_once(client: LangGraphClient) -> None:
    thread = (await client.threads.create())["thread_id"]
    asked: Any = await client.runs.wait(thread, "two", input={"log": []})
    left, right = sorted(asked["__interrupt__"], key=lambda question: question["value"])
    first: Any = await client.runs.wait(thread, "two", command={"resume": {left["id"]: "L"}})
    assert [question["id"] for question in first["__interrupt__"]] == [right["id"]]
    with pytest.raises(ConflictError):
        await client.runs.create(thread, "two", command={"resume": {left["id"]: "again"}})
    done: Any = await client.runs.wait(thread, "two", command={"resume": {right["id"]: "R"}})
    assert sorted(done["log"]) == ["left=L", "right=R"]
    assert (await client.threads.get(thread))["status"] == "idle"


async def test_a_question_in_a_subgraph_is_seen_and_answered(client: LangGraphClient) -> None:
    thread = (await client.threads.create())["thread_id"]
    events = [
        part.event
        async for part in client.runs.stream(
            thread, "nested", input={"topic": "tea"}, stream_mode=["custom", "updates"], stream_subgraphs=True
        )
    ]
    assert any(event.startswith("custom|child:") for event in events)
    state: Any = await client.threads.get_state(thread, subgraphs=True)
    assert state["tasks"][0]["state"]["values"]["topic"] == "tea!"
    done: Any = await client.runs.wait(thread, "nested", command={"resume": "yes"})
    assert done["answer"] == "yes"
    assert done["log"] == ["last"]


async def test_cancel_leaves_a_thread_that_goes_on(client: LangGraphClient, sync: SyncLangGraphClient) -> None:
    thread = (await client.threads.create())["thread_id"]
    run = await client.runs.create(thread, "slow", input={"seconds": 60})
    eventually(lambda: sync.threads.get_state(thread)["next"], lambda following: "wait" in following)
    with pytest.raises(ConflictError):
        await client.runs.create(thread, "slow", input={}, multitask_strategy="reject")
    await client.runs.cancel(thread, run["run_id"], wait=True)
    assert (await client.runs.get(thread, run["run_id"]))["status"] == "interrupted"
    await client.threads.update_state(thread, {"seconds": 0})
    goes_on: Any = await client.runs.wait(thread, "slow", input=None)
    assert goes_on["log"] == ["begin", "waited"]


async def test_a_stream_is_joined_again_where_it_was_left(client: LangGraphClient) -> None:
    thread = (await client.threads.create())["thread_id"]
    said: Any = {"messages": [{"role": "user", "content": "hi"}], "words": 30, "pause": 0.02}
    created: list[str] = []
    options: Any = {"stream_mode": "messages-tuple", "stream_resumable": True}
    text, last = "", ""
    stream = client.runs.stream(
        thread, "chat", input=said, on_run_created=lambda run: created.append(run["run_id"]), **options
    )
    async for part in stream:
        if part.event == "messages":
            text += part.data[0]["content"]
            last = part.id or ""
            if len(text) > 30:
                break
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    async for part in client.runs.join_stream(thread, created[0], last_event_id=last):
        if part.event == "messages":
            text += part.data[0]["content"]
    assert text == "You said hi:" + "".join(f" w{n}" for n in range(30))


async def test_thread_protocol_of_the_sdk(client: LangGraphClient) -> None:
    said: Any = {"messages": [{"role": "user", "content": "hello"}]}
    async with client.threads.stream(assistant_id="chat") as thread:
        await thread.run.start(input=said)
        output: Any = await thread.output
    assert output["messages"][-1]["content"] == "You said hello: w0 w1 w2"


async def test_store_is_shared_by_graphs_and_clients(client: LangGraphClient) -> None:
    await client.store.put_item(["wired", "ada"], key="tea", value={"fact": "tea"})
    found: Any = await client.runs.wait(None, "notes", input={"user": "ada", "fact": "coffee"})
    assert found["facts"] == ["coffee", "tea"]
    items = await client.store.search_items(["wired", "ada"], filter={"fact": "coffee"})
    assert [item["key"] for item in items["items"]] == ["coffee"]
    assert ["wired", "ada"] in (await client.store.list_namespaces(prefix=["wired"]))["namespaces"]
    await client.store.delete_item(["wired", "ada"], key="tea")
    assert await client.store.get_item(["wired", "ada"], key="tea") is None


async def test_crons(client: LangGraphClient) -> None:
    cron: Any = await client.crons.create("line", schedule="0 5 * * *", timezone="Europe/Berlin", input={"log": []})
    assert cron["next_run_date"]
    changed = await client.crons.update(cron["cron_id"], enabled=False)
    assert changed["enabled"] is False
    found = await client.crons.search(assistant_id=cron["assistant_id"])
    assert cron["cron_id"] in [row["cron_id"] for row in found]
    await client.crons.delete(cron["cron_id"])
    with pytest.raises(NotFoundError):
        await client.crons.delete(cron["cron_id"])
