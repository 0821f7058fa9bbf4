"""What a person sees of a call's arguments: short whatever was given, and never in the way of the call."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel

from perdure.durable.brief import ROOM, brief


class Model(BaseModel):
    text: str


@dataclass
class Data:
    n: int


class Odd:
    pass


def test_small_arguments_are_shown_whole() -> None:
    value = {"city": "Denver", "days": 2, "units": ["c", "f"], "wind": {"speed": 1.5, "on": True, "from": None}}
    assert brief(value) == value


def test_messages_models_and_data_are_shown_by_their_fields() -> None:
    call = {"name": "pay", "args": {"amount": 5}, "id": "1", "type": "tool_call"}
    shown = brief([HumanMessage("hi"), AIMessage("", tool_calls=[call]), Model(text="a"), Data(3), Odd(), b"abc"])
    assert shown == [
        {"type": "human", "content": "hi"},
        {"type": "ai", "tool_calls": [call]},
        {"text": "a"},
        {"n": 3},
        "Odd",
        "3 bytes",
    ]


@pytest.mark.parametrize("value", ["x" * 5_000_000, ["x" * 99] * 100_000, {str(n): n for n in range(100_000)}])
def test_large_arguments_are_cut(value: Any) -> None:
    assert len(json.dumps(brief(value))) < 3 * ROOM
    assert "…" in json.dumps(brief(value), ensure_ascii=False)


def test_a_value_that_contains_itself_ends() -> None:
    value: list[Any] = []
    value.append(value)
    assert "…" in json.dumps(brief(value), ensure_ascii=False)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(ANY)
@settings(deadline=None)
def test_whatever_is_given_is_json_for_postgresql(value: Any) -> None:
    text = json.dumps(brief(value), allow_nan=False)
    assert len(text) < 20 * ROOM
