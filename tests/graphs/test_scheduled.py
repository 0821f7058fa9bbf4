from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

import httpx
import psycopg
import pytest

from graphs.scheduled import MAX_TIMES, graph
from perdure import TerminalError
from perdure.simulator import RunningSimulator
from tests.conftest import Launch, eventually

CONFIG: Any = {"configurable": {"thread_id": "1"}}
HOUR = timedelta(hours=1)
PAUSE_SECONDS = 12
"""Really waited for; long enough to kill the server meanwhile."""


async def test_reminds_at_once_when_no_time_is_given(simulator: RunningSimulator, served: Any) -> None:
    result = await served(graph).ainvoke({"topic": "tea"}, CONFIG)
    assert result == {"answer": "A friendly reminder: it is time for tea.", "next_run": None}
    assert len(simulator.requests) == 1


async def test_failing_model_is_asked_again(simulator: RunningSimulator, served: Any) -> None:
    simulator.fail({"status": 500})
    assert "tea" in (await served(graph).ainvoke({"topic": "tea"}, CONFIG))["answer"]
    assert [entry.outcome for entry in simulator.requests] == ["500", "answered"]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (
            {"topic": "tea", "times": MAX_TIMES + 1},
            f"times is {MAX_TIMES + 1}, but a series has at most {MAX_TIMES} runs",
        ),
        ({"topic": ""}, 'names no "topic"'),
    ],
)
async def test_endless_series_or_no_topic_is_refused(
    simulator: RunningSimulator, served: Any, given: Any, wrong: str
) -> None:
    with pytest.raises(TerminalError, match=wrong):
        await served(graph).ainvoke(given, CONFIG)
    assert simulator.requests == []


class Clock:
    """A server and its database, where an hour passes when the test says so."""

    def __init__(self, http: httpx.Client, dsn: str) -> None:
        self.http, self.dsn = http, dsn

    def age(self, statement: LiteralString, **which: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            assert conn.execute(statement, which).rowcount == 1

    def an_hour_passes(self, run_id: str) -> None:
        """For a pending run."""
        self.age("UPDATE runs SET ready_at = now(), available_at = now() WHERE run_id = %(run_id)s", run_id=run_id)

    def run(self, run_id: str) -> dict[str, Any]:
        return next(run for run in self.runs() if run["run_id"] == run_id)

    def runs(self) -> list[dict[str, Any]]:
        return self.http.post("/runs/search", json={"agent": "scheduled"}).json()

    def due_at(self, run_id: str) -> datetime:
        """When a pending run may start."""
        with psycopg.connect(self.dsn) as conn:
            row = conn.execute("SELECT available_at FROM runs WHERE run_id = %s", (run_id,)).fetchone()
        assert row
        return row[0]

    def ended(self, run_id: str) -> dict[str, Any]:
        run = eventually(lambda: run if (run := self.run(run_id))["status"] == "success" else None)
        return self.http.get(f"/threads/{run['thread_id']}/runs/{run_id}/join").json()


def test_every_timer_survives_a_restart(serve: Launch, simulator: RunningSimulator, dsn: str) -> None:
    first = serve("scheduled")
    asked_at = datetime.now(UTC)
    with httpx.Client(base_url=first.url, timeout=30) as http:
        clock = Clock(http, dsn)
        later = http.post("/agents/scheduled/send?delay=1h", json={"topic": "later"}).json()["run_id"]
        daily = {"topic": "daily", "times": 3, "every_seconds": 3600, "series": "daily"}
        second_time = http.post("/agents/scheduled/daily/run", json=daily).json()["next_run"]
        tick = {"schedule": "30 9 1 1 *", "timezone": "America/New_York", "input": {"topic": "a new year"}}
        cron = http.post("/runs/crons", json={"assistant_id": "scheduled", **tick}).json()
        pause = {"topic": "a pause", "pause_seconds": PAUSE_SECONDS}
        paused = http.post("/agents/scheduled/send", json=pause).json()["run_id"]
        waiting = eventually(lambda: run if (run := clock.run(paused)).get("suspended") else None)
        pause_ends = datetime.fromisoformat(waiting["next_at"])
        assert asked_at + timedelta(seconds=PAUSE_SECONDS) < pause_ends
    first.kill()
    second = serve("scheduled")
    with httpx.Client(base_url=second.url, timeout=30) as http:
        clock = Clock(http, dsn)
        for waiting in (later, second_time):
            assert clock.run(waiting)["status"] == "pending"
            assert asked_at + HOUR < clock.due_at(waiting) < datetime.now(UTC) + HOUR
            clock.an_hour_passes(waiting)
        assert "time for later" in clock.ended(later)["answer"]

        assert "time for daily" in clock.ended(second_time)["answer"]
        third_time = clock.ended(second_time)["next_run"]
        clock.an_hour_passes(third_time)
        assert clock.ended(third_time)["next_run"] is None
        assert not any(run["status"] == "pending" for run in clock.runs())
        assert len(http.get("/agents/scheduled/daily/state").json()["reminders"]) == 3

        assert "time for a pause" in clock.ended(paused)["answer"]
        assert datetime.fromisoformat(clock.run(paused)["ended_at"]) >= pause_ends
        assert clock.run(paused)["attempt"] == 2

        next_tick = datetime.fromisoformat(http.get(f"/runs/crons/{cron['cron_id']}").json()["next_run_date"])
        new_york = next_tick.astimezone(ZoneInfo("America/New_York"))
        assert (new_york.month, new_york.day, new_york.hour, new_york.minute) == (1, 1, 9, 30)
        clock.age("UPDATE crons SET next_run_at = now() WHERE cron_id = %(cron_id)s", cron_id=cron["cron_id"])
        eventually(lambda: len(simulator.requests) == 6)
        assert http.get(f"/runs/crons/{cron['cron_id']}").json()["next_run_date"] == cron["next_run_date"]
    asked = [entry.messages[-1]["content"].partition("Remind me of: ")[2] for entry in simulator.requests]
    assert sorted(asked) == ["a new year", "a pause", "daily", "daily", "daily", "later"]
