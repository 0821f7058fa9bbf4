"""The step journal: a finished call is found again, whatever the order, and never made twice."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from perdure.engine.db import open_pool
from perdure.engine.errors import LeaseLost, StepMismatch, StorageError
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.journal import Journal


class Book:
    """A thread, and a journal for each attempt on it."""

    def __init__(self, lab: Any, thread: Any) -> None:
        self.lab, self.thread, self.run, self.fence = lab, thread, uuid4(), 0

    def attempt(self, engine: Any = None) -> "Caller":
        """A new attempt: its journal knows what the table holds, and no call has been made."""
        engine = engine or self.lab.engine
        run: Any = SimpleNamespace(
            thread_id=self.thread, run_id=self.run, fence=self.fence, cancelling=None, metadata={}, kwargs={}
        )
        return Caller(Journal(engine, GroupCommit(engine.pool, origin=engine.origin), run))


class Caller:
    """Calls steps as `perdure.step` does: find, execute unless done, save."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.executed: list[Any] = []

    async def find(self, name: str, given: Any, *, key: str | None = None, scope: str = "s", visit: int = 1) -> Any:
        return SimpleNamespace(**await self.journal.find(scope, visit, name, key, repr(given)))

    async def save(self, name: str, given: Any, n: int, **options: Any) -> None:
        scope, visit, key = options.pop("scope", "s"), options.pop("visit", 1), options.pop("key", None)
        given_status = {"status": "done", "value": given, **options}
        await self.journal.save(scope, visit, name, n, key=key, fingerprint=repr(given), **given_status)

    def transaction(self, name: str, given: Any, n: int, *, scope: str = "s") -> Any:
        return self.journal.transaction(scope, 1, name, n, key=None, fingerprint=repr(given))

    async def call(self, name: str, given: Any, *, gate: asyncio.Event | None = None, **place: Any) -> Any:
        found = await self.find(name, given, **place)
        if found.status == "done":
            return found.value
        self.executed.append(given)
        value = f"{name}({given}) #{found.n}"
        await (gate.wait() if gate else asyncio.sleep(0))
        await self.save(name, given, found.n, value=value, **place)
        return value


@pytest.fixture
async def book(lab) -> Book:
    return Book(lab, await lab.thread_at_zero())


async def test_unknown_call_is_new(book):
    found = await book.attempt().find("pay", 1)
    assert vars(found) == {
        "n": 0,
        "status": "new",
        "value": None,
        "error": None,
        "attempts": [],
        "next_at": None,
    }


async def test_finished_step_is_durable_and_never_made_again(book):
    first = await book.attempt().call("pay", 1)
    assert (await book.lab.one("SELECT status, run_id FROM steps")) == {"status": "done", "run_id": book.run}
    again = book.attempt()
    assert await again.call("pay", 1) == first
    assert again.executed == []


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1, b"b"]}, "a\x00", datetime(2026, 1, 1, tzinfo=UTC)])
async def test_result_comes_back_as_it_was(book, value):
    caller = book.attempt()
    await caller.find("read", 1)
    await caller.save("read", 1, 0, value=value)
    found = await book.attempt().find("read", 1)
    assert (found.status, found.value) == ("done", value)


async def test_failure_and_its_attempts_are_kept(book):
    caller = book.attempt()
    await caller.find("pay", 1)
    error = {"error": "TerminalError", "message": "no money"}
    attempts = [{"started_at": "2026-01-01T00:00:00+00:00", "seconds": 0.5, "error": {"error": "E", "message": "e"}}]
    await caller.save("pay", 1, 0, status="failed", value=None, error=error, attempts=attempts)
    found = await book.attempt().find("pay", 1)
    assert (found.status, found.value, found.attempts) == ("failed", None, attempts)
    assert found.error == error


@pytest.mark.parametrize("text", ["\x00", "\ud800"], ids=ascii)
async def test_failure_whose_text_no_database_can_store_is_kept_all_the_same(book, text):
    caller = book.attempt()
    await caller.find("pay", 1)
    error = {"error": "TerminalError", "message": f"no {text} money"}
    await caller.save("pay", 1, 0, status="failed", value=None, error=error, attempts=[{"error": error}])
    found = await book.attempt().find("pay", 1)
    assert (found.status, found.error["error"]) == ("failed", "TerminalError")


async def test_calls_made_at_once_are_numbered_in_the_order_of_the_calls(book):
    """Also when they are the first of their scope and its rows have to be loaded before."""
    for _ in range(20):
        caller = book.attempt()
        found = await asyncio.gather(*(caller.find("roll", "dice") for _ in range(4)))
        assert [one.n for one in found] == [0, 1, 2, 3]


async def test_retrying_step_keeps_its_attempts_and_when_it_is_due(book):
    attempts: list[dict[str, Any]] = []
    for n in range(3):
        caller = book.attempt()
        found = await caller.find("pay", 1)
        assert (found.status, found.n, found.attempts) == ("retrying" if n else "new", 0, attempts)
        assert found.next_at == (1_900_000_000.25 + n - 1 if n else None)
        attempts = [*attempts, {"seconds": float(n)}]
        options = {"attempts": attempts, "next_at": 1_900_000_000.25 + n}
        await caller.save("pay", 1, 0, status="retrying", value=None, **options)
    caller = book.attempt()
    found = await caller.find("pay", 1)
    await caller.save("pay", 1, found.n, value="paid", attempts=found.attempts)
    found = await book.attempt().find("pay", 1)
    assert (found.status, found.value, len(found.attempts), found.next_at) == ("done", "paid", 3, None)
    assert await book.lab.one("SELECT count(*) AS n FROM steps") == {"n": 1}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("finished", [(0, 1, 2), (1,), (0, 2)])
async def test_concurrent_calls_of_one_name_find_their_own_results_in_any_order(book, order, finished):
    caller = book.attempt()
    gates = [asyncio.Event() for _ in range(3)]
    calls = [asyncio.create_task(caller.call("pay", n, gate=gates[n])) for n in range(3)]
    for n in finished:
        gates[n].set()
        await calls[n]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    again = book.attempt()
    results = await asyncio.gather(*(again.call("pay", n) for n in order))
    assert results == [f"pay({n}) #0" for n in order]
    assert sorted(again.executed) == sorted(set(range(3)) - set(finished))
    # and one after another
    last = book.attempt()
    assert [await last.call("pay", n) for n in reversed(order)] == list(reversed(results))
    assert last.executed == []


async def test_calls_with_equal_arguments_are_told_apart_by_their_order(book):
    caller = book.attempt()
    results = [await caller.call("roll", "dice") for _ in range(3)]
    assert results == ["roll(dice) #0", "roll(dice) #1", "roll(dice) #2"]
    again = book.attempt()
    assert [await again.call("roll", "dice") for _ in range(4)] == [*results, "roll(dice) #3"]
    assert again.executed == ["dice"]


async def test_calls_with_equal_arguments_at_the_same_time_are_each_made_once(book):
    caller = book.attempt()
    results = await asyncio.gather(*(caller.call("roll", "dice") for _ in range(3)))
    assert sorted(results) == ["roll(dice) #0", "roll(dice) #1", "roll(dice) #2"]
    again = book.attempt()
    assert await asyncio.gather(*(again.call("roll", "dice") for _ in range(3))) == results
    assert again.executed == []


async def test_changed_arguments_of_a_finished_step_are_an_error_that_names_it(book):
    await book.attempt().call("pay", "now is 12:00")
    with pytest.raises(StepMismatch, match=r"'pay' \(call 1\)") as caught:
        await book.attempt().call("pay", "now is 12:01")
    assert caught.value.retryable is False
    assert await book.lab.one("SELECT count(*) AS n FROM steps") == {"n": 1}


async def test_changed_arguments_of_a_later_call_are_noticed(book):
    first = book.attempt()
    for given in (1, 2, 3):
        await first.call("pay", given)
    caller = book.attempt()
    for given in (1, 2):
        await caller.call("pay", given)
    with pytest.raises(StepMismatch, match="call 3"):
        await caller.call("pay", "other")


async def test_step_that_had_not_finished_may_have_other_arguments(book):
    caller = book.attempt()
    await caller.find("pay", 1)
    await caller.save("pay", 1, 0, status="retrying", value=None, next_at=0.0)
    again = book.attempt()
    await again.call("pay", 2)
    assert again.executed == [2]


async def test_more_calls_than_before_are_new_ones(book):
    await book.attempt().call("pay", 1)
    again = book.attempt()
    await again.call("pay", 1)
    await again.call("pay", 2)
    await again.call("ship", 9)
    assert again.executed == [2, 9]


async def test_calls_that_overlapped_are_never_taken_for_changed_ones(book):
    """Whoever was first of two concurrent calls may be second on replay, with nothing finished of the other."""
    caller = book.attempt()
    never, now = asyncio.Event(), asyncio.Event()
    now.set()
    slow = asyncio.create_task(caller.call("pay", "slow", gate=never))
    await book.lab.until(lambda: caller.executed)
    await caller.call("pay", "quick", gate=now)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)

    for first, second in (("slow", "quick"), ("quick", "slow")):
        again = book.attempt()
        await asyncio.gather(again.call("pay", first), again.call("pay", second))
    third = book.attempt()
    for given in ("quick", "slow", "third"):
        await third.call("pay", given)
    assert third.executed == ["third"]


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_step_that_never_awaits_is_not_alone_beside_those_that_were_started_with_it(book, loaded):
    """It is finished before the others are, and a kill may leave its row only."""
    caller = book.attempt()
    if loaded:
        await caller.call("look", 1)
    never = asyncio.Event()

    async def at_once() -> None:
        found = await caller.find("pay", "quick")
        await caller.save("pay", "quick", found.n)

    quick = asyncio.create_task(at_once())
    slow = asyncio.create_task(caller.call("pay", "slow", gate=never))
    await quick
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    assert await book.lab.rows("SELECT identity, overlapped FROM steps WHERE name = 'pay'") == [
        {"identity": "'quick'", "overlapped": True}
    ]


async def test_calls_started_together_may_come_in_another_order_although_one_of_them_ran_alone(book):
    await book.attempt().call("pay", "alone")
    again = book.attempt()
    await again.call("look", 1)
    results = await asyncio.gather(again.call("pay", "new"), again.call("pay", "alone"))
    assert (results, again.executed) == (["pay(new) #0", "pay(alone) #0"], [1, "new"])


@pytest.fixture
async def narrow(lab) -> AsyncIterator[Any]:
    """The engine with a pool of four connections, for which nobody waits for ever."""
    pool = await open_pool(lab.dsn, size=4, name="narrow")
    pool.timeout = 20
    yield replace(lab.engine, pool=pool)
    await pool.close()


async def test_any_number_of_transactions_leaves_connections_for_the_journal(book, narrow):
    caller = book.attempt(narrow)
    go = asyncio.Event()

    async def pay(n: int) -> None:
        found = await caller.find("pay", n)
        async with caller.transaction("pay", n, found.n) as transaction:
            await go.wait()
            await transaction.save(n)

    payments = [asyncio.create_task(pay(n)) for n in range(50)]
    await book.lab.until(lambda: narrow.transactions.locked())
    await caller.call("look", "all places are taken")
    go.set()
    await asyncio.gather(*payments)
    again = book.attempt()
    assert [await again.call("pay", n) for n in range(50)] == list(range(50))
    assert again.executed == []


async def test_transaction_inside_of_a_step_with_one_does_not_wait_for_it(book, narrow):
    caller = book.attempt(narrow)

    async def pay(n: int) -> None:
        outer = await caller.find("pay", n)
        async with caller.transaction("pay", n, outer.n) as transaction:
            inside = f"s/pay:{n!r}:0"
            inner = await caller.find("log", n, scope=inside)
            async with caller.transaction("log", n, inner.n, scope=inside) as logged:
                await logged.save("logged")
            await transaction.save("paid")

    await asyncio.wait_for(asyncio.gather(*(pay(n) for n in range(5))), 60)
    done = await book.lab.rows("SELECT value FROM steps WHERE status = 'done'")
    assert len(done) == 10
    assert narrow.pool.get_stats()["pool_size"] <= 4


async def test_step_inside_of_a_step_is_found_again(book):
    caller = book.attempt()
    outer = await caller.find("outer", 1)
    await caller.call("inner", 2)
    again = book.attempt()  # died before the outer one was saved
    assert (await again.find("outer", 1)).status == "new"
    await again.call("inner", 2)
    assert again.executed == []
    await again.save("outer", 1, outer.n)
    assert (await book.attempt().find("outer", 1)).status == "done"


async def test_key_identifies_a_call_instead_of_its_arguments(book):
    await book.attempt().call("pay", "client at 0x1", key="order-1")
    again = book.attempt()
    assert await again.call("pay", "client at 0x2", key="order-1") == "pay(client at 0x1) #0"
    await again.call("pay", "client at 0x2", key="order-2")
    assert again.executed == ["client at 0x2"]


async def test_key_of_a_call_may_change_and_makes_it_a_new_one(book):
    await book.attempt().call("pay", 1, key="a")
    again = book.attempt()
    await again.call("pay", 1, key="b")
    await again.call("pay", 7)
    assert again.executed == [1, 7]


async def test_each_visit_of_a_node_begins_with_no_call_made(book):
    caller = book.attempt()
    first = [await caller.call("pay", n) for n in (1, 2)]
    second = [await caller.call("pay", n, visit=2) for n in (1, 2)]
    assert (second, caller.executed) == (first, [1, 2])
    with pytest.raises(StepMismatch):
        await caller.call("pay", "other", visit=3)


async def test_second_visit_finds_what_the_first_one_has_left_unfinished(book):
    caller = book.attempt()
    await caller.call("pay", 1)
    await caller.find("pay", 2)  # its execution failed, nothing was saved
    assert await caller.call("pay", 1, visit=2) == "pay(1) #0"
    assert await caller.call("pay", 2, visit=2) == "pay(2) #0"
    assert caller.executed == [1, 2]


async def test_scopes_and_threads_know_nothing_of_each_other(book):
    caller = book.attempt()
    await caller.call("pay", 1, scope="node:a")
    await caller.call("pay", 1, scope="node:b")
    assert caller.executed == [1, 1]
    other = Book(book.lab, await book.lab.thread_at_zero()).attempt()
    await other.call("pay", 1, scope="node:a")
    assert other.executed == [1]


async def test_next_run_of_the_thread_finds_the_steps_of_the_run_before(book):
    """A question ends the run; the run that goes on executes the node again."""
    await book.attempt().call("pay", 1)
    book.run = uuid4()
    again = book.attempt()
    await again.call("pay", 1)
    assert again.executed == []


async def test_stale_owner_saves_no_step(book):
    caller = book.attempt()
    await caller.find("pay", 1)
    await book.lab.fence_off(book.thread)
    before = await book.lab.everything()
    with pytest.raises(LeaseLost):
        await caller.save("pay", 1, 0)
    assert await book.lab.everything() == before


async def test_value_that_cannot_be_stored_is_a_type_error_and_leaves_no_row(book):
    caller = book.attempt()
    await caller.find("pay", 1)
    with pytest.raises((TypeError, ValueError)):
        await caller.save("pay", 1, 0, value=lambda: None)
    assert await book.lab.rows("SELECT * FROM steps") == []


@pytest.mark.parametrize("text", ["\x00", "\ud800"], ids=ascii)
async def test_key_that_cannot_be_stored_is_a_value_error_before_the_step_is_executed(book, text):
    with pytest.raises(ValueError, match="'pay'"):
        await book.attempt().call("pay", 1, key=text)


async def test_lost_database_is_worth_another_attempt(book):
    pool = book.lab.engine.pool
    await pool.resize(1, 1)
    await book.lab.cut_connections()
    with pytest.raises(StorageError) as caught:
        await book.attempt().find("pay", 1)
    assert caught.value.retryable is True
