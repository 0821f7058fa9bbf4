"""mailbox and emit: what comes in and goes out while a node works."""

from typing import Any

import pytest

from perdure import emit, mailbox, step
from tests.durable.fakes import Bench, crash_everywhere, graph_of


async def test_messages_come_once_in_order_and_again_on_replay():
    bench = Bench()
    seen: list[Any] = []

    async def node() -> Any:
        first = await mailbox()
        if not seen:
            seen.append(first)
            bench.journal.inbox.append("late")
            raise RuntimeError
        return [first, await mailbox(), await mailbox()]

    bench.journal.inbox += ["a", {"b": 1}]
    with pytest.raises(RuntimeError):
        await bench.run(node)
    assert seen == [["a", {"b": 1}]]
    assert await bench.run(node) == [["a", {"b": 1}], ["late"], []]


async def test_crash_at_each_point_loses_no_message():
    @step
    async def after() -> None: ...

    async def node() -> Any:
        messages = await mailbox()
        await after()
        return messages

    async def scenario(bench: Bench) -> None:
        bench.journal.inbox.append("m")
        assert await bench.until_done(node) == ["m"]

    assert await crash_everywhere(scenario) == 2


async def test_mailbox_is_empty_without_a_journal():
    assert (await graph_of(mailbox).ainvoke({}))["out"] == []
    assert await mailbox() == []


async def test_emit_is_a_custom_stream_event():
    async def node() -> None:
        emit({"plain": 1})
        emit("progress", {"done": 3})
        emit("nothing", None)

    chunks = [chunk async for chunk in graph_of(node).astream({}, stream_mode="custom")]
    assert chunks == [
        {"plain": 1},
        *({"name": n, "payload": p} for n, p in (("progress", {"done": 3}), ("nothing", None))),
    ]


async def test_emit_in_a_finished_step_is_not_repeated():
    bench = Bench()

    @step
    async def work() -> None:
        emit("in step")

    async def node() -> None:
        await work()
        emit("in node")
        if not crashed:
            crashed.append(1)
            raise RuntimeError

    crashed: list[int] = []
    chunks: list[Any] = []
    graph = graph_of(node, saver=bench.saver)
    for entry in ({}, None):
        try:
            async for chunk in graph.astream(entry, bench.journal.restart().config(), stream_mode="custom"):
                chunks.append(chunk)
        except RuntimeError:
            pass
    assert chunks == ["in step", "in node", "in node"]


async def test_emit_outside_of_a_graph_does_nothing_and_checks_its_name():
    emit({"x": 1})
    with pytest.raises(TypeError, match="must be a text"):
        emit(3, {})  # type: ignore[call-overload]
