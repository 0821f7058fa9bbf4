"""Time limits: a run that takes too long is paused, an attempt that does nothing has failed."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from perdure import sleep, step
from perdure.engine import control, overdue, runs, stop, threads, timelimits
from perdure.engine.timelimits import Limits

HOUR = 3600


class State(TypedDict, total=False):
    mode: str
    done: bool


gates: dict[str, Any] = {}
seen: list[str] = []


@step
async def tick(n: int) -> int:
    await gates["tick"]()
    return n


@step(name="fails")
async def fails() -> None:
    raise ConnectionError("later")


async def node(state: State) -> State:
    mode = state.get("mode", "")
    seen.append(mode)
    if mode == "hangs" and "go" not in gates:
        await asyncio.Event().wait()
    if mode == "will not stop" and seen.count(mode) == 1:
        while "go" not in gates:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                seen.append("refused to stop")
    if mode == "steps":
        for n in range(5):
            await tick(n)
    if mode == "sleeps":
        await sleep(HOUR)
    if mode == "fails":
        await fails()
    return {"done": True}


GRAPHS = {"default": StateGraph(State).add_node("node", node).add_edge(START, "node").compile()}


@pytest.fixture(autouse=True)
def clean() -> None:
    gates.clear()
    seen.clear()


def limit(lab: Any, **given: float) -> None:
    """The graph's own limits."""
    entry = lab.engine.registry.graphs["default"]
    object.__setattr__(entry, "limits", Limits(**given))


async def grows_old(lab: Any) -> None:
    await lab.execute("UPDATE runs SET overdue_at = now() - interval '1 s' WHERE overdue_at IS NOT NULL")


async def paused(lab: Any, run: Any) -> Any:
    """The run as a client sees it; fails unless its time is over."""
    found = await runs.get(lab.engine, run["thread_id"], run["run_id"])
    assert (found["status"], found["paused"]) == ("error", True)
    assert found["error"]["error"] == "MaxDuration"
    assert "3600 s" in found["error"]["message"]
    return found


# -- max_duration


@pytest.mark.parametrize(
    ("given", "graph", "server", "seconds"),
    [(None, None, None, None), (None, None, 30, 30), (None, 20, 30, 20), (10, 20, 30, 10), (40, 20, None, 40)],
)
async def test_the_limit_of_the_run_comes_before_that_of_its_graph_and_of_the_server(
    lab, given, graph, server, seconds
):
    limit(lab, **({"max_duration": graph} if graph else {}))
    if server:
        object.__setattr__(
            lab.engine, "settings", lab.engine.settings.model_copy(update={"max_duration_seconds": server})
        )
    run = await lab.enqueue(await lab.thread(), {}, max_duration=given)
    assert (await lab.run(run))["max_seconds"] == seconds
    assert run["kwargs"].get("max_duration") == given


async def test_time_counts_from_the_first_start_and_through_every_attempt(lab):
    run = await lab.enqueue(await lab.thread(), {"mode": "fails"}, max_duration=HOUR)
    assert (await lab.run(run))["overdue_at"] is None
    await lab.claim()
    row = await lab.run(run)
    assert (row["overdue_at"] - row["started_at"]).total_seconds() == HOUR
    await lab.release(worker_id=lab.worker_id)
    await lab.retries_are_due()
    await lab.claim()
    assert (await lab.run(run))["overdue_at"] == row["overdue_at"]


@pytest.mark.parametrize("state", ["running", "retrying", "suspended"])
async def test_a_run_whose_time_is_over_is_paused_whatever_it_does(lab, state):
    thread = await lab.thread()
    mode = {"running": "hangs", "retrying": "fails", "suspended": "sleeps"}[state]
    run = await lab.enqueue(thread, {"mode": mode}, max_duration=HOUR)
    behind = await lab.enqueue(thread, {})
    attempt = lab.attempt(await lab.claim_one())
    task = asyncio.create_task(lab.play(attempt))
    if state == "running":
        await lab.until(lambda: "hangs" in seen)
    else:
        await task
    assert await overdue.pause_all(lab.engine) == 0
    await grows_old(lab)
    fence = (await lab.thread_row(thread))["fence"]
    assert await overdue.pause_all(lab.engine) == 1
    assert (await lab.thread_row(thread))["fence"] == fence + 1
    await paused(lab, run)
    if state == "running":  # as the notification does it
        attempt.stop()
        await task
    await lab.retries_are_due()
    assert await lab.claim() == []
    assert (await lab.run(behind))["status"] == "pending"
    assert [e["event"] for e in (await lab.events(run))][-2:] == ["error", "lifecycle"]


async def test_a_stale_worker_cannot_end_a_run_that_was_paused(lab):
    run = await lab.enqueue(await lab.thread(), {}, max_duration=HOUR)
    attempt = lab.attempt(await lab.claim_one())
    await grows_old(lab)
    await overdue.pause_all(lab.engine)
    await lab.play(attempt)
    await paused(lab, run)


async def test_a_resumed_run_has_all_its_time_again(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"mode": "sleeps"}, max_duration=HOUR)
    await lab.work()
    await grows_old(lab)
    await overdue.pause_all(lab.engine)
    await control.resume(lab.engine, thread, run["run_id"])
    assert await overdue.pause_all(lab.engine) == 0
    await lab.claim()
    left = await lab.one("SELECT extract(epoch FROM overdue_at - now())::float8 AS left FROM runs")
    assert HOUR - 60 < left["left"] <= HOUR


async def test_who_was_resumed_since_it_was_seen_is_left_alone(lab):
    """Two sweepers: the other one has paused it, and a person was quicker than this one."""
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"mode": "sleeps"}, max_duration=HOUR)
    await lab.work()
    await grows_old(lab)
    assert sum(await asyncio.gather(*(overdue.pause_all(lab.engine) for _ in range(5)))) == 1
    await control.resume(lab.engine, thread, run["run_id"])
    assert not await overdue._pause(lab.engine, thread, run["run_id"], HOUR)
    assert (await lab.run(run))["status"] == "pending"


async def test_undos_are_not_cut_short(lab):
    thread = await lab.thread()
    run = await lab.enqueue(thread, {"mode": "sleeps"}, max_duration=HOUR)
    await lab.work()
    await lab.execute(
        "INSERT INTO steps (thread_id, scope, name, identity, n, call, run_id, status) "
        "VALUES (%(t)s, 's', 'saga', 'x', 0, 0, %(r)s, 'open')",
        t=thread,
        r=run["run_id"],
    )
    await stop.cancel(lab.engine, thread, run["run_id"])
    await grows_old(lab)
    assert await overdue.pause_all(lab.engine) == 0
    await lab.work()
    assert (await lab.run(run))["status"] == "interrupted"


async def test_limits_leave_other_runs_alone(lab):
    run = await lab.enqueue(await lab.thread(), {}, max_duration=HOUR)
    waits = await lab.enqueue(await lab.thread(), {"mode": "sleeps"})
    await lab.work()
    await grows_old(lab)
    assert await overdue.pause_all(lab.engine) == 0
    assert (await lab.run(run))["status"] == "success"
    assert (await lab.run(waits))["status"] == "suspended"
    again = runs.again(await runs.get(lab.engine, run["thread_id"], run["run_id"]))
    assert again.max_duration == HOUR
    await threads.delete(lab.engine, run["thread_id"])


# -- idle


async def idles(lab: Any, mode: str, seconds: float = 0.3) -> Any:
    """An attempt that may be idle for so long, counted from when its node is reached."""
    limit(lab, idle=seconds)
    run = await lab.enqueue(await lab.thread(), {"mode": mode})
    attempt = lab.attempt(await lab.claim_one())
    idle = attempt._pulse.seconds
    attempt._pulse.seconds = lambda: idle() if seen else 0.0  # a database may take long before that
    return run, attempt


async def test_an_attempt_that_does_nothing_has_failed_and_the_run_is_tried_again(lab):
    run, attempt = await idles(lab, "hangs")
    await lab.play(attempt)
    assert seen == ["hangs"]
    row = await lab.run(run)
    assert (row["status"], row["failures"]) == ("pending", 1)
    assert row["error"] == {"error": "IdleTimeout", "message": "No step, checkpoint or event for 0.3 s"}
    events = [e["data"] for e in await lab.events(run) if e["event"] == "lifecycle"]
    assert '"event":"retrying"' in events[-1]
    limit(lab)
    gates["go"] = True
    await lab.retries_are_due()
    await lab.work()
    assert (await lab.run(run))["status"] == "success"


async def test_an_idle_run_is_tried_again_although_its_code_will_not_stop(lab):
    run, attempt = await idles(lab, "will not stop")
    task = asyncio.create_task(lab.play(attempt))
    await lab.until(lambda: "refused to stop" in seen)
    assert (await lab.run(run))["status"] == "pending"
    assert not task.done()
    limit(lab)
    await lab.retries_are_due()
    await lab.work()
    ended = await lab.run(run)
    assert (ended["status"], ended["attempt"]) == ("success", 2)
    gates["go"] = True
    await task
    assert await lab.run(run) == ended


async def test_steps_are_signs_of_life(lab, monkeypatch):
    """Each takes 0.3 s of a clock that stands still otherwise, and is looked at meanwhile; all take 1.5 s."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("perdure.engine.pulse.time", SimpleNamespace(monotonic=lambda: clock.now))
    run, attempt = await idles(lab, "steps", 0.5)
    since, looks = attempt._pulse.seconds, []

    def look() -> float:
        looks.append(since())
        return looks[-1]

    async def takes_time() -> None:
        clock.now += 0.3
        before = len(looks)
        await lab.until(lambda: len(looks) > before)

    attempt._pulse.seconds, gates["tick"] = look, takes_time
    await lab.play(attempt)
    assert (await lab.run(run))["status"] == "success"
    assert max(looks) == pytest.approx(0.3)
    assert clock.now == pytest.approx(1.5)


async def test_a_run_that_waits_is_not_idle(lab):
    run, attempt = await idles(lab, "sleeps", HOUR / 60)
    await lab.play(attempt)
    assert (await lab.run(run))["status"] == "suspended"


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (5, "limits: 5 is not an object"),
        ({"idle": 0}, "limits.idle: 0 is not a number of seconds"),
        ({"idle": True}, "limits.idle: True is not a number"),
        ({"max_duration": "1h"}, "limits.max_duration: '1h' is not a number"),
        ({"max_duration": float("inf")}, "limits.max_duration: inf is not a number"),
        ({"timeout": 5}, "limits.timeout: no such limit"),
    ],
)
def test_wrong_limits_of_a_graph_are_named(limits, problem):
    with pytest.raises(ValueError, match=problem):
        timelimits.read({"limits": limits})


def test_limits_of_a_graph():
    assert timelimits.read({}) == Limits()
    assert timelimits.read({"limits": {"max_duration": 60, "idle": 1.5}}) == Limits(60, 1.5)
