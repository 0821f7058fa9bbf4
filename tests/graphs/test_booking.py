from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from graphs.booking import graph
from graphs.tools import travel
from perdure.simulator import RunningSimulator

CONFIG: Any = {"configurable": {"thread_id": "1"}}
BUSINESS = {
    "prompt": "Book a business trip to San Francisco from March 15 to 20, flying from New York: "
    "a hotel downtown and a rental car."
}
FAMILY = {
    "prompt": "Book a family trip to Miami from July 1 to 8, flying from Boston: a hotel by the beach and an SUV."
}

Asked = Callable[[], list[str]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the travel agency was asked to do, so far."""
    ledger = tmp_path / "travel.jsonl"
    ledger.touch()
    monkeypatch.setenv("TRAVEL_LEDGER", str(ledger))
    return lambda: [f"{e['action']} {e['part']}" for e in map(orjson.loads, ledger.read_bytes().splitlines())]


async def test_business_trip_is_reserved_then_confirmed(simulator: RunningSimulator, served: Any, asked: Asked) -> None:
    result = await served(graph).ainvoke(BUSINESS, CONFIG)
    assert result["status"] == "booked"
    assert list(result["booked"]) == ["hotel", "flight", "car"]
    assert "San Francisco, from March 15 to 20, is booked" in result["answer"]
    assert asked() == [f"{action} {part}" for action in ("reserve", "confirm") for part in ("hotel", "flight", "car")]
    assert len(simulator.requests) == 1


async def test_trip_whose_car_fails_is_undone_in_reverse(
    simulator: RunningSimulator, served: Any, asked: Asked
) -> None:
    result = await served(graph).ainvoke(FAMILY, CONFIG)
    assert result["status"] == "undone"
    assert result["booked"] == {}
    assert "No SUV is left in Miami. Cancelled again: flight-" in result["answer"]
    assert asked() == ["reserve hotel", "reserve flight", "refuse car", "cancel car", "cancel flight", "cancel hotel"]


async def test_only_what_is_wanted_is_booked(simulator: RunningSimulator, served: Any, asked: Asked) -> None:
    wish = {"prompt": "Book a trip to Miami from July 1 to 8 with a convertible."}
    assert list((await served(graph).ainvoke(wish, CONFIG))["booked"]) == ["car"]
    assert asked() == ["reserve car", "confirm car"]


async def test_request_without_a_wish_books_nothing(simulator: RunningSimulator, served: Any, asked: Asked) -> None:
    assert (await served(graph).ainvoke({"prompt": "Hello"}, CONFIG))["status"] == "nothing to book"
    assert asked() == []


async def test_agency_that_is_down_for_now_is_asked_again(
    simulator: RunningSimulator, served: Any, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, failures = travel.reserve, [ConnectionError("agency down")]

    async def shaky(part: str, *args: Any, **options: Any) -> str:
        if part == "flight" and failures:
            raise failures.pop()
        return await reserve(part, *args, **options)

    monkeypatch.setattr(travel, "reserve", shaky)
    assert (await served(graph).ainvoke(BUSINESS, CONFIG))["status"] == "booked"
    assert "cancel hotel" not in asked()


async def test_failed_undo_is_told_and_the_others_still_run(
    simulator: RunningSimulator, served: Any, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = travel.cancel

    async def refuse(part: str, **options: Any) -> None:
        if part == "flight":
            raise travel.TerminalError("Flights can't be cancelled")
        await cancel(part, **options)

    monkeypatch.setattr(travel, "cancel", refuse)
    result = await served(graph).ainvoke(FAMILY, CONFIG)
    assert "somebody has to look at trip-" in result["answer"]
    assert "Cancelled again" not in result["answer"]
    assert "Flights can't be cancelled" in result["answer"]
    assert asked()[-2:] == ["cancel car", "cancel hotel"]
