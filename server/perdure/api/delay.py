"""`?delay=` as people write it: `10s`, `1h30m`, `PT10S`, or the moment itself."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from perdure.api.fields import MAX_DELAY_SECONDS
from perdure.engine.errors import InvalidInput

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
NUMBER = r"([0-9]{1,12}(?:[.,][0-9]{1,9})?)"
PART = re.compile(NUMBER + r"\s*(ms|s|m|h|d|w)\s*", re.IGNORECASE)
WORDS = re.compile(rf"(?:{NUMBER}\s*(?:ms|s|m|h|d|w)\s*)+", re.IGNORECASE)
ISO = re.compile(
    rf"P(?:{NUMBER}W)?(?:{NUMBER}D)?(?:T(?=[0-9])(?:{NUMBER}H)?(?:{NUMBER}M)?(?:{NUMBER}S)?)?", re.IGNORECASE
)


def delay_seconds(text: str, *, now: datetime | None = None) -> float:
    """Seconds from now, at least 0: a moment in the past is due at once. A plain number is seconds.

    A moment is ISO 8601, UTC if it has no offset. Years and months are refused in durations: they
    have no fixed length. Raises InvalidInput naming the forms.
    """
    text = text.strip()
    seconds = _duration(text)
    if seconds is None:
        seconds = _until(text, now or datetime.now(UTC))
    if seconds is None:
        raise InvalidInput("delay", "must be like 10s, 5m, 1h30m, PT10S or 2030-01-31T12:00:00Z")
    if seconds > MAX_DELAY_SECONDS:
        raise InvalidInput("delay", "must be less than 100 years")
    return max(0.0, seconds)


def _duration(text: str) -> float | None:
    if re.fullmatch(NUMBER, text):
        return _number(text)
    if WORDS.fullmatch(text):
        return sum(_number(n) * SECONDS[unit.lower()] for n, unit in PART.findall(text))
    if (match := ISO.fullmatch(text)) and any(match.groups()):
        weeks, days, hours, minutes, seconds = (_number(part or "0") for part in match.groups())
        return weeks * 604800 + days * 86400 + hours * 3600 + minutes * 60 + seconds
    return None


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _until(text: str, now: datetime) -> float | None:
    # "+" of an offset arrives as a space when a client did not encode it.
    text = re.sub(r" ([0-9]{2}:?[0-9]{2})$", r"+\1", text)
    try:
        moment = datetime.fromisoformat(text)
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
    except (ValueError, OverflowError):
        return None
