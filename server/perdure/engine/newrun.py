"""What a client asks a run with (`NewRun`), and what of it is stored with the run (`runs.kwargs`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal
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
