"""When a cron is due: expressions of five fields, read in a time zone.

Changes of the clock are handled as Debian's cron does it (`cronsim` follows its rules; croniter
7.0 fires `30 2 * * *` twice on the night when 02:30 comes twice):

- minute and hour named (`30 2 * * *`): once a day. A time that the change skips comes right after
  it, a time that comes twice counts the first time.
- a `*` first in minute or hour (`*/30 * * * *`): by the time that really passes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from perdure.engine.errors import InvalidInput

FIELDS = 5
MAX_ZONE_CHARS = 100


def next_tick(
    schedule: str, timezone: str | None, after: datetime, *, until: datetime | None = None
) -> datetime | None:
    """The first tick later than `after`, in UTC; None when there is none before `until` and within 50 years.

    Raises InvalidInput, naming the field, for what is no schedule or no time zone.
    """
    zone = _zone(timezone) if timezone else UTC
    if len(schedule.split()) != FIELDS:  # cronsim also takes six, with seconds
        raise InvalidInput("schedule", f"{schedule!r} must have five fields: minute hour day month weekday")
    try:
        ticks = CronSim(schedule, after.astimezone(zone))
    except CronSimError as exc:
        raise InvalidInput("schedule", f"{schedule!r} is no cron expression: {exc}") from exc
    for tick in ticks:
        at = tick.astimezone(UTC)
        if at > after:  # within the hour that comes twice cronsim starts with ticks of its first pass
            return at if until is None or at < until else None
    return None


def _zone(name: str) -> ZoneInfo:
    try:
        if len(name) <= MAX_ZONE_CHARS:
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; a path out of the database; a folder of it
        pass
    raise InvalidInput("timezone", f"{name[:MAX_ZONE_CHARS]!r} is no IANA time zone such as Europe/Berlin")
