"""`sleep` and `sleep_until`: wait for seconds or months; the time is a row, not a process."""

import asyncio
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from perdure.durable.fingerprint import fingerprint
from perdure.durable.journal import Place, here
from perdure.durable.once import Call, once
from perdure.durable.suspend import pause, unfinished

AWAKE_SECONDS = 1.0
"""What is left of a wait is waited for in memory from here on; more, and the run is suspended."""


async def sleep(duration: float | timedelta) -> None:
    """Go on after `duration` (seconds or timedelta), whatever happens to the process meanwhile.

    Example:
        await sleep(timedelta(days=3))
        await remind(customer)

    The deadline is fixed and recorded when the word is first reached: a restart keeps the remaining time. Above
    one second the run is suspended and costs nothing: the node ends here and is executed again from its top
    when the time has come, so what stands above must be a step or without effect. Other tasks of the same
    superstep finish meanwhile. Outside of a perdure server it is `asyncio.sleep`.

    ValueError for a negative duration, or one that never ends.
    """
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"sleep() takes a duration of 0 seconds or more, not {duration!r}")
    place = here()
    if place.journal is None:
        await asyncio.sleep(seconds)
    else:
        await _sleep(place, fingerprint(["for", seconds]), lambda: time.time() + seconds)


async def sleep_until(when: datetime) -> None:
    """Go on at a point in time, at once if it has passed; otherwise as `sleep`.

    Example:
        await sleep_until(datetime(2030, 1, 1, tzinfo=UTC))

    `when` must be the same whenever the node is executed again: a time counted from now belongs into
    `sleep`, or into a step. ValueError if it has no time zone.
    """
    if when.tzinfo is None or when.utcoffset() is None:
        raise ValueError(f"sleep_until() needs a time with its zone, e.g. tzinfo=UTC; {when} has none")
    deadline = when.timestamp()
    place = here()
    if place.journal is None:
        await asyncio.sleep(max(0.0, deadline - time.time()))
    else:
        await _sleep(place, fingerprint(["until", deadline]), lambda: deadline)


async def _sleep(place: Place, identity: str, deadline: Callable[[], float]) -> None:
    async def fix() -> float:
        return deadline()

    until: float = await once(Call("sleep", fix, identity))
    if until > time.time():
        unfinished(place.journal)
        await pause(place.journal, until, "sleep", awake=AWAKE_SECONDS)
