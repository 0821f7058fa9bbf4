"""The fault queue: what goes wrong with the next requests, in order, each fault for `times` requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from threading import Lock
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Fault(BaseModel):
    """One thing that goes wrong. Exactly one of `status`, `hang`, `cut` and `delay` says what.

    A `delay` only makes the good answer late. `match` keeps the fault for requests of which some message
    contains that text, so a test can fail one of several agents that run at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: int | None = Field(default=None, ge=400, le=599)
    """Answer with this HTTP status and an OpenAI error body."""
    retry_after: float | None = Field(default=None, ge=0)
    """Seconds for the `Retry-After` header of that answer."""
    hang: float | None = Field(default=None, ge=0)
    """Say nothing for so many seconds, then drop the connection."""
    cut: bool = False
    """Break the connection in the middle of the answer."""
    delay: float | None = Field(default=None, ge=0)
    """Answer as usual, but so many seconds late."""
    times: int = Field(default=1, ge=1)
    match: str | None = None

    def model_post_init(self, context: Any, /) -> None:
        if sum([self.status is not None, self.hang is not None, self.cut, self.delay is not None]) != 1:
            raise ValueError("a fault has exactly one of status, hang, cut and delay")


class FaultQueue:
    """Faults waiting for requests; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[Fault] = deque()

    def add(self, faults: Iterable[Fault]) -> None:
        with self._lock:
            self._waiting.extend(faults)

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def waiting(self) -> list[Fault]:
        """What is still to come; `times` counts down."""
        with self._lock:
            return list(self._waiting)

    def take(self, text: str) -> Fault | None:
        """The first fault that applies to a request whose messages read `text`; uses it up once."""
        with self._lock:
            for index, fault in enumerate(self._waiting):
                if fault.match is None or fault.match in text:
                    if fault.times > 1:
                        self._waiting[index] = fault.model_copy(update={"times": fault.times - 1})
                    else:
                        del self._waiting[index]
                    return fault
        return None
