"""Agents as plain calls: the graph's input in, the graph's output out, durable in between.

`/agents/{agent}/run` makes a thread of its own. `/agents/{agent}/{key}/run` is a session: calls of
one key run one after the other on one thread, and wait behind a question that is open there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, cast
from uuid import UUID, uuid5

from fastapi import APIRouter, Depends, Path, Request, Response

from perdure.api import records
from perdure.api.answers import Json, error, location, no_content
from perdure.api.assistants import named
from perdure.api.body import JsonRoute, any_json
from perdure.api.context import EngineDep, IdempotencyKey, LastEventId
from perdure.api.delay import delay_seconds
from perdure.api.sse import closing, event_stream, position, thread_frames
from perdure.engine import events, interrupts, runs, state, threads
from perdure.engine.core import Engine
from perdure.engine.errors import ThreadNotFound
from perdure.engine.hub import Event
from perdure.engine.runs import NewRun

router = APIRouter(prefix="/agents/{agent}", route_class=JsonRoute, tags=["agents"])

OWNER = ""
POLL_SECONDS = 1.0  # for a session that a reader opened before its first call
MAX_ERROR_STATUS = 599

Input = Annotated[Any, Depends(any_json)]
Key = Annotated[str, Path(min_length=1, max_length=200)]
ANSWERS: records.Responses = {
    202: {"model": records.Asking, "description": "The agent has asked a person and waits"},
    422: {
        "model": records.AgentFailed,
        "description": "It failed; or the status of its TerminalError",
    },
}


async def session(engine: Engine, agent: str, key: str) -> UUID:
    """The thread of a key: the same on every server, without a look-up."""
    if agent in engine.registry.graphs:
        assistant = engine.registry.default_assistant_id(agent)
    else:
        assistant = (await named(engine, agent))["assistant_id"]
    return uuid5(assistant, f"{OWNER}\0{key}")


async def call(
    engine: Engine,
    agent: str,
    key: str | None,
    given: Any,
    idempotency_key: str | None,
    after_seconds: float = 0,
) -> dict[str, Any]:
    """Enqueue the run of a call. Events of sessions are kept, so that readers may come later."""
    new = NewRun(
        assistant=agent,
        input=given,
        stream_mode=["updates", "custom"] if key is None else ["updates", "custom", "messages-tuple"],
        stream_resumable=key is not None,
        if_not_exists="create",
        on_completion="keep",
        after_seconds=after_seconds,
        idempotency_key=idempotency_key,
        behind_question=key is not None,
    )
    thread_id = None if key is None else await session(engine, agent, key)
    return await runs.enqueue(engine, thread_id, new)


async def answered(engine: Engine, request: Request, run: dict[str, Any]) -> Response:
    """Wait for a run and turn what became of it into a status: 200, 202 for a question, else an error."""
    thread_id, run_id = run["thread_id"], run["run_id"]
    async with closing(events.ended(engine, thread_id, run_id)) as beats:
        async for _ in beats:
            if await request.is_disconnected():
                return no_content()  # nobody reads this; the run goes on
    outcome: Any = await runs.result(engine, thread_id, run_id)
    headers = location(thread_id, run_id)
    values = cast("dict[str, Any]", outcome) if isinstance(outcome, dict) else {}
    if "__error__" in values:
        return failed(values["__error__"], run_id, headers)
    if (await runs.get(engine, thread_id, run_id))["status"] == "interrupted":
        return error(409, "The run was cancelled", headers=headers, run_id=run_id)
    if "__interrupt__" in values:
        asked = await interrupts.search(engine, status="open", thread_id=thread_id)
        questions = [question for question in asked if question["run_id"] == run_id]
        asking = {"run_id": run_id, "thread_id": thread_id, "interrupts": questions}
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
async def run_agent(agent: str, given: Input, request: Request, engine: EngineDep, key: IdempotencyKey) -> Response:
    """Call an agent and wait for its output."""
    await named(engine, agent)
    return await answered(engine, request, await call(engine, agent, None, given, key))


@router.post("/send", status_code=202, response_model=records.Sent, openapi_extra=records.ANY_BODY)
async def send_to_agent(
    agent: str, given: Input, engine: EngineDep, idempotency_key: IdempotencyKey, delay: str | None = None
) -> Response:
    """Call an agent without waiting, now or after a `delay` (`10s`, `PT10S`, a moment)."""
    await named(engine, agent)
    after = delay_seconds(delay) if delay else 0.0
    return sent(await call(engine, agent, None, given, idempotency_key, after))


@router.post("/{key:path}/run", responses={**records.VALUES, **ANSWERS}, openapi_extra=records.ANY_BODY)
async def run_agent_by_key(
    agent: str, key: Key, given: Input, request: Request, engine: EngineDep, idempotency_key: IdempotencyKey
) -> Response:
    """Call an agent in a session and wait for its output; calls of one key run one after the other."""
    await named(engine, agent)
    return await answered(engine, request, await call(engine, agent, key, given, idempotency_key))


@router.post("/{key:path}/send", status_code=202, response_model=records.Sent, openapi_extra=records.ANY_BODY)
async def send_to_agent_by_key(
    agent: str,
    key: Key,
    given: Input,
    engine: EngineDep,
    idempotency_key: IdempotencyKey,
    delay: str | None = None,
) -> Response:
    """Call an agent in a session without waiting."""
    await named(engine, agent)
    after = delay_seconds(delay) if delay else 0.0
    return sent(await call(engine, agent, key, given, idempotency_key, after))


async def _values(engine: Engine, agent: str, key: str) -> dict[str, Any]:
    """The last state of a session; empty before its first call. Never waits for a run."""
    try:
        thread = await threads.get(engine, await session(engine, agent, key))
    except ThreadNotFound:
        return {}
    return await state.values(engine, thread) or {}


@router.get("/{key:path}/history", response_model=list[Any])
async def get_session_history(agent: str, key: Key, engine: EngineDep) -> Response:
    """The messages of a session, oldest first."""
    return Json((await _values(engine, agent, key)).get("messages") or [])


@router.get("/{key:path}/state", response_model=dict[str, Any])
async def get_session_state(agent: str, key: Key, engine: EngineDep) -> Response:
    """The state of a session."""
    return Json(await _values(engine, agent, key))


@router.delete("/{key:path}/state", status_code=204, response_class=Response)
async def clear_session(agent: str, key: Key, engine: EngineDep) -> Response:
    """Forget a session, with its runs and questions; its next call starts anew."""
    with suppress(ThreadNotFound):
        await threads.delete(engine, await session(engine, agent, key))
    return no_content()


@router.get("/{key:path}/stream", responses=records.EVENT_STREAM)
async def stream_session(agent: str, key: Key, engine: EngineDep, last_event_id: LastEventId = None) -> Response:
    """Events of a session, from the oldest that is kept or after `Last-Event-ID`; never ends."""
    source = _session_events(engine, await session(engine, agent, key), position(last_event_id) or 0)
    return event_stream(thread_frames(source, modes=["run_modes"]))


async def _session_events(engine: Engine, thread_id: UUID, after: int) -> AsyncIterator[Event | None]:
    """Follow a thread that may not exist yet, and that may be cleared and used again."""
    beat_at = time.monotonic() + engine.settings.heartbeat_seconds
    while True:
        with suppress(ThreadNotFound):
            async with closing(events.follow_thread(engine, thread_id, after=after)) as source:
                async for event in source:
                    yield event
        after = 0
        await asyncio.sleep(POLL_SECONDS)
        if time.monotonic() >= beat_at:
            beat_at = time.monotonic() + engine.settings.heartbeat_seconds
            yield None
