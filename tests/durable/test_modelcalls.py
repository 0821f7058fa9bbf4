"""What an attempt of a step says about the models that it has called."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk
from langgraph.types import RetryPolicy

from perdure import step
from tests.durable.fakes import Bench, ScriptedModel, graph_of


def answer(_: Sequence[BaseMessage]) -> AIMessage:
    return AIMessage("hello", usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5})


def of(name: str, calls: int, tokens_in: int, tokens_out: int) -> dict[str, Any]:
    used = {"calls": calls, "input_tokens": tokens_in, "output_tokens": tokens_out}
    return {**used, "names": {name: used}}


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
    assert attempts(bench, "ask") == [of("scripted", 2, 6, 4), of("scripted", 3, 9, 6)]


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
    assert attempts(bench, "ask") == [of("scripted", 1, 0, 0)]


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


async def test_models_are_told_apart_by_the_names_that_the_author_uses() -> None:
    class Mini(ScriptedModel):
        def _get_ls_params(self, *args: Any, **kwargs: Any) -> Any:
            return {"ls_model_name": "gpt-5-mini", "ls_model_type": "chat"}

    @step
    async def ask() -> str:
        await Mini(answer=answer).ainvoke("one")
        return (await ScriptedModel(answer=answer).ainvoke("two")).text

    bench = Bench()
    await bench.run(ask)
    (said,) = attempts(bench, "ask")
    assert said["calls"] == 2
    assert said["names"] == {name: of(name, 1, 3, 2)["names"][name] for name in ("gpt-5-mini", "scripted")}


@pytest.mark.parametrize(
    "first",
    [
        AIMessageChunk("hello"),
        AIMessageChunk("", tool_call_chunks=[{"name": "pay", "args": "", "id": "1", "index": 0}]),
    ],
    ids=["text", "tool call"],
)
async def test_the_first_token_of_a_stream_is_timed(first: AIMessageChunk) -> None:
    class Slow(GenericFakeChatModel):
        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
            for message in (AIMessageChunk(""), first, AIMessageChunk("more")):
                await asyncio.sleep(0.02)
                yield ChatGenerationChunk(message=message)

    @step
    async def ask() -> str:
        return "".join([chunk.text async for chunk in Slow(messages=iter(())).astream("one")])

    bench = Bench()
    await bench.run(ask)
    (attempt,) = bench.journal.named("ask")[0]["attempts"]
    assert 0.04 <= attempt["model"]["first_token_seconds"] <= attempt["seconds"] - 0.02


async def test_without_a_stream_there_is_no_first_token() -> None:
    @step
    async def ask() -> str:
        return (await ScriptedModel(answer=answer).ainvoke("one")).text

    bench = Bench()
    await bench.run(ask)
    assert "first_token_seconds" not in attempts(bench, "ask")[0]
