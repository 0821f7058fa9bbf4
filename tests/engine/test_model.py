"""The engine against a small model: any order of clients, workers, deaths and time keeps the promises.

Hypothesis plays clients, workers and the clock on real PostgreSQL; the model says what must hold
after each step. About 150 steps; with CRASH_ALL set about 2,000.
"""

import asyncio
import operator
import os
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import structlog.testing
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import step
from perdure.config import Settings
from perdure.engine import control, interrupts, prune, stop, wake
from perdure.engine.core import Engine
from perdure.engine.errors import QuestionClosed, RunFinished, RunNotFound, RunRejected
from perdure.engine.queue import LOST_FREE, Claimed
from perdure.engine.registry import GraphEntry, Registry
from tests.engine.conftest import DyingGroup, Killed, Lab

MUCH = bool(os.environ.get("CRASH_ALL"))
EXAMPLES, STEPS = (50, 40) if MUCH else (6, 25)

# Seconds. No sum of what `advance` adds comes near a time at which something is due: the test's own
# duration does not matter.
DELAYS, ADVANCES, BACKOFF, CAP, MAX_ATTEMPTS = (0, 0, 0, 1000, 5000), (600, 3000), 1000, 5000, 6
POLICY: dict[str, Any] = {"max_attempts": MAX_ATTEMPTS, "initial": BACKOFF, "cap": CAP}

ACTIVE = ("pending", "running", "suspended", "paused")
KINDS = ("plain", "ask", "ask", "fail", "retry", "wait")


# -- the graph: a step, and then what the input's `kind` says


@dataclass
class World:
    """What the runs of one example have done outside of the database, by the tag of their input."""

    finished: set[str] = field(default_factory=set[str])  # steps that have returned
    failed: Counter[str] = field(default_factory=Counter[str])
    waited: set[str] = field(default_factory=set[str])
    heard: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list[Any]))
    wrong: list[str] = field(default_factory=list[str])


world = World()


class State(TypedDict, total=False):
    tag: str
    kind: str
    log: Annotated[list[str], operator.add]


class Waits(GraphBubbleUp):
    suspends = True


class Flaky(Exception):
    retryable = True


@step
async def work(tag: str) -> str:
    if tag in world.finished:
        world.wrong.append(f"step {tag} was finished and is executed again")
    return tag


async def first(state: State) -> State:
    done = await work(state["tag"])
    world.finished.add(state["tag"])
    return {"log": [done]}


async def second(state: State, config: RunnableConfig) -> State:
    tag = state["tag"]
    if state["kind"] == "fail":
        raise ValueError("no")
    if state["kind"] == "retry" and world.failed[tag] < 2:
        world.failed[tag] += 1
        raise Flaky("again")
    if state["kind"] == "wait" and tag not in world.waited:
        world.waited.add(tag)
        config["configurable"]["__perdure_journal"].wait_until(time.time() + 1000)
        raise Waits
    if state["kind"] == "ask":
        deadline = datetime.now(UTC) + timedelta(seconds=5000)
        world.heard[tag].append(interrupt({"tag": tag, "deadline": deadline.isoformat()}))
    return {"log": [f"{tag} {state['kind']}"]}


_builder = StateGraph(State)
_builder.add_node("first", first)
_builder.add_node("second", second)
_builder.add_edge(START, "first")
_builder.add_edge("first", "second")
_builder.add_edge("second", END)
GRAPHS = {"default": _builder.compile()}


# -- the model


@dataclass
class Question:
    token: str
    tag: str
    thread: UUID
    due: float
    status: str = "open"
    value: Any = None


@dataclass
class Run:
    """`due`: it starts at that time, not before; `head`: it owns its thread's queue; `behind`: waits for questions."""

    run_id: UUID
    thread: UUID
    kind: str
    tag: str
    due: float = 0
    delayed: bool = False
    behind: bool = False
    answers: Question | None = None
    status: str = "pending"
    failures: int = 0
    head: bool = False
    woken: bool = False
    worker: UUID | None = None
    fence: int = -1  # of its last claim

    def __repr__(self) -> str:
        return f"<{self.tag} {self.kind} {self.status}>"


class Model(RuleBasedStateMachine):
    """`lab` and `runner` are given before the first example."""

    lab: Lab
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        global world
        world = World()
        self.now = 0.0
        self.runs: list[Run] = []
        self.questions: list[Question] = []
        self.workers = [uuid4(), uuid4()]
        self.held: list[tuple[Run, Claimed]] = []
        self.stale: list[Claimed] = []
        self.fences: dict[UUID, int] = {}
        self.threads = [self.do(self.lab.thread()) for _ in range(2)]

    def do(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @property
    def engine(self) -> Engine:
        return self.lab.engine

    def active(self, thread: UUID) -> list[Run]:
        return [run for run in self.runs if run.thread == thread and run.status in ACTIVE]

    def open(self, thread: UUID) -> list[Question]:
        return [question for question in self.questions if question.thread == thread and question.status == "open"]

    def some_run(self, pick: int) -> Run:
        """An active one, or the last that has ended."""
        ended = [run for run in self.runs if run.status not in ACTIVE]
        choice = [*(run for run in self.runs if run.status in ACTIVE), *ended[-1:]]
        return choice[pick % len(choice)]

    def leave(self, run: Run, status: str) -> None:
        """The run is nobody's any more: whoever held it is stale."""
        self.stale += [claimed for held, claimed in self.held if held is run]
        self.held = [(held, claimed) for held, claimed in self.held if held is not run]
        run.status, run.worker, run.woken = status, None, False
        if status not in ACTIVE:
            run.head = False

    # -- clients

    @rule(
        thread=st.integers(0, 1),
        kind=st.sampled_from(KINDS),
        delay=st.sampled_from(DELAYS),
        strategy=st.sampled_from([*["enqueue"] * 7, "reject", "interrupt", "rollback"]),
        behind=st.sampled_from([False, False, True]),
        turns=st.integers(0, 2),
    )
    def enqueue(self, thread: int, kind: str, delay: int, strategy: str, behind: bool, turns: int) -> None:
        where, tag = self.threads[thread], f"r{len(self.runs)}"
        given = {"after_seconds": delay, "multitask_strategy": strategy, "behind_question": behind}
        others = self.active(where)
        asked = self.lab.enqueue(where, {"tag": tag, "kind": kind, "log": []}, **given)
        if strategy == "reject" and others:
            self.refused(asked, RunRejected)
            return
        made = self.do(asked)
        for run in others if strategy in ("interrupt", "rollback") else ():
            self.stopped(run, strategy)
        if not behind:
            for question in self.open(where):
                question.status = "superseded"
        self.runs.append(Run(made["run_id"], where, kind, tag, self.now + delay, bool(delay), behind))
        self.work(0, turns)

    @rule(pick=st.integers(0, 99), action=st.sampled_from(["interrupt", "rollback"]))
    @precondition(lambda self: self.runs)
    def cancel(self, pick: int, action: Any) -> None:
        run = self.some_run(pick)
        asked = stop.cancel(self.engine, run.thread, run.run_id, action)
        if run.status not in ACTIVE:
            self.refused(asked, RunNotFound)
            return
        self.do(asked)
        self.stopped(run, action)
        self.learn_reopened(run.thread)

    def stopped(self, run: Run, action: str) -> None:
        if run.head:
            for question in self.open(run.thread):
                question.status = "superseded"
        self.leave(run, "interrupted" if action == "interrupt" else "gone")
        if action == "rollback" and run.answers and run.answers.status != "superseded":
            run.answers.status = "open"

    def learn_reopened(self, thread: UUID) -> None:
        """The input that had superseded a question has never started: it is asked again, if the state still asks it."""
        if not any(run.head for run in self.active(thread)):
            rows = self.do(self.lab.rows("SELECT token FROM interrupts WHERE status = 'open'"))
            for question in self.questions:
                if question.status == "superseded" and question.token in {row["token"] for row in rows}:
                    question.status = "open"

    @rule(pick=st.integers(0, 99), times=st.integers(1, 2))
    @precondition(lambda self: self.questions)
    def answer(self, pick: int, times: int) -> None:
        """The first of several wins; who comes later, or to a closed question, is told so."""
        question = self.questions[-1 - pick % len(self.questions)]
        values = [f"answer {len(self.runs)} {n}" for n in range(times)]

        async def resolve() -> list[Any]:
            calls = (interrupts.resolve(self.engine, question.token, value) for value in values)
            return await asyncio.gather(*calls, return_exceptions=True)

        ends = self.do(resolve())
        won = [n for n, end in enumerate(ends) if isinstance(end, dict)]
        assert all(isinstance(end, dict | QuestionClosed) for end in ends), ends
        assert len(won) == (question.status == "open"), ends
        for n in won:
            self.answered(question, ends[n]["run_id"], "answered", values[n])

    def answered(self, question: Question, run_id: UUID, status: str, value: Any) -> None:
        question.status, question.value = status, value
        for run in self.active(question.thread):
            if run.head and run.status == "suspended":
                run.due = self.now
            run.woken |= run.status == "running"
        tag = f"r{len(self.runs)}"
        self.runs.append(Run(run_id, question.thread, "answer", tag, self.now, answers=question))

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.runs)
    def pause(self, pick: int) -> None:
        """Whether or not it has been started: what is behind it in its thread's queue waits."""
        run = self.some_run(pick)
        asked = control.pause(self.engine, run.thread, run.run_id)
        if run.status in ("pending", "running", "suspended"):
            self.do(asked)
            self.leave(run, "paused")
        else:
            self.refused(asked, (RunFinished, RunNotFound))

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: any(run.status == "paused" for run in self.runs))
    def resume(self, pick: int) -> None:
        paused = [run for run in self.runs if run.status == "paused"]
        run = paused[pick % len(paused)]
        self.resumed(run)

    def resumed(self, run: Run) -> None:
        self.do(control.resume(self.engine, run.thread, run.run_id))
        run.status, run.failures, run.due = "pending", 0, self.now if run.head else max(run.due, self.now)

    # -- workers

    @rule(worker=st.integers(0, 1), slots=st.sampled_from([1, 50, 50]))
    def claim(self, worker: int, slots: int) -> None:
        mine = self.workers[worker]
        may = {thread: self.startable(thread) for thread in self.threads}
        claimed = self.do(self.lab.claim(slots, worker_id=mine, lease=3600))
        assert len({one.thread_id for one in claimed}) == len(claimed)
        for one in claimed:
            allowed = may[one.thread_id]
            assert one.run_id in {run.run_id for run in allowed}, (f"claimed {self.named(one.run_id)}", allowed)
        waiting = [may[thread] for thread in self.threads if may[thread]]
        assert len(claimed) == min(slots, len(waiting)), ("not claimed, though due", claimed, waiting)
        for one in claimed:
            run = self.named(one.run_id)
            assert one.fence > self.fences.get(one.thread_id, -1), "the fence has not grown"
            self.fences[one.thread_id] = run.fence = one.fence
            run.status, run.head, run.worker = "running", True, mine
            for question in self.open(run.thread) if not run.answers else ():
                question.status = "superseded"  # other input has overtaken it: nobody would hear an answer
            self.held.append((run, one))

    def startable(self, thread: UUID) -> list[Run]:
        """Any of these may be started now, and one of them must be."""
        active = self.active(thread)
        head = next((run for run in active if run.head), None)
        if head is not None:
            return [head] if head.status in ("pending", "suspended") and head.due <= self.now else []
        due = [run for run in active if run.status == "pending" and run.due <= self.now]
        due = [run for run in due if not (run.behind and self.open(thread))]
        paused = [self.place(run) for run in active if run.status == "paused" and run.due <= self.now]
        due = [run for run in due if not any(place < self.place(run) for place in paused)]
        undelayed = sorted((run for run in due if not run.delayed), key=lambda run: run.answers is None)
        return [*undelayed[:1], *(run for run in due if run.delayed)]

    def place(self, run: Run) -> tuple[bool, int]:
        """In the queue of its thread: answers come first, then who came first."""
        return run.answers is None, self.runs.index(run)

    async def play(self, claimed: Claimed) -> None:
        await self.lab.play(self.lab.attempt(claimed))

    def named(self, run_id: UUID) -> Run:
        return next(run for run in self.runs if run.run_id == run_id)

    @rule(worker=st.integers(0, 1), turns=st.integers(1, 3))
    def work(self, worker: int, turns: int) -> None:
        """What a worker with nothing else to do does."""
        for _ in range(turns):
            held = len(self.held)
            self.claim(worker, 1)
            if len(self.held) > held:
                self.execute(held)
                self.promises_hold()

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.held)
    def execute(self, pick: int) -> None:
        run, claimed = self.held[pick % len(self.held)]
        how = run.answers.tag if run.answers else run.tag
        fails, waits = world.failed[how] < 2, how not in world.waited
        self.do(self.play(claimed))
        if run.kind == "fail":
            self.leave(run, "error")
        elif run.kind == "retry" and fails:
            delay = min(CAP, BACKOFF * 2**run.failures)
            run.failures += 1
            run.due = self.now + delay
            self.leave(run, "paused" if run.failures >= MAX_ATTEMPTS else "pending")
        elif run.kind == "wait" and waits:
            run.due = self.now if run.woken else self.now + 1000
            self.leave(run, "suspended")
        else:
            self.succeeded(run)

    def succeeded(self, run: Run) -> None:
        self.leave(run, "success")
        if run.answers:
            assert world.heard[run.answers.tag], f"{run.answers.tag} has never heard its answer"
            assert world.heard[run.answers.tag][-1] == run.answers.value
        for question in self.open(run.thread):
            question.status = "superseded"
        if run.kind == "ask":
            statement = "SELECT token FROM interrupts WHERE run_id = %(id)s"
            (row,) = self.do(self.lab.rows(statement, id=run.run_id))
            self.questions.append(Question(row["token"], run.tag, run.thread, self.now + 5000))

    @rule(pick=st.integers(0, 99), writes=st.integers(0, 5))
    @precondition(lambda self: self.held)
    def execute_and_die(self, pick: int, writes: int) -> None:
        """The worker dies after so many writes of this run, at the latest before the last transaction."""
        run, claimed = self.held[pick % len(self.held)]

        async def dead(commit: Any) -> None:
            raise Killed

        async def play() -> None:
            group = DyingGroup(self.engine.pool, writes)
            attempt = self.lab.attempt(claimed, group=group)
            attempt._settle = dead
            await self.lab.play(attempt)
            await group.dead()

        self.do(play())
        assert run.worker is not None
        self.released(run.worker, lost=True)

    @rule(pick=st.integers(0, 9), how=st.sampled_from(["killed", "cut off", "stopped"]))
    @precondition(lambda self: self.held)
    def worker_goes(self, pick: int, how: str) -> None:
        """Killed; or its leases end; or it hands its runs back."""
        worker = self.held[pick % len(self.held)][0].worker
        assert worker is not None
        if how == "cut off":
            ended = "UPDATE runs SET lease_until = now() - interval '1 s' WHERE worker_id = %(worker)s"
            self.do(self.lab.execute(ended, worker=worker))
        self.released(worker, lost=how != "stopped", expired=how == "cut off")

    def released(self, worker: UUID, *, lost: bool, expired: bool = False) -> None:
        given = self.do(self.lab.release(worker_id=None if expired else worker, lost=lost, **POLICY))
        mine = [run for run in self.runs if run.worker == worker]
        assert {row["run_id"] for row in given} == {run.run_id for run in mine}
        for run in mine:
            paused = lost and run.failures + 1 >= MAX_ATTEMPTS
            free = not lost or run.failures < LOST_FREE
            run.due = self.now + (0 if free else min(CAP, BACKOFF * 2 ** (run.failures - LOST_FREE)))
            run.failures += lost
            self.leave(run, "paused" if paused else "pending")

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.stale)
    def stale_owner_goes_on(self, pick: int) -> None:
        """It executes the run as if nothing had happened, and changes nothing."""
        claimed = self.stale[pick % len(self.stale)]
        before = self.do(self.lab.everything())
        self.do(self.play(claimed))
        assert self.do(self.lab.everything()) == before

    # -- time

    @rule(seconds=st.sampled_from(ADVANCES), turns=st.integers(0, 2))
    def advance(self, seconds: int, turns: int = 0) -> None:
        by = timedelta(seconds=seconds)
        aged = "UPDATE runs SET ready_at = ready_at - %(by)s, available_at = available_at - %(by)s"
        self.do(self.lab.execute(aged, by=by))
        self.do(self.lab.execute("UPDATE interrupts SET deadline = deadline - %(by)s", by=by))
        self.now += seconds
        self.work(1, turns)

    @rule()
    @precondition(lambda self: any(one.status == "open" and one.due <= self.now for one in self.questions))
    def time_out(self) -> None:
        """Many sweepers at once answer a question whose deadline has passed, once."""

        async def sweep() -> list[int]:
            return list(await asyncio.gather(*(interrupts.time_out(self.engine) for _ in range(2))))

        due = [question for question in self.questions if question.status == "open" and question.due <= self.now]
        assert sum(self.do(sweep())) == len(due)
        known = [run.run_id for run in self.runs]
        made = self.do(self.lab.rows("SELECT * FROM runs WHERE run_id <> ALL(%(known)s)", known=known))
        for question in due:
            (row,) = (one for one in made if one["thread_id"] == question.thread)
            (value,) = row["kwargs"]["command"]["resume"].values()
            self.answered(question, row["run_id"], "timed_out", value)

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: any(run.kind == "wait" and run.status in ACTIVE for run in self.runs))
    def wake(self, pick: int) -> None:
        waiting = [run for run in self.runs if run.kind == "wait" and run.status in ACTIVE]
        run = waiting[pick % len(waiting)]

        async def happened() -> None:
            async with self.engine.pool.connection() as conn, conn.transaction():
                await wake.wake(conn, run.thread, run.run_id)

        self.do(happened())
        run.woken |= run.status == "running"
        if run.status == "suspended":
            run.due = self.now

    # -- what must hold

    def refused(self, asked: Any, error: Any) -> None:
        before = self.do(self.lab.everything())
        try:
            self.do(asked)
        except error:
            assert self.do(self.lab.everything()) == before
            return
        raise AssertionError(f"accepted, expected {error}")

    @invariant()
    def promises_hold(self) -> None:
        self.every_accepted_run_is_there()
        self.owner_and_fence_are_right()
        self.each_question_is_closed_once()
        assert world.wrong == [], "a finished step was executed again"

    def every_accepted_run_is_there(self) -> None:
        rows = {row["run_id"]: row for row in self.do(self.lab.rows("SELECT run_id, thread_id, status FROM runs"))}
        there = {run.run_id: run.status for run in self.runs if run.status != "gone"}
        found = {run_id: row["status"] for run_id, row in rows.items()}
        wrong = [run for run in self.runs if found.get(run.run_id) != there.get(run.run_id)]
        assert found == there, [(run, found.get(run.run_id)) for run in wrong]
        running = Counter(row["thread_id"] for row in rows.values() if row["status"] == "running")
        assert all(n == 1 for n in running.values()), "two runs of one thread"

    def owner_and_fence_are_right(self) -> None:
        for row in self.do(self.lab.rows("SELECT thread_id, run_id, fence FROM threads")):
            head = next((run.run_id for run in self.runs if run.thread == row["thread_id"] and run.head), None)
            assert row["run_id"] == head
            assert row["fence"] >= self.fences.get(row["thread_id"], 0)
            self.fences[row["thread_id"]] = row["fence"]

    def each_question_is_closed_once(self) -> None:
        rows = self.do(self.lab.rows("SELECT token, status FROM interrupts"))
        assert {row["token"]: row["status"] for row in rows} == {one.token: one.status for one in self.questions}

    # what happens most often
    enqueue_more = enqueue_even_more = enqueue
    advance_more = advance
    answer_more = answer_even_more = answer

    def teardown(self) -> None:
        """Whatever has happened: with a worker and time, every run ends, exactly once."""
        try:
            for _ in range(60):
                if all(run.status not in ACTIVE for run in self.runs):
                    break
                for run in [run for run in self.runs if run.status == "paused"]:
                    self.resumed(run)
                for question in list(self.questions):
                    if question.status == "open":
                        self.answer(len(self.questions) - 1 - self.questions.index(question), 1)
                self.claim(0, 50)
                while self.held:
                    self.execute(0)
                    self.every_accepted_run_is_there()
                self.advance(3000)
            assert all(run.status not in ACTIVE for run in self.runs), self.runs
            last = """SELECT run_id, count(*) AS n FROM run_events WHERE event = 'lifecycle'
                         AND data LIKE %(final)s AND data NOT LIKE %(paused)s GROUP BY 1"""
            found = self.do(self.lab.rows(last, final='%"final":true%', paused='%"event":"paused"%'))
            assert all(row["n"] == 1 for row in found), "ended twice"
            assert {run.run_id for run in self.runs if run.status != "gone"} <= {row["run_id"] for row in found}
        finally:
            self.do(prune.prune(self.engine, self.threads, "delete"))


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Lab]:
    options = Settings(
        database_url="unused", retry_initial_seconds=BACKOFF, retry_cap_seconds=CAP, max_attempts=MAX_ATTEMPTS
    )
    registry = Registry({}, {name: GraphEntry(name, name, None, graph) for name, graph in GRAPHS.items()})
    with structlog.testing.capture_logs() as logs:
        async with Engine.open(options, registry, dsn) as engine:
            yield Lab(engine, dsn, logs)


def test_promises_hold_in_any_order_of_events(module_dsn: str) -> None:
    with asyncio.Runner() as Model.runner:
        context = opened(module_dsn)
        Model.lab = Model.runner.run(context.__aenter__())
        try:
            run_state_machine_as_test(
                Model,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    derandomize=not MUCH,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            Model.runner.run(context.__aexit__(None, None, None))
