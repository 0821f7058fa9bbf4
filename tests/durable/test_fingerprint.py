"""Equal arguments have equal fingerprints in every process, others have others."""

import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import InjectedToolCallId
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.store.memory import InMemoryStore
from pydantic import BaseModel

from perdure.durable.fingerprint import Arguments, fingerprint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


class Colour(StrEnum):
    RED = "red"


class Claim(BaseModel):
    amount: int
    tags: set[str] = set()


@dataclass
class Point:
    x: int
    y: int = 0


def of(function: Any, *args: Any, **kwargs: Any) -> str:
    return Arguments("f", function).fingerprint(args, kwargs)


@given(JSON)
@settings(deadline=None)
def test_a_value_that_went_through_a_checkpoint_keeps_its_fingerprint(value: Any):
    serde = JsonPlusSerializer()
    assert fingerprint(serde.loads_typed(serde.dumps_typed(value))) == fingerprint(value)


def test_fingerprint_is_the_same_in_another_process():
    value = {"a": [1, 2.5, None], "s": "é"}
    code = "from perdure.durable.fingerprint import fingerprint as f; print(f({'s': 'é', 'a': (1, 2.5, None)}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint(value)


def test_order_of_keywords_defaults_and_sets_do_not_matter():
    def f(a: int, b: int = 2, **more: int) -> None: ...

    assert of(f, 1) == of(f, b=2, a=1)
    assert of(f, 1, x=1, y=2) == of(f, 1, y=2, x=1)
    assert of(f, 1) != of(f, 2)
    assert fingerprint({"b", "a", "c"}) == fingerprint(frozenset(["c", "a", "b"]))
    assert fingerprint({1: "a", "1": "b"}) == fingerprint({"1": "b", 1: "a"})


def test_different_values_differ():
    instant = datetime(2026, 1, 1, tzinfo=UTC)
    values: list[Any] = [
        0,
        "0",
        None,
        "",
        [],
        {},
        b"",
        b"0",
        set(),
        0.5,
        Decimal("0.5"),
        UUID(int=0),
        instant,
    ]
    values += [Point(1), Point(2), Claim(amount=1), Claim(amount=1, tags={"x"}), Colour.RED, len, Point]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_ids_and_metadata_of_messages_do_not_count_but_content_and_tool_calls_do():
    call: Any = {"name": "pay", "args": {"amount": 1}, "id": "c1", "type": "tool_call"}
    plain = AIMessage("x", tool_calls=[call])
    noisy = AIMessage("x", id="m", tool_calls=[call], response_metadata={"at": 1})
    assert fingerprint([plain]) == fingerprint([noisy])
    assert fingerprint(plain) != fingerprint(AIMessage("x", tool_calls=[{**call, "args": {"amount": 2}}]))
    assert fingerprint(HumanMessage("x")) != fingerprint(AIMessage("x"))


def test_what_the_runtime_injects_does_not_count():
    def f(city: str, config: RunnableConfig, store: Any = None) -> None: ...

    assert of(f, "a", {"run_id": 1}, InMemoryStore()) == of(f, "a", {"run_id": 2}, InMemoryStore())

    def g(city: str, call_id: Annotated[str, InjectedToolCallId]) -> None: ...

    assert of(g, "a", "c1") != of(g, "a", "c2")


@pytest.mark.parametrize("value", [object(), iter([1]), {"client": object()}, [[object()]]])
def test_value_without_a_stable_form_names_the_argument_and_the_way_out(value: Any):
    def f(client: Any) -> None: ...

    with pytest.raises(TypeError, match=r"Argument 'client' of step 'f'.*has no stable form.*key="):
        of(f, value)


def test_value_that_contains_itself_is_a_type_error():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="nested too deeply"):
        fingerprint(loop)
