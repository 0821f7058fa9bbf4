"""Whose things are whose: filters of an Auth object as JSONB containment, and for whom a run acts.

A filter is applied in SQL, as `metadata @> within`. `within` None means everything, so without
authentication no statement has one. Rows that a user makes carry what the filter asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, cast

from psycopg.types.json import Jsonb

from perdure.engine.db import jsonb

Within: TypeAlias = dict[str, Any] | list[None] | None

NOTHING: list[None] = [None]
"""No metadata contains it: an object never contains an array."""

USER_KEYS = ("langgraph_auth_user", "langgraph_auth_user_id", "langgraph_auth_permissions")
"""Keys of `configurable` that tell nodes whom they work for; a client's own are dropped."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """For whom a run acts. Stored with it; its child runs, and the runs of a cron, act for the same.

    `user` is what authentication told, `owns` the metadata of threads that are made for it, `threads`
    and `assistants` say which of them it may use. A graph's default assistant may always be used.
    """

    user: dict[str, Any]
    owns: dict[str, Any] = field(default_factory=dict[str, Any])
    threads: Within = None
    assistants: Within = None

    @property
    def identity(self) -> str:
        return str(self.user["identity"])

    def stored(self) -> dict[str, Any]:
        """As JSON; `of` reads it back."""
        return asdict(self)

    @classmethod
    def of(cls, stored: dict[str, Any] | None) -> Actor | None:
        return cls(**stored) if stored else None

    def configurable(self) -> dict[str, Any]:
        """What nodes see of the user."""
        permissions: Any = self.user.get("permissions")
        return dict(zip(USER_KEYS, (self.user, self.identity, permissions), strict=True))


def containment(given: Mapping[str, Any]) -> dict[str, Any]:
    """A handler's filter as one document: `{"k": v}`, `{"k": {"$eq": v}}`, `{"k": {"$contains": v or [v, …]}}`.

    Raises ValueError for any other operator: a filter that is not understood lets nobody in.
    """
    document: dict[str, Any] = {}
    for name, wanted in given.items():
        if not isinstance(wanted, dict) or not any(str(key).startswith("$") for key in cast("dict[Any, Any]", wanted)):
            document[name] = wanted
            continue
        match cast("dict[str, Any]", wanted):
            case {"$eq": value, **rest} if not rest:
                document[name] = value
            case {"$contains": value, **rest} if not rest:
                document[name] = value if isinstance(value, list) else [value]
            case _:
                raise ValueError(f"the filter of {name!r} must be a value, $eq or $contains, and is {wanted!r}")
    return document


def parameter(within: Within) -> Jsonb | None:
    """A filter as the parameter of a statement that says `%(within)s::jsonb IS NULL OR …`."""
    return None if within is None else jsonb(within)


def owned(metadata: Mapping[str, Any], within: Within) -> dict[str, Any]:
    """Metadata such that `within` matches it: its values win, lists get what they lack."""
    result = dict(metadata)
    for name, wanted in (within if isinstance(within, dict) else {}).items():
        present: Any = result.get(name)
        if isinstance(wanted, list) and isinstance(present, list):
            known = cast("list[Any]", present)
            result[name] = [*known, *(one for one in cast("list[Any]", wanted) if one not in known)]
        else:
            result[name] = wanted
    return result


def kept(changes: Mapping[str, Any], within: Within) -> dict[str, Any]:
    """Changes of metadata that leave a row where `within` finds it; keys that they do not name stay as they are."""
    named = {k: v for k, v in (within if isinstance(within, dict) else {}).items() if k in changes}
    return owned(changes, named)
