"""The simulator through langchain-openai, the client that the graphs use."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from perdure.simulator import ChatRequest, Reply, RunningSimulator, ToolCall, start


class Person(BaseModel):
    name: str
    age: int


@tool
def look_up(city: str) -> str:
    """Look a city up."""
    return city


def greet(request: ChatRequest) -> Reply | None:
    return Reply(text="Hello there, how are you?") if request.prompt == "hi" else None


def people(request: ChatRequest) -> Reply | None:
    wanted = request.forced_tool == "Person" or (request.schema or {}).get("title") == "Person"
    return Reply(data={"name": "Ada", "age": 36}) if wanted and request.prompt != "anyone" else None


def cities(request: ChatRequest) -> Reply | None:
    if not request.offers("look_up"):
        return None
    if request.tool_results:
        return Reply(text=" ".join(f"{r.name}({r.args['city']})={r.content}" for r in request.tool_results))
    return Reply(tool_calls=[ToolCall("look_up", {"city": city}) for city in request.prompt.split()])


def broken(request: ChatRequest) -> Reply | None:
    return Reply(text=str(1 // 0)) if request.prompt == "break" else None


@pytest.fixture
async def simulator() -> AsyncIterator[RunningSimulator]:
    with start([greet, people, cities, broken]) as running:
        yield running


@pytest.fixture
async def model(simulator: RunningSimulator) -> AsyncIterator[Callable[..., ChatOpenAI]]:
    made: list[ChatOpenAI] = []

    def make(**options: Any) -> ChatOpenAI:
        options = {"max_retries": 0, "stream_usage": True, "timeout": 60} | options
        made.append(ChatOpenAI(model="m", base_url=simulator.openai_url, api_key="none", **options))
        return made[-1]

    yield make
    for client in made:
        await client.root_async_client.close()


async def test_answers_with_usage(model: Any) -> None:
    answer = await model().ainvoke("hi")
    assert answer.text == "Hello there, how are you?"
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


async def test_streams_word_by_word_and_ends_with_usage(model: Any) -> None:
    chunks = [chunk async for chunk in model().astream("hi")]
    assert [chunk.text for chunk in chunks if chunk.text] == ["Hello", " there,", " how", " are", " you?"]
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1


@pytest.mark.parametrize("streaming", [False, True])
async def test_parallel_tool_calls_and_their_results(model: Any, streaming: bool) -> None:
    agent = model(streaming=streaming).bind_tools([look_up])
    asked = await agent.ainvoke("Rome Oslo")
    assert [call["args"] for call in asked.tool_calls] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert len({call["id"] for call in asked.tool_calls}) == 2
    results = [ToolMessage(call["args"]["city"].upper(), tool_call_id=call["id"]) for call in asked.tool_calls]
    answer = await agent.ainvoke([HumanMessage("Rome Oslo"), asked, *results])
    assert answer.text == "look_up(Rome)=ROME look_up(Oslo)=OSLO"


async def test_only_one_tool_call_when_parallel_calls_are_off(model: Any) -> None:
    asked = await model().bind_tools([look_up], parallel_tool_calls=False).ainvoke("Rome Oslo")
    assert len(asked.tool_calls) == 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(model: Any, method: str) -> None:
    structured = model().with_structured_output(Person, method=method)
    assert await structured.ainvoke("who?") == Person(name="Ada", age=36)
    assert await structured.ainvoke("anyone") == Person(name="simulated", age=0)


async def test_without_a_rule_it_says_what_it_heard(model: Any) -> None:
    assert (await model().ainvoke("anything")).text == "(simulated) You said: anything"


async def test_log_holds_every_request(simulator: RunningSimulator, model: Any) -> None:
    await model().bind_tools([look_up]).ainvoke("hi")
    [entry] = simulator.requests
    assert (entry.model, entry.tools, entry.stream, entry.outcome) == ("m", ["look_up"], False, "answered")
    assert entry.messages == [{"role": "user", "content": "hi"}]
    assert entry.time > 0


async def test_failing_rule_is_a_bad_request_that_names_it(model: Any) -> None:
    with pytest.raises(Exception, match=r"Rule 'broken' raised ZeroDivisionError") as failure:
        await model().ainvoke("break")
    assert getattr(failure.value, "status_code", None) == 400
