"""Failed attempts are recorded before the wait; terminal errors are results; the run retries the rest."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.exceptions import ModelAuthenticationError, ModelRateLimitError
from langgraph.types import RetryPolicy

from perdure import RetryableError, TerminalError, step
from tests.durable.fakes import Bench

FAST = RetryPolicy(initial_interval=0.001, jitter=False)


class Declined(TerminalError):
    """An author's own terminal error."""


async def test_failed_attempts_are_recorded_and_the_step_succeeds():
    calls: list[int] = []
    keys: set[str] = set()

    @step(retry=FAST)
    async def flaky() -> str:
        calls.append(1)
        keys.add(step.idempotency_key())
        if len(calls) < 3:
            raise ConnectionError(f"down {len(calls)}")
        return "up"

    bench = Bench()
    assert await bench.run(flaky) == "up"
    assert [row["status"] for row in bench.journal.saves] == ["retrying", "retrying", "done"]
    attempts = bench.journal.named("flaky")[0]["attempts"]
    assert [attempt.get("error", {}).get("message") for attempt in attempts] == ["down 1", "down 2", None]
    assert all(datetime.fromisoformat(attempt["started_at"]).tzinfo for attempt in attempts)
    assert len(keys) == 1


async def test_default_policy_waits_half_a_second_then_one():
    waits: list[float] = []

    @step
    async def down() -> None:
        raise ValueError("down")

    async def sleep(wait: float) -> None:
        waits.append(wait)

    bench = Bench()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perdure.durable.suspend.asyncio.sleep", sleep)
        for module in ("suspend", "once"):
            patch.setattr(f"perdure.durable.{module}.time", SimpleNamespace(time=lambda: 1e9, monotonic=lambda: 0.0))
        with pytest.raises(ValueError, match="down") as caught:
            await bench.run(down)
    assert waits == pytest.approx([0.5, 1.0])
    assert caught.value.retryable is True  # type: ignore[attr-defined]


async def test_crash_does_not_start_the_attempts_over_and_the_wait_goes_on():
    calls: list[float] = []

    @step(retry=RetryPolicy(initial_interval=0.3, max_attempts=2, jitter=False))
    async def down() -> None:
        calls.append(time.time())
        raise ConnectionError("down")

    waits = asyncio.Event()

    async def for_ever(seconds: float) -> None:
        waits.set()
        await asyncio.Event().wait()

    bench = Bench()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perdure.durable.suspend.asyncio", SimpleNamespace(sleep=for_ever))
        first = asyncio.create_task(bench.run(down))
        await waits.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert len(bench.journal.saves) == 1
    with pytest.raises(ConnectionError) as caught:
        await bench.run(down)
    assert len(calls) == 2
    assert calls[1] - calls[0] >= 0.29
    assert caught.value.retryable is True  # type: ignore[attr-defined]
    # The run's next attempt: one fresh round, appended.
    with pytest.raises(ConnectionError):
        await bench.run(down)
    row = bench.journal.named("down")[0]
    assert len(calls) == len(row["attempts"]) == 4
    assert row["status"] == "retrying"
    assert row["next_at"] is None


async def test_retryable_error_sets_the_wait():
    calls: list[float] = []

    @step(retry=RetryPolicy(initial_interval=30, jitter=False))
    async def busy() -> str:
        calls.append(time.time())
        if len(calls) == 1:
            raise RetryableError("busy", after=0.02)
        return "ok"

    assert await Bench().run(busy) == "ok"
    assert 0.015 < calls[1] - calls[0] < 30


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (Declined("no funds", status=402), Declined, 402),
        (ModelAuthenticationError("bad key"), ModelAuthenticationError, None),
    ],
)
async def test_terminal_error_is_not_retried_and_raised_again_on_replay(
    error: Exception, kind: type[Exception], status: int | None
):
    calls: list[int] = []

    @step(retry=FAST)
    async def pay() -> None:
        calls.append(1)
        raise error

    async def node() -> None:
        try:
            await pay()
        except kind as exc:
            seen.append((str(exc), getattr(exc, "status", None), exc.retryable))  # type: ignore[attr-defined]
            raise

    seen: list[Any] = []
    bench = Bench()
    for _ in range(2):
        with pytest.raises(kind):
            await bench.run(node)
    assert len(calls) == 1
    assert seen == [(str(error), status, False)] * 2
    assert bench.journal.named("pay")[0]["status"] == "failed"


async def test_recorded_error_of_an_unknown_class_becomes_a_terminal_error_with_its_text():
    class Local(TerminalError):
        pass

    @step
    async def fail() -> None:
        raise Local("gone", status=410)

    bench = Bench()
    with pytest.raises(Local):
        await bench.run(fail)
    with pytest.raises(TerminalError, match="Local: gone") as caught:
        await bench.run(fail)
    assert caught.value.status == 410


async def test_terminal_error_in_a_task_group_is_not_retried():
    calls: list[int] = []

    async def decline() -> None:
        calls.append(1)
        raise TerminalError("declined")

    @step(retry=FAST)
    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(decline())

    with pytest.raises(ExceptionGroup) as caught:
        await Bench().run(both)
    assert caught.value.retryable is False  # type: ignore[attr-defined]
    assert len(calls) == 1


async def test_text_of_an_error_that_postgres_would_refuse_is_cleaned():
    @step
    async def fail() -> None:
        raise TerminalError("bad \ud800 and \0 text")

    bench = Bench()
    with pytest.raises(TerminalError):
        await bench.run(fail)
    assert bench.journal.named("fail")[0]["error"]["message"] == "bad ? and  text"


async def test_rate_limit_of_a_model_is_retried():
    calls: list[int] = []

    @step(retry=FAST)
    async def ask() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ModelRateLimitError("slow down")
        return "ok"

    assert await Bench().run(ask) == "ok"


async def test_retry_on_of_the_author_decides():
    calls: list[int] = []

    @step(retry=RetryPolicy(initial_interval=0.001, retry_on=(ConnectionError,)))
    async def parse() -> None:
        calls.append(1)
        raise ValueError("not a number")

    with pytest.raises(ValueError, match="not a number") as caught:
        await Bench().run(parse)
    assert caught.value.retryable is False  # type: ignore[attr-defined]
    assert len(calls) == 1


async def test_timeout_is_a_failed_attempt():
    calls: list[int] = []

    @step(timeout=timedelta(milliseconds=20), retry=FAST)
    async def hang() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.sleep(10)
        return "ok"

    bench = Bench()
    assert await bench.run(hang) == "ok"
    error = bench.journal.named("hang")[0]["attempts"][0]["error"]
    assert error["error"] == "TimeoutError"
    assert error["message"] == "Step 'hang' took longer than 0.02 s"


async def test_result_that_cannot_be_stored_is_terminal_and_names_the_step():
    calls: list[int] = []

    @step(retry=FAST)
    async def connect() -> object:
        calls.append(1)
        return object()

    bench = Bench()
    for _ in range(2):
        with pytest.raises(TerminalError, match="Step 'connect' returned a object that can't be stored"):
            await bench.run(connect)
    assert len(calls) == 1


async def test_attempts_are_timed_in_utc():
    @step
    async def now() -> str:
        return datetime.now(UTC).isoformat()

    bench = Bench()
    value = await bench.run(now)
    (attempt,) = bench.journal.named("now")[0]["attempts"]
    assert attempt["started_at"] <= value
    assert attempt["seconds"] >= 0
