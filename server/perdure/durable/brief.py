"""What a call was given, in short, for people who look at a run: JSON of at most some `ROOM` characters.

It is recorded with a call's first attempt and never read back by the run. Only as much of a value is looked at
as is kept, so a large one costs nothing, and no value is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import Any, cast

from langchain_core.messages import BaseMessage
from pydantic import BaseModel

ROOM = 1_000
DEEPEST = 8
MESSAGE = ("type", "name", "content", "tool_calls", "tool_call_id")


def brief(value: Any, room: int = ROOM) -> Any:
    """JSON of about `room` characters at most; what was left out shows as `…`."""
    return _Brief(room).of(value, 0)


class _Brief:
    def __init__(self, room: int) -> None:
        self.room = room

    def of(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            self.room -= 8
            return _number(value)
        if isinstance(value, Enum):
            return self.of(value.value, depth)
        if isinstance(value, str):
            return self._text(value)
        if depth >= DEEPEST or self.room <= 0:
            return "…"
        if isinstance(value, BaseMessage):
            fields = ((name, getattr(value, name, None)) for name in MESSAGE)
            return self._mapping({name: part for name, part in fields if part}, depth)
        if isinstance(value, BaseModel):
            return self._mapping({name: getattr(value, name) for name in type(value).model_fields}, depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._mapping({one.name: getattr(value, one.name) for one in dataclasses.fields(value)}, depth)
        if isinstance(value, Mapping):
            return self._mapping(cast("Mapping[Any, Any]", value), depth)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._text(f"{len(cast('bytes', value))} bytes")
        if isinstance(value, (Sequence, Set)):
            return self._sequence(cast("Sequence[Any]", value), depth)
        return self._text(type(value).__qualname__)

    def _text(self, text: str) -> str:
        kept = text[: max(0, self.room)]
        self.room -= len(kept) + 2
        return kept if len(kept) == len(text) else kept + "…"

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, part in value.items():
            if self.room <= 0:
                found["…"] = f"{len(value) - len(found)} more"
                break
            name = self._text(key if isinstance(key, str) else type(key).__qualname__)
            found[name] = self.of(part, depth + 1)
        return found

    def _sequence(self, value: Sequence[Any] | Set[Any], depth: int) -> list[Any]:
        found: list[Any] = []
        for part in value:
            if self.room <= 0:
                found.append(f"… {len(value) - len(found)} more")
                break
            found.append(self.of(part, depth + 1))
        return found


def _number(value: Any) -> Any:
    """JSON has no number for infinity, and PostgreSQL none of a thousand digits."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "a large number"
    return value
