"""Agents as plain calls: the graph's input in, the graph's output out, durable in between.

`/agents/{agent}/run` makes a thread of its own. `/agents/{agent}/{key}/run` is a session: calls of
one key run one after the other on one thread, and wait behind a question that is open there. A call
that comes while the agent works may do otherwise: `multitask_strategy` takes its place or turns it
away, and `messages` speaks to the run that works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from perdure.api import records
from perdure.api.answers import Json, error, location, no_content
from perdure.api.assistants import named
from perdure.api.body import JsonRoute, any_json
from perdure.api.context import EngineDep, IdempotencyKey, LastEventId
from perdure.api.control import Steered
from perdure.api.delay import delay_seconds
from perdure.api.fields import Multitask
from perdure.api.gate import Gate, GateDep
from perdure.api.sse import closing, event_stream, position, thread_frames
from perdure.api.webhook import check_webhook
from perdure.engine import children, events, mailbox, runs, state, threads
from perdure.engine.access import Within
from perdure.engine.children import session_thread
from perdure.engine.core import Engine
from perdure.engine.errors import RunFinished, RunNotFound, ThreadNotFound
from perdure.engine.hub import Event
from perdure.engine.newrun import NewRun
from perdure.engine.views import questions

router = APIRouter(prefix="/agents/{agent}", route_class=JsonRoute, tags=["agents"])
listing = APIRouter(route_class=JsonRoute, tags=["agents"])

POLL_SECONDS = 1.0  # for a session that a reader opened before its first call
MAX_ERROR_STATUS = 599

Input = Annotated[Any, Depends(any_json)]
Key = Annotated[str, Path(min_length=1, max_length=200)]
Callers = Annotated[
    str | None,
    Header(
        alias="perdure-callers",
        max_length=8000,
        description="The threads that wait for this call: none may execute it.",
    ),
]
ANSWERS: records.Responses = {
    202: {"model": records.Asking, "description": "The agent has asked a person and waits"},
    422: {
        "model": records.AgentFailed,
        "description": "It failed; or the status of its TerminalError",
    },
}


@listing.get("/agents", response_model=list[records.Agent])
async def list_agents(engine: EngineDep, gate: GateDep) -> Response:
    """The graphs of langgraph.json, in its order: what each one is for, and examples of its input."""
    await gate.allow("assistants", "search", {"metadata": {}, "limit": len(engine.registry.graphs), "offset": 0})
    registry = engine.registry
    found = [
        {
            "agent": graph_id,
            "assistant_id": registry.default_assistant_id(graph_id),
            "description": entry.description,
            "examples": entry.examples,
            "input_schema": (await registry.schemas(graph_id))["input_schema"],
        }
        for graph_id, entry in registry.graphs.items()
    ]
    return Json(found)


async def session(gate: Gate, agent: str, key: str) -> UUID:
    """The thread of a caller's key: the same on every server, for graphs without a look-up."""
    registry = gate.engine.registry
    if agent in registry.graphs:
        assistant = registry.default_assistant_id(agent)
    else:
        assistant = (await usable(gate, agent))["assistant_id"]
    return session_thread(assistant, key, gate.identity)


async def usable(gate: Gate, agent: str) -> dict[str, Any]:
    """The assistant that a caller may run. Raises AssistantNotFound, GraphNotFound."""
    return await named(gate.engine, agent, await gate.usable(agent))


async def call(
    gate: Gate,
    agent: str,
    key: str | None,
    given: Any,
    idempotency_key: str | None,
    after_seconds: float = 0,
    multitask_strategy: Multitask = "enqueue",
    webhook: str | None = None,
    callers: list[str] | None = None,
) -> dict[str, Any]:
    """Enqueue the run of a call. Events of sessions are kept, so that readers may come later.

    `interrupt` and `rollback` take the place of what the session does, an open question included.
    """
    thread_id = None if key is None else await session(gate, agent, key)
    if thread_id is not None:
        children.refuse_cycle(thread_id, callers or [], agent, key)
    new = NewRun(
        assistant=agent,
        input=given,
        stream_mode=["updates", "custom"] if key is None else ["updates", "custom", "messages-tuple"],
        stream_resumable=key is not None,
        if_not_exists="create",
        on_completion="keep",
        after_seconds=after_seconds,
        idempotency_key=idempotency_key,
        behind_question=key is not None and multitask_strategy in ("enqueue", "reject"),
        multitask_strategy=multitask_strategy,
        webhook=check_webhook(webhook, gate.engine.registry.config) if webhook else None,
        metadata={"callers": callers} if callers else {},
    )
    return await runs.enqueue(gate.engine, thread_id, await gate.starting(new, thread_id))


async def answered(engine: Engine, request: Request, run: dict[str, Any]) -> Response:
    """Wait for a run and turn what became of it into a status: 200, 202 for a question, else an error."""
    thread_id, run_id = run["thread_id"], run["run_id"]
    headers = location(thread_id, run_id)
    try:
        async with closing(events.ended(engine, thread_id, run_id)) as beats:
            async for _ in beats:
                if await request.is_disconnected():
                    return no_content()  # nobody reads this; the run goes on
        outcome: Any = await runs.result(engine, thread_id, run_id)
    except RunNotFound:
        return error(409, "The run was rolled back or deleted", run_id=run_id)
    values = cast("dict[str, Any]", outcome) if isinstance(outcome, dict) else {}
    if "__error__" in values:
        return failed(values["__error__"], run_id, headers)
    if (await runs.get(engine, thread_id, run_id))["status"] == "interrupted":
        return error(409, "The run was cancelled", headers=headers, run_id=run_id)
    if "__interrupt__" in values:
        asked = await questions.search(engine, status="open", thread_id=thread_id)
        own = [question for question in asked if question["run_id"] == run_id]
        asking = {"run_id": run_id, "thread_id": thread_id, "interrupts": own}
        return Json(asking, 202, headers=headers)
    return Json(outcome, headers=headers)


def failed(failure: dict[str, Any], run_id: UUID, headers: dict[str, str]) -> Response:
    """`Class: text`, with 422 or the status that the author's TerminalError carries."""
    status = failure.get("status")
    if not isinstance(status, int) or not 400 <= status <= MAX_ERROR_STATUS:
        status = 422
    return error(status, f"{failure.get('error')}: {failure.get('message')}", headers=headers, run_id=run_id)


def sent(run: dict[str, Any]) -> Response:
    body = {"run_id": run["run_id"], "thread_id": run["thread_id"], "status": run["status"]}
    return Json(body, 202, headers=location(run["thread_id"], run["run_id"]))


@router.post("/run", responses={**records.VALUES, **ANSWERS}, openapi_extra=records.ANY_BODY)
async def run_agent(
    agent: str, given: Input, request: Request, engine: EngineDep, key: IdempotencyKey, gate: GateDep
) -> Response:
    """Call an agent and wait for its output."""
    await usable(gate, agent)
    return await answered(engine, request, await call(gate, agent, None, given, key))


@router.post("/send", status_code=202, response_model=records.Sent, openapi_extra=records.ANY_BODY)
async def send_to_agent(
    agent: str,
    given: Input,
    gate: GateDep,
    idempotency_key: IdempotencyKey,
    delay: str | None = None,
    webhook: str | None = None,
) -> Response:
    """Call an agent without waiting, now or after a `delay` (`10s`, `PT10S`, a moment); `webhook` hears of its end."""
    await usable(gate, agent)
    after = delay_seconds(delay) if delay else 0.0
    return sent(await call(gate, agent, None, given, idempotency_key, after, webhook=webhook))


@router.post("/{key:path}/run", responses={**records.VALUES, **ANSWERS}, openapi_extra=records.ANY_BODY)
async def run_agent_by_key(
    agent: str,
    key: Key,
    given: Input,
    request: Request,
    engine: EngineDep,
    gate: GateDep,
    idempotency_key: IdempotencyKey,
    multitask_strategy: Multitask = "enqueue",
) -> Response:
    """Call an agent in a session and wait for its output; calls of one key run one after the other.

    `multitask_strategy`, if the session is at work: `enqueue` waits in line, `interrupt` cancels that and
    starts on top of what was reached, `rollback` undoes it first, `reject` is a 409.
    """
    await usable(gate, agent)
    run = await call(gate, agent, key, given, idempotency_key, multitask_strategy=multitask_strategy)
    return await answered(engine, request, run)


@router.post("/{key:path}/send", status_code=202, response_model=records.Sent, openapi_extra=records.ANY_BODY)
async def send_to_agent_by_key(
    agent: str,
    key: Key,
    given: Input,
    gate: GateDep,
    idempotency_key: IdempotencyKey,
    delay: str | None = None,
    multitask_strategy: Multitask = "enqueue",
    webhook: str | None = None,
    callers: Callers = None,
) -> Response:
    """Call an agent in a session without waiting; `multitask_strategy` as for `run`."""
    await usable(gate, agent)
    after = delay_seconds(delay) if delay else 0.0
    above = [part for part in (callers or "").split(",") if part]
    run = await call(gate, agent, key, given, idempotency_key, after, multitask_strategy, webhook, above)
    return sent(run)


@router.post("/{key:path}/messages", status_code=202, response_model=Steered, openapi_extra=records.ANY_BODY)
async def send_message_to_session(agent: str, key: Key, message: Input, engine: EngineDep, gate: GateDep) -> Response:
    """Put a message before the run that the session is executing; its next `mailbox()` reads it."""
    await usable(gate, agent)
    try:
        thread_id = await session(gate, agent, key)
        await gate.thread("update", thread_id)
        run_id = await mailbox.send(engine, thread_id, message)
    except ThreadNotFound:
        raise RunFinished(f"Session {key!r} of {agent!r} has never been called; use send or run") from None
    return Json({"run_id": run_id}, 202)


async def _values(gate: Gate, agent: str, key: str) -> dict[str, Any]:
    """The last state of a session; empty before its first call. Never waits for a run."""
    try:
        thread_id = await session(gate, agent, key)
        await gate.thread("read", thread_id)
        thread = await threads.get(gate.engine, thread_id)
    except ThreadNotFound:
        return {}
    return await state.values(gate.engine, thread) or {}


@router.get("/{key:path}/history", response_model=list[Any])
async def get_session_history(agent: str, key: Key, gate: GateDep) -> Response:
    """The messages of a session, oldest first."""
    return Json((await _values(gate, agent, key)).get("messages") or [])


@router.get("/{key:path}/state", response_model=dict[str, Any])
async def get_session_state(agent: str, key: Key, gate: GateDep) -> Response:
    """The state of a session."""
    return Json(await _values(gate, agent, key))


@router.delete("/{key:path}/state", status_code=204, response_class=Response)
async def clear_session(agent: str, key: Key, engine: EngineDep, gate: GateDep) -> Response:
    """Forget a session, with its runs and questions; its next call starts anew."""
    with suppress(ThreadNotFound):
        thread_id = await session(gate, agent, key)
        await gate.thread("delete", thread_id)
        await threads.delete(engine, thread_id)
    return no_content()


@router.get("/{key:path}/stream", responses=records.EVENT_STREAM)
async def stream_session(agent: str, key: Key, gate: GateDep, last_event_id: LastEventId = None) -> Response:
    """Events of a session, from the oldest that is kept or after `Last-Event-ID`; never ends."""
    thread_id = await session(gate, agent, key)
    within = await gate.allow("threads", "read", {"thread_id": thread_id})
    source = _session_events(gate, thread_id, within, position(last_event_id) or 0)
    return event_stream(thread_frames(source, modes=["run_modes"]))


async def _session_events(gate: Gate, thread_id: UUID, within: Within, after: int) -> AsyncIterator[Event | None]:
    """Follow a thread that may not exist yet, and that may be cleared and used again."""
    engine = gate.engine
    beat_at = time.monotonic() + engine.settings.heartbeat_seconds
    while True:
        async for _ in gate.appears(thread_id, within):
            yield None
        with suppress(ThreadNotFound):
            async with closing(events.follow_thread(engine, thread_id, after=after)) as source:
                async for event in source:
                    yield event
        after = 0
        await asyncio.sleep(POLL_SECONDS)
        if time.monotonic() >= beat_at:
            beat_at = time.monotonic() + engine.settings.heartbeat_seconds
            yield None
