"""A span while it is being made, and what those of runs and attempts are called and hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from perdure.engine.tracing import ids

Value = str | int | float | bool | Sequence[str]


@dataclass(eq=False, kw_only=True)
class Span:
    """Times in nanoseconds since 1970. `error`: what failed, as a text. `client`: it waits for another system."""

    trace_id: int
    span_id: int
    parent_id: int | None
    name: str
    start: int
    attributes: dict[str, Value]
    events: list[tuple[str, int, Mapping[str, Value]]] = field(
        default_factory=list[tuple[str, int, Mapping[str, Value]]]
    )
    client: bool = False
    error: str | None = None


def run_span(run_id: UUID, thread_id: UUID, agent: str, trace: str | None, start: int) -> Span:
    """The span of a run: the first of its trace, or below whatever asked for the run."""
    above = ids.parse(trace)
    return Span(
        trace_id=ids.trace_of(run_id, trace),
        span_id=ids.run_span(run_id),
        parent_id=above.span_id if above else None,
        name=f"run {agent}",
        start=start,
        attributes={
            "perdure.run_id": str(run_id),
            "perdure.thread_id": str(thread_id),
            "gen_ai.agent.name": agent,
            "gen_ai.conversation.id": str(thread_id),
        },
    )


def attempt_span(
    run_id: UUID, thread_id: UUID, attempt: int, trace: str | None, start: int, worker: str | None
) -> Span:
    """The span of an attempt, below that of its run: the same whoever writes it."""
    return Span(
        trace_id=ids.trace_of(run_id, trace),
        span_id=ids.attempt_span(run_id, attempt),
        parent_id=ids.run_span(run_id),
        name=f"attempt {attempt}",
        start=start,
        attributes={
            "perdure.run_id": str(run_id),
            "perdure.thread_id": str(thread_id),
            "perdure.attempt": attempt,
            **({"perdure.worker": worker} if worker else {}),
        },
    )


def failed(span: Span, kind: str, message: str = "") -> None:
    """Note an error: its class, and its message where that is ours to tell."""
    span.attributes["error.type"] = kind
    span.error = f"{kind}: {message}" if message else kind
