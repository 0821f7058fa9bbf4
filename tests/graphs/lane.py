"""Where examples are played with workers that die: a database, a model and one worker at a time.

A lane lasts for many plays. Between them its rows are deleted, and the worker stays unless the play has killed it:
most of what a test of this kind costs is to start things.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg import sql

from perdure.config import load_settings
from perdure.engine import children, interrupts, jsonable, runs
from perdure.engine.core import Engine
from perdure.engine.errors import QuestionClosed
from perdure.engine.newrun import NewRun
from perdure.engine.registry import Registry
from perdure.engine.views import questions
from perdure.simulator import RunningSimulator, start
from tests.conftest import ROOT, Database
from tests.crash.fleet import Fleet, Nursery, WorkerProcess

PATIENCE_SECONDS = 90.0
POLL_SECONDS = 0.02
LOG_CHARS = 20_000
LINGER_SECONDS = 0.03
"""Longest time between a commit and a kill that is to hit what comes after it."""

CONFIG = ROOT / "langgraph.json"
ACTIVE = (
    "SELECT run_id, graph_id, status, error FROM runs WHERE status IN ('pending', 'running', 'suspended', 'paused')"
)
BUSY = """
SELECT (SELECT count(*) FROM runs WHERE status IN ('pending', 'running', 'suspended', 'paused')) AS runs,
       (SELECT count(*) FROM interrupts WHERE status = 'open') AS questions
"""
ENDED = "SELECT thread_id, run_id, graph_id, status, error FROM runs"
RECORDED = """
SELECT coalesce(sum((attempt->'model'->>'calls')::int), 0)::int AS calls
  FROM steps, jsonb_array_elements(attempts) AS attempt
"""
STEPS = "SELECT name, status, count(*) AS n FROM steps GROUP BY 1, 2"
LEFT = """
SELECT (SELECT count(*) FROM interrupts WHERE status = 'open') AS questions,
       (SELECT count(*) FROM threads WHERE status = 'busy' OR run_id IS NOT NULL) AS busy,
       (SELECT count(*) FROM limit_waiters) AS waits_for_limits,
       (SELECT count(*) FROM steps WHERE status = 'open') AS sagas
"""
AGE_REQUESTS = "UPDATE remote_calls SET next_at = now() WHERE next_at IS NOT NULL"  # or others wait 45 s for the dead
OF_THREADS = """
SELECT DISTINCT c.table_name FROM information_schema.columns c JOIN information_schema.tables t USING (table_name)
 WHERE c.table_schema = 'public' AND c.column_name = 'thread_id' AND t.table_type = 'BASE TABLE'
"""

_DIFFERS = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)?"  # a time
    r"|[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}|[0-9a-f]{8,}"  # an id, or what is made of one
    r"|\bT-\d+"  # the number of a ticket: the second server counts on
)


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the `at`-th commit of a kind, before or after it; after it perhaps with a little delay."""

    kind: str
    at: int
    when: str
    linger: float

    @staticmethod
    def pick(commits: list[str], rng: random.Random) -> Kill:
        """At any commit but a claim, of which idle workers make any number."""
        place = rng.choice([n for n, kind in enumerate(commits) if kind != "claim"])
        kind = commits[place]
        when = rng.choice(["before", "after"])
        linger = rng.choice([0.0, rng.uniform(0, LINGER_SECONDS)]) if when == "after" else 0.0
        return Kill(kind, sum(other.startswith(kind) for other in commits[: place + 1]), when, linger)

    def has_come(self, commits: list[str]) -> bool:
        """Whether the process that made these commits is dead or about to die, unless its last one failed."""
        return sum(kind.startswith(self.kind) for kind in commits) >= self.at


@dataclass
class Outcome:
    """All that a play has led to, without what differs from play to play."""

    runs: Counter[str]
    steps: Counter[tuple[str, str]]
    left: dict[str, int]
    payments: int
    calls: int  # requests that the model got
    recorded: int  # of these, what the journal knows of
    calls_before: int = 0  # the same two, when the worker was dead
    recorded_before: int = 0
    killed: bool = False


@dataclass
class Lane:
    fleet: Fleet
    model: RunningSimulator
    worker: WorkerProcess | None = None
    _tables: list[str] = field(default_factory=list[str])

    @property
    def commits(self) -> list[str]:
        """Kinds of the commits since the example began."""
        return self._record.read_text().splitlines()

    async def play(self, agent: str, examples: list[dict[str, Any]], kill: Kill | None = None) -> Outcome:
        """The examples one after the other; during the last one the worker dies as `kill` says, and another comes."""
        await self._reset()
        for example in examples[:-1]:
            await self._see_through(agent, example)
        self._record.unlink(missing_ok=True)
        outcome = Outcome(Counter(), Counter(), {}, 0, 0, 0)
        if kill:
            self._arm.with_suffix(".new").write_text(json.dumps(vars(kill)))
            os.replace(self._arm.with_suffix(".new"), self._arm)
        watcher = asyncio.create_task(self._take_over(outcome))
        try:
            await self._see_through(agent, examples[-1])
            if kill and kill.has_come(self.commits):
                await asyncio.wait([watcher], timeout=PATIENCE_SECONDS)  # all was done before it died
            outcome.killed = watcher.done()
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            if kill and not outcome.killed:  # it would die of it in the next play
                await self._retire()
        await self._sum_up(outcome)
        return outcome

    async def _take_over(self, outcome: Outcome) -> None:
        """Another worker, as soon as this one is dead, and what is known of the model's calls in between."""
        assert self.worker
        while Path(f"/proc/{self.worker.pid}").exists():  # noqa: ASYNC110  # another process: it can only be asked again
            await asyncio.sleep(0.01)
        outcome.calls_before = len(self.model.requests)
        outcome.recorded_before = await self._recorded()
        async with self.fleet.engine.pool.connection() as conn:
            await conn.execute(AGE_REQUESTS)
        self._fork()

    async def _see_through(self, agent: str, example: dict[str, Any]) -> None:
        """Send one example and answer its questions, until nothing is to be done any more."""
        engine = self.fleet.engine
        key = example.get("key")
        thread_id = children.session_thread(engine.registry.default_assistant_id(agent), key) if key else None
        new = NewRun(
            assistant=agent,
            input=example["input"],
            if_not_exists="create",
            on_completion="keep",
            behind_question=key is not None,
        )
        await runs.enqueue(engine, thread_id, new)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while any((busy := (await self.fleet.rows(BUSY))[0]).values()):
                    if busy["questions"] and not example.get("unanswered"):
                        await self._answer(example.get("answer", True))
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as exc:
            exc.add_note(f"not over after {PATIENCE_SECONDS:g} s: {await self.fleet.rows(ACTIVE)}")
            if self.worker:
                exc.add_note((await self.worker.tell())[-LOG_CHARS:])
            raise

    async def _answer(self, answer: Any) -> None:
        for question in await questions.search(self.fleet.engine, status="open"):
            with suppress(QuestionClosed):  # its deadline has just passed
                await interrupts.resolve(self.fleet.engine, question["token"], answer)

    async def _sum_up(self, outcome: Outcome) -> None:
        for run in await self.fleet.rows(ENDED):
            outcome.runs[await self._ended(run)] += 1
        outcome.steps = Counter({(row["name"], row["status"]): row["n"] for row in await self.fleet.rows(STEPS)})
        outcome.left = (await self.fleet.rows(LEFT))[0]
        outcome.payments = len({json.loads(line)["key"] for line in self._ledger.read_text().splitlines()})
        outcome.calls = len(self.model.requests)
        outcome.recorded = await self._recorded()

    async def _ended(self, run: dict[str, Any]) -> str:
        """What a run came to, in one line."""
        thread_id: UUID = run["thread_id"]
        values = await runs.result(self.fleet.engine, thread_id, run["run_id"])
        said = jsonable.dumps([run["graph_id"], run["status"], run["error"], values]).decode()
        return _DIFFERS.sub("#", said)

    async def _recorded(self) -> int:
        return (await self.fleet.rows(RECORDED))[0]["calls"]

    async def _reset(self) -> None:
        """Forget the last play; whatever went wrong in it is over."""
        if not self._tables:
            self._tables = [row["table_name"] for row in await self.fleet.rows(OF_THREADS)]
        if self.worker is None:
            self._fork()
        async with self.fleet.engine.pool.connection() as conn, conn.transaction():
            await conn.execute("DELETE FROM threads")
            for table in self._tables:
                await conn.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
        self.model.simulator.log.clear()
        for file in (self._arm, self._ledger):
            file.unlink(missing_ok=True)
        self._ledger.touch()
        shutil.rmtree(self.fleet.folder / "sandbox", ignore_errors=True)

    def _fork(self) -> None:
        self.fleet.workers.clear()  # the one before is dead, and its number may be another process by the end
        self.worker = self.fleet.worker(record=self._record, arm=self._arm)

    async def _retire(self) -> None:
        worker, self.worker = self.worker, None
        self.fleet.workers.clear()
        if worker:
            worker.kill()
            await worker.gone()

    @property
    def _record(self) -> Path:
        return self.fleet.folder / "commits"

    @property
    def _arm(self) -> Path:
        return self.fleet.folder / "arm"

    @property
    def _ledger(self) -> Path:
        return self.fleet.folder / "payments.jsonl"


@asynccontextmanager
async def lane(
    nursery: Nursery, database_url: str, template: str, folder: Path, env: dict[str, str]
) -> AsyncIterator[Lane]:
    """A lane with a database of its own. `env` goes to its workers."""
    folder.mkdir(parents=True)
    settings = load_settings(config=CONFIG)
    with Database(database_url, template) as (_, dsn), start("./graphs/rules.py:rules", config_dir=ROOT) as model:
        async with Engine.open(settings, Registry.load(CONFIG), dsn) as engine:
            given = {
                "OPENAI_BASE_URL": model.openai_url,
                "PERDURE_MODEL": "openai:simulated-1",
                "PAYMENTS_LEDGER": str(folder / "payments.jsonl"),
                "CODING_SANDBOX": str(folder / "sandbox"),
                **env,
            }
            made = Lane(Fleet(nursery, engine, folder, env=given, settings={"slots": 8}, config=CONFIG), model)
            try:
                yield made
            finally:
                made.fleet.close()
