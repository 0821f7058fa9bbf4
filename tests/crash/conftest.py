"""Fixtures of the crash tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from perdure.config import load_settings
from perdure.engine.core import Engine
from perdure.engine.db import migrate
from perdure.engine.registry import Registry
from tests.crash.fleet import HERE, Fleet, Nursery, OtherServer


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def other_server(nursery: Nursery, empty_dsn: str, tmp_path: Path) -> Iterator[OtherServer]:
    migrate(empty_dsn)
    other = OtherServer(nursery, empty_dsn, tmp_path, tmp_path / "effects")
    yield other
    other.close()


@pytest.fixture
async def fleet(nursery: Nursery, dsn: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    settings = load_settings(config=HERE / "langgraph.json")
    async with Engine.open(settings, Registry.load(settings.config), dsn) as engine:
        fleet = Fleet(nursery, engine, tmp_path)
        yield fleet
        fleet.close()
