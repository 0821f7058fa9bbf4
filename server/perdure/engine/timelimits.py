"""How long a run may take, and how long it may do nothing.

Two limits, in seconds, each from the first of these that has one: the run (`max_duration` only), its graph's
entry in langgraph.json, the settings of the server:

    {"graphs": {"claims": {"path": "./claims.py:graph", "limits": {"max_duration": 3600, "idle": 120}}}}

`max_duration` counts from the run's first start and stands in its row, so restarts change nothing: past
it the run is paused, whatever it does, and a person decides (`overdue`). `idle` is of one attempt: no
checkpoint, step or event for so long makes it a failed one, which is tried again (`attempt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_SECONDS = 3660 * 86400.0


@dataclass(frozen=True)
class Limits:
    """Seconds; None: no limit."""

    max_duration: float | None = None
    idle: float | None = None


NO_LIMITS = Limits()


def read(entry: dict[str, Any]) -> Limits:
    """The `limits` of a graph's entry in langgraph.json. Raises ValueError, which names the key and the value."""
    given: Any = entry.get("limits")
    if given is None:
        return NO_LIMITS
    if not isinstance(given, dict):
        raise ValueError(f"limits: {given!r} is not an object like {{'max_duration': 3600, 'idle': 120}}")
    limits = cast("dict[str, Any]", given)
    for name, seconds in limits.items():
        if name not in ("max_duration", "idle"):
            raise ValueError(f"limits.{name}: no such limit; there are max_duration and idle")
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not 0 < seconds <= MAX_SECONDS:
            raise ValueError(f"limits.{name}: {seconds!r} is not a number of seconds above 0 (at most ten years)")
    return Limits(limits.get("max_duration"), limits.get("idle"))


def limits_of(engine: Engine, graph_id: str) -> Limits:
    """What a graph's runs get that bring no limit of their own."""
    entry = engine.registry.graphs.get(graph_id)
    own = entry.limits if entry else NO_LIMITS
    settings = engine.settings
    return Limits(own.max_duration or settings.max_duration_seconds, own.idle or settings.idle_seconds)
