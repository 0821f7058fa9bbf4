"""Values of any size as values that a page can show: cut where they are long, deep or many.

What is left out is named in its place. The whole is the API's to give.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

from perdure.console.shown import MAX_TEXT
from perdure.engine.jsonable import jsonable

DEPTH = 16  # templates call themselves for each level
ENTRIES = 200  # of one object or list
PARTS = 3_000  # of the whole value
CHARACTERS = 400_000  # of all its texts and keys
KEY = 200  # characters of one key
PLAIN = {dict, list, str, int, float, bool, type(None)}


def bounded(value: Any) -> Any:
    """`value` as JSON has it, with no more in it than the limits above allow. A single text keeps its length.

    What is left out is not looked at: megabytes take no longer than what is shown of them.
    """
    return _Cut().of(value, DEPTH)


class _Cut:
    def __init__(self) -> None:
        self._parts, self._characters = PARTS, CHARACTERS

    def of(self, value: Any, depth: int) -> Any:
        if type(value) not in PLAIN or (isinstance(value, str) and not value.isascii()):
            value = jsonable(value)
        self._parts -= 1
        if isinstance(value, str):
            self._characters -= min(len(value), MAX_TEXT)
            return value if self._characters > 0 else _left_out(f"{len(value):,} characters")
        if isinstance(value, dict):
            entries = cast("dict[Any, Any]", value)
            if entries and (depth == 0 or self._parts <= 0):
                return _left_out(f"{len(entries):,} entries")
            kept: dict[str, Any] = {}
            for key, one in islice(entries.items(), ENTRIES):
                kept[self._key(key, kept)] = self.of(one, depth - 1)
            return {**kept, "…": _left_out(f"{len(entries) - ENTRIES:,} entries")} if len(entries) > ENTRIES else kept
        if isinstance(value, list):
            listed = cast("list[Any]", value)
            if listed and (depth == 0 or self._parts <= 0):
                return _left_out(f"{len(listed):,} entries")
            some = [self.of(one, depth - 1) for one in listed[:ENTRIES]]
            return [*some, _left_out(f"{len(listed) - ENTRIES:,} entries")] if len(listed) > ENTRIES else some
        return value

    def _key(self, given: Any, kept: dict[str, Any]) -> str:
        (key,) = jsonable({given: None})
        if len(key) > KEY:
            key = f"{key[:KEY]}… ({len(key):,} characters"
            key += f", entry {len(kept) + 1})" if f"{key})" in kept else ")"
        self._characters -= len(key)
        return key


def _left_out(what: str) -> str:
    return f"… {what} left out here: the API has the whole"
