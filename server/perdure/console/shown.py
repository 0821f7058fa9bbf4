"""Values as people read them: the filters of the templates. Numbers and times in, short text out."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from markupsafe import Markup, escape

from perdure.engine.jsonable import jsonable

NONE = "–"
MAX_TEXT = 20_000
"""Characters of one value on a page; the API has the rest."""

_STEPS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def duration(seconds: float | timedelta | None) -> str:
    """`840 ms`, `12.3 s`, `4 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds is None:
        return NONE
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds < 0:
        return NONE
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for index, (size, unit) in enumerate(_STEPS):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            below, name = _STEPS[index + 1] if index + 1 < len(_STEPS) else (1, "s")
            return f"{whole} {unit}" + (f" {rest // below} {name}" if rest // below else "")
    raise AssertionError(seconds)


def when(moment: datetime | None) -> Markup | str:
    """How long ago, or in how long; the exact time on hovering. `elements.js` keeps it right while the page is open."""
    if moment is None:
        return NONE
    utc = moment.astimezone(UTC)
    seconds = (datetime.now(UTC) - utc).total_seconds()
    text = (
        "now"
        if abs(seconds) < 1
        else f"{duration(round(seconds))} ago"
        if seconds > 0
        else f"in {duration(round(-seconds))}"
    )
    return Markup('<time-ago><time datetime="{}" title="{}">{}</time></time-ago>').format(
        utc.isoformat(timespec="milliseconds"), exact(utc), text
    )


def exact(moment: datetime | None) -> str:
    """`2026-01-31 12:30:00.123 UTC`."""
    return NONE if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def number(value: float | None) -> str:
    """`1,234`, `56.7 k`, `8.9 M`."""
    if value is None:
        return NONE
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """A share of one as `98.5 %`; 100 only if it is all."""
    if share is None:
        return NONE
    if share < 1:
        share = min(share, 0.999)
    return f"{share * 100:.1f}".rstrip("0").rstrip(".") + " %"


def money(usd: float | None) -> str:
    """US dollars: `$12.30`, and of small sums what matters, `$0.0042`."""
    if usd is None:
        return NONE
    return f"${usd:,.2f}" if usd == 0 or usd >= 1 else f"${usd:.4f}"


def size(count: int | None) -> str:
    """Bytes: `512 B`, `1.4 kB`, `8.0 MB`."""
    if count is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def short(ident: UUID | str | None) -> str:
    """The beginning of an id, enough to tell it from its neighbours. Newer ids begin alike: the end, then."""
    text = str(ident or "")
    return text if len(text) <= 13 else f"{text[:4]}…{text[-4:]}"


def clip(text: Any, length: int = 120) -> str:
    """One line of at most `length` characters."""
    line = " ".join(str(text).split()) if text is not None else ""
    return line if len(line) <= length else line[: length - 1] + "…"


def as_json(value: Any, length: int = MAX_TEXT) -> str:
    """Indented JSON, cut after `length` characters."""
    parts: list[str] = []
    have = 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(jsonable(value)):
        parts.append(part)
        have += len(part)
        if have > length:
            break
    text = "".join(parts).encode(errors="replace").decode()
    return text if have <= length else text[:length] + "\n… cut: the API has the whole"


def is_tree(value: Any) -> bool:
    """Whether a value has parts that can be folded away."""
    return isinstance(value, dict | list) and bool(cast("Any", value))


def lines(text: str) -> Markup:
    """Text with its line breaks."""
    return Markup("<br>").join(escape(line) for line in text.splitlines())


FILTERS: dict[str, Callable[..., Any]] = {
    "duration": duration,
    "when": when,
    "exact": exact,
    "number": number,
    "percent": percent,
    "money": money,
    "size": size,
    "short": short,
    "clip": clip,
    "as_json": as_json,
    "is_tree": is_tree,
    "lines": lines,
}
