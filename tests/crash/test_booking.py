"""graphs/booking.py on real workers that are killed: in each undo of the rollback, and after a cancel."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from perdure.config import load_settings
from perdure.engine import events, state, stop, threads
from perdure.engine.core import Engine
from perdure.engine.registry import Registry
from perdure.simulator import RunningSimulator, start
from tests.conftest import ROOT
from tests.crash.fleet import PATIENCE_SECONDS, Fleet, Nursery
from tests.graphs.test_booking import BUSINESS, FAMILY

CONFIG = ROOT / "langgraph.json"
RESERVED = ["reserve hotel", "reserve flight", "refuse car"]
UNDOS = ["cancel car", "cancel flight", "cancel hotel"]
STEPS_BEFORE_FLIGHT = 4
"""Commits of the journal: understand, new_reference, saga, hotel."""
STEPS_BEFORE_UNDOS = STEPS_BEFORE_FLIGHT + 3
"""The same with flight, car, the error of the saga."""


class Agency:
    """The books of the travel agency."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        ledger.touch()

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.ledger.read_bytes().splitlines()]

    @property
    def requests(self) -> list[str]:
        return [f"{entry['action']} {entry['part']}" for entry in self.entries]

    @property
    def effects(self) -> list[str]:
        """The requests, those with a key that was there before left out: what an agency really does."""
        return list({entry["key"]: f"{entry['action']} {entry['part']}" for entry in self.entries}.values())

    async def until(self, request: str, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.requests.count(request) < times:
                await asyncio.sleep(0.005)


@pytest.fixture
def agency(tmp_path: Path) -> Agency:
    return Agency(tmp_path / "travel.jsonl")


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    with start("./graphs/rules.py:rules", config_dir=ROOT) as running:
        yield running


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    nursery.load(CONFIG)
    yield nursery
    nursery.close()


@pytest.fixture
async def fleet(
    nursery: Nursery, dsn: str, tmp_path: Path, agency: Agency, simulator: RunningSimulator
) -> AsyncIterator[Fleet]:
    """Workers that serve the patterns of this repository."""
    env = {
        "TRAVEL_LEDGER": str(agency.ledger),
        "PERDURE_MODEL": "openai:simulated-1",
        "OPENAI_BASE_URL": simulator.openai_url,
    }
    async with Engine.open(load_settings(config=CONFIG), Registry.load(CONFIG), dsn) as engine:
        fleet = Fleet(nursery, engine, tmp_path, env=env, config=CONFIG)
        yield fleet
        fleet.close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("undo", [0, 1, 2])
async def test_killed_around_the_commit_of_each_undo(
    fleet: Fleet, agency: Agency, simulator: RunningSimulator, undo: int, when: str
) -> None:
    at = STEPS_BEFORE_UNDOS + 1 + undo
    doomed = fleet.worker(kill={"at": at, "when": when, "kind": "append steps"})
    thread, run = await fleet.start("booking", input=FAMILY)
    await doomed.gone()
    assert agency.requests == RESERVED + UNDOS[: undo + 1]
    fleet.worker()
    values = await fleet.finish(thread, run)
    assert values["status"] == "undone"
    assert "No SUV is left in Miami" in values["answer"]
    assert agency.effects == RESERVED + UNDOS
    repeated = Counter(agency.requests) - Counter(agency.effects)
    assert repeated == ({UNDOS[undo]: 1} if when == "before" else {}), "only the call in flight is made twice"
    assert len(simulator.requests) == 1


async def test_cancelled_in_the_middle_undoes_although_the_worker_dies(fleet: Fleet, agency: Agency) -> None:
    doomed = fleet.worker(kill={"at": STEPS_BEFORE_FLIGHT + 1, "when": "before", "kind": "append steps"})
    thread, run = await fleet.start("booking", input=BUSINESS)
    await doomed.gone()
    fleet.env["TRAVEL_SECONDS"] = "60"  # from now on the agency hangs, after it has done what it was asked
    slow = fleet.worker()
    await agency.until("reserve flight", 2)
    await stop.cancel(fleet.engine, thread, run)
    await agency.until("cancel flight")
    slow.kill()
    fleet.env["TRAVEL_SECONDS"] = "0"
    fleet.worker()
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for _ in events.ended(fleet.engine, thread, run):
            pass
    row = (await fleet.rows("SELECT status FROM runs WHERE run_id = %(run)s", run=run))[0]
    assert row["status"] == "interrupted"
    assert agency.effects == ["reserve hotel", "reserve flight", "cancel flight", "cancel hotel"]
    assert agency.requests.count("cancel flight") == 2
    assert (await threads.get(fleet.engine, thread))["status"] == "idle"
    assert (await state.read(fleet.engine, thread))["next"] == []
    thread, run = await fleet.start("booking", thread, input=BUSINESS)
    assert (await fleet.finish(thread, run))["status"] == "booked"
