"""What an attempt of a step says about the models that it has called."""

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langgraph.types import RetryPolicy

from perdure import step
from tests.durable.fakes import Bench, ScriptedModel, graph_of


def answer(_: Sequence[BaseMessage]) -> AIMessage:
    return AIMessage("hello", usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5})


def attempts(bench: Bench, name: str) -> list[Any]:
    return [attempt.get("model") for row in bench.journal.named(name) for attempt in row["attempts"]]


async def test_calls_and_tokens_are_counted_per_attempt() -> None:
    model, failures = ScriptedModel(answer=answer), [ConnectionError("cut")]

    @step(retry=RetryPolicy(initial_interval=0, jitter=False, max_attempts=2))
    async def ask() -> str:
        await asyncio.gather(model.ainvoke("one"), (model | (lambda message: message)).ainvoke("two"))
        if failures:
            raise failures.pop()
        return (await model.ainvoke("three")).text

    bench = Bench()
    assert await bench.run(ask) == "hello"
    assert attempts(bench, "ask") == [
        {"calls": 2, "input_tokens": 6, "output_tokens": 4},
        {"calls": 3, "input_tokens": 9, "output_tokens": 6},
    ]


async def test_a_call_that_fails_counts() -> None:
    def refuse(_: Sequence[BaseMessage]) -> AIMessage:
        raise RuntimeError("overloaded")

    model = ScriptedModel(answer=refuse)

    @step
    async def ask() -> str:
        try:
            return (await model.ainvoke("one")).text
        except RuntimeError:
            return "nothing"

    bench = Bench()
    assert await bench.run(ask) == "nothing"
    assert attempts(bench, "ask") == [{"calls": 1, "input_tokens": 0, "output_tokens": 0}]


async def test_a_step_inside_of_a_step_counts_for_itself_and_a_graph_inside_of_it_for_the_step() -> None:
    model = ScriptedModel(answer=answer)

    @step
    async def inner() -> str:
        return (await model.ainvoke("inner")).text

    async def node() -> str:
        return (await model.ainvoke("in a graph")).text

    @step
    async def outer() -> str:
        await inner()
        return (await graph_of(node).ainvoke({}))["out"]

    bench = Bench()
    assert await bench.run(outer) == "hello"
    assert [calls["calls"] for calls in attempts(bench, "inner")] == [1]
    assert [calls["calls"] for calls in attempts(bench, "outer")] == [1]


async def test_a_step_without_a_model_says_nothing() -> None:
    model = ScriptedModel(answer=answer)

    @step
    async def work() -> str:
        return "done"

    async def node() -> str:
        await model.ainvoke("outside of any step")
        return await work()

    bench = Bench()
    assert await bench.run(node) == "done"
    assert attempts(bench, "work") == [None]
