"""A worker: claims runs and executes them, on an event loop of its own in a thread of its own.

The API's loop never runs graph code, so a node that blocks cannot stop HTTP. `start` returns
when runs can be claimed; `stop` hands the runs back first and waits for no author code.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from perdure.engine import loops, meters, queue
from perdure.engine.attempt import Attempt, Workshop
from perdure.engine.core import Engine
from perdure.engine.db import open_pool
from perdure.engine.delivery import Deliveries
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.hub import Hub
from perdure.engine.lease import LeaseThread
from perdure.engine.registry import Registry
from perdure.engine.signals import listen
from perdure.engine.store import open_store

if TYPE_CHECKING:
    from perdure.config import Settings

log = structlog.get_logger(__name__)

POLL_SECONDS = 2.0  # how long a lost notification can delay a run
LOCKED_SECONDS = 0.02  # a run was ready, but its thread was locked for a moment
SYNC_THREADS = 64  # nodes that are plain functions run in these
HAND_BACK_SECONDS = 5.0  # one short transaction of the lease thread, which no author code holds up
STOP_SECONDS = 2.0


class Worker(threading.Thread):
    """Executes up to `settings.slots` runs at a time. With `hub`, readers of this process are fed from memory."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        dsn: str,
        *,
        hub: Hub | None = None,
        origin: str | None = None,
    ) -> None:
        super().__init__(name="perdure-attempts", daemon=True)
        self.settings = settings
        self.registry = registry
        self.dsn = dsn
        self._hub = hub
        self._origin = origin or uuid4().hex
        self._lease = LeaseThread(self)
        self._deliveries = Deliveries(settings, registry, dsn)
        self._attempts: dict[UUID, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Event | None = None
        self._asked: float | None = None  # when the attempt loop was asked to turn, until it does
        self._started = threading.Event()
        self._stopping = False

    def run(self) -> None:
        loops.run(self._run())

    def start(self) -> None:
        """Start the threads; returns when the worker is registered and claims runs."""
        super().start()
        self._started.wait()
        self._lease.start()
        self._lease.ready.wait()
        self._deliveries.start()

    def stop(self) -> None:
        """Hand the runs back, then stop; returns within a few seconds whatever the nodes do."""
        self._stopping = True
        self._deliveries.stop()
        self._lease.stop(HAND_BACK_SECONDS)
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._end)
        self.join(STOP_SECONDS)
        if self._deliveries.ident is not None:
            self._deliveries.join(STOP_SECONDS)

    # -- called from the lease thread

    def running(self) -> list[UUID]:
        """The runs that are being executed now."""
        return list(self._attempts)

    def lag(self) -> float:
        """Seconds since the attempt loop was asked to turn and has not; 0 if it has. Each call asks it again.

        Not the time since its last turn: where the whole process got no time, no loop was blocked.
        """
        asked = self._asked
        if asked is not None:
            return time.monotonic() - asked
        self._asked = time.monotonic()
        if self._loop is not None and self._loop.is_running():
            with suppress(RuntimeError):  # closed between the check and the call: it is stopping
                self._loop.call_soon_threadsafe(self._beat)
        return 0.0

    def wake(self) -> None:
        """There may be something to claim."""
        if self._loop is not None and self._work is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._work.set)

    def abandon(self) -> None:
        """All runs have been given up: stop executing them."""
        if self._loop is not None and self._loop.is_running():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop_attempts)

    # -- on the attempt loop

    def _beat(self) -> None:
        self._asked = None

    def _stop_attempts(self) -> None:
        for attempt in list(self._attempts.values()):
            attempt.stop()

    def _end(self) -> None:
        self._stop_attempts()
        if self._work is not None:
            self._work.set()

    def _told(self, _: str) -> None:
        if self._work is not None:
            self._work.set()

    def _cancelled(self, payload: str) -> None:
        attempt = self._attempts.get(UUID(payload))
        if attempt is not None:
            attempt.stop()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="node"))
        self._work = work = asyncio.Event()
        pool = await open_pool(self.dsn, size=max(8, self.settings.slots), name="attempts")
        shop = Workshop(
            engine=Engine(
                settings=self.settings,
                registry=self.registry,
                dsn=self.dsn,
                pool=pool,
                hub=Hub(),  # nobody reads on this loop
                origin=self._origin,
            ),
            group=GroupCommit(pool, origin=self._origin),
            store=open_store(pool, self.registry),
            hub=self._hub,
        )
        handlers = {"perdure_work": self._told, "perdure_cancel": self._cancelled}
        listener = asyncio.create_task(listen(self.dsn, handlers, missed=work.set), name="listen")
        self._started.set()
        while not self._stopping:
            wait = POLL_SECONDS
            try:
                wait = await self._claim(shop)
            except (psycopg.Error, PoolTimeout) as exc:
                log.warning("claim failed, trying again", error=str(exc).strip())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await work.wait()
        listener.cancel()
        self._stop_attempts()

    async def _claim(self, shop: Workshop) -> float:
        """Fill the free slots; returns how long to wait for news."""
        assert self._work is not None
        self._work.clear()
        free = self.settings.slots - len(self._attempts)
        worker_id = self._lease.worker_id
        if free <= 0 or worker_id is None or self._lease.stuck:
            return POLL_SECONDS
        claimed = await queue.claim(
            shop.engine.pool,
            worker_id=worker_id,
            graphs=self.registry.graph_ids,
            slots=free,
            lease_seconds=self.settings.lease_seconds,
        )
        if self._lease.worker_id != worker_id:
            return 0.0  # handed back meanwhile, or given to others as those of a lost worker
        meters.claims.inc(len(claimed))
        for run in claimed:
            attempt = Attempt(shop, run, worker=self._lease.title)
            self._attempts[run.run_id] = attempt
            task = asyncio.create_task(attempt.execute(), name=f"run {run.run_id}")
            self._tasks.add(task)
            task.add_done_callback(self._done(attempt))
        if claimed:
            return 0.0 if len(claimed) == free else POLL_SECONDS if self._work.is_set() else 0.0
        due = await queue.next_ready(shop.engine.pool, self.registry.graph_ids)
        return POLL_SECONDS if due is None else min(POLL_SECONDS, max(LOCKED_SECONDS, due))

    def _done(self, attempt: Attempt) -> Callable[[asyncio.Task[None]], None]:
        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._attempts.get(attempt.run.run_id) is attempt:
                del self._attempts[attempt.run.run_id]
            if not task.cancelled() and (exc := task.exception()):
                log.error("attempt broke", run_id=str(attempt.run.run_id), exc_info=exc)
            if self._work is not None:
                self._work.set()

        return done
