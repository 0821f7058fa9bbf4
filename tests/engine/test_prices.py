"""Prices in langgraph.json: what they say, and what is refused."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from perdure.engine import prices
from perdure.engine.registry import ConfigError, Registry

PRICES = {"gpt-5-mini": {"input": 0.25, "output": 2.0}, "local": {"input": 0, "output": 0}}


def test_a_cost_is_tokens_times_price_per_million() -> None:
    known = prices.read({"prices": PRICES})
    assert known.cost("gpt-5-mini", 1_000_000, 500_000) == pytest.approx(1.25)
    assert known.cost("local", 10, 10) == 0


def test_a_dated_model_costs_what_the_model_does_and_another_model_has_no_price() -> None:
    known = prices.read({"prices": PRICES})
    assert known.cost("gpt-5-mini-2025-08-07", 1_000_000, 0) == pytest.approx(0.25)
    assert known.cost("gpt-5-mini-20250807", 1_000_000, 0) == pytest.approx(0.25)
    assert known.cost("gpt-5-mini-high", 1, 1) is None
    assert known.cost("gpt-5", 1, 1) is None
    assert known.cost(None, 1, 1) is None


def test_a_sum_is_known_only_if_all_of_it_is() -> None:
    known, used = prices.read({"prices": PRICES}), {"input_tokens": 1_000_000, "output_tokens": 0}
    assert known.total({"gpt-5-mini": used, "local": used}) == pytest.approx(0.25)
    assert known.total({"gpt-5-mini": used, "other": used}) is None
    assert known.total({}) is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "prices: "),
        ({"m": 1}, "prices.m: "),
        ({"m": {"input": 1}}, "prices.m: "),
        ({"m": {"input": 1, "output": 1, "cached": 1}}, "prices.m: "),
        ({"m": {"input": "1", "output": 1}}, "prices.m.input: "),
        ({"m": {"input": 1, "output": -1}}, "prices.m.output: "),
        ({"m": {"input": True, "output": 1}}, "prices.m.input: "),
    ],
)
def test_loading_names_the_price_that_is_none(tmp_path: Path, given: Any, named: str) -> None:
    module = f"priced_{uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(
        "from langgraph.graph import START, StateGraph\n"
        "graph = StateGraph(dict).add_node('a', lambda s: s).add_edge(START, 'a').compile()\n"
    )
    file = tmp_path / "langgraph.json"
    file.write_text(json.dumps({"graphs": {"g": f"./{module}.py:graph"}, "prices": given}))
    with pytest.raises(ConfigError, match=named):
        Registry.load(file)
