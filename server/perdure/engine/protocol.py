"""The event protocol of a thread: its event log as protocol events, and the runs that commands start.

Every row of `run_events` is at most one protocol event, under the row's seq, so a reader may come
back with the last one it saw. Runs that were not started by the protocol show what they
recorded: lifecycle, questions, values, and of the other channels those they streamed.
Types: `langchain-protocol` 0.0.20.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

import orjson

from perdure.engine import channels, events, interrupts, runs
from perdure.engine.errors import QuestionNotFound, RunNotFound
from perdure.engine.events import PROTOCOL
from perdure.engine.hub import Event
from perdure.engine.jsonable import dumps
from perdure.engine.runs import NewRun

if TYPE_CHECKING:
    from perdure.engine.core import Engine

CHANNELS = ("values", "updates", "messages", "tools", "lifecycle", "input", "checkpoints", "tasks", "custom")
LIFECYCLE = {
    "running": "running",
    "completed": "completed",
    "failed": "failed",
    "paused": "failed",  # wait and stream end with its error too
    "interrupted": "interrupted",
    "cancelled": "interrupted",  # as its status is on the wire
}
"""The engine's states of a run that the protocol has a word for. A run that waits, or is tried again, runs."""

Namespace = tuple[str, ...]


class Shown(NamedTuple):
    """One protocol event; `data` is JSON."""

    thread_id: UUID
    seq: int
    ms: int
    method: str
    channel: str  # `custom:<name>` for a custom event with a name
    namespace: Namespace
    data: bytes

    def json(self) -> bytes:
        """The event as it goes to the wire. Its id is the same at every replica and each replay."""
        head = {"type": "event", "event_id": f"{self.thread_id}:{self.seq}", "seq": self.seq, "method": self.method}
        params = dumps({"namespace": self.namespace, "timestamp": self.ms})
        return b'%s,"params":%s,"data":%s}}' % (dumps(head)[:-1], params[:-1], self.data)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a subscriber wants: channels, and namespaces that begin with one of `namespaces` (none: all).

    A segment without `:` matches every task of that node; `depth` limits the levels below the prefix.
    """

    channels: frozenset[str]
    namespaces: Sequence[Sequence[str]] = ()
    depth: int | None = None

    def place(self, namespace: Namespace) -> bool:
        return not self.namespaces or any(self._below(namespace, prefix) for prefix in self.namespaces)

    def channel(self, channel: str) -> bool:
        return channel in self.channels or (channel.startswith("custom:") and "custom" in self.channels)

    def event(self, shown: Shown) -> bool:
        return self.channel(shown.channel) and self.place(shown.namespace)

    def _may(self, channel: str) -> bool:
        """Whether events of this channel can be wanted; the name of a custom event is in its data."""
        return channel in self.channels or (channel == "custom" and any(c.startswith("custom:") for c in self.channels))

    def _below(self, namespace: Namespace, prefix: Sequence[str]) -> bool:
        levels = len(namespace) - len(prefix)
        if levels < 0 or (self.depth is not None and levels > self.depth):
            return False
        return all(part in (own, own.partition(":")[0]) for part, own in zip(prefix, namespace, strict=False))

    async def show(self, engine: Engine, thread_id: UUID, event: Event) -> Shown | None:
        """The protocol event that a stored event is; None if it is none, or not wanted."""
        name, *path = event.event.split("|")
        namespace, channel = tuple(path), name.removeprefix(PROTOCOL)
        method = channel
        if channel == "input.requested":
            channel = "input"
        if channel not in CHANNELS or not self._may(channel) or not self.place(namespace):
            return None
        data = event.data
        if not data:
            data = await events.data_of(engine, thread_id, event.seq)
        elif not name.startswith(PROTOCOL) or channel == "custom":
            changed = _changed(channel, namespace, data, raw=not name.startswith(PROTOCOL))
            if changed is None:
                return None
            data, named = changed
            channel = f"custom:{named}" if named else channel
            if method == "lifecycle" and await _runs_already(engine, thread_id, event):
                return None
        if not self.channel(channel):
            return None
        return Shown(thread_id, event.seq, event.ms, method, channel, namespace, data)


def _changed(channel: str, namespace: Namespace, data: bytes, *, raw: bool) -> tuple[bytes, str | None] | None:
    """The data of an event that any stream shows, as the protocol has them, and a custom event's name."""
    if channel == "values" and b'"__interrupt__"' not in data:
        return data, None
    if channel in ("input", "tasks", "tools", "messages"):
        # the messages of other streams are no content blocks
        return None if channel == "messages" else (data, None)
    value: Any = orjson.loads(data)
    if channel == "custom":
        told = channels.custom(value) if raw else cast("dict[str, Any]", value)
        return dumps(told) if raw else data, told.get("name")
    if channel == "values":
        if isinstance(value, dict) and "__interrupt__" in value and not namespace:
            return None  # comes again without its questions, after they have been told
        return dumps(channels.without_interrupt(value)), None
    if channel == "lifecycle":
        return _lifecycle(value)
    if channel == "checkpoints":
        return dumps(channels.checkpoint(value)), None
    updates = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    if "__interrupt__" in updates:
        return None
    if len(updates) != 1:
        return dumps({"values": updates}), None
    [(node, delta)] = updates.items()
    return dumps({"node": node, "values": {} if delta is None else delta}), None


def _lifecycle(state: dict[str, Any]) -> tuple[bytes, None] | None:
    event = LIFECYCLE.get(state["event"])
    if event is None:
        return None
    told: dict[str, Any] = {"event": event}
    if "graph_name" in state:
        told["graph_name"] = state["graph_name"]
    if event == "failed":
        told["error"] = state.get("error") or "The run has been paused"
    return dumps(told), None


async def _runs_already(engine: Engine, thread_id: UUID, event: Event) -> bool:
    """Whether this is the start of a later attempt of a run that has not stopped for its readers.

    They count runs by `running`: one that is tried again, or has waited, shows it once.
    """
    state: dict[str, Any] = orjson.loads(event.data)
    if state["event"] != "running" or state.get("attempt", 1) <= 1:
        return False
    before = [e for e in await events.named(engine, thread_id, event.run_id, "lifecycle") if e.seq < event.seq]
    told = [LIFECYCLE.get(orjson.loads(e.data)["event"]) for e in before]
    return next((name for name in reversed(told) if name), None) == "running"


async def follow(engine: Engine, thread_id: UUID, wanted: Wanted, *, since: int = 0) -> AsyncIterator[Shown | None]:
    """Protocol events with `seq > since`, across runs; ends only when the thread is deleted.

    The thread need not exist yet. Yields None after about every `heartbeat_seconds` of silence.
    """
    heartbeat = engine.settings.heartbeat_seconds
    silent_since = time.monotonic()
    async with aclosing(cast(Any, events.follow_thread(engine, thread_id, after=since, expected=True))) as source:
        async for event in source:
            shown = None if event is None else await wanted.show(engine, thread_id, event)
            if shown is not None or event is None or time.monotonic() - silent_since >= heartbeat:
                silent_since = time.monotonic()
                yield shown


async def replay(
    engine: Engine, thread_id: UUID, wanted: Wanted, *, since: int = 0, until: int | None = None
) -> list[Shown]:
    """The stored protocol events with `since < seq <= until`."""
    found: list[Shown] = []
    async with aclosing(cast(Any, events.stored(engine, thread_id, since))) as source:
        async for event in source:
            if until is not None and event.seq > until:
                break
            shown = await wanted.show(engine, thread_id, event)
            if shown is not None:
                found.append(shown)
    return found


async def start(engine: Engine, thread_id: UUID, new: NewRun) -> tuple[dict[str, Any], int]:
    """Accept a run; returns it and the seq of the event before its own. Raises as `runs.enqueue` does."""
    async with engine.pool.connection() as conn, conn.transaction():
        run, published = await runs.enqueue_in(engine, conn, thread_id, new)
    engine.hub.publish(thread_id, published)
    return run, max((event.seq for event in published), default=0)


async def respond(
    engine: Engine,
    thread_id: UUID,
    answers: dict[str, Any],
    *,
    command: dict[str, Any],
    config: dict[str, Any],
    metadata: dict[str, Any],
) -> tuple[dict[str, Any], int]:
    """Answer open questions of a thread by their interrupt ids, in one run of the assistant that asked.

    `command` may hold `update` and `goto`. Raises QuestionNotFound, QuestionClosed, InvalidInput.
    """
    asked = await interrupts.search(engine, status="open", thread_id=thread_id, limit=1000)
    questions = {row["interrupt_id"]: row for row in asked}
    for interrupt_id in answers:
        if interrupt_id not in questions:
            raise QuestionNotFound(f"The thread has no open question {interrupt_id!r}")
    asker = await runs.get(engine, thread_id, questions[next(iter(answers))]["run_id"])
    new = NewRun(
        assistant=str(asker["assistant_id"]),
        command={**command, "resume": answers},
        config=config,
        metadata=metadata,
        protocol=True,
    )
    return await start(engine, thread_id, new)


async def tree(engine: Engine, thread_id: UUID, run_id: UUID | None = None) -> dict[str, Any]:
    """A run and the graphs inside of it, with their states; without `run_id` the thread's active run.

    Raises RunNotFound, ThreadNotFound.
    """
    if run_id is None:
        active = await runs.list_runs(engine, thread_id, status="running", limit=1)
        active = active or await runs.list_runs(engine, thread_id, status="pending", limit=1)
        if not active:
            raise RunNotFound(f"Thread {thread_id} has no active run")
        run = active[0]
    else:
        run = await runs.get(engine, thread_id, run_id)
    states = {"success": "completed", "error": "failed", "timeout": "failed", "interrupted": "interrupted"}
    root: dict[str, Any] = {
        "namespace": [],
        "status": states.get(run["status"], "running" if run["status"] == "running" else "started"),
        "graph_name": run["metadata"]["graph_id"],
        "children": [],
        "metadata": {"run_id": run["run_id"]},
    }
    nodes: dict[Namespace, dict[str, Any]] = {(): root}
    for event in await events.named(engine, thread_id, run["run_id"], PROTOCOL + "lifecycle"):
        told = orjson.loads(event.data)
        namespace = tuple(told["namespace"])
        node = nodes.get(namespace)
        if node is None:
            node = nodes[namespace] = {"namespace": namespace, "graph_name": told.get("graph_name"), "children": []}
            nodes.get(namespace[:-1], root)["children"].append(node)
        node["status"] = told["event"]
    return root
