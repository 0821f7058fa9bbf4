"""Stream mode `events`: LangChain's events of a run, through the SDK."""

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from langgraph_sdk import get_sync_client

from tests.api.conftest import serve

GRAPHS = '''
"""Graphs of the tests of stream mode `events`."""

from typing import Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from langchain_core.callbacks import adispatch_custom_event

import perdure


@tool
def double(n: int) -> int:
    """Twice n."""
    return 2 * n


@perdure.step
async def count() -> int:
    return 1


async def talk(state: MessagesState) -> Any:
    await count()
    model = GenericFakeChatModel(messages=iter([AIMessage("one two", id="m1")]))
    await double.ainvoke({"name": "double", "args": {"n": 4}, "id": "c1", "type": "tool_call"})
    await adispatch_custom_event("progress", {"done": 1})
    return {"messages": [await model.ainvoke(state["messages"]), AIMessage("x" * 5000)]}


async def ask(state: MessagesState) -> Any:
    return {"messages": [str(interrupt("really?"))]}


async def fail(state: MessagesState) -> Any:
    raise ValueError("boom")


async def nap(state: MessagesState) -> Any:
    await perdure.sleep(5)  # far more than is waited for in memory
    return {"messages": ["slept"]}


def single(node: Any) -> Any:
    return StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile()


talks, asks, fails, naps = single(talk), single(ask), single(fail), single(nap)
outer = StateGraph(MessagesState).add_node("inner", talks).add_edge(START, "inner").compile()
'''
NAMES = ("talks", "asks", "fails", "naps", "outer")


@pytest.fixture(scope="module")
def client(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("events")
    (folder / "wired.py").write_text(GRAPHS)
    (folder / "langgraph.json").write_bytes(orjson.dumps({"graphs": {n: f"./wired.py:{n}" for n in NAMES}}))
    with serve(database_url, folder / "langgraph.json") as url, get_sync_client(url=url) as client:
        yield client


def parts(client: Any, graph: str, **options: Any) -> tuple[str, list[Any]]:
    """The thread, and all parts of a run's stream."""
    thread_id = client.threads.create()["thread_id"]
    given = {"input": {"messages": [{"type": "human", "content": "hi", "id": "h"}]}, **options}
    return thread_id, list(client.runs.stream(thread_id, graph, **given))


def events(found: list[Any]) -> list[dict[str, Any]]:
    return [part.data for part in found if part.event == "events"]


def test_events_of_models_tools_and_nodes_are_told(client: Any) -> None:
    _, found = parts(client, "talks", stream_mode="events")
    assert {part.event for part in found} == {"metadata", "events"}, "nothing that was not asked for"
    told = events(found)
    assert (told[0]["event"], told[0]["data"]["input"]["messages"][0]["content"]) == ("on_chain_start", "hi")
    assert (told[-1]["event"], told[-1]["run_id"]) == ("on_chain_end", told[0]["run_id"])
    assert told[0]["run_id"] == found[0].data["run_id"]
    words = [e["data"]["chunk"]["content"] for e in told if e["event"] == "on_chat_model_stream"]
    assert "".join(words) == "one two"
    [ended] = [e for e in told if e["event"] == "on_tool_end"]
    assert (ended["name"], ended["data"]["output"]["content"]) == ("double", "8")
    [custom] = [e for e in told if e["event"] == "on_custom_event"]
    assert (custom["name"], custom["data"]) == ("progress", {"done": 1})
    [node] = [e for e in told if e["event"] == "on_chain_start" and e["name"] == "node"]
    assert node["parent_ids"] == [told[0]["run_id"]]
    assert node["metadata"]["langgraph_node"] == "node"
    for one in told:
        assert one.keys() >= {"event", "name", "run_id", "tags", "metadata", "data", "parent_ids"}
        assert not [key for key in one["metadata"] if key.startswith("__")]


@pytest.mark.parametrize("subgraphs", [False, True])
@pytest.mark.parametrize("graph", ["talks", "outer"])
def test_other_modes_are_the_same_beside_events(client: Any, graph: str, subgraphs: bool) -> None:
    modes = ["values", "updates", "messages-tuple", "custom"]
    options = {"stream_subgraphs": subgraphs, "stream_resumable": True}
    _, plain = parts(client, graph, stream_mode=modes, **options)
    thread_id, both = parts(client, graph, stream_mode=[*modes, "events"], **options)
    others = [part for part in both if part.event != "events"]
    assert len(events(both)) > 5

    def shown(found: list[Any]) -> list[Any]:
        """Event names, and of the states their messages: ids differ from run to run."""
        return [
            (part.event.partition(":")[0], [m["content"] for m in part.data.get("messages", [])])
            if part.event.startswith("values")
            else part.event.partition(":")[0]
            for part in found
        ]

    assert shown(others) == shown(plain)
    replayed = list(client.runs.join_stream(thread_id, both[0].data["run_id"], last_event_id="-1"))
    assert [(part.event, part.data) for part in replayed] == [(part.event, part.data) for part in both]


def test_questions_failures_and_waits_end_a_run_as_ever(client: Any) -> None:
    thread_id, found = parts(client, "asks", stream_mode=["events", "values"])
    last = [part.data for part in found if part.event == "values"][-1]
    assert last["__interrupt__"][0]["value"] == "really?"
    again = list(client.runs.stream(thread_id, "asks", command={"resume": "yes"}, stream_mode=["events", "updates"]))
    [update] = [part.data for part in again if part.event == "updates"]
    assert update["node"]["messages"] == ["yes"] or update["node"]["messages"][0]["content"] == "yes"
    _, found = parts(client, "fails", stream_mode="events")
    assert (found[-1].event, found[-1].data) == ("error", {"error": "ValueError", "message": "boom"})
    thread_id, found = parts(client, "naps", stream_mode="events")
    assert [part.data["attempt"] for part in found if part.event == "metadata"] == [1, 2]
    assert client.threads.get_state(thread_id)["values"]["messages"][-1]["content"] == "slept"
