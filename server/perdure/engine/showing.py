"""The event log as protocol events, for one reader.

Every row of `run_events` is at most one protocol event, under the row's seq, so a reader may come
back with the last one it saw. Only the messages of runs that were not started by the protocol are
several: each chunk becomes the content-block events that it stands for, which share the row's seq.
Such runs show what they recorded: lifecycle, questions, values, and of the other channels those they
streamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from uuid import UUID

import orjson
from langchain_core.messages import AIMessage, AIMessageChunk

from perdure.engine import channels, events
from perdure.engine.blocks import Blocks
from perdure.engine.events import PROTOCOL
from perdure.engine.hub import Event
from perdure.engine.jsonable import dumps

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
    """One protocol event; `data` is JSON. `part` tells those of one row apart."""

    thread_id: UUID
    run_id: UUID
    seq: int
    ms: int
    method: str
    channel: str  # `custom:<name>` for a custom event with a name
    namespace: Namespace
    data: bytes
    part: int = 0

    def json(self) -> bytes:
        """The event as it goes to the wire. Its id is the same at every replica and each replay.

        JavaScript clients read in the ids of root lifecycle events whose end they see: `synth:<run_id>:...`.
        """
        whose = f"synth:{self.run_id}" if self.method == "lifecycle" and not self.namespace else str(self.thread_id)
        ident = f"{whose}:{self.seq}" + (f".{self.part}" if self.part else "")
        head = {"type": "event", "event_id": ident, "seq": self.seq, "method": self.method}
        params = dumps({"namespace": self.namespace, "timestamp": self.ms})
        return b'%s,"params":%s,"data":%s}}' % (dumps(head)[:-1], params[:-1], self.data)


class Interest(Protocol):
    """What somebody wants to see."""

    def place(self, namespace: Namespace) -> bool: ...

    def may(self, channel: str) -> bool:
        """Whether events of this channel can be wanted; the name of a custom event is in its data."""
        ...

    def event(self, shown: Shown) -> bool: ...


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

    def may(self, channel: str) -> bool:
        return channel in self.channels or (channel == "custom" and any(c.startswith("custom:") for c in self.channels))

    def event(self, shown: Shown) -> bool:
        named = shown.channel.startswith("custom:") and "custom" in self.channels
        return (named or shown.channel in self.channels) and self.place(shown.namespace)

    def _below(self, namespace: Namespace, prefix: Sequence[str]) -> bool:
        levels = len(namespace) - len(prefix)
        if levels < 0 or (self.depth is not None and levels > self.depth):
            return False
        return all(part in (own, own.partition(":")[0]) for part, own in zip(prefix, namespace, strict=False))


class Showing:
    """Turns the events of a thread, one after the other, into those of the protocol.

    `states`: whether states are read from their checkpoints; without, their events have no data.
    """

    def __init__(self, engine: Engine, thread_id: UUID, *, states: bool = True) -> None:
        self._engine = engine
        self._thread_id = thread_id
        self._states = states
        self._messages: dict[UUID, _Messages] = {}  # of runs that are under way

    async def of(self, event: Event, wanted: Interest) -> list[Shown]:
        """What of a stored event is wanted, in order."""
        name, *path = event.event.split("|")
        namespace, channel = tuple(path), name.removeprefix(PROTOCOL)
        parts = await self._blocks(event, name, namespace, wanted)
        if name != "messages":
            shown = await self._one(event, name, channel, namespace, wanted)
            if shown is not None:
                parts.append(shown)
        return [one for one in parts if wanted.event(one)]

    async def _one(self, event: Event, name: str, channel: str, namespace: Namespace, wanted: Interest) -> Shown | None:
        method = channel
        if channel == "input.requested":
            channel = "input"
        if channel not in CHANNELS or not wanted.may(channel) or not wanted.place(namespace):
            return None
        data = event.data
        if not data:
            data = await events.data_of(self._engine, self._thread_id, event.seq) if self._states else b""
        elif not name.startswith(PROTOCOL) or channel == "custom":
            changed = _changed(channel, namespace, data, raw=not name.startswith(PROTOCOL))
            if changed is None or await self._is_over(event, method):
                return None
            data, named = changed
            channel = f"custom:{named}" if named else channel
        return Shown(self._thread_id, event.run_id, event.seq, event.ms, method, channel, namespace, data)

    async def _is_over(self, event: Event, method: str) -> bool:
        """Whether this is nothing new: the start of a later attempt, or a question that is closed."""
        if method == "lifecycle":
            state: dict[str, Any] = orjson.loads(event.data)
            if state["event"] != "running" or state.get("attempt", 1) <= 1:
                return False
            # Readers count runs by `running`: one that is tried again, or has waited, shows it once.
            told = await events.lifecycle_before(self._engine, self._thread_id, event, list(LIFECYCLE))
            return told is not None and LIFECYCLE[told] == "running"
        if method == "input.requested":
            # what else such a run has recorded may have gone, and nothing would tell that it was answered
            asked: dict[str, Any] = orjson.loads(event.data)
            return not await events.is_asked(self._engine, self._thread_id, event, asked["interrupt_id"])
        return False

    # -- messages of runs that were not started by the protocol

    async def _blocks(self, event: Event, name: str, namespace: Namespace, wanted: Interest) -> list[Shown]:
        """The content-block events that a chunk is, and those that end with its attempt."""
        if not wanted.may("messages"):
            self._messages.pop(event.run_id, None)  # what is missed now is read when it is wanted again
            return []
        made: list[tuple[Namespace, dict[str, Any]]] = []
        if name == "messages":
            messages = await self._open(event)
            made = [(namespace, block) for block in messages.add(namespace, event.data)]
        elif name == "lifecycle":
            state: dict[str, Any] = orjson.loads(event.data)
            if state["event"] == "pending":
                self._messages[event.run_id] = _Messages()
            elif state["event"] != "running":
                made = (await self._open(event)).close(state.get("error"))
                if state.get("final"):
                    del self._messages[event.run_id]
        head = (self._thread_id, event.run_id, event.seq, event.ms, "messages", "messages")
        first = 0 if name == "messages" else 1  # a lifecycle event is itself the first part of its row
        return [Shown(*head, place, dumps(block), first + n) for n, (place, block) in enumerate(made)]

    async def _open(self, event: Event) -> _Messages:
        """What is known of the run's messages; a reader that came in the middle has to look at the beginning."""
        found = self._messages.get(event.run_id)
        if found is None:
            found = self._messages[event.run_id] = _Messages()
            for earlier in await events.named(
                self._engine, self._thread_id, event.run_id, ["messages", "lifecycle"], before=event.seq
            ):
                name, *path = earlier.event.split("|")
                if name == "messages":
                    found.add(tuple(path), earlier.data)
                elif orjson.loads(earlier.data)["event"] not in ("pending", "running"):
                    found.close(None)
        return found


class _Messages:
    """The messages that one run streams, by namespace."""

    def __init__(self) -> None:
        self._blocks: dict[Namespace, Blocks] = {}

    def add(self, namespace: Namespace, data: bytes) -> list[dict[str, Any]]:
        message, metadata = cast("tuple[dict[str, Any], dict[str, Any]]", orjson.loads(data))
        kinds: dict[Any, type[AIMessage]] = {"AIMessageChunk": AIMessageChunk, "ai": AIMessage}
        kind = kinds.get(message.get("type"))
        if kind is None:
            return []
        return list(self._blocks.setdefault(namespace, Blocks()).of(kind.model_validate(message), metadata))

    def close(self, error: str | None) -> list[tuple[Namespace, dict[str, Any]]]:
        return [(place, block) for place, blocks in self._blocks.items() for block in blocks.close(error)]


def _changed(channel: str, namespace: Namespace, data: bytes, *, raw: bool) -> tuple[bytes, str | None] | None:
    """The data of an event that any stream shows, as the protocol has them, and a custom event's name."""
    if channel == "values" and b'"__interrupt__"' not in data:
        return data, None
    if channel in ("input", "tasks", "tools"):
        return data, None
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
