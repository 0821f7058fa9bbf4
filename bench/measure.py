"""What every benchmark needs: CPU of process trees, operations side by side with their times, a table."""

from __future__ import annotations

import asyncio
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg


@dataclass
class Timed:
    """Operations of one kind: seconds of each that succeeded, the errors of the others, seconds in all."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wall: float = 0.0

    def ms(self, share: float) -> float:
        """The time within which this share of the operations ended, in ms."""
        return percentile(self.seconds, share) * 1000


async def run(count: int, concurrency: int, one: Callable[[int], Awaitable[None]]) -> Timed:
    """Do `one(0) … one(count - 1)`, so many at a time. What fails is counted, and does not stop the others."""
    timed = Timed()
    places = asyncio.Semaphore(concurrency)

    async def place(number: int) -> None:
        async with places:
            began = time.perf_counter()
            try:
                await one(number)
            except Exception as exc:  # the edge of one operation
                timed.errors.append(repr(exc)[:300])
            else:
                timed.seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(place(number) for number in range(count)))
    timed.wall = time.perf_counter() - began
    return timed


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; nan of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else math.nan


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, as JSON."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def cpu_seconds(root: int) -> float:
    """CPU seconds that a process and its descendants have used so far, those included that have ended."""
    total = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(root)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):  # it ended meanwhile: its parent counts it
                times = one.cpu_times()
                # Linux adds the children that were waited for; macOS says 0 there
                total += times.user + times.system + times.children_user + times.children_system
    return total


def postmaster(dsn: str) -> int | None:
    """The main process of the PostgreSQL behind a DSN, if it runs on this machine."""
    with psycopg.connect(dsn) as conn, suppress(psutil.Error):
        process = psutil.Process(conn.info.backend_pid)
        if "postgres" in process.name():
            return process.ppid()
    return None


def machine() -> dict[str, Any]:
    """Where this was measured; the load says how busy others kept it."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "load": round(os.getloadavg()[0], 1)}


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they need; the first to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
