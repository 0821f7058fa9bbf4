"""Server-sent events as a test reads them."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Frame(NamedTuple):
    event: str
    data: Any
    id: str | None


def frames(lines: Iterable[str]) -> Iterator[Frame]:
    """The events of a stream of lines, comments left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = fields.get(name, "") + value.removeprefix(" ")
        elif not line and fields:
            yield Frame(fields.get("event", ""), json.loads(fields.get("data") or "null"), fields.get("id"))
            fields = {}
