"""Crons: when they are due, and that each tick starts one run whoever looks and whatever dies.

Time passes by ageing `next_run_at`.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from perdure.engine import assistants, crons, runs, sweeper, threads, ticks
from perdure.engine.core import Engine
from perdure.engine.errors import AssistantNotFound, CronNotFound, GraphNotFound, InvalidInput, ThreadNotFound
from perdure.engine.schedule import next_tick


class State(TypedDict, total=False):
    cron: str
    text: str


def _node(state: State, config: RunnableConfig) -> State:
    return {"cron": config["configurable"]["cron_id"], "text": config["configurable"].get("text", "")}


_builder = StateGraph(State)
_builder.add_node("node", _node)
_builder.add_edge(START, "node")
_builder.add_edge("node", END)
GRAPHS = {"default": _builder.compile()}

DAILY = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"
"""Half a day from now: what is not aged does not come due, nor does the next tick change, while a test works."""
BERLIN = "Europe/Berlin"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep fires all that is due, however long that takes."""
    monkeypatch.setattr(ticks, "SECONDS_PER_SWEEP", 600)


async def cron(lab, thread_id: UUID | None = None, *, payload: dict[str, Any] | None = None, **given: Any) -> Any:
    options = {"schedule": DAILY, "assistant": "default", **given}
    return await crons.create(lab.engine, thread_id, payload={"input": {}, **(payload or {})}, **options)


async def due(lab, made: dict[str, Any], ago: str = "1 s") -> None:
    """Its tick was `ago`."""
    await lab.execute(
        "UPDATE crons SET next_run_at = now() - %(ago)s::interval WHERE cron_id = %(id)s", ago=ago, id=made["cron_id"]
    )


async def started(lab, made: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a cron, oldest first."""
    statement = "SELECT * FROM runs WHERE metadata ->> 'cron_id' = %(id)s ORDER BY queue_no"
    return await lab.rows(statement, id=str(made["cron_id"]))


async def look(lab, made: dict[str, Any]) -> dict[str, Any]:
    return await crons.get(lab.engine, made["cron_id"])


# -- schedules


def ticks_of(schedule: str, zone: str | None, after: str, count: int) -> list[str]:
    found: list[str] = []
    at: datetime | None = datetime.fromisoformat(after).replace(tzinfo=UTC)
    while len(found) < count:
        assert at is not None
        at = next_tick(schedule, zone, at)
        assert at is not None
        found.append(at.strftime("%m-%d %H:%M"))
    return found


def test_without_a_time_zone_a_schedule_is_in_utc():
    assert ticks_of("30 2 * * *", None, "2026-03-28T12:00", 2) == ["03-29 02:30", "03-30 02:30"]


def test_a_local_time_that_the_clock_skips_fires_once_right_after():
    assert ticks_of("30 2 * * *", BERLIN, "2026-03-28T00:00", 4) == [
        "03-28 01:30",
        "03-29 01:00",  # 03:00 local time: 02:30 does not exist
        "03-30 00:30",
        "03-31 00:30",
    ]
    assert ticks_of("0,30 2,3 * * *", BERLIN, "2026-03-29T00:00", 3) == ["03-29 01:00", "03-29 01:30", "03-30 00:00"]


def test_a_local_time_that_comes_twice_fires_the_first_time_only():
    assert ticks_of("30 2 * * *", BERLIN, "2026-10-24T12:00", 3) == ["10-25 00:30", "10-26 01:30", "10-27 01:30"]
    for within in ("2026-10-25T00:30", "2026-10-25T00:45", "2026-10-25T01:10", "2026-10-25T01:30"):
        assert ticks_of("30 2 * * *", BERLIN, within, 1) == ["10-26 01:30"], within


def test_intervals_follow_the_time_that_really_passes():
    hours = ["10-24 23:00", "10-25 00:00", "10-25 01:00", "10-25 02:00"]
    assert ticks_of("0 * * * *", BERLIN, "2026-10-24T22:30", 4) == hours
    assert ticks_of("*/30 * * * *", BERLIN, "2026-03-29T00:10", 3) == ["03-29 00:30", "03-29 01:00", "03-29 01:30"]


@given(
    schedule=st.sampled_from(
        ["30 2 * * *", "0 0 * * *", "*/20 * * * *", "15 1-3 * * *", "0 */2 * * 1-5", "59 1 1 * *"]
    ),
    zone=st.sampled_from([None, BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]),
    after=st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
)
@settings(deadline=None)
def test_ticks_only_go_forward(schedule, zone, after):
    first = next_tick(schedule, zone, after)
    second = next_tick(schedule, zone, first)
    assert after < first < second
    assert next_tick(schedule, zone, second - timedelta(seconds=1)) == second


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "x",
        "* * * *",
        "* * * * * *",
        "61 * * * *",
        "0 24 * * *",
        "0 0 31 2 *",
        "@daily",
        "0 0 * * 1#9",
        "*/0 * * * *",
    ],
)
def test_what_is_no_schedule_names_the_field(schedule):
    with pytest.raises(InvalidInput, match=r"^schedule: .*"):
        next_tick(schedule, None, datetime.now(UTC))


@pytest.mark.parametrize(
    "zone", ["Mars/Olympus", "../etc/passwd", "/etc/passwd", "Europe", "x" * 5000, "UTC+02:00", " "]
)
def test_what_is_no_time_zone_names_the_field(zone):
    with pytest.raises(InvalidInput, match=r"^timezone: .*"):
        next_tick(DAILY, zone, datetime.now(UTC))


@given(st.text(alphabet="0123456789*/-,#LW MON²é", max_size=20))
@settings(deadline=None)
def test_any_text_is_a_schedule_or_a_clear_error(text):
    with suppress(InvalidInput):
        next_tick(text, None, datetime(2026, 1, 1, tzinfo=UTC))


def test_a_schedule_that_never_comes_has_no_tick():
    assert next_tick("0 0 29 2 *", None, datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2028, 2, 29, tzinfo=UTC)
    assert next_tick("0 0 30 2 MON#5", None, datetime(2026, 1, 1, tzinfo=UTC)) is not None  # either matches


# -- firing


async def test_a_tick_fires_once_however_many_sweepers_look(lab):
    made = [await cron(lab) for _ in range(3)]
    made += [await cron(lab, await lab.thread()) for _ in range(3)]
    for one in made:
        await due(lab, one)
    async with AsyncExitStack() as stack:
        engine = lab.engine
        opened = [Engine.open(engine.settings, engine.registry, lab.dsn, background=True) for _ in range(8)]
        engines = [await stack.enter_async_context(each) for each in opened]
        for _ in range(3):
            await asyncio.gather(*(ticks.fire_due(each) for each in engines))
    for one in made:
        assert len(await started(lab, one)) == 1
        assert (await look(lab, one))["next_run_date"] == one["next_run_date"]


async def test_nothing_fires_before_its_time(lab):
    made = await cron(lab)
    assert timedelta(0) < made["next_run_date"] - made["created_at"] <= timedelta(days=1)
    assert await ticks.fire_due(lab.engine) == 0


async def test_the_sweep_of_a_worker_fires(lab):
    made = await cron(lab)
    await due(lab, made)
    async with lab.connection() as conn:
        await sweeper.sweep(lab.engine, conn, uuid4())
    assert len(await started(lab, made)) == 1


async def test_ticks_missed_while_no_worker_lived_are_fired_as_one(lab):
    made = await cron(lab)
    await due(lab, made, "3 days")
    assert await ticks.fire_due(lab.engine) == 1
    assert await ticks.fire_due(lab.engine) == 0
    assert len(await started(lab, made)) == 1
    assert (await look(lab, made))["next_run_date"] > datetime.now(UTC)
    [line] = [line for line in lab.logs if line["event"] == "cron fired"]
    assert line["seconds_late"] >= 3 * 24 * 3600


async def test_many_due_crons_are_fired_in_rounds(lab, monkeypatch):
    monkeypatch.setattr(ticks, "SECONDS_PER_SWEEP", 0)
    for _ in range(3):
        await due(lab, await cron(lab))
    assert [await ticks.fire_due(lab.engine) for _ in range(4)] == [1, 1, 1, 0]


class Killed(BaseException):
    """The process dies."""


@pytest.mark.parametrize("stateless", [True, False])
async def test_a_crash_between_run_and_next_tick_leaves_neither(lab, monkeypatch, stateless):
    made = await cron(lab, None if stateless else await lab.thread())
    await due(lab, made)
    before = await look(lab, made), await lab.everything()

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ticks, "next_tick", die)  # the run is created, its tick has not moved on
        with pytest.raises(Killed):
            await ticks.fire_due(lab.engine)
    assert (await look(lab, made), await lab.everything()) == before
    assert await ticks.fire_due(lab.engine) == 1
    assert len(await started(lab, made)) == 1
    assert (await look(lab, made))["next_run_date"] == made["next_run_date"]


async def test_one_that_cannot_be_fired_does_not_hold_up_the_rest(lab):
    first, second = await cron(lab), await cron(lab)
    await due(lab, first, "2 s")
    await due(lab, second, "1 s")
    await lab.execute("UPDATE crons SET schedule = 'broken' WHERE cron_id = %(id)s", id=first["cron_id"])
    assert await ticks.fire_due(lab.engine) == 1
    assert len(await started(lab, second)) == 1
    assert await started(lab, first) == []
    assert [line["cron_id"] for line in lab.logs if line["log_level"] == "error"] == [str(first["cron_id"])]


async def test_a_disabled_cron_never_fires_and_starts_anew_when_enabled(lab):
    made = await cron(lab, enabled=False)
    assert made["next_run_date"] is not None
    await due(lab, made)
    assert await ticks.fire_due(lab.engine) == 0
    await crons.patch(lab.engine, made["cron_id"], {"enabled": True})
    assert await ticks.fire_due(lab.engine) == 0
    assert (await look(lab, made))["next_run_date"] == made["next_run_date"]


async def test_after_its_end_a_cron_never_fires(lab):
    over = await cron(lab, end_time=datetime.now(UTC) - timedelta(days=1))
    assert over["next_run_date"] is None
    soon = await cron(lab, end_time=datetime.now(UTC) + timedelta(seconds=1), schedule="0 0 1 1 *")
    assert soon["next_run_date"] is None
    missed = await cron(lab, end_time=datetime.now(UTC) + timedelta(days=9))
    await due(lab, missed)
    await lab.execute("UPDATE crons SET end_time = now()")
    assert await ticks.fire_due(lab.engine) == 0
    assert await started(lab, missed) == []
    assert (await look(lab, missed))["next_run_date"] is None


async def test_the_last_tick_before_the_end_fires(lab):
    made = await cron(lab, end_time=datetime.now(UTC) + timedelta(days=1, hours=1))
    await due(lab, made)
    await lab.execute("UPDATE crons SET end_time = now() + interval '1 hour'")
    assert await ticks.fire_due(lab.engine) == 1
    assert (await look(lab, made))["next_run_date"] is None


# -- what is fired


async def test_the_runs_of_a_thread_cron_queue_on_its_thread(lab):
    thread = await lab.thread()
    made = await cron(lab, thread)
    assert made["on_run_completed"] is None
    for _ in range(2):
        await due(lab, made)
        await ticks.fire_due(lab.engine)
    assert [(run["thread_id"], run["status"]) for run in await started(lab, made)] == [(thread, "pending")] * 2
    assert await lab.work() == 2
    assert [run["status"] for run in await started(lab, made)] == ["success"] * 2


async def test_a_tick_that_meets_a_busy_thread_is_skipped_if_the_cron_rejects_that(lab):
    thread = await lab.thread()
    made = await cron(lab, thread, payload={"multitask_strategy": "reject"})
    other = await lab.enqueue(thread, {}, config={"configurable": {"cron_id": ""}})
    await due(lab, made)
    assert await ticks.fire_due(lab.engine) == 0
    assert await started(lab, made) == []
    assert (await look(lab, made))["next_run_date"] == made["next_run_date"]
    assert (await lab.run(other))["status"] == "pending"
    [line] = [line for line in lab.logs if line["event"] == "cron tick skipped"]
    assert (line["log_level"], line["cron_id"]) == ("warning", str(made["cron_id"]))
    assert "already running" in line["reason"]
    error = (await look(lab, made))["error"]
    assert (error["error"], error["message"]) == ("RunRejected", line["reason"])
    assert datetime.fromisoformat(error["at"]).tzinfo
    await lab.work()
    await due(lab, made)
    assert await ticks.fire_due(lab.engine) == 1
    assert (await look(lab, made))["error"] is None


async def test_a_tick_that_cannot_start_a_run_is_noted_and_the_next_comes_by_the_schedule(lab, monkeypatch):
    made, other = await cron(lab), await cron(lab)
    await due(lab, made)
    await due(lab, other)
    enqueue_in = runs.enqueue_in

    async def broken(engine, conn, thread_id, new, **more):
        if new.metadata["cron_id"] == str(made["cron_id"]):
            await conn.execute("SELECT 1 / 0")
        return await enqueue_in(engine, conn, thread_id, new, **more)

    monkeypatch.setattr(runs, "enqueue_in", broken)
    assert await ticks.fire_due(lab.engine) == 1
    assert await ticks.fire_due(lab.engine) == 0
    seen = await look(lab, made)
    assert seen["error"]["error"] == "DivisionByZero"
    assert seen["next_run_date"] == made["next_run_date"]
    assert len(await started(lab, other)) == 1
    assert len([line for line in lab.logs if line["event"] == "cron failed"]) == 1, "it does not spin"
    monkeypatch.setattr(runs, "enqueue_in", enqueue_in)
    await due(lab, made)
    assert await ticks.fire_due(lab.engine) == 1
    assert (await look(lab, made))["error"] is None


async def test_a_cron_whose_time_zone_is_gone_rests_and_says_why(lab):
    made = await cron(lab)
    await lab.execute("UPDATE crons SET timezone = 'Europe/Atlantis'")
    await due(lab, made)
    for _ in range(3):
        assert await ticks.fire_due(lab.engine) == 0
    seen = await look(lab, made)
    assert (seen["next_run_date"], seen["error"]["error"]) == (None, "InvalidInput")
    await crons.patch(lab.engine, made["cron_id"], {"timezone": "Europe/Berlin"})
    assert (await look(lab, made))["next_run_date"] is not None


async def test_a_tick_may_interrupt_what_runs(lab):
    thread = await lab.thread()
    other = await lab.enqueue(thread, {})
    made = await cron(lab, thread, payload={"multitask_strategy": "interrupt"})
    await due(lab, made)
    assert await ticks.fire_due(lab.engine) == 1
    assert (await lab.run(other))["status"] == "interrupted"


async def test_a_tick_waits_for_a_thread_that_somebody_has_locked(lab):
    thread = await lab.thread()
    made = await cron(lab, thread)
    await due(lab, made)
    async with lab.connection() as conn, conn.transaction():
        await conn.execute("SELECT 1 FROM threads WHERE thread_id = %(id)s FOR UPDATE", {"id": thread})
        async with asyncio.timeout(60):
            assert await ticks.fire_due(lab.engine) == 0
    assert await ticks.fire_due(lab.engine) == 1


async def test_threads_of_stateless_runs_are_temporary_unless_they_are_to_be_kept(lab):
    for wanted, temporary in (("delete", True), ("keep", False)):
        made = await cron(lab, on_run_completed=wanted)
        for _ in range(2):
            await due(lab, made)
            await ticks.fire_due(lab.engine)
        found = await started(lab, made)
        assert len({run["thread_id"] for run in found}) == 2
        for run in found:
            assert (await lab.thread_row(run["thread_id"]))["temporary"] is temporary
        await lab.work()
        for run in found:
            assert ((await lab.thread_row(run["thread_id"]))["expires_at"] is not None) is temporary


async def test_runs_carry_the_crons_id_and_options(lab):
    options = {
        "context": {"text": "hello"},
        "config": {"tags": ["t"]},
        "stream_mode": ["updates"],
        "durability": "exit",
    }
    made = await cron(lab, payload=options, on_run_completed="keep", metadata={"who": "me"})
    cron_id = str(made["cron_id"])
    assert made["payload"] == {"input": {}, **options, "config": {"tags": ["t"], "configurable": {"cron_id": cron_id}}}
    await due(lab, made)
    await ticks.fire_due(lab.engine)
    [run] = await started(lab, made)
    assert run["metadata"] == {
        "created_by": "system",
        "who": "me",
        "cron_id": cron_id,
        "graph_id": "default",
        "assistant_id": str(made["assistant_id"]),
    }
    assert run["kwargs"]["config"]["configurable"] == {"text": "hello", "cron_id": cron_id}
    assert run["kwargs"]["stream_mode"] == ["updates"]
    await lab.work()
    assert await runs.outcome(lab.engine, run["thread_id"], run["run_id"]) == {"cron": cron_id, "text": "hello"}


# -- changing and finding them


async def test_a_change_of_the_timing_moves_the_next_run(lab):
    made = await cron(lab, schedule="0 5 * * *")
    assert made["next_run_date"].strftime("%H:%M") == "05:00"
    for changes, wanted in (
        ({"schedule": "0 6 * * *"}, "06:00"),
        ({"timezone": "Asia/Tokyo"}, "21:00"),
        ({"schedule": "30 6 * * *", "enabled": False}, "21:30"),
    ):
        changed = await crons.patch(lab.engine, made["cron_id"], changes)
        assert changed["next_run_date"].strftime("%H:%M") == wanted
    end = datetime(2020, 1, 1, tzinfo=UTC)
    assert (await crons.patch(lab.engine, made["cron_id"], {"end_time": end}))["next_run_date"] is None
    changed = await crons.patch(lab.engine, made["cron_id"], {"end_time": None})
    assert (changed["end_time"], changed["next_run_date"].strftime("%H:%M")) == (None, "21:30")
    assert "end_time" not in changed["payload"]
    with pytest.raises(InvalidInput, match="schedule"):
        await crons.patch(lab.engine, made["cron_id"], {"schedule": "nonsense", "enabled": True})
    assert await look(lab, made) == changed


async def test_a_change_of_anything_else_keeps_an_overdue_tick(lab):
    made = await cron(lab, metadata={"a": 1, "b": 1})
    await due(lab, made)
    changed = await crons.patch(lab.engine, made["cron_id"], {"input": {"text": "new"}, "metadata": {"b": 2}})
    assert changed["metadata"] == changed["payload"]["metadata"] == {"a": 1, "b": 2}
    assert await ticks.fire_due(lab.engine) == 1
    assert (await started(lab, made))[0]["kwargs"]["input"] == {"text": "new"}


async def test_context_and_configurable_replace_each_other(lab):
    made = await cron(lab, payload={"config": {"tags": ["t"], "configurable": {"text": "1"}}})
    cron_id = str(made["cron_id"])
    changed = await crons.patch(lab.engine, made["cron_id"], {"context": {"text": "2"}})
    assert changed["payload"]["context"] == {"text": "2"}
    assert changed["payload"]["config"] == {"tags": ["t"], "configurable": {"cron_id": cron_id}}
    changed = await crons.patch(lab.engine, made["cron_id"], {"config": {"configurable": {"text": "3"}}})
    assert "context" not in changed["payload"]
    assert changed["payload"]["config"] == {"configurable": {"text": "3", "cron_id": cron_id}}


async def test_crons_go_with_their_thread_and_their_assistant(lab):
    thread = await lab.thread()
    assistant = await assistants.create(lab.engine, graph_id="default")
    of_thread, stays = await cron(lab, thread), await cron(lab)
    of_assistant = await cron(lab, assistant=str(assistant["assistant_id"]))
    await threads.delete(lab.engine, thread)
    await assistants.delete(lab.engine, assistant["assistant_id"])
    for gone in (of_thread, of_assistant):
        with pytest.raises(CronNotFound):
            await look(lab, gone)
    assert (await crons.search(lab.engine))[1] == 1
    await crons.delete(lab.engine, stays["cron_id"])
    with pytest.raises(CronNotFound):
        await crons.delete(lab.engine, stays["cron_id"])


async def test_deleting_a_thread_while_its_cron_fires_blocks_nobody(lab):
    for _ in range(10):
        thread = await lab.thread()
        made = await cron(lab, thread)
        await due(lab, made)
        async with asyncio.timeout(60):
            await asyncio.gather(ticks.fire_due(lab.engine), threads.delete(lab.engine, thread))
        assert (await crons.search(lab.engine))[1] == 0


async def test_who_does_not_exist_has_no_crons(lab):
    with pytest.raises(ThreadNotFound):
        await cron(lab, uuid4())
    with pytest.raises(AssistantNotFound):
        await cron(lab, assistant=str(uuid4()))
    with pytest.raises(GraphNotFound):
        await cron(lab, assistant="nobody")
    with pytest.raises(GraphNotFound):
        await crons.search(lab.engine, assistant="nobody")
    for call in (crons.get(lab.engine, uuid4()), crons.patch(lab.engine, uuid4(), {})):
        with pytest.raises(CronNotFound):
            await call
    assert await crons.count(lab.engine) == 0


async def test_search_filters_sorts_and_counts(lab):
    thread = await lab.thread()
    a = await cron(lab, thread, metadata={"k": {"x": 1}})
    b = await cron(lab, enabled=False, schedule="0 6 1 1 *")
    c = await cron(lab, end_time=datetime(2020, 1, 1, tzinfo=UTC))

    async def found(**given: Any) -> list[UUID]:
        rows, total = await crons.search(lab.engine, **given)
        filters = {k: v for k, v in given.items() if k in ("assistant", "thread_id", "enabled", "metadata")}
        assert total == await crons.count(lab.engine, **filters)
        return [row["cron_id"] for row in rows]

    a, b, c = (made["cron_id"] for made in (a, b, c))
    assert await found() == [c, b, a]
    assert await found(limit=1, offset=1) == [b]
    assert await found(thread_id=thread) == [a]
    assert await found(enabled=False) == [b]
    assert await found(metadata={"k": {"x": 1}}) == [a]
    assert await found(assistant="default") == [c, b, a]
    assert await found(assistant=str(uuid4())) == []
    assert (await found(sort_by="next_run_date"))[-1] == c
    assert await found(sort_by="created_at", sort_order="asc") == [a, b, c]
    with pytest.raises(InvalidInput, match="sort_by"):
        await found(sort_by="payload")
