"""Chunks of chat models become content-block events."""

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk

from perdure.engine.blocks import Blocks

METADATA = {"langgraph_node": "talk", "ls_provider": "openai", "ls_model_name": "m", "other": 1}


def chunk(content: Any = "", **more: Any) -> AIMessageChunk:
    return AIMessageChunk(content=content, id="m", **more)


def call(args: str | None, *, name: str | None = None, ident: str | None = None, index: int = 0) -> AIMessageChunk:
    part = {"type": "tool_call_chunk", "args": args, "name": name, "id": ident, "index": index}
    return chunk(tool_call_chunks=[part])


def told(*messages: AIMessage, metadata: dict[str, Any] = METADATA) -> list[dict[str, Any]]:
    blocks = Blocks()
    return [event for message in messages for event in blocks.of(message, metadata)]


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_text_comes_in_deltas_and_ends_with_the_whole_and_its_usage() -> None:
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    events = told(
        chunk("a "),
        chunk("b"),
        chunk(usage_metadata=usage, response_metadata={"finish_reason": "stop"}),
        chunk(chunk_position="last"),
    )
    assert events[0]["metadata"] == {"langgraph_node": "talk", "provider": "openai", "model": "m"}
    assert names(events)[1:] == [
        "content-block-start",
        *["content-block-delta"] * 2,
        "content-block-finish",
        "message-finish",
    ]
    assert events[-2]["content"] == {"type": "text", "text": "a b"}
    assert events[-1] == {
        "event": "message-finish",
        "id": "m",
        "run_id": "m",
        "usage": usage,
        "metadata": {"finish_reason": "stop"},
    }


def test_parallel_tool_calls_keep_their_blocks_and_end_with_parsed_arguments() -> None:
    events = told(
        chunk("let me see"),
        call("", name="add", ident="c1"),
        call('{"a":', index=0),
        call("{oops", name="sub", ident="c2", index=1),
        call("1}", index=0),
        chunk(chunk_position="last"),
    )
    starts = [event for event in events if event["event"] == "content-block-start"]
    assert [(s["index"], s["content"]["type"]) for s in starts] == [
        (0, "text"),
        *[(n, "tool_call_chunk") for n in (1, 2)],
    ]
    assert (starts[1]["content"]["id"], starts[1]["content"]["name"], starts[1]["content"]["args"]) == ("c1", "add", "")
    deltas = [(event["index"], event["delta"]) for event in events if event["event"] == "content-block-delta"]
    assert deltas[1:] == [
        (1, {"type": "tool-call-delta", "args": '{"a":'}),
        (2, {"type": "tool-call-delta", "args": "{oops"}),
        (1, {"type": "tool-call-delta", "args": "1}"}),
    ]
    whole = [event["content"] for event in events if event["event"] == "content-block-finish"]
    assert whole[1] == {"type": "tool_call", "id": "c1", "name": "add", "args": {"a": 1}}
    assert (whole[2]["type"], whole[2]["args"]) == ("invalid_tool_call", "{oops")


def test_reasoning_and_text_are_two_blocks() -> None:
    parts = [{"type": "reasoning", "reasoning": "hm", "index": 0}], [{"type": "text", "text": "so", "index": 1}]
    events = told(*(chunk(part) for part in parts), chunk(chunk_position="last"))
    assert [event["delta"] for event in events if "delta" in event] == [
        {"type": "reasoning-delta", "reasoning": "hm"},
        {"type": "text-delta", "text": "so"},
    ]


def test_messages_interleave() -> None:
    first, second = AIMessageChunk(content="1", id="a"), AIMessageChunk(content="2", id="b")
    events = told(first, second, first, second)
    assert [event["id"] for event in events if event["event"] == "content-block-delta"] == ["a", "b", "a", "b"]


def test_the_answer_of_a_model_that_does_not_stream_comes_whole_and_a_nodes_own_message_not_at_all() -> None:
    assert names(told(AIMessage("hi", id="m")))[-1] == "message-finish"
    assert told(AIMessage("hi", id="m"), metadata={"langgraph_node": "talk"}) == []


def test_what_is_open_is_closed_with_the_run() -> None:
    for error, last in ((None, "message-finish"), ("boom", "error")):
        blocks = Blocks()
        list(blocks.of(chunk("a"), METADATA))
        assert names(list(blocks.close(error)))[-1] == last
        assert list(blocks.close(error)) == []


def test_each_event_of_a_message_names_the_call_of_its_model() -> None:
    chunks = [AIMessageChunk(content="x", id=f"lc_run--{call}") for call in (1, 2, 1)]
    blocks = Blocks()
    events = [event for one in chunks for event in blocks.of(one, METADATA)] + list(blocks.close("boom"))
    assert [(event["event"], event["run_id"]) for event in events] == [
        *(("message-start", "1"), ("content-block-start", "1"), ("content-block-delta", "1")),
        *(("message-start", "2"), ("content-block-start", "2"), ("content-block-delta", "2")),
        ("content-block-delta", "1"),
        *(("error", "1"), ("error", "2")),
    ]
