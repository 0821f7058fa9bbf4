"""The values that a request's fields may hold: ids, moments, limits, modes, and how each is checked."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias, cast
from uuid import UUID

import orjson
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from perdure.api.errors import OWN_WORDS

UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
MAX_OFFSET = 2**63 - 1
MAX_DELAY_SECONDS = 3660 * 24 * 3600.0
MAX_YEAR = 9000  # clear of where a time zone would push a date out of Python's range


def wrong(text: str) -> PydanticCustomError:
    """A validation error whose text is the whole message."""
    return PydanticCustomError(OWN_WORDS, "{text}", {"text": text})


def _uuid_of(thing: str) -> BeforeValidator:
    def parse(value: Any) -> UUID:
        if isinstance(value, str) and UUID_TEXT.fullmatch(value):
            return UUID(value)
        raise wrong(f"Invalid {thing} ID: must be a UUID")

    return BeforeValidator(parse, json_schema_input_type=UUID)


def one_or_list(value: Any) -> Any:
    """One value where a list may stand; in a query also a JSON list, which is how JavaScript sends one.

    The Python SDK sends `stream_mode=` for none.
    """
    if not isinstance(value, list):
        return [value] if isinstance(value, str) else value
    values = [one for one in cast("list[Any]", value) if one != ""]
    if len(values) == 1 and isinstance(values[0], str) and values[0].startswith("["):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(values[0])
    return values


def _node_names(value: Any) -> Any:
    names: Any = cast("list[Any]", value) if isinstance(value, list) else [value]
    if value != "*" and not (isinstance(value, list) and all(isinstance(name, str) for name in names)):
        raise wrong("interrupt_before, interrupt_after: must be '*' or a list of node names")
    return cast(Any, value)


def _goto(value: Any) -> Any:
    """Where to jump; an empty list is nowhere (RemoteGraph sends one with each answer)."""
    targets: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    for target in targets:
        node: Any = cast("dict[str, Any]", target).get("node") if isinstance(target, dict) else target
        if not isinstance(node, str):
            raise wrong("command.goto: must be a node name, {node, input} or a list of these")
    return (targets or None) if isinstance(value, list) else targets[0]


def _update(value: Any) -> Any:
    """Changes of the state; empty ones are none (LangGraph fails with an UnboundLocalError for a command of those)."""
    if not isinstance(value, dict | list):
        raise wrong("command.update: must be an object or a list of [channel, value] pairs")
    return cast(Any, value or None)


def _before(value: Any) -> Any:
    """The checkpoint id in any of the forms that clients send: a string, a checkpoint, a config."""
    inner: Any = value
    if isinstance(inner, dict):
        config = cast("dict[str, Any]", inner)
        inner = config.get("configurable") if isinstance(config.get("configurable"), dict) else config
        inner = cast("dict[str, Any]", inner).get("checkpoint_id")
        if inner is None:
            return None
    if not isinstance(inner, str):
        raise wrong("before: must be a checkpoint id, a checkpoint or a config with one")
    return inner or None


def _moment(value: Any) -> datetime:
    """ISO 8601; without an offset it is UTC."""
    with suppress(ValueError, OverflowError):
        if isinstance(value, str):
            when = datetime.fromisoformat(value)
            when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
            if 1970 <= when.year <= MAX_YEAR:
                return when
    raise PydanticCustomError("moment", "must be a date and time in ISO 8601, such as 2030-12-31T18:00:00Z")


ThreadId = Annotated[UUID, _uuid_of("thread")]
RunId = Annotated[UUID, _uuid_of("run")]
AssistantId = Annotated[UUID, _uuid_of("assistant")]
CronId = Annotated[UUID, _uuid_of("cron")]
JsonObject: TypeAlias = dict[str, Any]
Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=1_000)]
Schedule = Annotated[str, Field(min_length=1, max_length=500)]
Moment = Annotated[datetime, BeforeValidator(_moment, json_schema_input_type=datetime)]
Limit = Annotated[int, Field(ge=1, le=1000)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
SortOrder = Literal["asc", "desc"]
StreamMode = Literal[
    "values", "updates", "messages", "messages-tuple", "custom", "tasks", "checkpoints", "debug", "events"
]
StreamModes = Annotated[
    list[StreamMode], BeforeValidator(one_or_list, json_schema_input_type=StreamMode | list[StreamMode])
]
Goto = Annotated[Any, BeforeValidator(_goto, json_schema_input_type=str | JsonObject | list[Any])]
Update = Annotated[Any, BeforeValidator(_update), Field(json_schema_extra={"type": ["object", "array"]})]
NodeNames = Annotated[Any, BeforeValidator(_node_names, json_schema_input_type=Literal["*"] | list[str])]
Multitask = Literal["reject", "interrupt", "rollback", "enqueue"]
CancelAction = Literal["interrupt", "rollback"]
ThreadStatus = Literal["idle", "busy", "interrupted", "error"]
ThreadField = Literal[
    "thread_id", "created_at", "updated_at", "state_updated_at", "metadata", "config", "status", "values",
    "interrupts",
]  # fmt: skip
RunField = Literal[
    "run_id", "thread_id", "assistant_id", "created_at", "updated_at", "status", "metadata", "kwargs",
    "multitask_strategy",
]  # fmt: skip
AssistantField = Literal[
    "assistant_id", "graph_id", "name", "description", "config", "context", "created_at", "updated_at",
    "metadata", "version",
]  # fmt: skip
CronField = Literal[
    "cron_id", "assistant_id", "thread_id", "user_id", "end_time", "schedule", "timezone", "payload",
    "next_run_date", "metadata", "on_run_completed", "enabled", "created_at", "updated_at", "now",
]  # fmt: skip
Before = Annotated[Any, BeforeValidator(_before, json_schema_input_type=str | JsonObject)]
