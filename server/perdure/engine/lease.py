"""The lease thread of a worker: it proves that the worker lives, whatever author code does.

A plain thread with an event loop of its own, so a node that blocks the attempt loop cannot
stop it. It owns one direct connection with a session advisory lock: when the process is
killed, PostgreSQL frees the lock at once and others take over; when the process is cut off,
its leases end. On losing that connection the worker gives up all its runs.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import structlog

from perdure.engine import loops, meters, queue, sweeper
from perdure.engine.core import Engine
from perdure.engine.db import Conn, connect

if TYPE_CHECKING:
    from perdure.engine.worker import Worker

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 0.5
SWEEP_ALL_SECONDS = 2.0  # what may wait a little
RETENTION_SECONDS = 60
STUCK_SECONDS = 5.0  # how long the attempt loop may be blocked before its runs go to others
RECONNECT_SECONDS = 0.5

SHORT_LOCKS = "SET lock_timeout = '1s'"

REGISTER = """
INSERT INTO workers (worker_id, lock_key, name, slots) VALUES (%(worker_id)s, %(lock_key)s, %(name)s, %(slots)s)
"""
LOCK = "SELECT pg_advisory_lock(%(lock_key)s)"
SEEN = "UPDATE workers SET seen_at = now() WHERE worker_id = %(worker_id)s"


class LeaseThread(threading.Thread):
    """Registers the worker, renews its leases, sweeps, and hands its runs back at the end."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(name="perdure-lease", daemon=True)
        self.worker = worker
        self.worker_id: UUID | None = None  # None while there is no registered connection: claim nothing
        self.ready = threading.Event()
        self.stuck = False
        self._stopping = threading.Event()

    @property
    def title(self) -> str:
        """The worker's name for people: host and thread, as in the table `workers`."""
        return f"{socket.gethostname()}:{self.native_id}"

    def run(self) -> None:
        loops.run(self._run())

    def stop(self, timeout: float) -> None:
        """Hand all runs back and end; called from another thread, returns when it is done."""
        self._stopping.set()
        self.join(timeout)

    async def _run(self) -> None:
        sweeping = asyncio.create_task(self._keep_sweeping(), name="sweep")
        while not self._stopping.is_set():
            try:
                async with await connect(self.worker.dsn) as conn:
                    await self._serve(conn)
            except Exception as exc:  # the edge of a background loop: a worker without leases claims nothing
                log.warning("lease connection lost", error=repr(exc))
                self.worker_id = None
                self.worker.abandon()
                await self._pause(RECONNECT_SECONDS)
        sweeping.cancel()

    async def _serve(self, conn: Conn) -> None:
        """Live on one connection, under one identity, until told to stop."""
        worker_id, lock_key = uuid4(), secrets.randbits(62)
        await conn.execute(LOCK, {"lock_key": lock_key})
        slots = self.worker.settings.slots
        await conn.execute(REGISTER, {"worker_id": worker_id, "lock_key": lock_key, "name": self.title, "slots": slots})
        self.worker_id = worker_id
        self.ready.set()
        self.worker.wake()
        renewed = 0.0
        lease_seconds = self.worker.settings.lease_seconds
        while not self._stopping.is_set():
            now = time.monotonic()
            self._watch_loop()
            if now - renewed >= lease_seconds / 4:
                renewed = now
                if not self.stuck:
                    run_ids = self.worker.running()
                    await queue.renew(conn, worker_id=worker_id, run_ids=run_ids, lease_seconds=lease_seconds)
                await conn.execute(SEEN, {"worker_id": worker_id})
            if self.stuck:
                await self._hand_back(conn, worker_id, lost=True)
            await self._pause(SWEEP_SECONDS)
        self.worker_id = None
        await self._hand_back(conn, worker_id, unregister=True)

    async def _keep_sweeping(self) -> None:
        """Sweep beside the leases, on connections that never wait long for a lock: renewing must not wait."""
        worker = self.worker
        while not self._stopping.is_set():
            try:
                opened = Engine.open(worker.settings, worker.registry, worker.dsn, background=True)
                async with opened as engine, await connect(worker.dsn) as conn:
                    await conn.execute(SHORT_LOCKS)
                    kept = swept = 0.0
                    while not self._stopping.is_set() and not conn.closed:
                        if self.worker_id is not None:
                            urgent = time.monotonic() - swept < SWEEP_ALL_SECONDS
                            swept = swept if urgent else time.monotonic()
                            await sweeper.sweep(engine, conn, self.worker_id, urgent=urgent)
                        if time.monotonic() - kept >= RETENTION_SECONDS:
                            kept = time.monotonic()
                            await sweeper.retention(conn)
                        await self._pause(SWEEP_SECONDS)
            except Exception:  # the edge of a background loop
                log.exception("sweeper stopped, starting again")
                await self._pause(RECONNECT_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Wait, or less if the worker is told to stop."""
        await asyncio.to_thread(self._stopping.wait, seconds)

    async def _hand_back(self, conn: Conn, worker_id: UUID, *, lost: bool = False, unregister: bool = False) -> None:
        """Ownership first; stopping the code comes after, and nobody waits for it.

        `lost`: their code blocks the loop, which counts as a failure of each. `unregister`: nothing
        is claimed under this identity any more, not even by a claim that is on its way.
        """
        settings = self.worker.settings
        policy: dict[str, Any] = {
            "lost": lost,
            "max_attempts": settings.max_attempts,
            "initial": settings.retry_initial_seconds,
            "cap": settings.retry_cap_seconds,
        }
        give_up = queue.unregister if unregister else queue.release
        runs = await give_up(conn, worker_id=worker_id, **policy)
        if runs:
            log.info("handed back", runs=[str(run["run_id"]) for run in runs])
        self.worker.abandon()

    def _watch_loop(self) -> None:
        """Notice an attempt loop that author code blocks, and show where."""
        lag = self.worker.lag()
        meters.loop_lag.labels("attempts").set(lag)
        if lag > STUCK_SECONDS and not self.stuck:
            frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] (the documented way to see another thread)
            stack = frames.get(self.worker.ident or 0)
            where = "".join(traceback.format_stack(stack)) if stack else ""
            log.error("attempt loop blocked, handing its runs back", seconds=round(lag, 1), stack=where)
        if self.stuck and lag <= STUCK_SECONDS:
            self.worker.wake()
        self.stuck = lag > STUCK_SECONDS
