"""A run as rows with bars on one axis of time: attempts, nodes, steps, waits, questions, in the order they began.

Only numbers and words in, places in percent out; what a row looks like is the template's affair. A question is
often answered long after its run has ended: its bar goes to the end of the axis, which is not stretched for it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from perdure.console.answering import text_of

TICKS = 6
THINNEST = 0.25
"""Percent: a bar of no time can still be seen."""
AFTERWARDS = 1 / 3
"""How much longer than the run the axis may be, for questions that were answered after it."""
ORDER = {"attempt": 0, "node": 1}
DEEPEST = 6
ATTEMPT_WORDS = {
    None: "at work",
    "success": "finished",
    "question": "asked a question and ended",
    "error": "failed for good",
    "failed": "failed, to be tried again",
    "paused": "paused",
    "suspended": "waits",
    "lost": "lost: its worker died or was stuck",
    "handed back": "handed back by its worker, which was told to stop",
    "cancelled": "cancelled",
}
STATUSES = {
    None: "running",
    "success": "done",
    "question": "done",
    "error": "failed",
    "failed": "retrying",
    "handed back": "handed_back",
    "stopped": "interrupted",
    "waiting": "suspended",
}
"""The colour of what the engine calls so; others have their own."""


class Bar(NamedTuple):
    """From `x` on, `width` wide, in percent of the axis. `kind`: ok, bad, wait, busy, lost."""

    x: float
    width: float
    kind: str
    title: str = ""


@dataclass(kw_only=True)
class Row:
    """One line. `about` is the attempt, node or timeline entry itself."""

    id: str
    kind: str
    name: str
    depth: int
    status: str
    started_at: datetime
    ended_at: datetime | None
    about: dict[str, Any]
    note: str = ""
    bars: list[Bar] = field(default_factory=list[Bar])
    beyond: bool = False
    """It goes on after the end of the axis."""

    @property
    def seconds(self) -> float | None:
        return None if self.ended_at is None else (self.ended_at - self.started_at).total_seconds()


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """`marks`: x of moments at which a worker was lost, or another took over; `ticks`: x and seconds."""

    rows: list[Row]
    marks: list[tuple[float, str]]
    ticks: list[tuple[float, float]]
    seconds: float


def entry_id(entry: dict[str, Any]) -> str:
    """The same for one entry of a timeline as long as its run is there."""
    place = entry["interrupt_id"] if entry["kind"] == "question" else entry["scope"]
    text = repr((place, entry["name"], entry["key"], entry["n"], entry["call"], entry["started_at"].isoformat()))
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def draw(run: dict[str, Any], story: dict[str, Any]) -> Waterfall:
    """The rows of a run (`rundetail.describe`) and a page of its `rundetail.story`."""
    active = run["ended_at"] is None
    rows = [
        *_attempts(story["attempts"], run),
        *(_node(one, number, run) for number, one in enumerate(story["nodes"])),
        *(_entry(one, over=not active) for one in story["entries"]),
    ]
    rows.sort(key=lambda row: (row.started_at, ORDER.get(row.kind, 2)))
    begin = min((row.started_at for row in rows), default=run["started_at"] or run["created_at"])
    if story["first"]:
        begin = min(begin, max(run["created_at"], run["available_at"]))
    end = _end(run, rows, begin, whole=story["first"] and not story["more"])
    whole = max((end - begin).total_seconds(), 0.001)

    def place(at: datetime) -> float:
        return min(100.0, max(0.0, 100 * (at - begin).total_seconds() / whole))

    for row in rows:
        until = row.ended_at or (run["now"] if active else end)
        row.beyond = (row.ended_at is None and (row.kind == "question" or active)) or until > end
        for start, stop, kind, title in _parts(row, until):
            x, to = place(start), place(stop)
            width = max(THINNEST, to - x)
            row.bars.append(Bar(round(min(x, 100 - width), 3), round(width, 3), kind, title))
    marks: list[tuple[float, str]] = []
    for one in story["attempts"]:
        if one["ended"] == "lost":
            marks.append((round(place(one["ended_at"]), 3), "lost"))
        if one["recovers"]:
            marks.append((round(place(one["started_at"]), 3), "recovered"))
    return Waterfall(rows=rows, marks=marks, ticks=_ticks(whole), seconds=whole)


def _end(run: dict[str, Any], rows: list[Row], begin: datetime, *, whole: bool) -> datetime:
    ends = [min(row.ended_at or row.started_at, run["now"]) for row in rows if row.kind != "question"]
    if whole:
        last = run["ended_at"] or run["now"]
        if run["status"] == "paused":  # nothing happens any more
            last = max(ends, default=last)
        ends.append(last)
    end = max(ends, default=begin)
    asked = [row.ended_at or run["now"] for row in rows if row.kind == "question"]
    return min(max([end, *asked]), end + max(timedelta(milliseconds=50), (end - begin) * AFTERWARDS))


def _attempts(found: list[dict[str, Any]], run: dict[str, Any]) -> Iterable[Row]:
    before: dict[str, Any] | None = None
    for one in found:
        note = ATTEMPT_WORDS[one["ended"]]
        if one["ended"] is None and run["ended_at"] is not None:
            note = "ended with the run"
        if one["recovers"] and before is not None and before["ended_at"] is not None:
            gap = (one["started_at"] - before["ended_at"]).total_seconds()
            note = f"took over {max(0.0, gap):.1f} s after that; {note}"
        yield Row(
            id=f"attempt-{one['attempt']}",
            kind="attempt",
            name=f"Attempt {one['attempt']}",
            depth=0,
            status=STATUSES.get(one["ended"], str(one["ended"])),
            started_at=one["started_at"],
            ended_at=one["ended_at"] or run["ended_at"],
            about=one,
            note=note,
        )
        before = one


def _node(node: dict[str, Any], number: int, run: dict[str, Any]) -> Row:
    ended = node["ended"]
    if node["ended_at"] is None and run["status"] != "running":
        ended = "waiting"
    return Row(
        id=f"node-{number}-{node['checkpoint_id'][:18]}",
        kind="node",
        name=node["node"],
        depth=1,
        status={"question": "open", "error": "failed"}.get(ended or "", STATUSES.get(ended, str(ended))),
        started_at=node["started_at"],
        ended_at=node["ended_at"],
        about=node,
        note=f"{node['count']} tasks" if node["count"] > 1 else "",
    )


def _entry(entry: dict[str, Any], *, over: bool) -> Row:
    tries: list[dict[str, Any]] = entry["attempts"]
    undo = bool(tries and tries[0].get("undo"))
    given_up = over and entry["status"] == "retrying"
    return Row(
        id=entry_id(entry),
        kind="undo" if undo else entry["kind"],
        name=text_of(entry["asked"]) if entry.get("asked") is not None else entry["name"],
        depth=min(DEEPEST, 1 + max(1, len(entry["path"]))),
        status="failed" if given_up else entry["status"],
        started_at=entry["started_at"],
        ended_at=_try_end(tries[-1]) if given_up and tries else _entry_end(entry),
        about=entry,
        note=_note(entry, len(tries)),
    )


def _entry_end(entry: dict[str, Any]) -> datetime | None:
    if entry["kind"] == "wait" and entry.get("until"):
        return max(entry["until"], entry["started_at"])
    return entry["ended_at"]


def _try_end(one: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(one["started_at"]) + timedelta(seconds=one["seconds"])


def _note(entry: dict[str, Any], tries: int) -> str:
    parts: list[str] = []
    if tries > 1:
        parts.append(f"{tries} tries")
    if entry["kind"] == "question" and entry["status"] == "superseded":
        parts.append("new input came instead")
    return ", ".join(parts)


def _parts(row: Row, until: datetime) -> Iterable[tuple[datetime, datetime, str, str]]:
    """The bars of a row: one, or of a step its tries and the waits between them."""
    tries: list[dict[str, Any]] = row.about.get("attempts") or []
    if row.kind == "attempt":
        kind = {"lost": "lost", "done": "ok", "failed": "bad", "retrying": "bad", "running": "busy"}
        yield row.started_at, until, kind.get(row.status, "plain"), row.note
    elif row.kind == "node":
        kind = {"done": "ok", "failed": "bad", "running": "busy"}
        yield row.started_at, until, kind.get(row.status, "wait"), row.status
    elif tries and row.kind not in ("child", "wait"):
        last: datetime | None = None
        for number, one in enumerate(tries, 1):
            start = datetime.fromisoformat(one["started_at"])
            if last is not None and start > last:
                yield last, start, "wait", "waits for the next try"
            last = _try_end(one)
            bad = one.get("error") is not None
            yield start, last, "bad" if bad else "ok", f"try {number}{' failed' if bad else ''}"
        if row.about.get("next_at") and row.status == "retrying" and last is not None:
            yield last, max(last, row.about["next_at"]), "wait", "waits for the next try"
    else:
        kind = {"question": "wait", "wait": "wait", "child": "busy", "saga": "plain"}.get(row.kind, "plain")
        if row.status == "failed":
            kind = "bad"
        elif row.kind == "child" and row.status == "done":
            kind = "ok"
        yield row.started_at, until, kind, row.status


def _ticks(seconds: float) -> list[tuple[float, float]]:
    """Round moments on the axis: their place and how long after its beginning they are."""
    raw = seconds / TICKS
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * n for n in (1, 2, 5, 10) if size * n >= raw)
    return [(round(100 * n * step / seconds, 3), n * step) for n in range(int(seconds / step) + 1)]
