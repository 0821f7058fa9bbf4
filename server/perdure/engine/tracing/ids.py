"""Which trace a run belongs to, and the ids of its spans: known from its row alone, before they exist.

A tree of runs is one trace. Its id is the root run's id, unless the request that asked for that run came with a
W3C `traceparent`: then the caller's trace goes on. A run's span has the last 8 bytes of the run's id, and that of its
n-th attempt those plus n: run ids are UUIDs of version 7, so these bytes are random and never 0.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLED = 1
_LOW = 2**64 - 1
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

caller: ContextVar[str | None] = ContextVar("perdure_traceparent", default=None)
"""The traceparent of the request that is being answered, if it has a valid one."""


@dataclass(frozen=True)
class Parent:
    """A span below which others stand: what a traceparent says."""

    trace_id: int
    span_id: int
    flags: int = SAMPLED

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"


def parse(traceparent: str | None) -> Parent | None:
    """What a traceparent says; None for one that W3C Trace Context tells to ignore. Later versions may be longer."""
    found = _TRACEPARENT.fullmatch(traceparent or "")
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    return Parent(trace_id, span_id, int(found[4], 16) & SAMPLED) if trace_id and span_id else None


def received(headers: Sequence[str]) -> str | None:
    """The `traceparent` headers of a request as they are stored: None unless there is one, and it is valid."""
    found = parse(headers[0].strip()) if len(headers) == 1 else None
    return str(found) if found else None


def trace_of(run_id: UUID, trace: str | None) -> int:
    """The trace of a run, given its column `trace`."""
    found = parse(trace)
    return found.trace_id if found else run_id.int


def run_span(run_id: UUID) -> int:
    return run_id.int & _LOW


def attempt_span(run_id: UUID, attempt: int) -> int:
    return run_span(run_id) + attempt & _LOW
