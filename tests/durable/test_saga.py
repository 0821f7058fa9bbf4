"""saga: undone in reverse, whatever crashes, and only when it has really failed."""

from typing import Any

import pytest
from langgraph.types import Command, RetryPolicy, interrupt

from perdure import Cancelled, RetryableError, TerminalError, agent, saga, sleep, step
from perdure.durable.suspend import Suspend
from tests.durable.fakes import Bench, Killed, crash_everywhere, graph_of

done: list[str] = []


@pytest.fixture(autouse=True)
def nothing_done():
    done.clear()


@step
async def book(what: str) -> str:
    done.append(f"book {what}")
    return what


@step
async def cancel(what: str) -> None:
    done.append(f"cancel {what}")


@step
async def decline(what: str) -> None:
    done.append(f"decline {what}")
    raise TerminalError(f"no {what}")


UNDONE = ["book hotel", "book flight", "decline car", "cancel car", "cancel flight", "cancel hotel"]


async def trip() -> str:
    async with saga() as s:
        for what in ("hotel", "flight"):
            s.undo(cancel, what)
            await book(what)
        s.undo(cancel, "car")
        await decline("car")
    return "booked"


def status(bench: Bench) -> list[str]:
    return [row["status"] for row in bench.journal.named("saga")]


async def test_undos_run_in_reverse_order_and_the_error_goes_on():
    bench = Bench()
    for _ in range(2):  # and on replay nothing happens again
        with pytest.raises(TerminalError, match="no car"):
            await bench.run(trip)
        assert done == UNDONE
    assert status(bench) == ["failed"]


async def test_success_runs_no_undo():
    bench = Bench()

    async def node() -> str:
        async with saga() as s:
            s.undo(cancel, "hotel")
            await book("hotel")
        return "booked"

    assert await bench.run(node) == "booked"
    assert (done, status(bench)) == (["book hotel"], ["done"])


async def test_crash_at_each_point_undoes_everything_once():
    async def scenario(bench: Bench) -> None:
        done.clear()
        with pytest.raises(TerminalError, match="no car"):
            await bench.until_done(trip)
        assert list(dict.fromkeys(done)) == UNDONE
        assert len(done) <= len(UNDONE) + 1  # only the call in flight may run twice
        assert status(bench) == ["failed"]

    assert await crash_everywhere(scenario) == 9


async def test_once_the_undos_have_begun_the_block_does_nothing_new():
    """The error stood outside of a step and does not come again: the saga has failed all the same."""
    bench = Bench()

    async def node() -> str:
        async with saga() as s:
            s.undo(cancel, "hotel")
            await book("hotel")
            if len(attempts) == 0:
                attempts.append(1)
                raise KeyError("only once")
            await book("flight")
        return "booked"

    attempts: list[int] = []
    bench.journal.die_in = 3  # open, hotel, the error; then before the undo's row
    with pytest.raises(Killed):
        await bench.run(node)
    for _ in range(2):
        with pytest.raises(KeyError, match="only once"):
            await bench.run(node)
    assert done == ["book hotel", "cancel hotel", "cancel hotel"]


async def test_block_that_ends_well_after_the_undos_still_fails():
    bench = Bench()

    async def node() -> str:
        async with saga() as s:
            s.undo(cancel, "hotel")
            await book("hotel")
            if not attempts:
                attempts.append(1)
                raise ValueError("only once")
        return "booked"

    attempts: list[int] = []
    for _ in range(2):
        with pytest.raises(ValueError, match="only once"):
            await bench.run(node)
    assert done == ["book hotel", "cancel hotel"]


async def test_undo_is_retried_by_its_policy_and_may_suspend():
    @step(retry=RetryPolicy(initial_interval=100, jitter=False, max_attempts=5))
    async def refund() -> None:
        done.append("refund")
        if done.count("refund") < 3:
            raise ConnectionError("bank is closed")

    async def node() -> None:
        async with saga() as s:
            s.undo(cancel, "first")
            s.undo(refund)
            await decline("car")

    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(node)
    assert status(bench) == ["open"]
    with pytest.raises(TerminalError, match="no car"):
        await bench.until_done(node)
    assert done == ["decline car", "refund", "refund", "refund", "cancel first"]
    assert status(bench) == ["failed"]


async def test_undo_whose_attempts_are_used_up_is_left_to_the_run():
    @step(retry=RetryPolicy(max_attempts=1))
    async def refund() -> None:
        done.append("refund")
        if done.count("refund") < 2:
            raise ConnectionError("bank is closed")

    async def node() -> None:
        async with saga() as s:
            s.undo(refund)
            await decline("car")

    bench = Bench()
    with pytest.raises(ConnectionError) as caught:
        await bench.run(node)
    assert caught.value.retryable is True  # type: ignore[attr-defined]
    with pytest.raises(TerminalError, match="no car"):
        await bench.run(node)
    assert done == ["decline car", "refund", "refund"]


async def test_undo_that_fails_for_good_is_noted_and_the_others_run():
    async def node() -> None:
        async with saga() as s:
            s.undo(cancel, "a")
            s.undo(decline, "undo")
            await decline("car")

    bench = Bench()
    with pytest.raises(TerminalError, match="no car") as caught:
        await bench.run(node)
    assert done == ["decline car", "decline undo", "cancel a"]
    assert "undo 'decline' failed: TerminalError: no undo" in caught.value.__notes__[0]


async def test_error_that_the_run_tries_again_undoes_nothing():
    @step(retry=RetryPolicy(max_attempts=1))
    async def flaky() -> None:
        done.append("flaky")
        if done.count("flaky") < 2:
            raise RetryableError("later")

    async def node() -> str:
        async with saga() as s:
            s.undo(cancel, "x")
            await flaky()
        return "ok"

    bench = Bench()
    with pytest.raises(RetryableError):
        await bench.run(node)
    assert status(bench) == ["open"]
    assert await bench.run(node) == "ok"
    assert done == ["flaky", "flaky"]


async def test_waits_and_questions_in_the_block_undo_nothing():
    async def node() -> Any:
        async with saga() as s:
            s.undo(cancel, "hotel")
            await book("hotel")
            await sleep(60)
            await agent("helper", {})
            return interrupt("ok?")

    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.age(60)
    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.end(0)
    await bench.run(node)
    assert status(bench) == ["open"]
    assert await bench.run(node, Command(resume="yes")) == "yes"
    assert (done, status(bench)) == (["book hotel"], ["done"])


@pytest.mark.parametrize("kind", ["sleep", "agent", "interrupt", "step", "end"])
async def test_cancelling_attempt_undoes_at_the_first_unfinished_word(kind: str):
    bench = Bench()

    async def node() -> Any:
        async with saga() as s:
            s.undo(cancel, "hotel")
            await book("hotel")
            if kind == "sleep":
                await sleep(60)
            elif kind == "agent":
                await agent("helper", {})
            elif kind == "interrupt":
                interrupt("ok?")
            elif kind == "step":
                s.undo(cancel, "flight")
                await book("flight")

    bench.journal.die_in = 2  # after the hotel: for "step" the flight was in flight, for "end" all was done
    if kind in ("step", "end"):
        with pytest.raises(Killed):
            await bench.run(node)
    elif kind == "interrupt":
        await bench.run(node)
    else:
        with pytest.raises((Suspend, Killed)):
            await bench.run(node)
    begun = list(done)
    bench.journal.die_in = None
    bench.journal.cancelling = True
    for _ in range(2):
        with pytest.raises(Cancelled):
            await bench.run(node)
    undone = ["cancel flight", "cancel hotel"] if kind == "step" else ["cancel hotel"]
    assert done == begun + undone
    assert status(bench) == ["failed"]
    bench.journal.cancelling = False  # should it ever be executed again: it stays cancelled
    with pytest.raises(Cancelled):
        await bench.run(node)
    assert done == begun + undone


async def test_crash_at_each_point_of_a_cancelling_attempt():
    async def node() -> None:
        async with saga() as s:
            for what in ("hotel", "flight"):
                s.undo(cancel, what)
                await book(what)
            await sleep(60)

    async def scenario(bench: Bench) -> None:
        done.clear()
        point, bench.journal.die_in = bench.journal.die_in, None
        with pytest.raises(Suspend):
            await bench.run(node)
        bench.journal.die_in, bench.journal.cancelling = point, True
        with pytest.raises(Cancelled):
            await bench.until_done(node)
        undone = done[2:]
        assert list(dict.fromkeys(undone)) == ["cancel flight", "cancel hotel"]
        assert len(undone) <= 3

    assert await crash_everywhere(scenario) == 4


async def test_cancelling_attempt_whose_undo_waits_goes_on_cancelling():
    @step(retry=RetryPolicy(initial_interval=100, jitter=False))
    async def refund() -> None:
        done.append("refund")
        if done.count("refund") < 2:
            raise ConnectionError("closed")

    async def node() -> None:
        async with saga() as outer:
            outer.undo(cancel, "outer")
            async with saga() as s:
                s.undo(refund)
                await sleep(60)

    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.cancelling = True
    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.age(100)
    with pytest.raises(Cancelled):
        await bench.run(node)
    assert done == ["refund", "refund", "cancel outer"]


async def test_cancelling_attempt_begins_no_saga():
    bench = Bench()
    bench.journal.cancelling = True
    with pytest.raises(Cancelled):
        await bench.run(trip)
    assert (done, status(bench)) == ([], [])


async def test_nested_saga_that_failed_may_be_caught_and_one_that_succeeded_is_undone_with_the_outer():
    async def node() -> None:
        async with saga() as outer:
            outer.undo(cancel, "outer")
            async with saga() as good:
                good.undo(cancel, "good")
                await book("good")
            try:
                async with saga() as bad:
                    bad.undo(cancel, "bad")
                    await decline("bad")
            except TerminalError:
                done.append("caught")
            await decline("all")

    expected = ["book good", "decline bad", "cancel bad", "decline all", "cancel good", "cancel outer"]

    async def scenario(bench: Bench) -> None:
        done.clear()
        with pytest.raises(TerminalError, match="no all"):
            await bench.until_done(node)
        assert list(dict.fromkeys(name for name in done if name != "caught")) == expected
        assert sorted(status(bench)) == ["done", "failed", "failed"]

    assert await crash_everywhere(scenario) == 14


async def test_two_sagas_of_one_node_one_after_the_other():
    async def node() -> None:
        async with saga() as s:
            s.undo(cancel, "first")
            await book("first")
        async with saga() as s:
            s.undo(cancel, "second")
            await decline("second")

    bench = Bench()
    with pytest.raises(TerminalError):
        await bench.run(node)
    assert done == ["book first", "decline second", "cancel second"]
    assert status(bench) == ["done", "failed"]


async def test_node_policy_that_runs_the_node_again_finds_the_saga_failed():
    async def node() -> str:
        async with saga() as s:
            s.undo(cancel, "hotel")
            await book("hotel")
            if done.count("try") < 1:
                done.append("try")
                raise ConnectionError("plain code")
            await book("flight")
        return "booked"

    bench = Bench()
    policy = RetryPolicy(max_attempts=3, initial_interval=0, jitter=False, retry_on=ConnectionError)
    with pytest.raises(ConnectionError, match="plain code"):
        await bench.run(node, retry=policy)
    assert done == ["book hotel", "try", "cancel hotel"]


async def test_without_a_journal_the_undos_run_in_process():
    with pytest.raises(TerminalError):
        await graph_of(trip).ainvoke({})
    assert done == UNDONE
    done.clear()
    with pytest.raises(TerminalError):
        await trip()
    assert done == UNDONE


async def test_misuse_is_named_when_the_undo_is_registered():
    async def plain() -> None: ...

    s = saga()
    with pytest.raises(RuntimeError, match="async with"):
        s.undo(cancel, "x")
    async with s:
        with pytest.raises(TypeError, match="@step"):
            s.undo(plain)
        with pytest.raises(TypeError, match="missing a required argument"):
            s.undo(cancel)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="can't be compared"):
            s.undo(cancel, object())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="async with"):
        s.undo(cancel, "x")
    with pytest.raises(RuntimeError, match="entered once"):
        async with s:
            pass
