"""Traces (OpenTelemetry) of runs, their attempts, nodes, steps, model calls and tools, sent to an OTLP collector.

Off unless `Settings.traces_to` says where they go: then `exporter` is None, and nothing of OpenTelemetry is imported.
`ids` says which trace a run belongs to, `rows` tells of runs and of attempts that were taken away, `attempt` of
what an attempt does, `export` sends it. A span is told after the commit of what it tells about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from perdure.engine.tracing import ids

if TYPE_CHECKING:
    from perdure.config import Settings
    from perdure.engine.queue import Claimed
    from perdure.engine.tracing.attempt import AttemptTrace
    from perdure.engine.tracing.export import Exporter

exporter: Exporter | None = None
"""Where spans go; None: nowhere. Set before connections are opened and runs are claimed."""


@contextmanager
def exporting(settings: Settings) -> Iterator[None]:
    """Send spans until the block ends, if the settings say so; then wait a moment for the last ones.

    Raises ValueError for OTEL_ variables that the SDK refuses.
    """
    global exporter
    if settings.traces_to is None:
        yield
        return
    from perdure.engine.tracing.export import Exporter

    exporter = opened = Exporter(settings.traces_to)
    try:
        yield
    finally:
        exporter = None
        opened.close()


def begin(run: Claimed, worker: str) -> AttemptTrace | None:
    """The trace of an attempt that begins now; None when nobody wants to know."""
    if exporter is None or not exporter.samples(run.run_id, run.trace):
        return None
    from perdure.engine.tracing.attempt import AttemptTrace

    return AttemptTrace(exporter, run, worker)


def child_of(parent: Claimed) -> str:
    """The traceparent of a run that an attempt starts: it stands below that attempt, whose span exists in any case."""
    above = ids.parse(parent.trace)
    if above is not None:
        flags = above.flags
    else:
        flags = ids.SAMPLED if exporter is None or exporter.samples(parent.run_id, None) else 0
    span_id = ids.attempt_span(parent.run_id, parent.attempt)
    return str(ids.Parent(ids.trace_of(parent.run_id, parent.trace), span_id, flags))
