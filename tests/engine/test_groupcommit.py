"""Many attempts' writes in one statement: each write stands or falls by itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from perdure.engine.errors import LeaseLost, StorageError
from perdure.engine.groupcommit import GROUP_WRITES, GroupCommit, Write

RUN = uuid4()


def event(text: str) -> tuple[Any, ...]:
    return (RUN, 1_700_000_000_000, "custom", f'"{text}"', None)


def events(thread: UUID, *texts: str, fence: int = 0) -> Write:
    return Write(thread, fence, events=[event(text) for text in texts])


def step(name: str, value: bytes = b"", status: str = "done") -> tuple[Any, ...]:
    return ("scope", name, "same", 0, 0, RUN, False, status, "bytes", value, None, "[]", None, False)


def pending(slot: int, value: bytes, *, channel: str = "c", task: str = "t", path: str = "") -> tuple[Any, ...]:
    return ("", "checkpoint", task, path, slot, channel, "bytes", value)


def checkpoint(ident: str, body: str = "{}") -> tuple[Any, ...]:
    return ("", ident, None, body, "{}")


class FailingPool:
    """A pool whose connections break, as long as `broken` says so; `used` counts the statements."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.broken = 0
        self.used = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        self.used += 1
        if self.broken:
            self.broken -= 1
            await asyncio.sleep(0)
            raise psycopg.OperationalError("the connection is lost")
        async with self.pool.connection() as conn:
            yield conn


@pytest.fixture
async def group(lab) -> GroupCommit:
    return lab.group()


async def log(lab, thread: UUID) -> list[str]:
    """The texts of a thread's events; fails if their numbers have a gap."""
    rows = await lab.rows("SELECT seq, data FROM run_events WHERE thread_id = %(id)s ORDER BY seq", id=thread)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert (await lab.thread_row(thread))["event_seq"] == len(rows)
    return [row["data"].strip('"') for row in rows]


async def test_write_is_durable_when_submit_returns_and_tells_the_number_of_its_events(lab, group):
    thread = await lab.thread_at_zero()
    assert await group.submit(events(thread, "a", "b")) == 0
    assert await log(lab, thread) == ["a", "b"]
    assert await group.submit(events(thread, "c")) == 2
    assert await group.submit(Write(thread, 0, steps=[step("pay")])) == 3
    assert await log(lab, thread) == ["a", "b", "c"]


async def test_writes_of_many_threads_share_statements(lab):
    pool = FailingPool(lab.engine.pool)
    group = GroupCommit(pool, origin="")  # type: ignore[arg-type]
    threads = [await lab.thread_at_zero() for _ in range(20)]
    await asyncio.gather(*(group.submit(events(thread, "a")) for thread in threads))
    assert pool.used <= 2


async def test_events_of_concurrent_writers_are_numbered_without_gaps_in_the_order_of_submission(lab, group):
    threads = [await lab.thread_at_zero() for _ in range(3)]
    texts = [f"{n}" for n in range(60)]
    numbers = await asyncio.gather(*(group.submit(events(thread, text)) for text in texts for thread in threads))
    for thread in threads:
        assert await log(lab, thread) == texts
    assert sorted(numbers) == sorted(list(range(60)) * 3)


async def test_two_groups_and_a_transaction_that_append_to_one_thread_never_collide(lab):
    from perdure.engine import events as event_log

    thread = await lab.thread_at_zero()

    async def append(n: int) -> None:
        async with lab.engine.pool.connection() as conn, conn.transaction():
            await event_log.append(conn, thread, RUN, [event_log.Frame.of("custom", n)] * 2)

    groups = [lab.group(), lab.group()]
    writes = (groups[n % 2].submit(events(thread, "x", "y", "z")) for n in range(20))
    await asyncio.gather(*writes, *(append(n) for n in range(10)))
    assert len(await log(lab, thread)) == 80


async def test_refused_row_fails_its_own_write_only(lab, group):
    threads = [await lab.thread_at_zero() for _ in range(4)]
    writes = [events(thread, "good") for thread in threads]
    bad = Write(threads[0], 0, steps=[step("pay")], events=[(RUN, 0, "custom", '"\x00"', None)])
    ends = await asyncio.gather(
        *(group.submit(write) for write in [*writes[:2], bad, *writes[2:]]), return_exceptions=True
    )
    assert isinstance(ends[2], psycopg.Error)
    assert [end for end in ends if not isinstance(end, Exception)] == [0, 0, 0, 0]
    for thread in threads:
        assert await log(lab, thread) == ["good"]
    assert await lab.rows("SELECT * FROM steps") == []


async def test_text_that_no_encoding_knows_fails_its_own_write_only(lab, group):
    threads = [await lab.thread_at_zero() for _ in range(3)]
    bad = Write(threads[1], 0, steps=[step("lone \ud800 surrogate")])
    ends = await asyncio.gather(
        group.submit(events(threads[0], "good")),
        group.submit(bad),
        group.submit(events(threads[2], "good")),
        return_exceptions=True,
    )
    assert isinstance(ends[1], Exception)
    assert [ends[0], ends[2]] == [0, 0]


async def test_writes_after_a_refused_one_keep_their_order(lab, group):
    thread = await lab.thread_at_zero()
    writes = [events(thread, "a"), events(thread, "\x00"), events(thread, "b"), events(thread, "c")]
    ends = await asyncio.gather(*(group.submit(write) for write in writes), return_exceptions=True)
    assert await log(lab, thread) == ["a", "b", "c"]
    assert [ends[0], ends[2], ends[3]] == [0, 1, 2]


async def test_write_of_a_cancelled_caller_becomes_durable(lab, group):
    thread = await lab.thread_at_zero()
    callers = [asyncio.create_task(group.submit(events(thread, text))) for text in "abc"]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    await group.submit(events(thread, "d"))
    assert await log(lab, thread) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("away", ["fenced off", "deleted"])
async def test_stale_fence_fails_the_writes_of_its_thread_only(lab, group, away):
    threads = [await lab.thread_at_zero() for _ in range(10)]
    if away == "deleted":
        await lab.execute("DELETE FROM threads WHERE thread_id = %(id)s", id=threads[3])
    else:
        await lab.fence_off(threads[3])
    before = await lab.rows("SELECT * FROM threads WHERE thread_id = %(id)s", id=threads[3])

    def write(thread: UUID) -> Write:
        rows: Any = {
            "checkpoints": [checkpoint("c1")],
            "blobs": [("", "channel", "1", "bytes", b"value")],
            "writes": [pending(0, b"value")],
        }
        return Write(thread, 0, **rows, steps=[step("pay")], events=[event("a")])

    ends = await asyncio.gather(*(group.submit(write(t)) for t in threads * 2), return_exceptions=True)
    lost = [n % 10 for n, end in enumerate(ends) if isinstance(end, LeaseLost)]
    assert lost == [3, 3]
    assert [end for end in ends if not isinstance(end, LeaseLost)] == [0] * 9 + [1] * 9
    tables = ("run_events", "steps", "checkpoints", "checkpoint_blobs", "checkpoint_writes")
    for table in tables:
        found = {str(row["thread_id"]) for row in (await lab.everything())[table]}
        assert found == {str(t) for t in threads} - {str(threads[3])}, table
    assert await lab.rows("SELECT * FROM threads WHERE thread_id = %(id)s", id=threads[3]) == before


async def test_two_owners_of_a_thread_in_one_queue_are_told_apart(lab, group):
    thread = await lab.thread_at_zero()
    await lab.fence_off(thread)
    ends = await asyncio.gather(
        group.submit(events(thread, "old", fence=0)),
        group.submit(events(thread, "new", fence=1)),
        group.submit(events(thread, "old", fence=0)),
        return_exceptions=True,
    )
    assert [type(end) for end in ends] == [LeaseLost, int, LeaseLost]
    assert await log(lab, thread) == ["new"]


async def test_row_that_is_written_twice_in_one_group_ends_as_it_would_in_two(lab):
    async def write(thread: UUID, apart: bool) -> dict[str, Any]:
        group = lab.group()
        writes = [
            Write(thread, 0, steps=[step("pay", status="retrying")], checkpoints=[checkpoint("c", '{"v": 1}')]),
            Write(thread, 0, writes=[pending(0, b"first"), pending(-3, b"first", channel="__interrupt__")]),
            Write(thread, 0, blobs=[("", "channel", "1", "bytes", b"first")]),
            Write(thread, 0, steps=[step("pay", b"second")], checkpoints=[checkpoint("c", '{"v": 2}')]),
            Write(thread, 0, writes=[pending(0, b"second"), pending(-3, b"second", channel="__interrupt__")]),
            Write(thread, 0, blobs=[("", "channel", "1", "bytes", b"second")]),
        ]
        if apart:
            for one in writes:
                await group.submit(one)
        else:
            await asyncio.gather(*(group.submit(one) for one in writes))
        ident = {"id": str(thread)}
        return {
            "steps": await lab.rows("SELECT status, value FROM steps WHERE thread_id::text = %(id)s", **ident),
            "checkpoints": await lab.rows("SELECT checkpoint FROM checkpoints WHERE thread_id = %(id)s", **ident),
            "blobs": await lab.rows("SELECT blob FROM checkpoint_blobs WHERE thread_id = %(id)s", **ident),
            "writes": await lab.rows(
                "SELECT idx, blob FROM checkpoint_writes WHERE thread_id = %(id)s ORDER BY idx", **ident
            ),
        }

    together, apart = await write(await lab.thread_at_zero(), False), await write(await lab.thread_at_zero(), True)
    assert together == apart
    assert together["steps"] == [{"status": "done", "value": b"second"}]
    assert together["writes"] == [{"idx": -3, "blob": b"second"}, {"idx": 0, "blob": b"first"}]


async def test_pending_write_is_the_same_one_whatever_path_its_task_has(lab, group):
    thread = await lab.thread_at_zero()
    rows = [pending(0, b"first", path="a"), pending(0, b"second", path="b")]
    await asyncio.gather(*(group.submit(Write(thread, 0, writes=[row])) for row in rows))
    assert await lab.rows("SELECT task_path, blob FROM checkpoint_writes") == [{"task_path": "a", "blob": b"first"}]


async def test_more_writes_than_one_statement_takes(lab, group):
    thread = await lab.thread_at_zero()
    texts = [f"{n}" for n in range(GROUP_WRITES + 100)]
    await asyncio.gather(*(group.submit(events(thread, text)) for text in texts))
    assert await log(lab, thread) == texts


async def test_large_writes_go_in_statements_of_their_own(lab):
    pool = FailingPool(lab.engine.pool)
    group = GroupCommit(pool, origin="")  # type: ignore[arg-type]
    thread = await lab.thread_at_zero()
    value = b"x" * 3_000_000
    rows = [("", "channel", str(n), "bytes", value) for n in range(3)]
    await asyncio.gather(*(group.submit(Write(thread, 0, blobs=[row], size=len(value))) for row in rows))
    assert pool.used == 3
    assert len(await lab.rows("SELECT version FROM checkpoint_blobs")) == 3


async def test_lost_database_fails_the_writes_under_way_and_works_again_afterwards(lab):
    pool = FailingPool(lab.engine.pool)
    group = GroupCommit(pool, origin="")  # type: ignore[arg-type]
    threads = [await lab.thread_at_zero() for _ in range(3)]
    pool.broken = 1
    ends = await asyncio.gather(*(group.submit(events(t, "a")) for t in threads), return_exceptions=True)
    assert [type(end) for end in ends] == [StorageError] * 3
    assert await group.submit(events(await lab.thread_at_zero(), "b")) == 0


async def test_write_behind_a_lost_one_of_the_same_owner_is_lost_too(lab):
    """Else a finished step could be durable, and the checkpoint that it belongs to could not."""
    pool = FailingPool(lab.engine.pool)
    group = GroupCommit(pool, origin="")  # type: ignore[arg-type]
    thread = await lab.thread_at_zero()
    pool.broken = 1
    first = asyncio.create_task(group.submit(Write(thread, 0, checkpoints=[checkpoint("c")])))
    await asyncio.sleep(0)
    second = asyncio.create_task(group.submit(Write(thread, 0, steps=[step("pay")])))
    ends = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(ends[0], StorageError)
    assert isinstance(ends[1], StorageError)
    assert await lab.rows("SELECT * FROM steps") == []


async def test_owner_that_has_lost_a_write_writes_nothing_more_and_others_do(lab):
    pool = FailingPool(lab.engine.pool)
    group = GroupCommit(pool, origin="")  # type: ignore[arg-type]
    thread = await lab.thread_at_zero()
    pool.broken = 1
    with pytest.raises(StorageError):
        await group.submit(events(thread, "lost"))
    with pytest.raises(StorageError):
        await group.submit(events(thread, "after it"))
    assert await group.submit(events(await lab.thread_at_zero(), "of another thread")) == 0
    await lab.fence_off(thread)
    assert await group.submit(events(thread, "of the next owner", fence=1)) == 0
    group.forget(thread, 0)  # the attempt has ended
    assert await group.submit(events(thread, "again", fence=1)) == 1


async def test_write_behind_one_that_was_lost_when_its_group_was_split_is_lost_too(lab):
    """A refused row makes each write of the group a statement of its own, and then the database is lost."""
    pool = FailingPool(lab.engine.pool)
    group = GroupCommit(pool, origin="")  # type: ignore[arg-type]
    thread = await lab.thread_at_zero()

    class LosesOne(FailingPool):
        def connection(self) -> Any:
            self.broken = int(self.used == 1)  # the whole group is refused; then the first write is lost
            return super().connection()

    group._pool = LosesOne(lab.engine.pool)  # type: ignore[assignment]
    writes = [
        Write(thread, 0, checkpoints=[checkpoint("c")]),
        Write(thread, 0, steps=[step("pay")]),
        events(await lab.thread_at_zero(), "\x00"),
    ]
    ends = await asyncio.gather(*(group.submit(write) for write in writes), return_exceptions=True)
    assert [type(end) for end in ends[:2]] == [StorageError, StorageError]
    assert await lab.rows("SELECT * FROM steps") == []


UNDO = """
CREATE SEQUENCE undone MINVALUE 0 START 0;
CREATE FUNCTION undo() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.data LIKE '%stuck%' OR new.data LIKE '%undone%' AND nextval('undone') < 2 THEN
        RAISE EXCEPTION 'not now' USING ERRCODE = '{code}';
    END IF;
    RETURN new;
END $$;
CREATE TRIGGER undo BEFORE INSERT ON run_events FOR EACH ROW EXECUTE FUNCTION undo();
"""
REDO = "DROP TRIGGER undo ON run_events; DROP FUNCTION undo; DROP SEQUENCE undone"


@pytest.fixture
def undoing(module_dsn):
    """The database undoes statements that insert certain events: the first two with "undone", all with "stuck"."""
    with psycopg.connect(module_dsn, autocommit=True) as conn:

        def install(code: str) -> None:
            conn.execute(UNDO.replace("{code}", code))

        yield install
        conn.execute(REDO)


@pytest.mark.parametrize("code", ["40P01", "40001", "55P03", "57014"])
async def test_statement_that_the_database_undoes_is_made_again_and_nothing_is_lost(lab, group, undoing, code):
    """A deadlock, a serialization failure, a lock timeout, a statement timeout."""
    undoing(code)
    thread, other = await lab.thread_at_zero(), await lab.thread_at_zero()
    writes = [events(thread, "before"), events(thread, "undone"), events(other, "beside it"), events(thread, "after")]
    assert await asyncio.gather(*(group.submit(write) for write in writes)) == [0, 1, 0, 2]
    assert await log(lab, thread) == ["before", "undone", "after"]


async def test_statement_that_is_undone_each_time_costs_one_owner_an_attempt_and_others_nothing(lab, group, undoing):
    undoing("55P03")
    thread, other = await lab.thread_at_zero(), await lab.thread_at_zero()
    writes = [events(thread, "stuck"), events(other, "beside it"), events(thread, "after it")]
    ends = await asyncio.gather(*(group.submit(write) for write in writes), return_exceptions=True)
    assert [type(end) for end in ends] == [StorageError, int, StorageError]
    assert await log(lab, thread) == []
    assert await log(lab, other) == ["beside it"]


async def test_end_of_an_attempt_forgets_nothing_about_the_next_owner(lab):
    """It may end late: its thread has another owner by then, perhaps in the same process."""
    pool = FailingPool(lab.engine.pool)
    group = GroupCommit(pool, origin="")  # type: ignore[arg-type]
    thread = await lab.thread_at_zero()
    await lab.fence_off(thread)
    pool.broken = 1
    with pytest.raises(StorageError):
        await group.submit(events(thread, "lost", fence=1))
    group.forget(thread, 0)
    with pytest.raises(StorageError):
        await group.submit(events(thread, "behind it", fence=1))
    group.forget(thread, 1)
    assert await group.submit(events(thread, "of the same fence", fence=1)) == 0
