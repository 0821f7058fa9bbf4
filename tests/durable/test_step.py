"""A finished step is never executed again; an unfinished one goes on where it was."""

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, RetryPolicy, interrupt

from perdure import step
from tests.durable.fakes import Bench, FakeJournal, Killed, StepMismatch, graph_of

FAST = RetryPolicy(initial_interval=0.001, jitter=False)


async def test_finished_step_is_not_executed_again_after_a_crash():
    calls: list[str] = []
    alive = False

    @step
    async def charge(amount: int) -> str:
        calls.append("charge")
        return f"paid {amount}"

    @step
    async def ship(order: str) -> str:
        calls.append("ship")
        if not alive:
            raise Killed
        return f"shipped: {order}"

    async def node() -> str:
        return await ship(await charge(5))

    bench = Bench()
    with pytest.raises(Killed):
        await bench.run(node)
    alive = True
    assert await bench.run(node) == "shipped: paid 5"
    assert calls == ["charge", "ship", "ship"]


async def test_step_whose_result_was_not_saved_is_executed_again():
    calls: list[int] = []

    @step
    async def effect() -> int:
        calls.append(1)
        return len(calls)

    bench = Bench()
    bench.journal.die_at_save = True
    with pytest.raises(Killed):
        await bench.run(effect)
    bench.journal.die_at_save = False
    assert await bench.run(effect) == 2


async def test_sync_function_runs_in_a_thread_with_its_context():
    both_are_in = threading.Barrier(2, timeout=60)

    @step
    def slow(x: int) -> str:
        both_are_in.wait()  # raises BrokenBarrierError if they come one after the other
        return f"{x} {step.idempotency_key() != ''}"

    async def node() -> list[str]:
        return list(await asyncio.gather(slow(1), slow(2)))

    assert await Bench().run(node) == ["1 True", "2 True"]


async def test_concurrent_steps_get_their_own_results_whatever_their_order_on_replay():
    calls: list[int] = []
    order = [0, 1, 2]

    @step
    async def square(x: int) -> int:
        await asyncio.sleep(0.001 * (3 - x))
        calls.append(x)
        return x * x

    async def node() -> dict[str, int]:
        found = dict(zip(order, await asyncio.gather(*(square(x) for x in order)), strict=True))
        if len(calls) == 3 and order[0] == 0:
            raise Killed
        return {str(x): found[x] for x in sorted(found)}

    bench = Bench()
    with pytest.raises(Killed):
        await bench.run(node)
    order.reverse()
    assert await bench.run(node) == {"0": 0, "1": 1, "2": 4}
    assert sorted(calls) == [0, 1, 2]


async def test_equal_calls_in_one_node_are_two_calls():
    calls: list[int] = []
    keys: list[str] = []

    @step
    async def draw() -> int:
        calls.append(1)
        keys.append(step.idempotency_key())
        return len(calls)

    async def node() -> list[int]:
        drawn = [await draw(), await draw()]
        if len(bench.journal.saves) == 2 and not replay:
            raise Killed
        return drawn

    bench, replay = Bench(), False
    with pytest.raises(Killed):
        await bench.run(node)
    replay = True
    assert await bench.run(node) == [1, 2]
    assert len(calls) == len(set(keys)) == 2


async def test_nested_steps_keep_the_inner_result_when_the_outer_one_dies():
    calls: list[str] = []

    @step
    async def inner() -> str:
        calls.append("inner")
        return "in"

    @step
    async def outer() -> str:
        calls.append("outer")
        value = await inner()
        if calls.count("outer") == 1:
            raise Killed
        return value + "/out"

    bench = Bench()
    with pytest.raises(Killed):
        await bench.run(outer)
    assert await bench.run(outer) == "in/out"
    assert calls == ["outer", "inner", "outer"]


async def test_node_retry_policy_replays_the_finished_steps():
    calls: list[str] = []

    @step
    async def once_only() -> str:
        calls.append("step")
        return "value"

    async def node() -> str:
        value = await once_only()
        calls.append("node")
        if calls.count("node") < 3:
            raise ConnectionError("not yet")
        return value

    bench = Bench()
    assert await bench.run(node, retry=RetryPolicy(initial_interval=0.001, jitter=False)) == "value"
    assert calls == ["step", "node", "node", "node"]
    assert [row["visit"] for row in bench.journal.saves] == [1]


async def test_changed_arguments_are_an_error_and_not_another_ones_result():
    amount = 5

    @step
    async def pay(amount: int) -> int:
        return amount

    async def node() -> int:
        paid = await pay(amount)
        if amount == 5:
            raise Killed
        return paid

    bench = Bench()
    with pytest.raises(Killed):
        await bench.run(node)
    amount = 6
    with pytest.raises(StepMismatch):
        await bench.run(node)


async def test_interrupt_inside_of_a_step_leaves_no_trace():
    calls: list[int] = []

    @step
    async def ask() -> str:
        calls.append(1)
        return f"you said {interrupt('what?')}"

    bench = Bench()
    (question,) = await bench.run(ask)
    assert question.value == "what?"
    assert bench.journal.saves == []
    assert await bench.run(ask, Command(resume="hi")) == "you said hi"
    assert len(calls) == 2


async def test_explicit_key_identifies_the_call_instead_of_its_arguments():
    calls: list[int] = []

    @step(name="send", key=lambda client, to: to)
    async def send_mail(client: object, to: str) -> str:
        calls.append(1)
        return step.idempotency_key()

    async def node() -> list[str]:
        keys = [await send_mail(object(), "a"), await send_mail(object(), "b")]
        if not replay:
            raise Killed
        return keys

    bench, replay = Bench(), False
    with pytest.raises(Killed):
        await bench.run(node)
    replay = True
    keys = await bench.run(node)
    assert len(calls) == len(set(keys)) == 2
    assert [row["key"] for row in bench.journal.named("send")] == ["a", "b"]


async def test_idempotency_key_outside_of_a_step_is_an_error():
    with pytest.raises(RuntimeError, match="only inside of a @step"):
        step.idempotency_key()


async def test_generators_tools_and_durations_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match="generator"):

        @step
        async def stream():  # type: ignore[no-untyped-def]
            yield 1

    with pytest.raises(ValueError, match="positive"):
        step(timeout=0)


async def test_tokens_stream_through_a_step_and_a_replay_does_not_call_the_model():
    model = GenericFakeChatModel(messages=iter([AIMessage("durable agents go on", id="m1")]))

    @step
    async def answer(messages: list[AnyMessage]) -> Any:
        return await model.ainvoke(messages)

    async def node(state: MessagesState) -> Any:
        message = await answer(state["messages"])
        if not replay:
            raise Killed
        return {"messages": [message]}

    saver, journal, replay, tokens = InMemorySaver(), FakeJournal(), False, list[str]()
    graph: Any = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node").compile(saver)

    async def read(entry: Any) -> None:
        tokens.clear()
        options: Any = {"stream_mode": "messages", "durability": "sync"}
        async for chunk, _ in graph.astream(entry, journal.restart().config(), **options):
            tokens.append(chunk.text)

    with pytest.raises(Killed):
        await read({"messages": [HumanMessage("hi")]})
    assert len(tokens) > 3
    assert "".join(tokens) == "durable agents go on"
    replay = True
    await read(None)
    assert tokens == ["durable agents go on"]


async def test_without_a_journal_a_step_is_a_task_of_langgraph():
    calls: list[int] = []

    @step(retry=FAST)
    async def number() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("once")
        assert step.idempotency_key()
        return 7

    async def node() -> Any:
        return [await number(), interrupt("go on?")]

    graph = graph_of(node, saver=InMemorySaver())
    config = {"configurable": {"thread_id": "t"}}
    await graph.ainvoke({}, config)
    assert (await graph.ainvoke(Command(resume=True), config))["out"] == [7, True]
    assert len(calls) == 2


async def test_without_a_graph_or_a_checkpointer_a_step_is_its_function():
    @step
    async def double(x: int) -> int:
        return 2 * x

    assert await double(4) == 8
    assert (await graph_of(lambda: double(5)).ainvoke({}))["out"] == 10
