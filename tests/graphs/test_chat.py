from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from graphs.chat import WINDOW, graph
from perdure.simulator import RunningSimulator

CONFIG: Any = {"configurable": {"thread_id": "session123"}}
POEM = {"message": "make a poem about durable execution"}


async def test_conversation_is_remembered(simulator: RunningSimulator, served: Any) -> None:
    chat = served(graph)
    poem = await chat.ainvoke(POEM, CONFIG)
    assert "durable execution" in poem["answer"]
    short = await chat.ainvoke({"message": "shorten it to 2 lines"}, CONFIG)
    assert short == {"answer": "\n".join(poem["answer"].splitlines()[:2])}
    messages = (await chat.aget_state(CONFIG)).values["messages"]
    assert [message.type for message in messages] == ["human", "ai", "human", "ai"]
    assert len({message.id for message in messages}) == 4
    assert len(simulator.requests) == 2


async def test_other_key_is_another_conversation(simulator: RunningSimulator, served: Any) -> None:
    chat = served(graph)
    await chat.ainvoke(POEM, CONFIG)
    other: Any = {"configurable": {"thread_id": "session456"}}
    result = await chat.ainvoke({"message": "shorten it to 2 lines"}, other)
    assert result["answer"] == "There is nothing to shorten yet."


async def test_takes_the_messages_of_a_chat_front_end(simulator: RunningSimulator, served: Any) -> None:
    chat = served(graph)
    await chat.ainvoke(POEM, CONFIG)
    await chat.ainvoke({"messages": [{"role": "user", "content": "shorten it to one line"}]}, CONFIG)
    messages = (await chat.aget_state(CONFIG)).values["messages"]
    assert [message.type for message in messages] == ["human", "ai", "human", "ai"]
    assert messages[-1].text == "A poem about durable execution:"


async def test_failing_model_loses_no_message(simulator: RunningSimulator, served: Any) -> None:
    chat = served(graph)
    simulator.fail({"status": 429, "times": 3})
    with pytest.raises(Exception, match="429") as failure:
        await chat.ainvoke(POEM, CONFIG)
    assert getattr(failure.value, "retryable", None) is True
    assert "durable execution" in (await chat.ainvoke(None, CONFIG))["answer"]
    assert [entry.outcome for entry in simulator.requests] == ["429"] * 3 + ["answered"]


async def test_model_is_sent_the_last_messages_only(simulator: RunningSimulator, served: Any) -> None:
    chat = served(graph)
    old = [(HumanMessage(f"question {n}"), AIMessage(f"answer {n}")) for n in range(500)]
    await chat.aupdate_state(CONFIG, {"messages": [message for pair in old for message in pair]}, "turn")
    await chat.ainvoke({"message": "hello"}, CONFIG)
    sent = simulator.requests[-1].messages
    assert len(sent) <= WINDOW + 1
    assert [message["role"] for message in sent[:2]] == ["system", "user"]
    assert sent[-1]["content"] == "hello"
    assert len((await chat.aget_state(CONFIG)).values["messages"]) == 1002


async def test_answer_streams_token_by_token(simulator: RunningSimulator, served: Any) -> None:
    tokens = [
        chunk
        async for chunk, _ in served(graph).astream(POEM, CONFIG, stream_mode="messages")
        if chunk.type == "AIMessageChunk" and chunk.text
    ]
    assert len(tokens) > 10
    assert len({token.id for token in tokens}) == 1
    assert simulator.requests[0].stream
