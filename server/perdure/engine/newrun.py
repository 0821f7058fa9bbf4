"""What a client asks a run with (`NewRun`), and what of it is stored with the run (`runs.kwargs`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

from perdure.engine.access import Actor
from perdure.engine.errors import InvalidInput

MAX_DELAY = timedelta(days=3660)


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a client asks for; see WIRE: `POST /threads/{id}/runs`. `assistant` is a UUID or a graph name.

    `behind_question`: wait while the thread has an open question, instead of superseding it.
    `protocol`: record every channel of the event protocol (`channels`), whatever `stream_mode` says.
    `actor`: for whom it acts; without one, for whom the run `like` (of the same thread) does.
    """

    assistant: str
    input: Any = None
    command: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    context: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    checkpoint_id: str | None = None
    stream_mode: list[str] = field(default_factory=lambda: ["values"])
    stream_subgraphs: bool = False
    stream_resumable: bool = False
    interrupt_before: list[str] | Literal["*"] | None = None
    interrupt_after: list[str] | Literal["*"] | None = None
    multitask_strategy: Literal["enqueue", "reject", "interrupt", "rollback"] = "enqueue"
    if_not_exists: Literal["reject", "create"] = "reject"
    on_disconnect: Literal["continue", "cancel"] = "continue"
    on_completion: Literal["delete", "keep"] = "delete"
    after_seconds: float = 0
    max_duration: float | None = None
    webhook: str | None = None
    durability: str = "sync"
    idempotency_key: str | None = None
    behind_question: bool = False
    protocol: bool = False
    actor: Actor | None = None
    like: UUID | None = None


def delay_of(seconds: float) -> timedelta:
    """How long a run is to wait before it may start. Raises InvalidInput."""
    if not 0 <= seconds <= MAX_DELAY.total_seconds():
        raise InvalidInput("after_seconds", f"must be between 0 and {int(MAX_DELAY.total_seconds())}")
    return timedelta(seconds=seconds)


def merge(*parts: dict[str, Any] | None) -> dict[str, Any]:
    """One object of several, later ones win."""
    return {key: value for part in parts if part for key, value in part.items()}


def merge_config(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; `configurable` and `metadata` are merged key by key."""
    merged = {**base, **over}
    for key in ("configurable", "metadata"):
        if base.get(key) or over.get(key):
            merged[key] = merge(base.get(key), over.get(key))
    return merged


def kwargs_of(
    new: NewRun, config: dict[str, Any], context: dict[str, Any], temporary: bool, answered: list[str] | None
) -> dict[str, Any]:
    """What the attempts need and the wire echoes. `answered`: the answer stands in the checkpoint already."""
    return {
        "input": new.input,
        "command": new.command,
        "config": config,
        "context": merge(context, new.context),
        "checkpoint": new.checkpoint,
        "checkpoint_id": new.checkpoint_id,
        "stream_mode": new.stream_mode,
        "interrupt_before": new.interrupt_before,
        "interrupt_after": new.interrupt_after,
        "webhook": new.webhook,
        "temporary": temporary,
        "subgraphs": new.stream_subgraphs,
        "resumable": new.stream_resumable,
        "durability": new.durability,
        "on_disconnect": new.on_disconnect,
        **({"max_duration": new.max_duration} if new.max_duration else {}),
        **({"protocol": True} if new.protocol else {}),
        **({"answered": answered} if answered is not None else {}),
    }


class Start(NamedTuple):
    """The checkpoint that a run names: its id in the root graph (None: the newest), and how LangGraph is told."""

    root: str | None
    configurable: dict[str, Any]


def start_of(kwargs: Mapping[str, Any]) -> Start:
    """Where the kwargs of a run say that it begins; `checkpoint_id` wins over `checkpoint`, that over the config.

    The checkpoint of a subgraph counts with its map only, which says what the root's is; without one it names
    nothing, as for LangGraph. (A RemoteGraph that is a node sends the namespace that it has at its caller.)
    """
    if kwargs.get("checkpoint_id"):
        return Start(kwargs["checkpoint_id"], {"checkpoint_id": kwargs["checkpoint_id"]})
    config: dict[str, Any] = kwargs.get("config") or {}
    places: list[dict[str, Any]] = [kwargs.get("checkpoint") or {}, config.get("configurable") or {}]
    for given in places:
        checkpoint_id, ns = given.get("checkpoint_id"), given.get("checkpoint_ns") or ""
        if not checkpoint_id or not isinstance(checkpoint_id, str):
            continue
        known: dict[Any, Any] = given["checkpoint_map"] if isinstance(given.get("checkpoint_map"), dict) else {}
        root = known.get("")
        if ns and known.get(ns) == checkpoint_id and isinstance(root, str):
            return Start(root, {"checkpoint_id": checkpoint_id, "checkpoint_ns": ns, "checkpoint_map": known})
        if not ns:
            return Start(checkpoint_id, {"checkpoint_id": checkpoint_id})
    return Start(None, {})
