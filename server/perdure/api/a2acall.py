"""A request of A2A to an assistant, and the task that it names: what all methods begin with.

A task of another assistant, or of another user, is one that does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from perdure.api.a2amessage import CONTENT_TYPE, NO_PUSH, text
from perdure.api.fields import UUID_TEXT
from perdure.api.gate import Action, Gate
from perdure.api.jsonrpc import INVALID_PARAMS, Id, RpcError, as_rpc
from perdure.engine import tasks
from perdure.engine.a2aparts import Version
from perdure.engine.core import Engine
from perdure.engine.errors import EngineError, RunNotFound, ThreadNotFound
from perdure.engine.tasks import Task

TASK_NOT_FOUND = -32001
NOT_CANCELABLE = -32002
UNSUPPORTED = -32004
NO_EXTENDED_CARD = -32007
VERSION_NOT_SUPPORTED = -32009
REASONS = {
    TASK_NOT_FOUND: "TASK_NOT_FOUND",
    NOT_CANCELABLE: "TASK_NOT_CANCELABLE",
    NO_PUSH: "PUSH_NOTIFICATION_NOT_SUPPORTED",
    UNSUPPORTED: "UNSUPPORTED_OPERATION",
    CONTENT_TYPE: "CONTENT_TYPE_NOT_SUPPORTED",
    NO_EXTENDED_CARD: "EXTENDED_AGENT_CARD_NOT_CONFIGURED",
    VERSION_NOT_SUPPORTED: "VERSION_NOT_SUPPORTED",
}


@dataclass(frozen=True)
class Asked:
    """A request to an assistant, in the words of one version."""

    gate: Gate
    assistant: dict[str, Any]
    version: Version
    id: Id
    params: dict[str, Any]

    @property
    def engine(self) -> Engine:
        return self.gate.engine


def in_words(exc: RpcError | EngineError, version: Version) -> RpcError:
    """A2A's errors are 200 to HTTP, but for an agent that is not there; 1.0 names the reason as data."""
    error = as_rpc(exc)
    reason = REASONS.get(error.code) if version == "1.0" else None
    data = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "a2a-protocol.org"}]
    status = error.status if error.status == 404 else 200
    return RpcError(error.code, str(error), data=data if reason else error.data, status=status)


async def task_of(asked: Asked, name: str = "id", *, to: Action = "read") -> Task:
    return await find(asked, text(asked.params, name), to=to)


async def find(asked: Asked, name: str, *, to: Action = "read") -> Task:
    """The task of that id, if it is one of this assistant. Raises RpcError."""
    thread, _, run = name.partition(":")
    if not (UUID_TEXT.fullmatch(thread) and UUID_TEXT.fullmatch(run)):
        raise not_found(name)
    try:
        await asked.gate.thread(to, UUID(thread), {"run_id": UUID(run)})
        task = await tasks.get(asked.engine, UUID(thread), UUID(run))
    except (RunNotFound, ThreadNotFound) as exc:
        raise not_found(name) from exc
    if task.last["assistant_id"] != asked.assistant["assistant_id"]:
        raise not_found(name)
    return task


def not_found(name: str) -> RpcError:
    return RpcError(TASK_NOT_FOUND, f"Task {name[:100]!r} not found")


def obj(params: dict[str, Any], name: str) -> dict[str, Any]:
    value = params.get(name)
    if value is not None and not isinstance(value, dict):
        raise RpcError(INVALID_PARAMS, f"{name}: must be an object")
    return cast("dict[str, Any]", value or {})
