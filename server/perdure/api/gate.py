"""What a caller may do: the one place where handlers of an `Auth` object are asked.

The most specific handler decides: of resource and action, of the resource, of the action, of everything.
It allows (None, True), forbids (False, 403), or says what the metadata of the things must hold; what
lies outside of that does not exist for this caller. Who has no handler, or no Auth at all, allows.

A route says what it does by the type of its path parameter (`ReadThread`, `UpdateCron`, …) or asks
the `Gate` itself. `tests/api/test_tenancy.py` finds routes that do neither.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import structlog
from fastapi import Depends
from langgraph_sdk import Auth
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from perdure.api import builtin
from perdure.api.auth import USER, User
from perdure.api.fields import AssistantId, CronId, ThreadId
from perdure.engine import access, assistants, crons, threads
from perdure.engine.access import Actor, Within
from perdure.engine.core import Engine
from perdure.engine.errors import AssistantNotFound, CronNotFound, Forbidden, ThreadNotFound
from perdure.engine.jsonable import dumps
from perdure.engine.newrun import NewRun
from perdure.engine.tracing import ids

log = structlog.get_logger(__name__)

Action = Literal["create", "read", "update", "delete", "search", "create_run"]
Value = dict[str, Any]


@dataclass(kw_only=True)
class Gate:
    """One request's caller. Without an Auth object everything is allowed and nothing is asked."""

    engine: Engine
    auth: Auth | None = None
    user: User | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    """Headers of the request that go into `configurable` (`http.configurable_headers`)."""

    @property
    def identity(self) -> str:
        """The caller's name; empty without authentication."""
        return self.user.identity if self.user else ""

    async def allow(self, resource: str, action: str, value: Value) -> Within:
        """Ask the handler, which may change `value`; what the things' metadata must hold.

        Raises Forbidden, and what the handler raises.
        """
        if self.auth is None:
            return None
        if self.user is None:
            raise HTTPException(401, "Unauthorized")
        handler = handler_of(self.auth, resource, action)
        if handler is None:
            return None
        context = Auth.types.AuthContext(
            permissions=self.user.permissions,
            user=cast(Any, self.user),
            resource=cast(Any, resource),
            action=cast(Any, action),
        )
        result: Any = await handler(ctx=context, value=value)
        if result is None or result is True:
            return None
        if isinstance(result, dict):
            return access.containment(cast("dict[str, Any]", result)) or None
        if result is not False:
            log.error("an auth handler returned neither bool nor filter", resource=resource, action=action)
        raise Forbidden("Forbidden")

    # -- named things

    async def thread(self, action: Action, thread_id: UUID, value: Value | None = None) -> Within:
        """Raises ThreadNotFound when there is no such thread for this caller."""
        value = {} if value is None else value
        value["thread_id"] = thread_id
        within = await self.allow("threads", action, value)
        if not await self.sees(thread_id, within):
            raise ThreadNotFound(f"Thread with ID {thread_id} not found")
        return within

    async def sees(self, thread_id: UUID, within: Within) -> bool:
        """Whether there is such a thread; without a filter nothing is asked."""
        if within is None:
            return True
        async with self.engine.pool.connection() as conn:
            return await threads.permitted(conn, thread_id, within)

    async def appears(self, thread_id: UUID, within: Within) -> AsyncIterator[None]:
        """Wait until there is such a thread for this caller; yields None after every `heartbeat_seconds`."""
        with self.engine.hub.subscribe(thread_id) as reader:
            while not await self.sees(thread_id, within):
                if not await reader.wait(self.engine.settings.heartbeat_seconds):
                    yield None

    async def assistant(self, action: Action, assistant_id: UUID, value: Value | None = None) -> Within:
        """Raises AssistantNotFound. A default assistant may be read, not changed, by everybody."""
        value = {} if value is None else value
        value["assistant_id"] = assistant_id
        within = await self.allow("assistants", action, value)
        if within is None or (action == "read" and assistant_id in assistants.defaults(self.engine)):
            return within
        async with self.engine.pool.connection() as conn:
            if not await assistants.permitted(conn, assistant_id, within):
                raise AssistantNotFound(f"Assistant with ID {assistant_id} not found")
        return within

    async def cron(self, action: Action, cron_id: UUID, value: Value | None = None) -> Within:
        """Raises CronNotFound."""
        value = {} if value is None else value
        value["cron_id"] = cron_id
        within = await self.allow("crons", action, value)
        if within is None:
            return None
        async with self.engine.pool.connection() as conn:
            if not await crons.permitted(conn, cron_id, within):
                raise CronNotFound(f"Cron with ID {cron_id} not found")
        return within

    async def search(self, resource: str, body: BaseModel) -> tuple[dict[str, Any], Within]:
        """The metadata to look for, and what else must hold; a handler without a filter may add to the former."""
        asked: dict[str, Any] = getattr(body, "metadata", {})
        if self.auth is None:
            return asked, None
        value = body.model_dump()
        within = await self.allow(resource, "search", value)
        return (value.get("metadata") or {}) if within is None else asked, within

    # -- things that are made

    async def owned(self, resource: str, action: Action, value: Value) -> tuple[dict[str, Any], Within]:
        """Metadata for a new thing, as the handler left them and such that its filter matches."""
        value["metadata"] = dict(value.get("metadata") or {})
        within = await self.allow(resource, action, value)
        return access.owned(value.get("metadata") or {}, within), within

    async def actor(self, thread_id: UUID | None, value: Value, *, makes: bool = False) -> Actor | None:
        """For whom a run acts that this caller starts, and what it may use; None without authentication.

        `makes`: its thread may have to be made, which is an action of its own. Raises Forbidden.
        """
        if self.auth is None or self.user is None:
            await self.allow("threads", "create_run", value)
            return None
        before: dict[str, Any] = dict(value.get("metadata") or {})
        metadata, within = await self.owned("threads", "create_run", {"thread_id": thread_id, **value})
        value["metadata"] = metadata
        owns = {k: v for k, v in metadata.items() if k not in before or before[k] != v}
        owns = access.owned(owns, within)  # for threads of its children, too
        if makes:
            new = {"thread_id": thread_id, "metadata": owns, "if_exists": "do_nothing"}
            owns = access.owned((await self.owned("threads", "create", new))[0], within)
        usable = await self.usable(value.get("assistant_id"))
        return Actor(user=self.user.record, owns=owns, threads=within, assistants=usable)

    async def acting(self, thread_id: UUID, value: Value) -> Actor | None:
        """As `actor`, on a thread that is there. Raises ThreadNotFound when it is not, for this caller."""
        actor = await self.actor(thread_id, value)
        if actor and not await self.sees(thread_id, actor.threads):
            raise ThreadNotFound(f"Thread with ID {thread_id} not found")
        return actor

    async def usable(self, assistant: Any) -> Within:
        """Which assistants the caller may run: those that it may read, and in any case the graphs themselves."""
        try:
            return await self.allow("assistants", "read", {"assistant_id": assistant})
        except (Forbidden, HTTPException, Auth.exceptions.HTTPException):
            return access.NOTHING

    async def starting(self, new: NewRun, thread_id: UUID | None) -> NewRun:
        """The run as this caller may start it. Raises Forbidden; the rest is seen when it is stored."""
        if self.headers:
            configurable = {**new.config.get("configurable", {}), **self.headers}
            new = replace(new, config={**new.config, "configurable": configurable})
        if self.auth is None:
            return new
        value: Value = {
            "assistant_id": _assistant_id(self.engine, new.assistant),
            "thread_id": thread_id,
            "run_id": None,
            "status": "pending",
            "metadata": new.metadata,
            "prevent_insert_if_inflight": new.multitask_strategy == "reject",
            "multitask_strategy": new.multitask_strategy,
            "if_not_exists": new.if_not_exists,
            "after_seconds": new.after_seconds,
            "kwargs": {"input": new.input, "command": new.command, "config": new.config, "context": new.context},
        }
        try:
            actor = await self.actor(thread_id, value, makes=thread_id is None or new.if_not_exists == "create")
        except Forbidden:
            if thread_id is None or new.if_not_exists == "reject":
                raise
            # it may perhaps not make threads, but start a run on one that is there
            actor = await self.actor(thread_id, value)
            new = replace(new, if_not_exists="reject")
        key = new.idempotency_key and dumps([self.identity, new.idempotency_key]).decode()
        return replace(new, actor=actor, metadata=value["metadata"], idempotency_key=key)

    # -- the store

    async def store(self, action: str, namespace: list[str], value: Value) -> list[str]:
        """The namespace that is meant: a handler may have moved it. Filters cannot hold for items."""
        if self.auth is None:
            return namespace
        value["namespace"] = tuple(namespace)
        await self.allow("store", action, value)
        return [str(one) for one in value.get("namespace") or ()]

    @property
    def hides(self) -> bool:
        """Whether namespaces begin with a label that the caller does not know: the built-in authentication's."""
        return isinstance(self.auth, builtin.Owners)

    def shown(self, namespace: list[str]) -> list[str]:
        """A namespace as the caller knows it."""
        return namespace[1:] if self.hides else namespace


def handler_of(auth: Auth, resource: str, action: str) -> Callable[..., Awaitable[Any]] | None:
    """The most specific handler there is. The SDK keeps the names of these attributes for servers."""
    handlers = auth._handlers  # pyright: ignore[reportPrivateUsage]
    for key in ((resource, action), (resource, "*"), ("*", action)):
        if handlers.get(key):
            return handlers[key][-1]
    everything = auth._global_handlers  # pyright: ignore[reportPrivateUsage]
    return everything[-1] if everything else None


def _assistant_id(engine: Engine, assistant: str) -> UUID | str:
    if assistant in engine.registry.graphs:
        return engine.registry.default_assistant_id(assistant)
    try:
        return UUID(assistant)
    except ValueError:
        return assistant


# --- what routes declare ---------------------------------------------------------------------------


async def gate(connection: HTTPConnection) -> Gate:
    """The gate of a request or a socket; runs that it starts go on with the caller's trace, if it sends one."""
    ids.caller.set(ids.received(connection.headers.getlist("traceparent")))
    state = connection.app.state
    names: Callable[[str], bool] = state.configurable_header
    headers = {k.lower(): v for k, v in connection.headers.items() if names(k.lower())}
    return Gate(engine=state.engine, auth=state.auth, user=connection.scope.get(USER), headers=headers)


GateDep = Annotated[Gate, Depends(gate)]


def _thread(action: Action) -> Callable[..., Any]:
    async def check_thread(thread_id: ThreadId, gate: GateDep, connection: HTTPConnection) -> UUID:
        run_id: Any = connection.path_params.get("run_id")
        await gate.thread(action, thread_id, {"run_id": run_id} if run_id else None)
        return thread_id

    return check_thread


def _assistant(action: Action) -> Callable[..., Any]:
    async def check_assistant(assistant_id: AssistantId, gate: GateDep) -> UUID:
        await gate.assistant(action, assistant_id)
        return assistant_id

    return check_assistant


def _cron(action: Action) -> Callable[..., Any]:
    async def check_cron(cron_id: CronId, gate: GateDep) -> UUID:
        await gate.cron(action, cron_id)
        return cron_id

    return check_cron


ReadThread = Annotated[UUID, Depends(_thread("read"))]
UpdateThread = Annotated[UUID, Depends(_thread("update"))]
DeleteThread = Annotated[UUID, Depends(_thread("delete"))]
ReadAssistant = Annotated[UUID, Depends(_assistant("read"))]
DeleteAssistant = Annotated[UUID, Depends(_assistant("delete"))]
ReadCron = Annotated[UUID, Depends(_cron("read"))]
DeleteCron = Annotated[UUID, Depends(_cron("delete"))]
