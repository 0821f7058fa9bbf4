"""Threads whose state holds lists and objects that a client asks for.

LangGraph stores these as blobs, which PostgreSQL cannot look into: the states are read and compared here, as
PostgreSQL compares JSON. What the other filters leave must be few threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from perdure.engine import state, threads
from perdure.engine.errors import InvalidInput
from perdure.engine.jsonable import jsonable

if TYPE_CHECKING:
    from perdure.engine.core import Engine

MAX_STATES = 1000  # about 1 s; the states of a page of threads are read at the same speed
MAX_COMPARISONS = 5_000_000  # about 1 s, beside the event loop


async def search(
    engine: Engine, *, values: dict[str, Any], limit: int = 10, offset: int = 0, **given: Any
) -> tuple[list[dict[str, Any]], int]:
    """As `threads.search`, for `values` of any JSON. Raises InvalidInput when too many states would have to be read."""
    single = {name: value for name, value in values.items() if not isinstance(value, dict | list)}
    rest = {name: value for name, value in values.items() if name not in single}
    if not rest:
        return await threads.search(engine, values=single, limit=limit, offset=offset, **given)
    rows, total = await threads.search(engine, values=single, limit=MAX_STATES, **given)
    if total > MAX_STATES:
        raise InvalidInput(
            "values",
            f"lists and objects can be searched in {MAX_STATES} threads, not in {total}; "
            "narrow them with ids, metadata, status or single values",
        )
    found: list[dict[str, Any]] = []
    search = Search(rest)
    for start in range(0, len(rows), state.STATES_AT_ONCE):
        some = rows[start : start + state.STATES_AT_ONCE]
        states = await asyncio.gather(*(state.values(engine, row) for row in some))
        found += await asyncio.to_thread(search.among, some, states)
    return found[offset : offset + limit], len(found)


class Search:
    """Whether states hold `wanted`, as `@>` of PostgreSQL has it: objects by keys, arrays by elements in any order.

    Arrays are compared each element with each; the comparisons of all states count together.
    Raises InvalidInput after `MAX_COMPARISONS`.
    """

    def __init__(self, wanted: dict[str, Any]) -> None:
        self.wanted = wanted
        self.left = MAX_COMPARISONS

    def among(self, rows: Sequence[dict[str, Any]], states: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows whose states match."""
        return [row for row, values in zip(rows, states, strict=True) if self.matches(values)]

    def matches(self, values: Any) -> bool:
        """Whether one state holds what is wanted; anything that is no object holds nothing."""
        has = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
        return self.holds(jsonable({name: has[name] for name in self.wanted if name in has}), self.wanted)

    def holds(self, value: Any, part: Any) -> bool:
        self.left -= 1
        if self.left < 0:
            raise InvalidInput(
                "values", f"takes more than {MAX_COMPARISONS} comparisons; ask for less, or narrow the threads"
            )
        if isinstance(part, dict):
            wanted = cast("dict[str, Any]", part)
            held = cast("dict[str, Any]", value) if isinstance(value, dict) else None
            return held is not None and all(key in held and self.holds(held[key], one) for key, one in wanted.items())
        if isinstance(part, list):
            items = cast("list[Any]", value) if isinstance(value, list) else None
            return items is not None and all(
                any(self.holds(item, one) for item in items) for one in cast("list[Any]", part)
            )
        same = type(value) is type(part) or (_number(value) and _number(part))
        return same and value == part


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
