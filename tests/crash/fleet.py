"""What a crash test works with: an engine of its own, workers that can be killed, and the effects they had."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from perdure.engine import events, runs, threads
from perdure.engine.core import Engine
from tests.conftest import ROOT, clean_environment

HERE = Path(__file__).parent
PATIENCE_SECONDS = 30.0


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

    def fork(self, order: dict[str, Any]) -> WorkerProcess:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"fork": order}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        worker = WorkerProcess(answer["pid"], Path(order["log"]))
        assert answer["ready"] or order["kill"], worker.log.read_text()
        return worker

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout
        self._process.stdout.close()


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

    def worker(self, *, kill: dict[str, Any] | None = None, record: Path | None = None) -> WorkerProcess:
        """A new worker that claims runs; `kill` as in `commits.install`."""
        worker = self.nursery.fork(
            {
                "env": {"EFFECTS": str(self.effects_file), **self.env},
                "config": str(self.config),
                "dsn": self.engine.dsn,
                "settings": {"slots": 4, "lease_seconds": 2.0, "retry_initial_seconds": 0.05, **self.settings},
                "log": str(self.folder / f"worker-{len(self.workers)}.log"),
                "kill": kill,
                "record": str(record) if record else None,
            }
        )
        self.workers.append(worker)
        return worker

    async def start(self, graph: str, thread_id: UUID | None = None, **request: Any) -> tuple[UUID, UUID]:
        """Enqueue a run; (thread, run). Without `thread_id` on a new thread."""
        if thread_id is None:
            thread_id = (await threads.create(self.engine))["thread_id"]
        run = await runs.enqueue(self.engine, thread_id, runs.NewRun(assistant=graph, **request))
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
