"""What calls of models cost: from the prices in langgraph.json, in USD per million tokens.

    {"graphs": {…}, "prices": {"gpt-5-mini": {"input": 0.25, "output": 2.0}}}

Costs are worked out when somebody looks, from the tokens that the journal holds, so a price that is corrected
corrects the past too. A model without a price has no cost: None, which is not 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from perdure.engine.core import Engine

PER = 1_000_000
KEYS = ("input", "output")
_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8})$")


@dataclass(frozen=True)
class Prices:
    """USD per million tokens, (input, output) of each model."""

    models: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def cost(self, model: str | None, input_tokens: int, output_tokens: int) -> float | None:
        """USD; None if the model has no price.

        Without a price of its own, `gpt-5-mini-2025-08-07` costs what `gpt-5-mini` does.
        """
        if model is None:
            return None
        price = self.models.get(model) or self.models.get(_DATED.sub("", model))
        return None if price is None else (input_tokens * price[0] + output_tokens * price[1]) / PER

    def total(self, names: Mapping[str, Mapping[str, Any]]) -> float | None:
        """The cost of `{model: {input_tokens, output_tokens}}`; None if one of them has no price."""
        costs = [self.cost(name, used["input_tokens"], used["output_tokens"]) for name, used in names.items()]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if costs and len(known) == len(costs) else None


def read(config: Mapping[str, Any]) -> Prices:
    """The `prices` of langgraph.json. Raises ValueError, which names the key and the value."""
    given: Any = config.get("prices")
    if given is None:
        return Prices()
    if not isinstance(given, dict):
        raise ValueError(f"prices: {given!r} is not an object like {{'gpt-5-mini': {{'input': 0.25, 'output': 2.0}}}}")
    found: dict[str, tuple[float, float]] = {}
    for model, price in cast("dict[str, Any]", given).items():
        if not isinstance(price, dict) or price.keys() != set(KEYS):  # pyright: ignore[reportUnknownMemberType] (JSON)
            raise ValueError(f"prices.{model}: {price!r} is not an object with 'input' and 'output'")
        values = cast("dict[str, Any]", price)
        for key, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0:
                raise ValueError(f"prices.{model}.{key}: {value!r} is not a number of USD per million tokens")
        found[model] = (float(values["input"]), float(values["output"]))
    return Prices(found)


def prices_of(engine: Engine) -> Prices:
    """Those of the engine's langgraph.json, which were checked when it was loaded."""
    return read(engine.registry.config)
