"""JSON schemas as people read them: the fields of an object with their types, as a tree of bounded depth."""

from __future__ import annotations

from typing import Any, cast

MAX_DEPTH = 6
MAX_FIELDS = 100
MESSAGES = ("HumanMessage", "AIMessage")
"""Definitions by which a list of LangChain's messages is recognised; its inside is not shown."""

Schema = dict[str, Any]


def outline(schema: Any) -> list[dict[str, Any]]:
    """The fields: `{name, type, required, description, default, choices, fields}`; [] if there are none.

    What refers to itself ends after `MAX_DEPTH` levels. Of a schema that is no object the one field has no name.
    """
    if not isinstance(schema, dict):
        return []
    root = cast("Schema", schema)
    found = resolved(root, root)
    if not isinstance(found.get("properties"), dict):
        return [] if set(found) <= {"title", "$defs", "description"} else [_field("", found, root, False, 1)]
    return _fields(found, root, 1)


def resolved(schema: Any, root: Schema) -> Schema:
    """The schema that a `$ref` into its own `$defs` means; {} for one that leads nowhere."""
    found: Any = schema
    for _ in range(MAX_DEPTH):
        if not isinstance(found, dict):
            return {}
        own = cast("Schema", found)
        reference: Any = own.get("$ref")
        if not isinstance(reference, str):
            return own
        found = root
        for part in reference.removeprefix("#/").split("/"):
            found = cast("Any", found).get(part) if isinstance(found, dict) else None
    return {}


def _fields(schema: Schema, root: Schema, depth: int) -> list[dict[str, Any]]:
    properties: Any = schema.get("properties")
    if not isinstance(properties, dict) or depth > MAX_DEPTH:
        return []
    required: Any = schema.get("required")
    names: list[Any] = cast("list[Any]", required) if isinstance(required, list) else []
    some = list(cast("Schema", properties).items())[:MAX_FIELDS]
    return [_field(name, one, root, name in names, depth) for name, one in some]


def _field(name: str, schema: Any, root: Schema, required: bool, depth: int) -> dict[str, Any]:
    own = cast("Schema", schema) if isinstance(schema, dict) else {}
    found = resolved(own, root)
    kind = type_of(own, root)
    inner = _inner(found, root) if kind != "messages" else {}
    return {
        "name": name,
        "type": kind,
        "required": required,
        "description": own.get("description") or found.get("description") or "",
        "default": own.get("default"),
        "choices": found.get("enum") or [],
        "fields": _fields(inner, root, depth + 1),
    }


def _inner(schema: Schema, root: Schema, depth: int = 0) -> Schema:
    """The object whose fields are worth showing: itself, that of a list, or the only one of several."""
    found = resolved(schema, root)
    if depth > MAX_DEPTH or "properties" in found:
        return found
    if "items" in found:
        return _inner(found["items"], root, depth + 1)
    objects = [one for one in _choices(found) if resolved(one, root).get("type") in ("object", "array")]
    return _inner(objects[0], root, depth + 1) if len(objects) == 1 else {}


def _choices(schema: Schema) -> list[Any]:
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(word), list):
            return schema[word]
    return []


def type_of(schema: Any, root: Schema, depth: int = 0) -> str:
    """`string`, `list of numbers`, `Claim`, `messages`, `string or null`, `one of "a", "b"`, `any`."""
    found = resolved(schema, root)
    if depth > MAX_DEPTH or not found:
        return "any"
    if "const" in found:
        return repr(found["const"])
    if isinstance(found.get("enum"), list):
        return "one of " + ", ".join(map(repr, found["enum"][:20]))
    choices = _choices(found)
    if choices:
        names = [
            str(cast("Schema", one).get("$ref", "")).rpartition("/")[2] for one in choices if isinstance(one, dict)
        ]
        if all(name in names for name in MESSAGES):
            return "message"
        return " or ".join(dict.fromkeys(type_of(one, root, depth + 1) for one in choices[:8]))
    kind: Any = found.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(map(str, cast("list[Any]", kind)))
    if kind == "array":
        inner = type_of(found.get("items"), root, depth + 1)
        return "messages" if inner == "message" else "list" if inner == "any" else f"list of {inner}"
    title = found.get("title")
    return title if kind == "object" and isinstance(title, str) and "properties" in found else str(kind)
