"""RemoteGraph, as a client of a real server and as a node of a graph that runs in this process."""

from collections.abc import AsyncIterator, Callable
from operator import add
from typing import Annotated, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command
from langgraph_sdk import get_client, get_sync_client
from typing_extensions import TypedDict

Remote = Callable[[str], RemoteGraph]


class Local(TypedDict, total=False):
    log: Annotated[list[str], add]


@pytest.fixture
async def remote(wire: str) -> AsyncIterator[Remote]:
    """A graph of the server by its name; its connections are closed after the test."""
    async with get_client(url=wire, api_key=None) as client:
        with get_sync_client(url=wire, api_key=None) as sync_client:
            yield lambda name: RemoteGraph(name, client=client, sync_client=sync_client, name=name)


def config_of(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def test_it_invokes_and_streams(remote: Remote) -> None:
    graph = remote("line")
    assert graph.invoke({"log": ["in"]}) == {"log": ["in", "a", "b", "c"]}
    assert list(graph.stream({"log": []}, stream_mode="updates")) == [{n: {"log": [n]}} for n in "abc"]


async def test_it_invokes_and_streams_async(remote: Remote) -> None:
    graph = remote("line")
    assert (await graph.ainvoke({"log": []}))["log"] == ["a", "b", "c"]
    parts = [part async for part in graph.astream({"log": []}, stream_mode=["updates", "values"])]
    assert (parts[-1].event, parts[-1].data) == ("values", {"log": ["a", "b", "c"]})


async def test_it_reads_writes_and_lists_states(remote: Remote, thread: str) -> None:
    graph, config = remote("line"), config_of(thread)
    await graph.ainvoke({"log": []}, config)
    state = await graph.aget_state(config)
    assert state.values == {"log": ["a", "b", "c"]}
    history = [past async for past in graph.aget_state_history(config, limit=10)]
    assert [past.next for past in history] == [(), ("c",), ("b",), ("a",), ("__start__",)]
    at_b = await graph.aget_state(history[2].config)
    assert at_b.next == ("b",)
    assert at_b.tasks[0].name == "b"
    forked = await graph.aupdate_state(history[2].config, {"log": ["other"]}, as_node="b")
    assert (await graph.aget_state(forked)).values == {"log": ["a", "other"]}
    assert [node.id for node in (await graph.aget_graph()).nodes.values()][1] == "a"


async def test_it_sees_questions_and_answers_them(remote: Remote, thread: str) -> None:
    graph, config = remote("nested"), config_of(thread)
    asked = await graph.ainvoke({"topic": "tea"}, config)
    assert asked["__interrupt__"][0]["value"] == {"confirm": "tea!"}
    state = await graph.aget_state(config, subgraphs=True)
    assert state.interrupts[0].value == {"confirm": "tea!"}
    inner: Any = state.tasks[0].state
    assert inner.values["topic"] == "tea!"
    done = await graph.ainvoke(Command(resume="yes"), config)
    assert done["answer"] == "yes"


async def test_a_failure_is_raised(remote: Remote) -> None:
    with pytest.raises(Exception, match="boom happened"):
        await remote("fails").ainvoke({"log": []})


async def test_as_a_node_its_question_stops_the_outer_graph(remote: Remote, thread: str) -> None:
    """RemoteGraph does not pass answers on, it starts again: the question is answered at the server."""
    builder = StateGraph(Local).add_node("remote", remote("asks")).add_edge(START, "remote")
    outer = builder.compile(checkpointer=InMemorySaver())
    asked: Any = await outer.ainvoke({"log": ["in"]}, config_of(thread))
    [question] = asked["__interrupt__"]
    assert question.value == {"question": "really?"}
    done = await remote("asks").ainvoke(Command(resume={question.id: "yes"}), config_of(thread))
    assert done["log"] == ["in", "before", "asked", "after"]


async def test_as_a_node_its_output_goes_on_in_the_outer_graph(remote: Remote, thread: str) -> None:
    builder = StateGraph(Local).add_node("remote", remote("line")).add_node("local", lambda state: {"log": ["local"]})
    builder.add_edge(START, "remote").add_edge("remote", "local")
    outer = builder.compile(checkpointer=InMemorySaver())
    done: Any = await outer.ainvoke({"log": []}, config_of(thread))
    assert done["log"][-4:] == ["a", "b", "c", "local"]


async def test_frames_of_the_node_come_out_of_the_outer_stream(remote: Remote) -> None:
    builder = StateGraph(Local)
    builder.add_node("remote", remote("line"))
    outer = builder.add_edge(START, "remote").compile()
    parts: list[Any] = [part async for part in outer.astream({"log": []}, stream_mode="updates", subgraphs=True)]
    assert [part for namespace, part in parts if namespace] == [{n: {"log": [n]}} for n in "abc"]
