"""What a run started by the protocol records: every channel, whoever listens.

Beside `values`, which any stream shows, the rows of `run_events` are named `protocol/<channel>`, with
the namespace as `protocol/updates|child:<task>`; their data are the protocol's. Runs started otherwise
record their own modes; `protocol` shows of them what it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from langchain_core.messages import BaseMessage

from perdure.engine.blocks import Blocks
from perdure.engine.events import PROTOCOL, Frame
from perdure.engine.frames import Frames
from perdure.engine.jsonable import dumps
from perdure.engine.saver import Question

MODES = ["values", "updates", "messages", "custom", "tasks", "tools", "checkpoints"]

Namespace = tuple[str, ...]


class Channels:
    """Turns the chunks of one attempt into frames (event name, JSON); stands in for `Frames`."""

    def __init__(self) -> None:
        self._root = Frames(["values"])
        self._blocks: dict[Namespace, Blocks] = {}
        self._children: dict[Namespace, bool] = {}  # subgraphs seen; whether they are still running
        self._calls: dict[str, str] = {}  # task id: the tool call that the task executes

    def of(self, namespace: Namespace, mode: str, data: Any) -> Iterator[tuple[str, bytes]]:
        if mode == "values" and not namespace:
            yield from self._root.of(namespace, mode, data)
        elif mode == "values":
            yield _frame("values", namespace, without_interrupt(data))
        elif mode == "updates":
            for node, values in cast("dict[str, Any]", data).items():
                if node != "__interrupt__":
                    yield _frame("updates", namespace, {"node": node, "values": {} if values is None else values})
        elif mode == "messages":
            message, metadata = cast("tuple[BaseMessage, dict[str, Any]]", data)
            for event in self._blocks.setdefault(namespace, Blocks()).of(message, metadata):
                yield _frame("messages", namespace, event)
        elif mode == "tasks":
            yield from self._task(namespace, cast("dict[str, Any]", data))
        elif mode == "custom":
            yield _frame("custom", namespace, custom(data))
        elif mode == "checkpoints":
            yield _frame("checkpoints", namespace, checkpoint(data))
        else:
            yield _frame(mode, namespace, data)

    def close(self, error: str | None = None) -> Iterator[tuple[str, bytes]]:
        """End the messages and subgraphs that are still open when the graph has stopped."""
        for namespace, blocks in self._blocks.items():
            for event in blocks.close(error):
                yield _frame("messages", namespace, event)
        for namespace, running in list(self._children.items()):
            if running:
                yield self._ended(namespace, {"error": error})

    def _task(self, namespace: Namespace, data: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """A task has started or ended, and with it perhaps a subgraph.

        The first task in a namespace tells that its graph has started; the end of the parent's
        task, whose id the namespace ends with, that it has ended.
        """
        if "result" in data:
            yield _frame("tasks", namespace, data)
            for child, running in list(self._children.items()):
                if running and child[:-1] == namespace and child[-1].endswith(f":{data['id']}"):
                    yield self._ended(child, data)
            return
        if namespace and not self._children.get(namespace):
            self._children[namespace] = True
            yield self._started(namespace, data)
        call = _tool_call(data.get("input"))
        if call is not None:
            self._calls[data["id"]] = call
        yield _frame("tasks", namespace, data)

    def _started(self, namespace: Namespace, data: dict[str, Any]) -> tuple[str, bytes]:
        node, _, task_id = namespace[-1].partition(":")
        metadata: dict[str, Any] = data.get("metadata") or {}
        agent = metadata.get("lc_agent_name")
        told: dict[str, Any] = {"event": "started", "namespace": namespace, "graph_name": agent or node}
        told["trigger_call_id"] = task_id
        if agent and task_id in self._calls:
            told["cause"] = {"type": "toolCall", "tool_call_id": self._calls[task_id]}
        return _frame("lifecycle", namespace, told)

    def _ended(self, namespace: Namespace, data: dict[str, Any]) -> tuple[str, bytes]:
        self._children[namespace] = False
        error = data.get("error")
        event = "interrupted" if data.get("interrupts") else "failed" if error else "completed"
        told = {"event": event, "namespace": namespace, **({"error": str(error)} if event == "failed" else {})}
        return _frame("lifecycle", namespace, told)


def asked_frames(questions: Iterable[Question]) -> list[Frame]:
    """The frames that tell what a run asks; recorded for every run."""
    frames: list[Frame] = []
    for question in questions:
        data = {"interrupt_id": question.interrupt_id, "payload": question.value, "value": question.value}
        suffix = "|" + question.checkpoint_ns if question.checkpoint_ns else ""
        frames.append(Frame.of("input.requested" + suffix, data))
    return frames


def custom(data: Any) -> dict[str, Any]:
    """What a node has written, as the protocol wraps it; `emit(name, payload)` names its channel."""
    if isinstance(data, dict):
        written = cast("dict[str, Any]", data)
        if written.keys() == {"name", "payload"} and isinstance(written["name"], str):
            return written
    return {"payload": data}


def checkpoint(data: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as the protocol knows it: enough to fork from it; `state.get` has the rest."""
    parent: Any = data.get("parent_config")
    metadata: dict[str, Any] = data.get("metadata") or {}
    told: dict[str, Any] = {
        "id": data["config"]["configurable"].get("checkpoint_id"),
        "parent_id": parent["configurable"].get("checkpoint_id") if parent else None,
        "step": metadata.get("step"),
        "source": metadata.get("source"),
    }
    return {name: value for name, value in told.items() if value is not None}


def without_interrupt(data: Any) -> Any:
    """A state without the questions that streams add to it."""
    if not isinstance(data, dict) or "__interrupt__" not in data:
        return cast(Any, data)
    return {k: v for k, v in cast("dict[str, Any]", data).items() if k != "__interrupt__"}


def _frame(channel: str, namespace: Namespace, data: Any) -> tuple[str, bytes]:
    return "|".join((PROTOCOL + channel, *namespace)), dumps(cast(object, data))


def _tool_call(given: Any) -> str | None:
    """The id of the tool call that a task executes, if it executes one."""
    calls: list[Any] = []
    if isinstance(given, dict):
        calls = [cast("dict[str, Any]", given).get("tool_call")]
    elif isinstance(given, list):
        calls = cast("list[Any]", given)
    for call in calls:
        ident = cast("dict[str, Any]", call).get("id") if isinstance(call, dict) else None
        if isinstance(ident, str):
            return ident
    return None
