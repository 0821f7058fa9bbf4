"""The commands of the event protocol: `{"id", "method", "params"}` in, a success or an error out.

The same over `POST /threads/{id}/commands` and over the WebSocket. An error has one of the protocol's
codes; nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

import structlog
from langgraph_sdk import Auth
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from perdure.api import fields, schemas
from perdure.api.errors import validation_detail
from perdure.api.gate import Action, Gate
from perdure.api.runs import new_run
from perdure.engine import events, mailbox, protocol, state, threads
from perdure.engine.core import Engine
from perdure.engine.errors import (
    CheckpointNotFound,
    EngineError,
    InvalidInput,
    QuestionClosed,
    QuestionNotFound,
    RunFinished,
    RunNotFound,
    ThreadExists,
    ThreadNotFound,
)

log = structlog.get_logger(__name__)

Envelope = dict[str, Any]
T = TypeVar("T", bound=BaseModel)

CODES: dict[type[EngineError], str] = {
    QuestionNotFound: "no_such_interrupt",
    QuestionClosed: "no_such_interrupt",
    RunNotFound: "no_such_run",
    RunFinished: "no_such_run",
    CheckpointNotFound: "no_such_checkpoint",
    InvalidInput: "invalid_argument",
}
"""Other engine errors are an `unknown_error`; the message says what it is."""


class CommandFailed(Exception):
    """The command cannot be carried out."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def failure(ident: int | None, code: str, message: str) -> Envelope:
    return {"type": "error", "id": ident, "error": code, "message": message}


def success(ident: int, result: Any, seq: int | None) -> Envelope:
    meta = {} if seq is None else {"meta": {"applied_through_seq": seq}}
    return {"type": "success", "id": ident, "result": result, **meta}


def parts(envelope: Any) -> tuple[int, str, dict[str, Any]]:
    """Id, method and params. Raises CommandFailed when it is no command."""
    if not isinstance(envelope, dict):
        raise CommandFailed("invalid_argument", "A command is an object with id, method and params")
    given = cast("dict[str, Any]", envelope)
    ident, method, params = given.get("id"), given.get("method"), given.get("params")
    if not isinstance(ident, int) or isinstance(ident, bool):
        raise CommandFailed("invalid_argument", "id: must be an integer")
    if not isinstance(method, str):
        raise CommandFailed("invalid_argument", "method: must be a text")
    return ident, method, cast("dict[str, Any]", params) if isinstance(params, dict) else {}


async def execute(gate: Gate, thread_id: UUID, ident: int, method: str, params: dict[str, Any]) -> Envelope:
    """Carry out a command of the caller's; the answer's envelope."""
    try:
        run = COMMANDS.get(method)
        if run is None:
            raise CommandFailed("unknown_command", f"There is no command {method!r}; there are {sorted(COMMANDS)}")
        if method in ACTIONS:
            await gate.thread(ACTIONS[method], thread_id)
        result, seq = await run(gate, thread_id, params)
        if seq is None:
            seq = await position(gate.engine, thread_id)
        return success(ident, result, seq)
    except CommandFailed as exc:
        return failure(ident, exc.code, str(exc))
    except EngineError as exc:
        code = next((CODES[cls] for cls in type(exc).__mro__ if cls in CODES), "unknown_error")
        return failure(ident, code, str(exc))
    except (HTTPException, Auth.exceptions.HTTPException) as exc:  # an auth handler refused
        return failure(ident, "unknown_error", str(exc.detail))
    except Exception:  # the edge of a command: its answer is an envelope, so `errors.Guard` would see nothing
        log.exception("command_failed", method=method)
        return failure(ident, "unknown_error", "Internal Server Error")


async def position(engine: Engine, thread_id: UUID) -> int:
    """The seq of the thread's newest event; 0 if there is no such thread."""
    try:
        return await events.position(engine, thread_id)
    except ThreadNotFound:
        return 0


def checked(model: type[T], params: dict[str, Any]) -> T:
    """The params of a command. Raises CommandFailed naming what is wrong."""
    try:
        return model.model_validate(params)
    except ValidationError as exc:
        raise CommandFailed("invalid_argument", validation_detail(exc.errors())) from exc


# --- the commands ------------------------------------------------------------------------------

Done = tuple[dict[str, Any], int | None]
"""The result, and the seq up to which the thread's events came before what the command has started."""


async def run_start(gate: Gate, thread_id: UUID, params: dict[str, Any]) -> Done:
    """Start a run; makes the thread if there is none. Of another user's it says what making it would say: taken."""
    if "multitaskStrategy" in params:
        params = {"multitask_strategy": params["multitaskStrategy"], **params}
    body = checked(schemas.RunCreate, {**params, "if_not_exists": "create"})
    new = await gate.starting(replace(new_run(body, gate.engine, None), protocol=True), thread_id)
    try:
        run, seq = await protocol.start(gate.engine, thread_id, new)
    except ThreadNotFound as exc:
        if new.if_not_exists == "create":
            raise ThreadExists(f"Thread with ID {thread_id} already exists") from exc
        raise  # the caller may make no threads: an id that nobody has says the same
    return {"run_id": run["run_id"]}, seq


class Config(schemas.Body):
    config: schemas.Config = schemas.Config()
    metadata: fields.JsonObject = Field(default_factory=dict[str, Any])


class Respond(Config):
    update: fields.Update = None
    goto: fields.Goto = None


async def input_respond(gate: Gate, thread_id: UUID, params: dict[str, Any]) -> Done:
    """Answer one open question or several."""
    body = checked(Respond, params)
    given: Any = params.get("responses")
    entries: list[Any] = cast("list[Any]", given) if isinstance(given, list) else [params]
    answers: dict[str, Any] = {}
    for entry in entries:
        answer = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        if not isinstance(answer.get("interrupt_id"), str) or "response" not in answer:
            raise CommandFailed("invalid_argument", "Each answer must have interrupt_id and response")
        answers[answer["interrupt_id"]] = answer["response"]
    if not answers:
        raise CommandFailed("invalid_argument", "responses: must hold an answer")
    command = {name: getattr(body, name) for name in ("update", "goto") if getattr(body, name) is not None}
    value = {"metadata": body.metadata, "kwargs": {"command": {**command, "resume": answers}}}
    actor = await gate.actor(thread_id, value)
    _, seq = await protocol.respond(
        gate.engine,
        thread_id,
        answers,
        command=command,
        config=schemas.config_of(body.config),
        metadata=value["metadata"],
        actor=actor,
    )
    return {}, seq


class Message(schemas.Body):
    role: str
    content: str
    name: str | None = None


class Inject(schemas.Body):
    message: Message


async def input_inject(gate: Gate, thread_id: UUID, params: dict[str, Any]) -> Done:
    """Send a message to the active run; the graph takes it with `mailbox()`."""
    message = checked(Inject, params).message
    try:
        await mailbox.send(gate.engine, thread_id, message.given())
    except ThreadNotFound as exc:
        raise CommandFailed("no_such_run", str(exc)) from exc
    return {}, None


class Tree(schemas.Body):
    run_id: fields.RunId | None = None


async def agent_tree(gate: Gate, thread_id: UUID, params: dict[str, Any]) -> Done:
    """The active run and the graphs inside of it."""
    try:
        return {"tree": await protocol.tree(gate.engine, thread_id, checked(Tree, params).run_id)}, None
    except ThreadNotFound as exc:
        raise CommandFailed("no_such_run", str(exc)) from exc


class Get(schemas.Body):
    namespace: list[str] = Field(default_factory=list[str])
    keys: list[str] | None = None


async def state_get(gate: Gate, thread_id: UUID, params: dict[str, Any]) -> Done:
    """The present state of the thread, or of a subgraph."""
    body = checked(Get, params)
    ns = "|".join(body.namespace)
    found = await state.read(gate.engine, thread_id, checkpoint_ns=ns)
    if body.namespace and found["metadata"] is None:
        raise CommandFailed("no_such_namespace", f"There is no state of the namespace {body.namespace}")
    values: Any = found["values"]
    if body.keys is not None and isinstance(values, dict):
        present = cast("dict[str, Any]", values)
        values = {key: present[key] for key in body.keys if key in present}
    ref = {"checkpoint": {"id": found["checkpoint_id"], "ns": ns}} if found["checkpoint_id"] else {}
    return {"values": values, **ref}, None


class ListCheckpoints(schemas.Body):
    namespace: list[str] = Field(default_factory=list[str])
    limit: fields.Limit = 10
    before: str | None = None


async def list_checkpoints(gate: Gate, thread_id: UUID, params: dict[str, Any]) -> Done:
    """The thread's checkpoints, newest first."""
    body = checked(ListCheckpoints, params)
    place = {"checkpoint_ns": "|".join(body.namespace)}
    past = state.history(gate.engine, thread_id, limit=body.limit, before=body.before, checkpoint=place)
    summaries = [
        {
            "id": one["checkpoint_id"],
            "timestamp": one["created_at"],
            "step": one["metadata"].get("step"),
            "metadata": one["metadata"],
        }
        async for one in past
    ]
    return {"checkpoints": summaries}, None


class Fork(Config):
    checkpoint_id: Annotated[str, Field(min_length=1)]
    input: Any = None


async def state_fork(gate: Gate, thread_id: UUID, params: dict[str, Any]) -> Done:
    """Start a run from an older checkpoint, with the assistant of the thread."""
    body = checked(Fork, params)
    thread = await threads.get(gate.engine, thread_id)
    found = await state.read(gate.engine, thread_id, checkpoint_id=body.checkpoint_id)
    if found["metadata"] is None:
        raise CheckpointNotFound(f"Thread {thread_id} has no checkpoint {body.checkpoint_id!r}")
    metadata: dict[str, Any] = thread["metadata"]
    assistant = str(metadata.get("assistant_id") or metadata.get("graph_id"))
    asked = {**params, "assistant_id": assistant, "if_not_exists": "reject"}
    new = replace(new_run(checked(schemas.RunCreate, asked), gate.engine, None), protocol=True)
    new = await gate.starting(new, thread_id)
    run, seq = await protocol.start(gate.engine, thread_id, new)
    return {"run_id": run["run_id"], "thread_id": thread_id}, seq


ACTIONS: dict[str, Action] = {
    "input.inject": "update",
    "agent.getTree": "read",
    "state.get": "read",
    "state.listCheckpoints": "read",
    "state.fork": "read",
}
"""What the caller must be allowed to do with the thread. Who starts a run is asked for when it is started."""

COMMANDS: dict[str, Callable[[Gate, UUID, dict[str, Any]], Awaitable[Done]]] = {
    "run.start": run_start,
    "input.respond": input_respond,
    "input.inject": input_inject,
    "agent.getTree": agent_tree,
    "state.get": state_get,
    "state.listCheckpoints": list_checkpoints,
    "state.fork": state_fork,
}
