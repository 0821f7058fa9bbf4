"""What requests may say: the bodies of the wire API, checked field by field.

Unknown fields are ignored; a known field of a wrong type is a 422 that names it; null means
the same as absent (the JavaScript SDK sends it). Types are strict: `"5"` is no number.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias, cast
from uuid import UUID

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
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
    """One value where a list may stand; in a query also a JSON list, which is how JavaScript sends one."""
    if not isinstance(value, list):
        return [value] if isinstance(value, str) else value
    values = cast("list[Any]", value)
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
    targets: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    for target in targets:
        node: Any = cast("dict[str, Any]", target).get("node") if isinstance(target, dict) else target
        if not isinstance(node, str):
            raise wrong("command.goto: must be a node name, {node, input} or a list of these")
    return targets if isinstance(value, list) else targets[0]


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


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {k: v for k, v in cast("dict[str, Any]", data).items() if v is not None}
        return data

    def given(self) -> dict[str, Any]:
        """The fields that the client sent, as they are (values are not copied)."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Config(Body):
    """A LangGraph config; fields of it that the server does not know are kept."""

    model_config = ConfigDict(extra="allow")

    tags: list[str] = []
    recursion_limit: Annotated[int, Field(ge=1, le=2**31 - 1)] = 25
    configurable: JsonObject = {}
    metadata: JsonObject = {}


def config_of(config: Config) -> dict[str, Any]:
    """The config that a client sent. Keys with two underscores are LangGraph's and the engine's own."""
    given = config.given()
    if "configurable" in given:
        given["configurable"] = {k: v for k, v in config.configurable.items() if not k.startswith("__")}
    return given


class CheckpointRef(Body):
    """Names a checkpoint; an empty one means the newest."""

    checkpoint_id: str | None = None
    checkpoint_ns: str = ""
    checkpoint_map: dict[str, str] = {}
    thread_id: str | None = None


class Ttl(Body):
    """How long a thread lives, in minutes, and what is left of it then."""

    ttl: Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS / 60)]
    strategy: Literal["delete", "keep_latest"] = "delete"


def _ttl(value: Any) -> Any:
    return {"ttl": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


TtlOrMinutes = Annotated[Ttl, BeforeValidator(_ttl, json_schema_input_type=Ttl | float)]


class AssistantCreate(Body):
    graph_id: Name
    assistant_id: AssistantId | None = None
    config: Config = Config()
    context: JsonObject = {}
    metadata: JsonObject = {}
    if_exists: Literal["raise", "do_nothing"] = "raise"
    name: Text = "Untitled"
    description: Text | None = None


class AssistantPatch(Body):
    graph_id: Name | None = None
    config: Config | None = None
    context: JsonObject | None = None
    metadata: JsonObject | None = None
    name: Text | None = None
    description: Text | None = None


class AssistantCount(Body):
    graph_id: Name | None = None
    name: Text | None = None
    metadata: JsonObject = {}


class AssistantSearch(AssistantCount):
    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal["assistant_id", "created_at", "updated_at", "name", "graph_id"] = "created_at"
    sort_order: SortOrder = "desc"
    select: list[AssistantField] = []


class AssistantVersions(Body):
    limit: Limit = 10
    offset: Offset = 0
    metadata: JsonObject = {}


class AssistantLatest(Body):
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]


class Superstep(Body):
    """Updates that are written as one step: `{"values" | "command", "as_node"}` each."""

    updates: list[JsonObject]


class ThreadCreate(Body):
    thread_id: ThreadId | None = None
    metadata: JsonObject = {}
    if_exists: Literal["raise", "do_nothing"] = "raise"
    ttl: TtlOrMinutes | None = None
    supersteps: list[Superstep] = []


class ThreadPatch(Body):
    metadata: JsonObject = {}
    ttl: TtlOrMinutes | None = None


class ThreadCount(Body):
    metadata: JsonObject = {}
    values: JsonObject = {}
    status: ThreadStatus | None = None


class ThreadSearch(ThreadCount):
    ids: list[ThreadId] | None = None
    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal["thread_id", "status", "created_at", "updated_at", "state_updated_at"] = "updated_at"
    sort_order: SortOrder = "desc"
    select: list[ThreadField] = []
    extract: dict[str, str] = {}


class ThreadPrune(Body):
    thread_ids: list[ThreadId]
    strategy: Literal["delete", "keep_latest"] = "delete"


class StateUpdate(Body):
    values: Any = None
    as_node: str | None = None
    checkpoint: CheckpointRef | None = None
    checkpoint_id: str | None = None


class StateAt(Body):
    checkpoint: CheckpointRef = CheckpointRef()
    subgraphs: bool = False


class History(Body):
    limit: Limit = 1
    before: Annotated[Any, BeforeValidator(_before, json_schema_input_type=str | JsonObject)] = None
    metadata: JsonObject = {}
    checkpoint: CheckpointRef | None = None


class Command(Body):
    """Answers questions (`resume`), changes the state (`update`), jumps (`goto`)."""

    resume: Any = None
    update: Annotated[Any, Field(json_schema_extra={"type": ["object", "array"]})] = None
    goto: Goto = None


class RunCreate(Body):
    """A run on a thread; the same body for background, stream and wait."""

    assistant_id: Name
    input: Any = None
    command: Command | None = None
    metadata: JsonObject = {}
    config: Config = Config()
    context: JsonObject | None = None
    checkpoint: CheckpointRef | None = None
    checkpoint_id: str | None = None
    stream_mode: StreamModes = ["values"]
    stream_subgraphs: bool = False
    stream_resumable: bool = False
    interrupt_before: NodeNames = None
    interrupt_after: NodeNames = None
    multitask_strategy: Multitask = "enqueue"
    if_not_exists: Literal["create", "reject"] = "reject"
    on_disconnect: Literal["cancel", "continue"] = "continue"
    after_seconds: Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS)] = 0
    webhook: Annotated[str, Field(max_length=2**16)] | None = None
    durability: Literal["sync", "async", "exit"] = "sync"
    checkpoint_during: bool | None = None


class StatelessRunCreate(RunCreate):
    """A run on a thread of its own, which is deleted when the run ends unless it is to be kept."""

    on_completion: Literal["delete", "keep"] = "delete"


class CronOptions(Body):
    """What each run of a cron gets, and when there is one."""

    input: Any = None
    metadata: JsonObject = {}
    config: Config = Config()
    context: JsonObject | None = None
    webhook: Annotated[str, Field(max_length=2**16)] | None = None
    interrupt_before: NodeNames = None
    interrupt_after: NodeNames = None
    stream_mode: StreamModes = ["values"]
    stream_subgraphs: bool = False
    stream_resumable: bool = False
    durability: Literal["sync", "async", "exit"] = "sync"
    multitask_strategy: Multitask = "enqueue"
    timezone: Name | None = None
    end_time: Moment | None = None
    enabled: bool = True


class ThreadCronCreate(CronOptions):
    """A cron whose runs queue on a thread."""

    assistant_id: Name
    schedule: Schedule
    checkpoint_during: bool | None = None


class CronCreate(ThreadCronCreate):
    """A cron whose runs have a thread each, which is deleted when its run ends unless it is to be kept."""

    on_run_completed: Literal["delete", "keep"] = "delete"


class CronPatch(CronOptions):
    """Null in `end_time` takes the end away (the SDKs send it so); elsewhere null is absent."""

    schedule: Schedule | None = None
    on_run_completed: Literal["delete", "keep"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            given = cast("dict[str, Any]", data)
            return {k: v for k, v in given.items() if v is not None or k == "end_time"}
        return data


class CronCount(Body):
    assistant_id: Name | None = None
    thread_id: ThreadId | None = None
    enabled: bool | None = None
    metadata: JsonObject = {}


class CronSearch(CronCount):
    limit: Limit = 10
    offset: Offset = 0
    sort_by: Literal[
        "cron_id", "assistant_id", "thread_id", "created_at", "updated_at", "next_run_date", "end_time"
    ] = "created_at"  # fmt: skip
    sort_order: SortOrder = "desc"
    select: list[CronField] = []


class BulkCancel(Body):
    """Which runs to cancel: some of a thread, or all of a status on the whole server."""

    thread_id: ThreadId | None = None
    run_ids: list[RunId] = []
    status: Literal["pending", "running", "all"] | None = None

    @model_validator(mode="after")
    def _names_something(self) -> BulkCancel:
        if self.status is None and not (self.thread_id and self.run_ids):
            raise wrong("Either status, or thread_id and run_ids, must be given")
        return self


class Rejection(Body):
    reason: Text | None = None


Labels = list[str]


class ItemDelete(Body):
    namespace: Labels
    key: str


class ItemPut(ItemDelete):
    value: JsonObject
    index: list[str] | bool | None = None
    ttl: Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS / 60)] | None = None


class ItemSearch(Body):
    namespace_prefix: Labels = []
    filter: JsonObject = {}
    query: str | None = None
    limit: Limit = 10
    offset: Offset = 0
    refresh_ttl: bool | None = None


class NamespaceSearch(Body):
    prefix: Labels = []
    suffix: Labels = []
    max_depth: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    limit: Limit = 100
    offset: Offset = 0


class EventFilter(Body):
    """Which events of a thread: channels, namespaces by their beginnings, those after a seq."""

    channels: Any = None  # looked at by the handler: what is wrong here is a 400
    namespaces: list[list[str]] = []
    depth: Annotated[int, Field(ge=0, le=1000)] | None = None
    since: Annotated[int, Field(ge=0, le=MAX_OFFSET)] = 0
