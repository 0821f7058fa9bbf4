"""The engine as an event loop sees it: settings, graphs, a pool, and who waits for what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from perdure.engine import defaults, metrics
from perdure.engine.db import Pool, open_pool
from perdure.engine.hub import Hub
from perdure.engine.registry import Registry
from perdure.engine.signals import listen

if TYPE_CHECKING:
    from perdure.config import Settings

POOL_SIZE = 16
RESERVED = 3  # connections of a pool that no author's transaction may hold: for the group's writes and for reading


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What every engine function takes first. Belongs to the event loop that opened it.

    `origin` marks the notifications of this process's own worker, whose events its hub has
    already seen.
    """

    settings: Settings
    registry: Registry
    dsn: str
    pool: Pool
    hub: Hub
    origin: str
    transactions: asyncio.Semaphore = field(init=False)
    """Taken by whoever holds a connection of the pool for as long as author code likes."""

    def __post_init__(self) -> None:
        places = max(1, self.pool.max_size - RESERVED)
        object.__setattr__(self, "transactions", asyncio.Semaphore(places))

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, registry: Registry, dsn: str, *, background: bool = False
    ) -> AsyncIterator[Engine]:
        """Open the pool, make the default assistants and listen, until the block ends.

        `background`: for the sweeper, which serves no readers: a small pool, whose connections
        never wait long for a lock.
        """
        pool = (
            await open_pool(dsn, size=2, name="sweep", short_locks=True)
            if background
            else await open_pool(dsn, size=POOL_SIZE, name="api")
        )
        engine = cls(settings=settings, registry=registry, dsn=dsn, pool=pool, hub=Hub(), origin=uuid4().hex)
        try:
            if background:
                yield engine
                return
            await defaults.ensure_defaults(engine)
            listener = asyncio.create_task(
                listen(dsn, {"perdure_events": engine._heard}, missed=engine.hub.poke_all), name="listen"
            )
            watch = asyncio.create_task(metrics.watch_loop("api"), name="watch loop")
            try:
                yield engine
            finally:
                watch.cancel()
                listener.cancel()
                with suppress(asyncio.CancelledError):
                    await listener
        finally:
            await pool.close(timeout=2)

    def _heard(self, payload: str) -> None:
        thread_id, _, origin = payload.split(" ")
        if origin != self.origin:
            self.hub.poke(UUID(thread_id))
