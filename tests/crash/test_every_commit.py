"""Kill the worker right before and right after every commit of a scenario, in turn.

Whatever the commit: the scenario ends as an undisturbed one does, a step whose result was
committed is never called again, each answer is consumed once, and nothing is left waiting.

`make test` kills around each kind of commit once per scenario; `make crash` (CRASH_ALL=1)
around all of them and prints a table.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from perdure.engine import crons, editing, interrupts, stop
from tests.crash.fleet import PATIENCE_SECONDS, Fleet, WorkerProcess

Drive = Callable[[Fleet], Awaitable[Any]]
KINDS = (
    *("claim", "append checkpoint", "append writes", "append steps", "append events", "finish", "retry", "give way"),
    *("cron", "remote started", "remote settled"),
)


def plain(graph: str) -> Drive:
    async def drive(fleet: Fleet) -> Any:
        return await fleet.finish(*await fleet.start(graph, input={"log": ["in"]}))

    return drive


def answering(graph: str, *answers: Any) -> Drive:
    """Ask, and answer one question after the other; parallel questions by their ids, at once."""

    async def drive(fleet: Fleet) -> Any:
        thread, run = await fleet.start(graph, input={"log": ["in"]})
        values = await fleet.finish(thread, run)
        for answer in answers:
            asked = values["__interrupt__"]
            resume = {one["id"]: answer for one in asked} if len(asked) > 1 else answer
            thread, run = await fleet.start(graph, thread, command={"resume": resume})
            values = await fleet.finish(thread, run)
        return values

    return drive


async def times_out(fleet: Fleet) -> Any:
    thread, run = await fleet.start("deadline", input={"log": ["in"], "within": 3600})
    await fleet.finish(thread, run)
    await fleet.rows(
        "UPDATE interrupts SET deadline = now() - interval '1 s' WHERE thread_id = %(thread)s RETURNING token",
        thread=thread,
    )
    await interrupts.time_out(fleet.engine)
    return await settled(fleet, thread)


async def settled(fleet: Fleet, thread: UUID) -> Any:
    """The end of the newest run of a thread."""
    newest = await fleet.rows(
        "SELECT run_id FROM runs WHERE thread_id = %(thread)s ORDER BY queue_no DESC LIMIT 1", thread=thread
    )
    return await fleet.finish(thread, newest[0]["run_id"])


async def commanded(fleet: Fleet) -> Any:
    thread, run = await fleet.start("router", input={"log": ["in"]})
    await fleet.finish(thread, run)
    command = {"goto": "blue", "update": {"log": ["told"]}}
    return await fleet.finish(*await fleet.start("router", thread, command=command))


async def forked(fleet: Fleet) -> Any:
    from perdure.engine import state

    thread, run = await fleet.start("sequential", input={"log": ["in"]})
    await fleet.finish(thread, run)
    history = [one async for one in state.history(fleet.engine, thread, limit=10)]
    at = next(one for one in history if one["next"] == ["b"])["checkpoint"]["checkpoint_id"]
    return await fleet.finish(*await fleet.start("sequential", thread, checkpoint_id=at))


async def queued(fleet: Fleet) -> Any:
    thread, _ = await fleet.start("sequential", input={"log": ["1"]})
    _, last = await fleet.start("sequential", thread, input={"log": ["2"]})
    return await fleet.finish(thread, last)


async def counted(fleet: Fleet) -> Any:
    async with fleet.engine.pool.connection() as conn:
        await conn.execute("CREATE TABLE IF NOT EXISTS counter (n integer)")
        await conn.execute("TRUNCATE counter")
        await conn.execute("INSERT INTO counter VALUES (0)")
    values = await fleet.finish(*await fleet.start("counting", input={"log": ["in"]}))
    assert await fleet.rows("SELECT n FROM counter") == [{"n": 2}], "a transactional effect happens exactly once"
    return values


async def interrupted_saga(fleet: Fleet) -> Any:
    """New input cancels a run whose saga is open: its undos come first."""
    hold = fleet.hold("car")
    thread, _ = await fleet.start("long_trip", input={"log": ["in"]})
    await fleet.until("car")
    thread, run = await fleet.start("long_trip", thread, input={"log": ["new"]}, multitask_strategy="interrupt")
    await fleet.until("undo hotel")
    hold.unlink()
    return await fleet.finish(thread, run)


async def abandoned_saga(fleet: Fleet) -> Any:
    """New input instead of an answer to a question inside of a saga: its undos come first."""
    thread, run = await fleet.start("asking_trip", input={"log": ["in"]})
    await fleet.finish(thread, run)
    return await fleet.finish(*await fleet.start("sequential", thread, input={"log": ["new"]}))


async def called_elsewhere(fleet: Fleet) -> Any:
    """Two of the children are on another server, each started there once."""
    assert fleet.other
    before = fleet.other.rows("SELECT count(*) FROM runs")[0][0]
    values = await fleet.finish(*await fleet.start("distant", input={"log": ["in"]}))
    assert fleet.other.rows("SELECT count(*) FROM runs")[0][0] == before + 2
    assert await fleet.rows("SELECT status, count(*) FROM remote_calls GROUP BY 1") == [{"status": "done", "count": 2}]
    return values


async def cancelled_elsewhere(fleet: Fleet) -> Any:
    """A child on another server is cancelled with its caller."""
    assert fleet.other
    before = fleet.other.rows("SELECT count(*) FROM runs")[0][0]
    thread, run = await fleet.start("waiting", input={"log": ["in"]})
    while not await fleet.rows("SELECT 1 FROM remote_calls WHERE status = 'running'"):
        await asyncio.sleep(0.01)
    await stop.cancel(fleet.engine, thread, run)
    while not await fleet.rows("SELECT 1 FROM remote_calls WHERE status = 'cancelled'"):
        await asyncio.sleep(0.02)
    started = fleet.other.rows("SELECT count(*), count(*) FILTER (WHERE status <> 'interrupted') FROM runs")[0]
    assert started == (before + 1, 0)
    return await fleet.finish(thread, run)


async def fired_by_a_cron(fleet: Fleet) -> Any:
    """One tick starts one run."""
    cron = await crons.create(
        fleet.engine,
        None,
        assistant="sequential",
        payload={"input": {"log": ["tick"]}},
        schedule="0 0 1 1 *",
        on_run_completed="keep",
    )
    await fleet.rows("UPDATE crons SET next_run_at = now() RETURNING 1")
    while not (found := await fleet.rows("SELECT thread_id, run_id FROM runs")):
        await asyncio.sleep(0.01)
    values = await fleet.finish(**found[0])
    assert len(await fleet.rows("SELECT 1 FROM runs")) == 1
    left = await crons.get(fleet.engine, cron["cron_id"])
    assert left["next_run_date"] > datetime.now(UTC)
    return values


async def answered_after_an_edit(fleet: Fleet) -> Any:
    """The edit takes the question away; the answer is LangGraph's to give."""
    thread, run = await fleet.start("asking", input={"log": ["in"]})
    await fleet.finish(thread, run)
    await editing.update(fleet.engine, thread, values={"log": ["edited"]})
    return await fleet.finish(*await fleet.start("asking", thread, command={"resume": "yes"}))


async def leaving_one_checkpoint(fleet: Fleet) -> Any:
    """`durability: exit`: each run leaves its last checkpoint, and what the question inside the subgraph needs."""
    thread, run = await fleet.start("subgraph", input={"log": ["in"]}, durability="exit")
    await fleet.finish(thread, run)
    answer = await fleet.start("subgraph", thread, command={"resume": "yes"}, durability="exit")
    values = await fleet.finish(*answer)
    query = """SELECT metadata ->> 'run_id' AS run, count(*) FROM checkpoints
                WHERE thread_id = %(thread)s AND checkpoint_ns = '' GROUP BY 1"""
    left = {row["run"]: row["count"] for row in await fleet.rows(query, thread=str(thread))}
    assert left == {str(run): 1, str(answer[1]): 1}
    return values


async def rolled_back(fleet: Fleet) -> Any:
    hold = fleet.hold("b")
    thread, _ = await fleet.start("sequential", input={"log": ["in"]})
    await fleet.until("b")
    thread, run = await fleet.start("sequential", thread, input={"log": ["new"]}, multitask_strategy="rollback")
    hold.unlink()
    return await fleet.finish(thread, run)


SCENARIOS: dict[str, Drive] = {
    "sequential steps": plain("sequential"),
    "gather": plain("gather"),
    "Send fan-out": plain("fanout"),
    "subgraph with a question": answering("subgraph", "yes"),
    "two questions in one node": answering("questions", "one", "two"),
    "parallel questions": answering("parallel", "same"),
    "approval": answering("deadline", True),
    "approval that times out": times_out,
    "retries and errors": plain("errors"),
    "command": commanded,
    "fork from a checkpoint": forked,
    "two runs in a queue": queued,
    "suspended sleep": plain("napping"),
    "child runs": plain("parent"),
    "race": plain("racing"),
    "saga rollback": plain("trip"),
    "step transaction": counted,
    "multitask interrupt with a saga": interrupted_saga,
    "multitask rollback": rolled_back,
    "input over a question in a saga": abandoned_saga,
    "child on another server": called_elsewhere,
    "cancelled child on another server": cancelled_elsewhere,
    "cron": fired_by_a_cron,
    "answer after an edit": answered_after_an_edit,
    "durability exit": leaving_one_checkpoint,
}
ELSEWHERE = ("child on another server", "cancelled child on another server")


@dataclass
class Outcome:
    values: Any
    effects: Counter[str]
    killed: str | None  # the kind of commit, or None when the worker was not killed
    committed: Counter[str]  # the effects so far of steps whose result was committed when it was killed


async def play(fleet: Fleet, drive: Drive, kill: dict[str, Any] | None) -> Outcome:
    """One scenario with a worker that is killed, and another one that takes over when it is gone."""
    record = fleet.folder / f"commits-{len(fleet.workers)}"
    doomed = fleet.worker(kill=kill, record=record)
    committed: Counter[str] = Counter()

    async def take_over() -> None:
        await gone(doomed)
        done = await fleet.rows("SELECT value_type, value FROM steps WHERE status = 'done' AND name = 'work'")
        names = (JsonPlusSerializer().loads_typed((row["value_type"], row["value"])) for row in done)
        committed.update({name: fleet.effects[name] for name in (text.removeprefix("did ") for text in names)})
        fleet.worker()
        # who was speaking to another server is known to be dead only when its lease has ended
        await fleet.rows("UPDATE remote_calls SET next_at = now() WHERE speaking RETURNING 1")

    watcher = asyncio.create_task(take_over())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            values = await drive(fleet)
        killed = record.read_text().splitlines()[-1] if watcher.done() else None
        if watcher.done():
            await watcher
    finally:
        watcher.cancel()
    return Outcome(values, fleet.effects, killed, committed)


async def gone(worker: WorkerProcess) -> None:
    while os.path.exists(f"/proc/{worker.pid}"):
        await asyncio.sleep(0.01)


async def reset(fleet: Fleet) -> None:
    """End the workers of the last play and forget its effects and rows."""
    for worker in fleet.workers:
        worker.kill()
    for worker in fleet.workers:
        await worker.gone()
    fleet.workers.clear()
    fleet.effects_file.unlink(missing_ok=True)
    for file in fleet.folder.glob("commits-*"):
        file.unlink()
    tables = "threads, runs, run_events, steps, interrupts, workers, checkpoints, checkpoint_blobs, checkpoint_writes"
    tables += ", remote_calls"
    async with fleet.engine.pool.connection() as conn:
        await conn.execute(f"TRUNCATE {tables} CASCADE")


def plainly(values: Any) -> Any:
    """Values without what differs from thread to thread."""
    return {key: value for key, value in values.items() if key != "__interrupt__"}


async def check(fleet: Fleet, outcome: Outcome, expected: Outcome) -> None:
    assert plainly(outcome.values) == plainly(expected.values)
    extra = outcome.effects - expected.effects
    assert not expected.effects - outcome.effects, "an effect is missing"
    assert max(extra.values(), default=0) <= 1, f"more than the call in flight was repeated: {extra}"
    for name, calls in outcome.committed.items():
        if expected.effects[name] == 1:
            assert outcome.effects[name] == calls, f"step {name!r} was called again after its result was committed"
    left = await fleet.rows("SELECT status FROM runs WHERE status IN ('pending', 'running', 'paused')")
    busy = await fleet.rows("SELECT status FROM threads WHERE status = 'busy' OR run_id IS NOT NULL")
    asked = await fleet.rows("SELECT status FROM interrupts WHERE status = 'open'")
    assert not left
    assert not busy
    assert not asked


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_kill_around_any_commit_changes_nothing(
    fleet: Fleet, scenario: str, request: pytest.FixtureRequest
) -> None:
    drive = SCENARIOS[scenario]
    if scenario in ELSEWHERE:
        fleet.other = request.getfixturevalue("other_server")
        fleet.env["OTHER_SERVER"] = fleet.other.url
    expected = await play(fleet, drive, None)
    kinds = (fleet.folder / "commits-0").read_text().splitlines()
    await check(fleet, expected, expected)
    if os.environ.get("CRASH_ALL"):
        places = [(at, when) for at in range(1, len(kinds) + 1) for when in ("before", "after")]
    else:
        firsts = [next((i for i, seen in enumerate(kinds, 1) if seen.startswith(kind)), 0) for kind in KINDS]
        # alternate, so that each kind is met on both sides over all scenarios
        turn = list(SCENARIOS).index(scenario)
        places = [(at, ("before", "after")[(turn + n) % 2]) for n, at in enumerate(firsts) if at]
    kills: Counter[str] = Counter()
    for at, when in places:
        await reset(fleet)
        outcome = await play(fleet, drive, {"at": at, "when": when})
        await check(fleet, outcome, expected)
        if outcome.killed:
            kills[f"{when} {outcome.killed}"] += 1
    assert kills, "no worker was killed"
    if os.environ.get("CRASH_ALL"):
        print(f"\n{scenario}: {sum(kills.values())} kills, {dict(sorted(kills.items()))}")
