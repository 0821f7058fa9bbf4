"""What the words rely on in LangGraph: a wait leaves the graph, siblings finish, the thread goes on with None."""

import operator
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy, Send
from typing_extensions import TypedDict

from perdure import Cancelled, agent, approval, saga, sleep, step
from perdure.durable.suspend import Suspend
from tests.durable.fakes import Bench, ScriptedModel, tool_call


class Fan(TypedDict, total=False):
    out: Annotated[list[Any], operator.add]
    n: int


def fan(worker: Any, **options: Any) -> Any:
    builder = StateGraph(Fan).add_node("worker", worker, **options)
    return builder.add_conditional_edges(START, lambda _: [Send("worker", {"n": n}) for n in range(3)], ["worker"])


async def test_siblings_of_a_wait_finish_and_do_not_run_again():
    bench, ran = Bench(), []

    async def worker(state: Fan) -> Fan:
        ran.append(state["n"])
        if state["n"] == 0:
            await sleep(60)
        return {"out": [state["n"]]}

    graph = fan(worker, retry_policy=RetryPolicy(retry_on=Exception)).compile(bench.saver)
    with pytest.raises(Suspend):
        await bench.run_graph(graph)
    bench.journal.age(60)
    assert sorted(await bench.run_graph(graph)) == [0, 1, 2]
    assert sorted(ran) == [0, 0, 1, 2]


async def test_wait_in_a_subgraph_goes_on_in_the_subgraph():
    bench, ran = Bench(), []

    async def first(state: Fan) -> Fan:
        ran.append("first")
        return {}

    async def second(state: Fan) -> Fan:
        await sleep(60)
        return {"out": ["second"]}

    inner = StateGraph(Fan).add_node("first", first).add_node("second", second)
    sub = inner.add_edge(START, "first").add_edge("first", "second").compile()

    async def call(state: Fan) -> Fan:
        return {"out": (await sub.ainvoke({"out": []}))["out"]}

    for node in (sub, call):
        bench, ran = Bench(), []
        graph = StateGraph(Fan).add_node("sub", node).add_edge(START, "sub").compile(bench.saver)
        with pytest.raises(Suspend):
            await bench.run_graph(graph)
        bench.journal.age(60)
        assert await bench.run_graph(graph) == ["second"]
        assert ran == ["first"]


async def test_wait_in_a_tool_of_an_agent_repeats_neither_model_nor_other_tools():
    ran: list[str] = []

    @tool
    async def research(topic: str) -> str:
        """Research."""
        return await agent("researcher", {"topic": topic})

    @tool
    async def look(topic: str) -> str:
        """Look."""
        ran.append(topic)
        return topic

    def answer(messages: Any) -> AIMessage:
        if messages[-1].type == "tool":
            return AIMessage("done")
        return AIMessage("", tool_calls=[tool_call("research", "a", topic="x"), tool_call("look", "b", topic="y")])

    bench, model = Bench(), ScriptedModel(answer=answer)
    middleware = [ToolRetryMiddleware(max_retries=2, initial_delay=0)]
    graph = create_agent(model, [research, look], checkpointer=bench.saver, middleware=middleware)
    config = bench.journal.restart().config()
    with pytest.raises(Suspend):
        await graph.ainvoke({"messages": [("human", "hi")]}, config)
    bench.journal.end(0, "found")
    result = await graph.ainvoke(None, bench.journal.restart().config())
    assert [message.content for message in result["messages"]][2:] == ["found", "y", "done"]
    assert ran == ["y"]
    assert len(model.calls) == 2
    assert len(bench.journal.children) == 1


async def test_cancelled_lets_siblings_undo_their_own_and_passes_error_handlers():
    bench, undone = Bench(), []

    @step
    async def undo(n: int) -> None:
        undone.append(n)

    async def worker(state: Fan) -> Fan:
        try:
            async with saga() as s:
                s.undo(undo, state["n"])
                await sleep(60)
        except Suspend:
            raise
        except Exception:
            undone.append("swallowed")
        return {}

    async def handler(state: Fan) -> Fan:
        undone.append("handled")
        return {}

    policy = RetryPolicy(retry_on=Exception, initial_interval=0.001)
    graph = fan(worker, error_handler=handler, retry_policy=policy).compile(bench.saver)
    with pytest.raises(Suspend):
        await bench.run_graph(graph)
    bench.journal.cancelling = True
    with pytest.raises(Cancelled):
        await bench.run_graph(graph)
    assert sorted(undone) == [0, 1, 2]


async def test_long_wait_between_attempts_suspends_and_goes_on_with_the_next():
    calls: list[int] = []

    @step(retry=RetryPolicy(initial_interval=100, jitter=False))
    async def flaky() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("not yet")
        return len(calls)

    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(flaky)
    with pytest.raises(Suspend):  # too early: nothing happens
        await bench.run(flaky)
    assert len(calls) == 1
    assert await bench.until_done(flaky) == 3
    assert len(bench.journal.named("flaky")[0]["attempts"]) == 3


async def test_approval_without_answer_raises_cancelled_in_a_cancelling_attempt():
    bench = Bench()

    async def node() -> bool:
        return (await approval("Pay?")).approved

    await bench.run(node)
    bench.journal.cancelling = True
    with pytest.raises(Cancelled):
        await bench.run(node)


async def test_steps_inside_a_step_count_for_themselves():
    """A replay does not execute what stands in a finished step, so it must not shift what follows."""
    paid: list[int] = []

    @step
    async def pay(amount: int) -> int:
        paid.append(amount)
        return len(paid)

    @step
    async def outer() -> int:
        return await pay(10)

    async def node() -> list[int]:
        first = await outer()
        if not bench.journal.named("pay")[1:] and len(attempts) < 2:
            attempts.append(1)
            raise RuntimeError("crash between the two payments")
        return [first, await pay(10)]

    bench, attempts = Bench(), []
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await bench.run(node)
    assert await bench.run(node) == [1, 2]
    assert paid == [10, 10]


async def test_retried_step_does_not_repeat_the_steps_inside_of_it():
    ran: list[str] = []

    @step
    async def inner() -> int:
        ran.append("inner")
        return 1

    @step(retry=RetryPolicy(initial_interval=0, jitter=False))
    async def outer() -> int:
        ran.append("outer")
        value = await inner()
        if ran.count("outer") < 3:
            raise ValueError("again")
        return value

    assert await Bench().run(outer) == 1
    assert ran == ["outer", "inner", "outer", "outer"]
