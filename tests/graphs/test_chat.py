import asyncio
import threading
from datetime import datetime
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage

from graphs.chat import WINDOW, graph
from perdure.simulator import ChatRequest, RunningSimulator
from tests.conftest import Launch, eventually

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


SHORTEN = {"message": "shorten it to 2 lines"}
SESSIONS = {
    "session123": [POEM, SHORTEN],
    "session456": [{"message": "make a poem about rivers"}, SHORTEN],
    "session789": [{"message": "make a poem about bread"}, SHORTEN],
    "session101": [{"message": "make a poem about mountains"}],
    "session202": [{"message": "make a poem about rain"}],
}


async def test_eight_sends_over_five_sessions_run_in_order_per_key_and_in_parallel_over_keys(
    serve: Launch, simulator: RunningSimulator
) -> None:
    server = serve("chat", slots=8)
    simulator.fail({"delay": 4.0, "times": len(SESSIONS)})  # the first of each key
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:

        async def session(key: str) -> list[dict[str, Any]]:
            """Send one message after the other without waiting for answers; the runs, once they have ended."""
            sent = [await http.post(f"/agents/chat/{key}/send", json=message) for message in SESSIONS[key]]
            runs = [answer.headers["content-location"] for answer in sent]
            for run in runs:
                await http.get(f"{run}/join")
            found = (await http.post("/runs/search", json={"agent": "chat"})).json()
            by_id = {run["run_id"]: run for run in found}
            return [by_id[run.rpartition("/")[2]] for run in runs]

        runs = dict(zip(SESSIONS, await asyncio.gather(*map(session, SESSIONS)), strict=True))
        histories = {key: (await http.get(f"/agents/chat/{key}/history")).json() for key in SESSIONS}
    assert {run["status"] for of_key in runs.values() for run in of_key} == {"success"}
    for key, messages in SESSIONS.items():
        assert [said["content"] for said in histories[key] if said["type"] == "human"] == [
            m["message"] for m in messages
        ]
        poem, *shortened = [said["content"] for said in histories[key] if said["type"] == "ai"]
        assert messages[0]["message"].removeprefix("make a poem about ") in poem.splitlines()[0]
        assert shortened == ["\n".join(poem.splitlines()[:2])] * (len(messages) - 1)
        for earlier, later in zip(runs[key], runs[key][1:], strict=False):
            assert times(earlier)[1] <= times(later)[0], f"two runs of {key} at once"
    first = [times(of_key[0]) for of_key in runs.values()]
    together = max(sum(begun <= moment < ended for begun, ended in first) for moment, _ in first)
    assert together >= 3, f"only {together} of five keys were answered at the same time"
    assert len(simulator.requests) == 8


def times(run: dict[str, Any]) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(run["started_at"]), datetime.fromisoformat(run["ended_at"])


def test_history_never_waits_and_the_state_can_be_edited_and_cleared(
    serve: Launch, simulator: RunningSimulator
) -> None:
    server = serve("chat")
    with httpx.Client(base_url=server.url, timeout=60) as http:
        poem = http.post("/agents/chat/session123/run", json=POEM).json()["answer"]
        gate = threading.Event()

        def gated(request: ChatRequest) -> None:
            gate.wait(60)

        simulator.simulator.rules.insert(0, gated)
        busy = http.post("/agents/chat/session123/send", json=SHORTEN).headers["content-location"]
        eventually(lambda: http.get(busy).json()["status"] == "running")
        history = http.get("/agents/chat/session123/history").json()
        assert http.get(busy).json()["status"] == "running"
        assert [said["content"] for said in history] == [POEM["message"], poem]
        gate.set()
        assert http.get(f"{busy}/join").json()["answer"] == "\n".join(poem.splitlines()[:2])

        thread = busy.rpartition("/runs/")[0]
        last = http.get("/agents/chat/session123/history").json()[-1]
        edited = {"messages": [{**last, "content": "My own line\nand another one"}]}
        assert http.post(f"{thread}/state", json={"values": edited, "as_node": "turn"}).status_code == 200
        one_line = http.post("/agents/chat/session123/run", json={"message": "shorten it to one line"})
        assert one_line.json()["answer"] == "My own line"

        assert http.delete("/agents/chat/session123/state").status_code == 204
        assert http.get("/agents/chat/session123/history").json() == []
        forgotten = http.post("/agents/chat/session123/run", json=SHORTEN).json()
        assert forgotten["answer"] == "There is nothing to shorten yet."
