"""What a crash test works with: an engine of its own, workers that can be killed, and the effects they had."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import uvicorn

from perdure.api import create_app
from perdure.config import load_settings
from perdure.engine import events, runs, threads
from perdure.engine.core import Engine
from perdure.engine.newrun import NewRun
from perdure.engine.registry import Registry
from tests.conftest import ROOT, clean_environment

HERE = Path(__file__).parent
PATIENCE_SECONDS = 90.0
LEASE_SECONDS = 60.0
"""A killed worker is known by its lock; nobody loses a run because this machine is busy."""


@dataclass
class WorkerProcess:
    """A forked worker. Its log is in the test's folder."""

    pid: int
    log: Path

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # the commit hook has killed it already
            os.kill(self.pid, signal.SIGKILL)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    async def tell(self) -> str:
        """What it is doing now: the stacks of its threads and tasks, behind its log."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
            await asyncio.sleep(1)
        return self.log.read_text()

    async def gone(self) -> None:
        """Wait until the process has ended."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while Path(f"/proc/{self.pid}").exists():
                await asyncio.sleep(0.01)


class Nursery:
    """The forking parent (`nursery.py`); one for all tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            cwd=ROOT,
            env=clean_environment(OPENAI_API_KEY="simulated"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def load(self, config: Path, warm: dict[str, Any] | None = None) -> None:
        """Import the graphs of a langgraph.json, and execute those of `warm`, once for all workers forked with it."""
        self._ask({"load": str(config), "warm": warm or {}})

    def fork(self, order: dict[str, Any]) -> WorkerProcess:
        answer = self._ask({"fork": order})
        worker = WorkerProcess(answer["pid"], Path(order["log"]))
        assert answer["ready"] or order["kill"], worker.log.read_text()
        return worker

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the nursery has died of {order}; its standard error says why"
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)
        assert self._process.stdout
        self._process.stdout.close()


class OtherServer:
    """A second perdure, with a database of its own: an API in a thread of this process, a worker that nobody kills."""

    def __init__(self, nursery: Nursery, dsn: str, folder: Path, effects: Path) -> None:
        settings = load_settings(config=HERE / "langgraph.json")
        app = create_app(settings, Registry.load(settings.config), dsn)
        bound = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [bound]}, daemon=True)
        self._thread.start()
        self.dsn = dsn
        self.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        self._worker = nursery.fork(
            {
                "env": {"EFFECTS": str(effects)},
                "config": str(HERE / "langgraph.json"),
                "dsn": dsn,
                "settings": {"slots": 4},
                "log": str(folder / "other-worker.log"),
                "kill": None,
                "record": None,
            }
        )

    def rows(self, query: Any) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return conn.execute(query).fetchall()

    def close(self) -> None:
        self._worker.kill()
        self._server.should_exit = True
        self._thread.join(60)


@dataclass
class Fleet:
    """Workers on one database, and the engine through which the test acts as a client."""

    nursery: Nursery
    engine: Engine
    folder: Path
    env: dict[str, str] = field(default_factory=dict[str, str])
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    config: Path = HERE / "langgraph.json"
    workers: list[WorkerProcess] = field(default_factory=list[WorkerProcess])
    other: OtherServer | None = None

    @property
    def effects_file(self) -> Path:
        return self.folder / "effects"

    @property
    def effects(self) -> Counter[str]:
        """How often each effect has happened."""
        with suppress(FileNotFoundError):
            return Counter(self.effects_file.read_text().splitlines())
        return Counter()

    def hold(self, name: str) -> Path:
        """Steps of this name wait inside, after their effect, until the returned file is removed."""
        path = Path(f"{self.effects_file}.hold.{name}")
        path.touch()
        return path

    def worker(
        self, *, kill: dict[str, Any] | None = None, record: Path | None = None, arm: Path | None = None
    ) -> WorkerProcess:
        """A new worker that claims runs; `kill` and `arm` as in `commits.install`."""
        worker = self.nursery.fork(
            {
                "env": {"EFFECTS": str(self.effects_file), **self.env},
                "config": str(self.config),
                "dsn": self.engine.dsn,
                "settings": {
                    "slots": 4,
                    "lease_seconds": LEASE_SECONDS,
                    "retry_initial_seconds": 0.05,
                    **self.settings,
                },
                "log": str(self.folder / f"worker-{len(self.workers)}.log"),
                "kill": kill,
                "record": str(record) if record else None,
                "arm": str(arm) if arm else None,
            }
        )
        self.workers.append(worker)
        return worker

    async def start(self, graph: str, thread_id: UUID | None = None, **request: Any) -> tuple[UUID, UUID]:
        """Enqueue a run; (thread, run). Without `thread_id` on a new thread."""
        if thread_id is None:
            thread_id = (await threads.create(self.engine))["thread_id"]
        run = await runs.enqueue(self.engine, thread_id, NewRun(assistant=graph, **request))
        return run["thread_id"], run["run_id"]

    async def finish(self, thread_id: UUID, run_id: UUID, seconds: float = PATIENCE_SECONDS) -> Any:
        """What wait answers, once the run has ended."""
        async with asyncio.timeout(seconds):
            async for _ in events.ended(self.engine, thread_id, run_id):
                pass
        return await runs.outcome(self.engine, thread_id, run_id)

    async def until(self, effect: str, times: int = 1) -> None:
        """Wait until an effect has happened so often."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.effects[effect] < times:
                await asyncio.sleep(0.005)

    async def rows(self, query: Any, **params: Any) -> list[dict[str, Any]]:
        async with self.engine.pool.connection() as conn:
            return await (await conn.execute(query, params)).fetchall()

    def close(self) -> None:
        for worker in self.workers:
            with suppress(ProcessLookupError):
                worker.kill()
