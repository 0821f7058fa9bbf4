"""From what LangGraph streams to the frames of the wire.

WIRE 7: mode `messages-tuple` is LangGraph's `messages` under the event name `messages`;
mode `messages` accumulates it into `messages/partial` and `messages/complete`; with
subgraphs the event name carries the namespace (`updates|child:<task>`). Mode `events` are the
events of LangChain's `astream_events`, v2 (`chunks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from langchain_core.messages import AIMessageChunk, BaseMessage, message_chunk_to_message

from perdure.engine.jsonable import dumps
from perdure.engine.shapes import address

MODES = ("values", "updates", "messages", "messages-tuple", "custom", "tasks", "checkpoints", "debug")
EVENTS = "events"


def graph_modes(asked: list[str]) -> list[str]:
    """The modes that LangGraph has to stream for those that a client asked for; it needs at least one."""
    modes = ["messages" if mode == "messages-tuple" else mode for mode in asked if mode in MODES]
    return list(dict.fromkeys(modes)) or ["values"]


class Frames:
    """Turns the chunks of one attempt into frames (event name, JSON)."""

    def __init__(self, asked: list[str]) -> None:
        self._silent = not any(mode in MODES for mode in asked) and EVENTS in asked
        self._tuples = "messages-tuple" in asked
        self._whole = "messages" in asked
        self._partial: dict[str, AIMessageChunk] = {}
        self._announced: set[str] = set()

    def of(self, namespace: tuple[str, ...], mode: str, data: Any) -> Iterator[tuple[str, bytes]]:
        suffix = "|" + "|".join(namespace) if namespace else ""
        if mode == EVENTS:
            metadata = {key: value for key, value in data["metadata"].items() if not key.startswith("__")}
            yield mode, dumps({**data, "metadata": metadata})
        elif self._silent:
            return  # nobody asked for anything but events
        elif mode == "messages":
            message, metadata = cast("tuple[BaseMessage, dict[str, Any]]", data)
            metadata = {key: value for key, value in metadata.items() if not key.startswith("__")}
            if self._tuples:
                yield "messages" + suffix, dumps([message, metadata])
            if self._whole:
                yield from self._accumulate(message, metadata, suffix)
        elif mode in ("values", "updates") and isinstance(data, dict) and "__interrupt__" in data:
            interrupts = [_interrupt(value) for value in cast("dict[str, list[Any]]", data)["__interrupt__"]]
            yield mode + suffix, dumps({**cast("dict[str, Any]", data), "__interrupt__": interrupts})
        elif mode == "checkpoints":
            yield mode + suffix, dumps(_without_internals(data))
        elif mode == "debug":
            yield mode + suffix, dumps(_addressed(_without_internals(data)))
        else:
            yield mode + suffix, dumps(cast(object, data))

    def close(self, error: str | None = None) -> Iterator[tuple[str, bytes]]:
        """What is left when the graph has stopped: nothing, here; see `channels.Channels`."""
        yield from ()

    def _accumulate(self, message: BaseMessage, metadata: dict[str, Any], suffix: str) -> Iterator[tuple[str, bytes]]:
        ident = message.id or ""
        if ident not in self._announced:
            self._announced.add(ident)
            yield "messages/metadata" + suffix, dumps({ident: {"metadata": metadata}})
        if not isinstance(message, AIMessageChunk):
            yield "messages/complete" + suffix, dumps([message])
            return
        known = self._partial.get(ident)
        self._partial[ident] = whole = known + message if known else message
        yield "messages/partial" + suffix, dumps([message_chunk_to_message(whole)])


def _interrupt(value: Any) -> dict[str, Any]:
    """In streams and answers an interrupt also carries its `response_schema`."""
    return {"value": value.value, "id": value.id, "response_schema": getattr(value, "response_schema", None)}


def _without_internals(value: Any) -> Any:
    """Checkpoint payloads hold the run's config; its `__…` entries are objects of the engine."""
    if not isinstance(value, dict):
        return value
    cleaned = dict(cast("dict[str, Any]", value))
    for key in ("config", "parent_config"):
        config = cleaned.get(key)
        if isinstance(config, dict) and "configurable" in config:
            configurable = cast("dict[str, Any]", config["configurable"])
            cleaned[key] = {"configurable": {k: v for k, v in configurable.items() if not k.startswith("__")}}
    if isinstance(cleaned.get("payload"), dict):
        cleaned["payload"] = _without_internals(cleaned["payload"])
    return cleaned


def _addressed(data: dict[str, Any]) -> dict[str, Any]:
    """A debug event; that of a checkpoint also has its address and its parent's as a ThreadState has them."""
    if data["type"] != "checkpoint":
        return data
    payload: dict[str, Any] = data["payload"]
    config, parent = payload["config"], payload["parent_config"]
    addresses = {
        "checkpoint": address(config["configurable"]),
        "parent_checkpoint": address(parent["configurable"]) if parent else None,
    }
    return {**data, "payload": {**payload, **addresses}}
