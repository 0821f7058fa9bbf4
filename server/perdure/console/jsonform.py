"""JSON values as form fields: what a person answers, by a JSON Schema, or changes, by the values that are there.

A field that is no text, number, choice or yes/no is written as JSON. Nothing is checked against the whole
schema here: who has asked does that, and asks again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from perdure.api.body import INVALID_JSON, BodyRefused, parse
from perdure.console.outline import resolved
from perdure.console.shown import MAX_TEXT, as_json, clip
from perdure.engine.errors import InvalidInput
from perdure.engine.jsonable import jsonable

MAX_FIELDS = 40
MAX_DEPTH = 50
MAX_KEY = 200  # characters of the name of a field
LONG = 60  # characters beyond which a text gets several lines
Kind = Literal["text", "long", "number", "integer", "boolean", "choice", "json"]
Schema = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field. `name` is its name in the form, `key` in the object (None: it is the whole value)."""

    name: str
    key: str | None
    kind: Kind
    label: str
    hint: str = ""
    required: bool = True
    value: str = ""
    choices: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """What is sent, as JSON, and what is shown."""


def of_schema(schema: Any, prefix: str = "value") -> list[Field]:
    """The fields of an object, or one for anything else."""
    whole = cast("Schema", schema) if isinstance(schema, dict) else {}
    root = resolved(whole, whole)
    properties: Any = root.get("properties")
    if not _can_be_fields(properties):
        title = root.get("title")
        return [_field(root, whole, prefix, None, clip(title, MAX_KEY) if title else "Answer", required=True)]
    required: Any = root.get("required")
    needed: list[Any] = cast("list[Any]", required) if isinstance(required, list) else []
    return [
        _field(one, whole, f"{prefix}.{key}", key, key, required=key in needed)
        for key, one in cast("Schema", properties).items()
    ]


def of_values(values: Any, prefix: str) -> list[Field]:
    """Fields that hold an object's values, such as the arguments of a tool; one of JSON for anything else.

    Empty if there is too much to be edited on a page.
    """
    if len(as_json(values, MAX_TEXT)) > MAX_TEXT:
        return []
    if not _can_be_fields(values):
        return [Field(name=prefix, key=None, kind="json", label="Arguments", value=_json(values))]
    return [_held(f"{prefix}.{key}", str(key), value) for key, value in cast("Schema", values).items()]


def _can_be_fields(given: Any) -> bool:
    """Whether each entry can have a field of its own."""
    entries = cast("Schema", given) if isinstance(given, dict) else {}
    return 0 < len(entries) <= MAX_FIELDS and all(len(str(key)) <= MAX_KEY for key in entries)


def read(fields: list[Field], form: dict[str, str]) -> Any:
    """What the form says. Raises InvalidInput, naming the field."""
    if len(fields) == 1 and fields[0].key is None:
        return _read(fields[0], form)
    found: dict[str, Any] = {}
    for one in fields:
        if one.required or form.get(one.name, "").strip() or one.kind == "boolean":
            assert one.key is not None
            found[one.key] = _read(one, form)
    return found


def filled(fields: list[Field], form: dict[str, str]) -> list[Field]:
    """The fields as the person has left them; of a box that is not ticked nothing is sent."""
    if not form:
        return fields
    return [
        replace(one, value=form.get(one.name, "false"))
        if one.kind == "boolean"
        else replace(one, value=form.get(one.name, one.value))
        for one in fields
    ]


def json_of(text: str, label: str, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text that a person has written. Raises InvalidInput for what the API would refuse."""
    try:
        return parse(text.encode(), max_depth=max_depth)
    except BodyRefused as exc:
        raise InvalidInput(label, "this is not JSON" if str(exc).startswith(INVALID_JSON) else str(exc)) from exc


def _read(one: Field, form: dict[str, str]) -> Any:
    text = form.get(one.name, "").replace("\r\n", "\n")
    match one.kind:
        case "boolean":
            return text == "true"
        case "text" | "long":
            return text
        case "integer" | "number":
            wanted = "a whole number" if one.kind == "integer" else "a number"
            try:
                number = json_of(text.strip(), one.label)
            except InvalidInput as exc:
                raise InvalidInput(one.label, f"must be {wanted}") from exc
            if isinstance(number, bool) or not isinstance(number, int if one.kind == "integer" else int | float):
                raise InvalidInput(one.label, f"must be {wanted}")
            return cast("Any", number)
        case "choice":
            if text not in [sent for sent, _ in one.choices]:
                raise InvalidInput(one.label, "must be one of the choices")
            return json_of(text, one.label)
        case "json":
            return json_of(text, one.label)


def _field(given: Any, whole: Schema, name: str, key: str | None, label: str, *, required: bool) -> Field:
    schema, nullable = _without_null(given, whole)
    choices = _choices(schema)
    kind = schema.get("type")
    default = schema.get("default", given.get("default") if isinstance(given, dict) else None)  # pyright: ignore
    if len(as_json(default, MAX_TEXT)) > MAX_TEXT:
        default = None
    hint = schema.get("description") or (cast("Schema", given).get("description") if isinstance(given, dict) else "")
    value = "" if default is None else default if isinstance(default, str) else _json(default)
    as_is: dict[str, Any] = {"name": name, "key": key, "label": label, "hint": str(hint or "")}
    needed = required and not nullable
    if choices:
        value = "" if default is None else _json(default)
        empty = [] if needed else [("", "–")]
        return Field(**as_is, kind="choice", required=needed, value=value, choices=[*empty, *choices])
    match kind:
        case "boolean" if needed or default is not None:
            return Field(**as_is, kind="boolean", required=True, value=value)
        case "boolean":
            yes_no = [("", "–"), ("true", "yes"), ("false", "no")]
            return Field(**as_is, kind="choice", required=False, value=value, choices=yes_no)
        case "integer" | "number":
            return Field(**as_is, kind=kind, required=needed, value=value)
        case "string":
            long = isinstance(schema.get("maxLength"), int) and schema["maxLength"] > 200
            return Field(**as_is, kind="long" if long else "text", required=needed, value=value)
        case _:
            return Field(**as_is, kind="json", required=needed, value=value)


def _held(name: str, key: str, value: Any) -> Field:
    as_is: dict[str, Any] = {"name": name, "key": key, "label": key}
    match value:
        case bool():
            return Field(**as_is, kind="boolean", value=_json(value))
        case int():
            return Field(**as_is, kind="number", value=str(value))
        case float():
            return Field(**as_is, kind="number", value=_json(value))
        case str():
            long = len(value) > LONG or "\n" in value
            return Field(**as_is, kind="long" if long else "text", value=value)
        case _:
            return Field(**as_is, kind="json", value=_json(value))


def _choices(schema: Schema) -> list[tuple[str, str]]:
    values: Any = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or len(cast("list[Any]", values)) > 200:
        return []
    if len(as_json(values, MAX_TEXT)) > MAX_TEXT:
        return []
    return [(_json(one), one if isinstance(one, str) else _json(one)) for one in cast("list[Any]", values)]


def _without_null(given: Any, whole: Schema) -> tuple[Schema, bool]:
    """`X | None` as X; anything else that has alternatives as a schema without a type."""
    schema = resolved(given, whole)
    options: Any = schema.get("anyOf", schema.get("oneOf"))
    if not isinstance(options, list):
        return schema, False
    rest = [one for one in cast("list[Any]", options) if one != {"type": "null"}]
    nullable = len(rest) < len(cast("list[Any]", options))
    return (resolved(rest[0], whole) if len(rest) == 1 else {}), nullable


def _json(value: Any) -> str:
    text = json.dumps(jsonable(value), ensure_ascii=False, indent=2 if isinstance(value, dict | list) else None)
    return text.encode(errors="replace").decode()
