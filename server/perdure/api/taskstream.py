"""A task of A2A while it works, as server-sent events: the task, its state, the text of the model as it comes.

The text so far is the artifact `answer`: a new message of the model replaces it, pieces are appended,
and the output takes its place in the end. Who subscribes later gets it all again from the run's
beginning, so every reader ends with the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import UUID

import orjson

from perdure.api.jsonrpc import Id, RpcError, error_of, result_of
from perdure.api.sse import HEARTBEAT, closing
from perdure.engine import a2a, events, tasks
from perdure.engine.a2aparts import Version, text_of
from perdure.engine.core import Engine
from perdure.engine.errors import NotFound
from perdure.engine.hub import Event
from perdure.engine.jsonable import dumps
from perdure.engine.tasks import Task

GONE = -32001


async def frames(
    engine: Engine, ident: Id, task: Task, version: Version, *, history: int | None = None
) -> AsyncIterator[bytes]:
    """Each event is a JSON-RPC response to the request of that id."""
    try:
        async with closing(_updates(engine, task, version, history)) as updates:
            async for update in updates:
                yield HEARTBEAT if update is None else _frame(result_of(ident, update))
    except NotFound:
        yield _frame(error_of(ident, RpcError(GONE, "Task not found: it was rolled back or deleted")))


def _frame(body: dict[str, Any]) -> bytes:
    return b"data: " + dumps(body) + b"\r\n\r\n"


async def _updates(
    engine: Engine, task: Task, version: Version, history: int | None
) -> AsyncIterator[dict[str, Any] | None]:
    """Ends when the task has ended or asks a person. None: silence."""
    yield a2a.wrapped(a2a.task(task, version, history=history), version)
    run_id: UUID = task.last["run_id"]
    if task.state in tasks.TERMINAL or task.state == "input-required":
        yield a2a.status_update(task, version, final=True)
        return
    text = _Text()
    async with closing(events.follow(engine, task.thread_id, run_id)) as source:
        async for event in source:
            if event is None:
                yield None
            elif event.event == "metadata":  # an attempt has begun
                task = await tasks.get(engine, task.thread_id, task.run_id)
                if task.state == "working":
                    yield a2a.status_update(task, version, final=False)
                text = _Text()
            elif event.event == "messages" and (piece := text.add(event)):
                append, new = piece
                artifact = a2a.text_artifact(new, version)
                yield a2a.artifact_update(task, artifact, version, append=append, last=False)
    task = await tasks.get(engine, task.thread_id, task.run_id)
    if task.state == "completed":
        yield a2a.artifact_update(task, a2a.answer(task, version), version, append=False, last=True)
    yield a2a.status_update(task, version, final=True)


class _Text:
    """The text that the models of a run have said so far, one message at a time.

    When two speak at once the artifact turns from one to the other, always with the whole text.
    """

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._speaker: str | None = None

    def add(self, event: Event) -> tuple[bool, str] | None:
        """Whether to append, and what; None if the event adds no text."""
        chunk: Any = orjson.loads(event.data)[0]
        message = cast("dict[str, Any]", chunk) if isinstance(chunk, dict) else {}
        piece = text_of(message)
        if not piece or message.get("type") not in ("AIMessageChunk", "ai"):
            return None
        speaker = str(message.get("id"))
        whole = message["type"] == "ai"
        self._said[speaker] = piece if whole else self._said.get(speaker, "") + piece
        append = speaker == self._speaker and not whole
        self._speaker = speaker
        return append, piece if append else self._said[speaker]
