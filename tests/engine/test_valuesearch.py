"""Searching threads by values that PostgreSQL cannot look into."""

from typing import Any

import pytest

from perdure.engine import threads, valuesearch
from perdure.engine.errors import InvalidInput


@pytest.mark.parametrize(
    ("value", "part", "held"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"b": [1, {"c": 2, "d": 3}]}}, {"a": {"b": [{"c": 2}]}}, True),
        ([1, 2, 3], [3, 1], True),
        ([1, 2], [1, 1], True),
        ([1, 2], [4], False),
        ([], [], True),
        ([[1, 2]], [[2]], True),
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        ("1", 1, False),
        (None, None, True),
        (None, {}, False),
        ([1], {}, False),
        ({}, [], False),
    ],
)
def test_what_holds_what_is_as_postgresql_has_it(value: Any, part: Any, held: bool) -> None:
    assert valuesearch.Search({}).holds(value, part) is held
    assert valuesearch.Search({"log": part}).matches({"log": value, "more": 1}) is held


async def test_too_many_states_are_refused_and_single_values_narrow_them(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        await threads.create(lab.engine, metadata={"mark": "valuesearch"})
    monkeypatch.setattr(valuesearch, "MAX_STATES", 2)
    given: dict[str, Any] = {"metadata": {"mark": "valuesearch"}}
    with pytest.raises(InvalidInput, match="not in 3"):
        await valuesearch.search(lab.engine, values={"log": ["x"]}, **given)
    assert await valuesearch.search(lab.engine, values={"log": ["x"], "topic": "tea"}, **given) == ([], 0)
    rows, total = await valuesearch.search(lab.engine, values={}, **given)
    assert (len(rows), total) == (3, 3)


def test_comparisons_are_counted_over_all_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valuesearch, "MAX_COMPARISONS", 1000)
    search = valuesearch.Search({"log": [0] * 50})
    assert search.matches({"log": [*range(9, -1, -1)]}) is True
    with pytest.raises(InvalidInput, match="values: takes more than 1000 comparisons"):
        search.matches({"log": [1] * 500})
    assert valuesearch.Search({"log": [0]}).matches({}) is False
    assert valuesearch.Search({"log": [0]}).matches(["log"]) is False
