"""A chat model's chunks as content-block events, the `messages` channel of the event protocol.

    message-start · (content-block-start · content-block-delta* )* · content-block-finish* · message-finish

LangGraph can make models speak in such events themselves, but then the messages in the state take
another form too, and how somebody watches a run would change what the graph computes. Types:
`langchain-protocol` 0.0.20, `MessagesData`; every event also carries the message's `id` and the `run_id`
of the model's call, because messages of one namespace may interleave: Python clients tell them apart by
the one, JavaScript clients by the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import orjson
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage

from perdure.engine.jsonable import jsonable

DELTAS = {"text": ("text-delta", "text"), "reasoning": ("reasoning-delta", "reasoning")}
CALL_CHUNKS = {"tool_call_chunk": "tool_call", "server_tool_call_chunk": "server_tool_call"}
METADATA = {"langgraph_node": "langgraph_node", "ls_model_name": "model", "ls_provider": "provider"}
"""Of a message's LangGraph metadata: what `message-start` tells, and under which name."""

Block = dict[str, Any]


class Blocks:
    """The messages that one namespace streams."""

    def __init__(self) -> None:
        self._open: dict[str, _Message] = {}
        self._done: set[str] = set()

    def of(self, message: BaseMessage, metadata: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a chunk, or of the answer of a model that does not stream.

        A message that a node returns without calling a model makes none: the state shows it.
        """
        ident = message.id or ""
        if isinstance(message, AIMessageChunk):
            if ident in self._done and not message.content_blocks:
                return
            known = self._open.get(ident)
            if known is None:
                known = self._open[ident] = _Message(ident)
                yield known.start(metadata)
            yield from known.add(message)
            if message.chunk_position == "last":
                yield from self._finish(ident)
        elif isinstance(message, AIMessage) and "ls_provider" in metadata:
            whole = self._open[ident] = _Message(ident)
            yield whole.start(metadata)
            yield from whole.add(message)
            yield from self._finish(ident)

    def close(self, error: str | None) -> Iterator[dict[str, Any]]:
        """End what is still open: the run has ended, or failed."""
        for ident in list(self._open):
            if error is None:
                yield from self._finish(ident)
            else:
                del self._open[ident]
                yield {"event": "error", **_names(ident), "message": error}

    def _finish(self, ident: str) -> Iterator[dict[str, Any]]:
        self._done.add(ident)
        yield from self._open.pop(ident).finish()


class _Message:
    """One message while it comes in; `blocks` by the identity that their source gives them."""

    def __init__(self, ident: str) -> None:
        self.ident = ident
        self.blocks: dict[Any, tuple[int, Block]] = {}
        self.usage: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}

    def start(self, metadata: dict[str, Any]) -> dict[str, Any]:
        told = {name: metadata[key] for key, name in METADATA.items() if metadata.get(key) is not None}
        return {"event": "message-start", "role": "ai", **_names(self.ident), **({"metadata": told} if told else {})}

    def add(self, message: AIMessage) -> Iterator[dict[str, Any]]:
        for position, given in enumerate(message.content_blocks):
            block = cast(Block, dict(given))
            source = block.pop("index", None)
            # blocks without an index are told apart by type: one source may mix both
            key = source if source is not None else ("", block.get("type"), position)
            if key not in self.blocks:
                index = len(self.blocks)
                self.blocks[key] = index, _empty(block)
                yield self._event("content-block-start", index=index, content=_empty(block))
            index, whole = self.blocks[key]
            delta = _merge(whole, block)
            if delta:
                yield self._event("content-block-delta", index=index, delta=delta)
        usage: Any = message.usage_metadata or {}
        for name, value in cast("dict[str, Any]", usage).items():
            self.usage[name] = self.usage.get(name, 0) + value if isinstance(value, int) else value
        self.metadata |= cast("dict[str, Any]", message.response_metadata)

    def finish(self) -> Iterator[dict[str, Any]]:
        for index, block in self.blocks.values():
            yield self._event("content-block-finish", index=index, content=_final(block))
        more = {"usage": self.usage, "metadata": jsonable(self.metadata)}
        yield self._event("message-finish", **{name: value for name, value in more.items() if value})

    def _event(self, event: str, **fields: Any) -> dict[str, Any]:
        return {"event": event, **_names(self.ident), **fields}


def _names(ident: str) -> dict[str, str]:
    """LangChain makes a message's id of the call's; one that the model's provider gave serves as both."""
    return {"id": ident, "run_id": ident.removeprefix("lc_run--")}


def _empty(block: Block) -> Block:
    """How a block begins: its names, without what its deltas bring."""
    kind = block.get("type")
    if kind in DELTAS:
        return {**block, DELTAS[kind][1]: ""}
    if kind in CALL_CHUNKS:
        return {**block, "args": ""}
    return dict(block)


def _merge(whole: Block, part: Block) -> dict[str, Any] | None:
    """Add a part to its block; returns the delta to send, if there is one."""
    kind = part.get("type")
    if kind not in DELTAS and kind not in CALL_CHUNKS:
        whole |= part
        return None
    delta, field = DELTAS.get(kind, ("tool-call-delta", "args"))
    text: str = part.get(field) or ""
    whole |= {name: value for name, value in part.items() if value is not None and name != field}
    whole[field] = (whole.get(field) or "") + text
    return {"type": delta, field: text} if text else None


def _final(block: Block) -> Block:
    """A finished block: the arguments of a tool call are parsed."""
    kind = block.get("type")
    if kind not in CALL_CHUNKS:
        return block
    names = {"id": block.get("id"), "name": block.get("name")}
    try:
        args: Any = orjson.loads(block.get("args") or "{}")
    except orjson.JSONDecodeError:
        error = "The arguments are not valid JSON"
        return {**block, **names, "type": "invalid_tool_call", "error": error}
    return {**block, **names, "type": CALL_CHUNKS[kind], "args": args}
