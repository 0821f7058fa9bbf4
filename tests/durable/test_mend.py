"""A cancel may leave a tool call without an answer: the model is sent one all the same."""

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from perdure.durable.model import _mended


def call(ident: str) -> dict[str, object]:
    return {"name": "look", "args": {}, "id": ident, "type": "tool_call"}


def test_unanswered_tool_calls_are_answered_where_they_belong() -> None:
    asked = AIMessage("", tool_calls=[call("a"), call("b")])
    history = [HumanMessage("1"), asked, ToolMessage("yes", tool_call_id="a"), HumanMessage("2")]
    mended = _mended(history)
    assert [message.type for message in mended] == ["human", "ai", "tool", "tool", "human"]
    assert mended[3].tool_call_id == "b"
    assert "cancelled" in mended[3].content
    assert len(history) == 4


def test_a_whole_history_is_sent_as_it_is() -> None:
    history = [
        HumanMessage("1"),
        AIMessage("", tool_calls=[call("a")]),
        ToolMessage("yes", tool_call_id="a"),
        AIMessage("ok"),
    ]
    assert _mended(history) == history
