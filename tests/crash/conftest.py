"""Fixtures of the crash tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from perdure.config import load_settings
from perdure.engine.core import Engine
from perdure.engine.registry import Registry
from tests.crash.fleet import HERE, Fleet, Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
async def fleet(nursery: Nursery, dsn: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    settings = load_settings(config=HERE / "langgraph.json")
    async with Engine.open(settings, Registry.load(settings.config), dsn) as engine:
        fleet = Fleet(nursery, engine, tmp_path)
        yield fleet
        fleet.close()
