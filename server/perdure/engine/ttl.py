"""How long a thread stays after its last update, and what becomes of it then: its time to live.

A thread has the one that its client gave it, else that of langgraph.json when it was made:

    "checkpointer": {"ttl": {"default_ttl": 43200, "strategy": "delete"}}

Minutes, counted from `updated_at`: runs, changes of the state and of the metadata begin them anew.
`delete` removes the thread, `keep_latest` all its checkpoints but the newest (`prune.expired`). A
thread with an active run stays as it is. `sweep_interval_minutes` is accepted and not needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, cast

Strategy = Literal["delete", "keep_latest"]

MAX_MINUTES = 3660 * 24 * 60  # ten years


@dataclass(frozen=True)
class Ttl:
    """A time to live in minutes, and what happens at its end."""

    minutes: float
    strategy: Strategy = "delete"


def configured(config: Mapping[str, Any]) -> Ttl | None:
    """The one of langgraph.json for threads that get none of their own. Raises ValueError, which names the field."""
    section: Any = config.get("checkpointer")
    given: Any = cast("dict[str, Any]", section).get("ttl") if isinstance(section, dict) else None
    if not isinstance(given, dict):
        if given is not None:
            raise ValueError(f"checkpointer.ttl: {given!r} is not an object like {{'default_ttl': 43200}}")
        return None
    values = cast("dict[str, Any]", given)
    minutes, strategy = values.get("default_ttl"), values.get("strategy", "delete")
    if strategy not in ("delete", "keep_latest"):
        raise ValueError(f"checkpointer.ttl.strategy: {strategy!r} is neither 'delete' nor 'keep_latest'")
    if minutes is None:
        return None
    number = isinstance(minutes, int | float) and not isinstance(minutes, bool) and math.isfinite(minutes)
    if not number or not 0 <= minutes <= MAX_MINUTES:
        raise ValueError(f"checkpointer.ttl.default_ttl: {minutes!r} is no number of minutes from 0 to {MAX_MINUTES}")
    return Ttl(float(minutes), strategy)


COLUMN: LiteralString = """
CASE WHEN ttl IS NOT NULL
     THEN jsonb_build_object('strategy', ttl_strategy, 'ttl_minutes', extract(epoch FROM ttl) / 60,
                             'expires_at', to_char((updated_at + ttl) AT TIME ZONE 'UTC',
                                                   'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')) END AS ttl
"""
"""As the wire shows it: `{strategy, ttl_minutes, expires_at}`, or NULL."""
