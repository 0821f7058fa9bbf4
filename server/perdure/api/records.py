"""The shapes of answers, for the OpenAPI description only.

Answers are written straight from the engine's records: building these models for every
response would cost more than the rest of the request.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

Responses = dict[int | str, dict[str, Any]]


def _none_required(schema: dict[str, Any]) -> None:
    schema.pop("required", None)


SELECTED = ConfigDict(json_schema_extra=_none_required)
"""Of a record of which `select` may name a few fields."""


class Error(BaseModel):
    """Every error."""

    detail: str


class AssistantVersion(BaseModel):
    assistant_id: UUID
    graph_id: str
    config: dict[str, Any]
    context: dict[str, Any]
    metadata: dict[str, Any]
    name: str
    description: str | None
    created_at: datetime
    version: int


class Assistant(AssistantVersion):
    updated_at: datetime


class FoundAssistant(Assistant):
    model_config = SELECTED


class Agent(BaseModel):
    agent: str
    assistant_id: UUID
    description: str | None
    examples: list[dict[str, Any]]
    input_schema: dict[str, Any] | None


class Graph(BaseModel):
    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]


class SubgraphSchemas(BaseModel):
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    state_schema: dict[str, Any] | None
    config_schema: dict[str, Any] | None
    context_schema: dict[str, Any] | None


class Schemas(SubgraphSchemas):
    graph_id: str


class Thread(BaseModel):
    thread_id: UUID
    created_at: datetime
    updated_at: datetime
    state_updated_at: datetime
    metadata: dict[str, Any]
    status: Literal["idle", "busy", "interrupted", "error"]
    config: dict[str, Any]
    values: dict[str, Any] | None
    interrupts: dict[str, list[dict[str, Any]]] = {}
    error: dict[str, Any] | None = None


class FoundThread(Thread):
    model_config = SELECTED

    extracted: dict[str, Any] = {}


class ThreadWithoutPast(Thread):
    detail: str


class Storage(BaseModel):
    """Bytes, apart from the id."""

    thread_id: UUID
    checkpoints: int
    blobs: int
    writes: int
    events: int
    steps: int
    total: int


class Pruned(BaseModel):
    pruned_count: int


class Checkpoint(BaseModel):
    thread_id: UUID
    checkpoint_ns: str = ""
    checkpoint_id: str | None = None
    checkpoint_map: dict[str, Any] | None = None


class ThreadState(BaseModel):
    values: Any
    next: list[str]
    tasks: list[dict[str, Any]]
    metadata: dict[str, Any] | None
    created_at: datetime | None
    checkpoint: Checkpoint | None
    parent_checkpoint: Checkpoint | None
    interrupts: list[dict[str, Any]]
    checkpoint_id: str | None
    parent_checkpoint_id: str | None


class StateUpdated(BaseModel):
    checkpoint: Checkpoint
    configurable: dict[str, Any]
    checkpoint_id: str


class Step(BaseModel):
    """An entry of a run's timeline; see `perdure.engine.views.timeline`."""

    name: str
    kind: Literal["model", "tool", "step", "wait", "child", "saga", "race", "messages", "question"]
    status: str
    scope: str | None
    path: list[str]
    n: int
    call: int
    key: str | None
    attempts: list[dict[str, Any]]
    started_at: datetime
    ended_at: datetime | None
    seconds: float | None
    error: dict[str, Any] | None
    next_at: datetime | None
    child: dict[str, Any] | None = None
    until: datetime | None = None
    interrupt_id: str | None = None
    deadline: datetime | None = None
    model: str | None = None
    model_calls: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    first_token_seconds: float | None = None
    cost: float | None = None
    value: Any = None
    input: Any = None
    question: Any = None
    truncated: bool = False


class Run(BaseModel):
    run_id: UUID
    thread_id: UUID
    assistant_id: UUID
    created_at: datetime
    updated_at: datetime
    status: Literal["pending", "running", "success", "error", "timeout", "interrupted"]
    metadata: dict[str, Any]
    kwargs: dict[str, Any]
    multitask_strategy: str
    attempt: int = 0
    error: dict[str, Any] | None = None
    next_at: datetime | None = None
    paused: bool = False


class FoundRun(Run):
    model_config = SELECTED


class Cron(BaseModel):
    cron_id: UUID
    assistant_id: UUID
    thread_id: UUID | None
    user_id: str | None
    end_time: datetime | None
    schedule: str
    timezone: str | None
    payload: dict[str, Any]
    next_run_date: datetime | None
    metadata: dict[str, Any]
    on_run_completed: Literal["delete", "keep"] | None
    enabled: bool
    created_at: datetime
    updated_at: datetime
    error: dict[str, Any] | None = None


class FoundCron(Cron):
    model_config = SELECTED


class Question(BaseModel):
    token: str
    url: str
    interrupt_id: str
    thread_id: UUID
    run_id: UUID
    agent: str
    question: Any
    deadline: datetime | None
    created_at: datetime
    status: Literal["open", "answered", "rejected", "timed_out", "superseded"]
    answer: Any
    answered_at: datetime | None
    answered_by: str | None


class Item(BaseModel):
    """An item of the store."""

    namespace: list[str]
    key: str
    value: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class FoundItem(Item):
    score: float | None = None


class Items(BaseModel):
    items: list[FoundItem]


class Namespaces(BaseModel):
    namespaces: list[list[str]]


class Asking(BaseModel):
    """A call that waits for a person now."""

    run_id: UUID
    thread_id: UUID
    interrupts: list[Question]


class Sent(BaseModel):
    run_id: UUID
    thread_id: UUID
    status: str


class Outcome(BaseModel):
    status: Literal["running", "done", "failed", "cancelled", "gone"]
    output: Any
    error: dict[str, Any] | None


class AgentFailed(Error):
    """The run has failed, or, without `run_id`, was never started."""

    run_id: UUID | None = None


class Ok(BaseModel):
    ok: bool
    services: dict[str, Any]


class Info(BaseModel):
    version: str
    langgraph_py_version: str
    flags: dict[str, Any]
    host: dict[str, Any]


EVENT_STREAM: Responses = {
    200: {
        "description": "Server-sent events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
VALUES: Responses = {
    200: {
        "description": "The final values; `__interrupt__` lists open questions, `__error__` is a failure",
        "content": {"application/json": {"schema": {}}},
    }
}
ANY: Responses = {200: {"description": "JSON", "content": {"application/json": {"schema": {}}}}}
WITHOUT_PAST: Responses = {
    201: {"model": ThreadWithoutPast, "description": "Created, but without its supersteps; `detail` says why"}
}
MINIMAL: Responses = {204: {"description": "Changed; `Prefer: return=minimal` asks for no more"}}
STOPPED: Responses = {
    200: {"description": "It has stopped", "content": {"application/json": {"schema": {"type": "object"}}}}
}
UNREACHABLE: Responses = {503: {"model": Error, "description": "The database does not answer"}}
ERRORS: Responses = {
    "4XX": {"model": Error, "description": "The request cannot be served; `detail` says why"},
    422: {"model": Error, "description": "The request is malformed; `detail` names the field"},
}
ANY_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}}
