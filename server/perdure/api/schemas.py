"""What requests may say: the bodies of the wire API, checked field by field.

Unknown fields are ignored; a known field of a wrong type is a 422 that names it; null means
the same as absent (the JavaScript SDK sends it). Types are strict: `"5"` is no number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from perdure.api.fields import (
    MAX_DELAY_SECONDS,
    MAX_OFFSET,
    AssistantField,
    AssistantId,
    Before,
    CronField,
    Goto,
    JsonObject,
    Limit,
    Moment,
    Multitask,
    Name,
    NodeNames,
    Offset,
    RunId,
    Schedule,
    SortOrder,
    StreamModes,
    Text,
    ThreadField,
    ThreadId,
    ThreadStatus,
    Update,
    wrong,
)


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


def _milliminutes(minutes: float) -> float:
    """LangGraph writes it as text, and PostgreSQL reads no interval like 8.4e-44 seconds."""
    return round(minutes, 3)


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
    before: Before = None
    metadata: JsonObject = {}
    checkpoint: CheckpointRef | None = None


class Command(Body):
    """Answers questions (`resume`), changes the state (`update`), jumps (`goto`)."""

    resume: Any = None
    update: Update = None
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
    max_duration: Annotated[float, Field(gt=0, le=MAX_DELAY_SECONDS)] | None = None
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
    index: list[str] | Literal[False] | None = None
    ttl: Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS / 60), AfterValidator(_milliminutes)] | None = None


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
