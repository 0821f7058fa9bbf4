"""A travel agency for the patterns: it books nothing and keeps its books in a file.

Like a real one it wants an idempotency key and does each thing once for it, however often it is asked. One
thing it never has: an SUV in Miami.
"""

import asyncio
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from perdure import TerminalError


class TravelSettings(BaseSettings):
    """Environment: TRAVEL_LEDGER, TRAVEL_SECONDS. Read again at each call."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    travel_ledger: Path | None = None
    """File that gets one JSON line for each request; unset: none is kept."""
    travel_seconds: float = 0
    """How long the agency takes to answer; time to cancel a run, or to kill its worker."""


class Trip(BaseModel):
    """A trip that is to be booked, as a model can read it out of a text."""

    city: str = Field(description="Where the trip goes")
    dates: str = Field(description="From when to when")
    hotel: str | None = Field(None, description="Which hotel is wanted, e.g. 'downtown'; null if none is")
    flight: str | None = Field(None, description="Which flight is wanted, e.g. 'from Boston'; null if none is")
    car: str | None = Field(None, description="Which kind of car is wanted, e.g. 'SUV'; null if none is")


async def reserve(part: str, wish: str, city: str, dates: str, *, reference: str, idempotency_key: str) -> str:
    """Reserve a hotel, a flight or a car under `reference` and return its code; the same key gives the same code.

    Raises TerminalError (409) for what is not to be had.
    """
    details = f"{wish}, {city}, {dates}"
    if part == "car" and "suv" in wish.lower() and "miami" in city.lower():
        await _ask("refuse", part, reference, details, idempotency_key)
        raise TerminalError("No SUV is left in Miami", 409)
    await _ask("reserve", part, reference, details, idempotency_key)
    return f"{part}-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:8]}"


async def confirm(part: str, *, reference: str, idempotency_key: str) -> None:
    """Make a reservation final."""
    await _ask("confirm", part, reference, "", idempotency_key)


async def cancel(part: str, *, reference: str, idempotency_key: str) -> None:
    """Cancel what stands under `reference`, confirmed or not; where nothing does, nothing happens."""
    await _ask("cancel", part, reference, "", idempotency_key)


async def _ask(
    action: Literal["reserve", "refuse", "confirm", "cancel"], part: str, reference: str, details: str, key: str
) -> None:
    settings = TravelSettings()
    if settings.travel_ledger:
        entry = {"at": datetime.now(UTC), "key": key, "action": action, "part": part, "reference": reference}
        with settings.travel_ledger.open("ab") as books:
            books.write(orjson.dumps(entry | {"details": details}) + b"\n")
    await asyncio.sleep(settings.travel_seconds)
