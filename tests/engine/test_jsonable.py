"""JSON of whatever a graph holds: never an error, never invalid UTF-8."""

import enum
import json
from collections import deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, ToolMessage
from langgraph.types import Command, Interrupt, Send
from pydantic import BaseModel, SecretStr

from perdure.engine.jsonable import dumps, jsonable


def test_times_are_utc_with_microseconds_even_when_they_are_zero():
    assert dumps(datetime(2026, 1, 2, tzinfo=UTC)) == b'"2026-01-02T00:00:00.000000+00:00"'
    paris = timezone(timedelta(hours=1))
    assert jsonable(datetime(2026, 1, 2, 1, 0, 0, 5, tzinfo=paris)) == "2026-01-02T00:00:00.000005+00:00"
    assert jsonable(datetime(2026, 1, 2)) == "2026-01-02T00:00:00.000000"


def test_messages_are_flat():
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    ai = jsonable(AIMessage("hi", id="m1", tool_calls=[call]))
    assert (ai["type"], ai["content"], ai["id"], ai["tool_calls"]) == ("ai", "hi", "m1", [call])
    assert (ai["invalid_tool_calls"], ai["usage_metadata"], ai["response_metadata"]) == ([], None, {})
    tool = jsonable(ToolMessage("3", tool_call_id="c1"))
    assert (tool["type"], tool["tool_call_id"], tool["status"], tool["artifact"]) == (
        "tool",
        "c1",
        "success",
        None,
    )
    assert jsonable({"messages": [HumanMessage("x")]})["messages"][0]["type"] == "human"
    assert jsonable(AIMessageChunk("x"))["type"] == "AIMessageChunk"
    assert jsonable(RemoveMessage(id="m1"))["type"] == "remove"


def test_langgraph_objects():
    assert jsonable(Interrupt(value={"q": 1}, id="i1")) == {
        "value": {"q": 1},
        "id": "i1",
        "response_schema": None,
    }
    assert jsonable(Send("node", {"i": 1})) == {"node": "node", "arg": {"i": 1}}
    assert jsonable(Command(goto="a"))["goto"] == "a"


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    when: datetime


class Model(BaseModel):
    secret: SecretStr
    items: set[int]


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        ([float("inf"), -0.5], [None, -0.5]),
        ({2: "a", None: "b", True: "c"}, {"2": "a", "null": "b", "true": "c"}),
        ({(1, 2): "a"}, {"(1, 2)": "a"}),
        ({b"k": 1}, {"aw==": 1}),
        ({3}, [3]),
        (deque([1, 2]), [1, 2]),
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), {"a": 1, "b": 2}),
        (b"\x00\xff", "AP8="),
        (Decimal("1.10"), "1.10"),
        (Path("/a"), "/a"),
        (timedelta(seconds=1.5), 1.5),
        (Colour.RED, "red"),
        ({Colour.RED: 1}, {"red": 1}),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Point(1, datetime(2026, 1, 1, tzinfo=UTC)), {"x": 1, "when": "2026-01-01T00:00:00.000000+00:00"}),
        (ValueError("boom happened"), "ValueError('boom happened')"),
        (Model(secret=SecretStr("s"), items={1}), {"secret": "SecretStr('**********')", "items": [1]}),
        (Broken(), "<Broken>"),
        (int, "<class 'int'>"),
        (2**70, 2**70),
        ("a\x00b", "a\x00b"),
    ],
)
def test_odd_values(value, expected):
    assert jsonable(value) == expected
    assert json.loads(dumps(value)) == expected


def test_lone_surrogates_are_replaced_and_pairs_joined():
    assert json.loads(dumps({"a\ud800": ["x\udfff", "\ud83d\ude00"]})) == {"a\ufffd": ["x\ufffd", "\U0001f600"]}
    assert jsonable(AIMessage("\ud800"))["content"] == "\ufffd"
    assert b"\\u0000" in dumps("a\x00b")


def test_odd_values_stay_right_beside_a_surrogate():
    """The slow path writes the same as the fast one."""
    odd = {
        "p": Point(1, datetime(2026, 1, 1, tzinfo=UTC)),
        "m": HumanMessage("x"),
        "n": float("nan"),
        "s": {1},
    }
    assert jsonable({**odd, "bad": "\ud800"}) == {**jsonable(odd), "bad": "\ufffd"}


def test_cycles_and_depth_end():
    cycle: list[object] = [1]
    cycle.append(cycle)
    assert jsonable(cycle) == [1, "<list>"]
    deep: object = "end"
    for _ in range(100_000):
        deep = [deep]
    assert dumps(deep).startswith(b"[[[")
    assert json.loads(dumps(deep))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters())
        | st.binary()
        | st.datetimes(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()) | st.integers() | st.binary(), inner),
        max_leaves=20,
    )
)
@settings(deadline=None)
def test_any_value_gives_one_line_of_valid_json(value):
    raw = dumps(value)
    assert b"\n" not in raw
    json.loads(raw.decode())
    jsonable(value)
