"""The assistants as agents for other agents: the Agent2Agent protocol, JSON-RPC binding, 0.3 and 1.0.

A context is a thread; a task is a run, and the runs that take the answers to what it asks. A message
with a context starts a task there, behind a question that is open; a message with a task answers its
question. Nothing is kept here: any replica knows every task, after any crash.
A message whose id is a UUID may be sent again and starts nothing twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from uuid import UUID

from fastapi import APIRouter, Request, Response

from perdure.api import a2apush, records
from perdure.api.a2acall import (
    NO_EXTENDED_CARD,
    NOT_CANCELABLE,
    UNSUPPORTED,
    VERSION_NOT_SUPPORTED,
    Asked,
    find,
    in_words,
    not_found,
    obj,
    task_of,
)
from perdure.api.a2alist import list_tasks
from perdure.api.a2amessage import Message, answer_of, input_of, message_of, optional_int, push_config_of
from perdure.api.answers import Json
from perdure.api.assistants import named
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.fields import UUID_TEXT
from perdure.api.gate import GateDep
from perdure.api.jsonrpc import INVALID_PARAMS, RpcError, error_of, read_request, refusal, result_of, unknown_method
from perdure.api.sse import Live, closing, event_stream
from perdure.api.taskstream import frames
from perdure.engine import a2a, events, push, runs, tasks, threads
from perdure.engine.a2a import MESSAGE_ID, TEXT_FIELD, task_id
from perdure.engine.a2aparts import Version
from perdure.engine.core import Engine
from perdure.engine.errors import EngineError, NotFound, QuestionClosed, RunFinished, ThreadNotFound
from perdure.engine.jsonable import dumps
from perdure.engine.newrun import NewRun
from perdure.engine.tasks import Task

router = APIRouter(route_class=JsonRoute, tags=["a2a"])


@router.post("/a2a/{assistant_id}", responses={**records.ANY, **records.EVENT_STREAM}, openapi_extra=records.ANY_BODY)
async def agent_to_agent(assistant_id: str, request: Request, engine: EngineDep, gate: GateDep) -> Response:
    """A2A: messages, tasks and push notification configs, by the method names of 0.3 and of 1.0."""
    version: Version = "0.3"
    try:
        asked = read_request(request)
        if asked.method not in METHODS:
            raise unknown_method(asked.method)
        version, handle = METHODS[asked.method]
        spoken = request.headers.get("a2a-version") or version
        if spoken.partition(".")[0] not in ("0", "1"):
            raise RpcError(VERSION_NOT_SUPPORTED, f"A2A version {spoken[:20]!r} is not spoken; 0.3 and 1.0 are")
        try:
            assistant = await named(engine, assistant_id)
            await gate.assistant("read", assistant["assistant_id"])
        except NotFound as exc:
            raise RpcError(INVALID_PARAMS, str(exc), status=404) from exc
        return await handle(Asked(gate, assistant, version, asked.id, asked.params))
    except (RpcError, EngineError) as exc:
        return refusal(request, in_words(exc, version))


async def _send(asked: Asked) -> Response:
    """Send a message; answers when the task has ended or asks, unless the client does not want to wait."""
    engine, configuration = asked.engine, obj(asked.params, "configuration")
    history = optional_int(configuration, "historyLength")
    task = await _accept(asked, configuration)
    waits = configuration.get("returnImmediately") is not True and configuration.get("blocking") is not False
    if not waits or await _is_held(engine, task):
        return Json(result_of(asked.id, a2a.wrapped(a2a.task(task, asked.version, history=history), asked.version)))

    async def chunks() -> AsyncIterator[bytes]:
        try:
            async with closing(events.ended(engine, task.thread_id, task.last["run_id"])) as beats:
                async for _ in beats:
                    yield b"\n"
            ended = await tasks.get(engine, task.thread_id, task.run_id)
            shown = a2a.task(ended, asked.version, history=history)
            yield dumps(result_of(asked.id, a2a.wrapped(shown, asked.version)))
        except NotFound:
            yield dumps(error_of(asked.id, in_words(not_found(task_id(task.thread_id, task.run_id)), asked.version)))

    return Live(chunks(), media_type="application/json", headers={})


async def _stream(asked: Asked) -> Response:
    """Send a message and follow its task."""
    configuration = obj(asked.params, "configuration")
    history = optional_int(configuration, "historyLength")
    task = await _accept(asked, configuration)
    return event_stream(frames(asked.engine, asked.id, task, asked.version, history=history))


async def _subscribe(asked: Asked) -> Response:
    """Follow a task again."""
    task = await task_of(asked)
    if asked.version == "1.0" and task.state in tasks.TERMINAL:
        raise RpcError(UNSUPPORTED, f"The task is {task.state}: get it")
    return event_stream(frames(asked.engine, asked.id, task, asked.version))


async def _get(asked: Asked) -> Response:
    history = optional_int(asked.params, "historyLength")
    return Json(result_of(asked.id, a2a.task(await task_of(asked), asked.version, history=history)))


async def _cancel(asked: Asked) -> Response:
    """Stop a task. One with an open saga is working until it is undone."""
    task = await task_of(asked, to="update")
    try:
        await tasks.cancel(asked.engine, task)
        task = await tasks.get(asked.engine, task.thread_id, task.run_id)
    except RunFinished as exc:
        raise RpcError(NOT_CANCELABLE, str(exc)) from exc
    return Json(result_of(asked.id, a2a.task(task, asked.version)))


async def _accept(asked: Asked, configuration: dict[str, Any]) -> Task:
    """The task that a message starts or answers; it is durable when this returns."""
    message = message_of(asked.params.get("message"), asked.version)
    given = configuration.get("taskPushNotificationConfig" if asked.version == "1.0" else "pushNotificationConfig")
    config = None
    if given is not None:
        config = push_config_of(given, asked.version, asked.engine.registry.config)
    if message.task_id is not None:
        return await _continue(asked, message, config)
    return await _begin(asked, message, config)


async def _begin(asked: Asked, message: Message, config: push.Config | None) -> Task:
    engine, assistant = asked.engine, asked.assistant
    schema = (await engine.registry.schemas(assistant["graph_id"]))["input_schema"]
    given, field = input_of(message, schema)
    thread_id = await _context(asked, message.context_id)
    key = f"a2a/{assistant['assistant_id']}/{thread_id}/{message.id}" if UUID_TEXT.fullmatch(message.id) else None
    new = NewRun(
        assistant=str(assistant["assistant_id"]),
        input=given,
        metadata={MESSAGE_ID: message.id, **({TEXT_FIELD: field} if field else {})},
        stream_mode=["messages-tuple"],
        if_not_exists="create",
        on_completion="keep",
        behind_question=thread_id is not None,
        idempotency_key=key,
    )
    run = await tasks.start(engine, thread_id, await asked.gate.starting(new, thread_id), config)
    return await tasks.get(engine, run["thread_id"], run["run_id"])


async def _context(asked: Asked, context_id: str | None) -> UUID | None:
    """The thread of a context. Raises RpcError for one of another agent, and for an id that is no UUID."""
    if context_id is None:
        return None
    if not UUID_TEXT.fullmatch(context_id):
        raise RpcError(INVALID_PARAMS, "message.contextId: must be a UUID; leave it out to begin a new context")
    thread_id = UUID(context_id)
    try:
        await asked.gate.thread("read", thread_id)
        owner = (await threads.get(asked.engine, thread_id))["metadata"].get("assistant_id")
    except ThreadNotFound:
        return thread_id  # it is made, or refused, together with the run
    if owner not in (None, str(asked.assistant["assistant_id"])):
        raise RpcError(INVALID_PARAMS, "message.contextId: not a context of this agent")
    return thread_id


async def _continue(asked: Asked, message: Message, config: push.Config | None) -> Task:
    """Answer what a task asks. A message that it has had already changes nothing."""
    task = await find(asked, cast("str", message.task_id))
    if message.context_id is not None and message.context_id.lower() != str(task.thread_id):
        raise RpcError(INVALID_PARAMS, "message.contextId: not the context of message.taskId")
    if config is not None:
        async with asked.engine.pool.connection() as conn:
            await push.put(conn, task.thread_id, task.run_id, config)
    if _has_had(task, message):
        return task
    if task.state != "input-required":
        hint = "its context takes new messages" if task.state in tasks.TERMINAL else "cancel it, or wait for its end"
        raise RpcError(UNSUPPORTED, f"The task is {task.state} and waits for no answer; {hint}")
    question = task.open[0]
    resume = answer_of(message, [one["interrupt_id"] for one in task.open])
    asker = next(run for run in task.runs if run["run_id"] == question["run_id"])
    metadata = {MESSAGE_ID: message.id}
    new = runs.again(asker, command={"resume": resume}, metadata=metadata, stream_mode=["messages-tuple"])
    new = await asked.gate.starting(new, task.thread_id)
    try:
        await runs.enqueue(asked.engine, task.thread_id, new, by=asked.gate.identity or None)
    except QuestionClosed as exc:
        task = await find(asked, cast("str", message.task_id))
        if not _has_had(task, message):
            raise RpcError(UNSUPPORTED, f"{exc}; the task is {task.state}") from exc
    return await tasks.get(asked.engine, task.thread_id, task.run_id)


def _has_had(task: Task, message: Message) -> bool:
    return any(run["metadata"].get(MESSAGE_ID) == message.id for run in task.runs)


async def _is_held(engine: Engine, task: Task) -> bool:
    """Whether the task waits behind another one's question, which may take weeks."""
    return task.state == "submitted" and (await threads.get(engine, task.thread_id))["status"] == "interrupted"


async def _extended_card(asked: Asked) -> Response:
    raise RpcError(NO_EXTENDED_CARD, "There is no extended card: the public one says all")


Handler = Callable[[Asked], Awaitable[Response]]
METHODS: dict[str, tuple[Version, Handler]] = {
    "message/send": ("0.3", _send),
    "message/stream": ("0.3", _stream),
    "tasks/get": ("0.3", _get),
    "tasks/cancel": ("0.3", _cancel),
    "tasks/resubscribe": ("0.3", _subscribe),
    "tasks/pushNotificationConfig/set": ("0.3", a2apush.set_push),
    "tasks/pushNotificationConfig/get": ("0.3", a2apush.get_push),
    "tasks/pushNotificationConfig/list": ("0.3", a2apush.list_push),
    "tasks/pushNotificationConfig/delete": ("0.3", a2apush.delete_push),
    "agent/getAuthenticatedExtendedCard": ("0.3", _extended_card),
    "SendMessage": ("1.0", _send),
    "SendStreamingMessage": ("1.0", _stream),
    "GetTask": ("1.0", _get),
    "ListTasks": ("1.0", list_tasks),
    "CancelTask": ("1.0", _cancel),
    "SubscribeToTask": ("1.0", _subscribe),
    "CreateTaskPushNotificationConfig": ("1.0", a2apush.set_push),
    "GetTaskPushNotificationConfig": ("1.0", a2apush.get_push),
    "ListTaskPushNotificationConfigs": ("1.0", a2apush.list_push),
    "DeleteTaskPushNotificationConfig": ("1.0", a2apush.delete_push),
    "GetExtendedAgentCard": ("1.0", _extended_card),
}
