"""Questions to people: table `interrupts`.

A row is written in the transaction that ends the run which asked. Accepting an answer is one
transaction too: the row is closed, the answer is stored as the waiting task's `__resume__`
write, and a run with no input is created that goes on from there. LangGraph itself keeps an
answer only in the config of one call, where a crash would lose it and a second delivery
would answer the next question.
"""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString, cast
from uuid import UUID

import psycopg
import structlog
from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import RESUME

from perdure.engine import links
from perdure.engine.access import Within
from perdure.engine.db import Conn, jsonb
from perdure.engine.errors import (
    EngineError,
    InvalidInput,
    QuestionClosed,
    QuestionNotFound,
    RunNotFound,
    ThreadNotFound,
)
from perdure.engine.newrun import NewRun
from perdure.engine.saver import Question

if TYPE_CHECKING:
    from perdure.engine.core import Engine
    from perdure.engine.queue import Claimed

log = structlog.get_logger(__name__)

TIMEOUT = "__timeout__"  # key of the answer that a passed deadline gives; nobody else may send it
NOBODY = "00000000-0000-0000-0000-000000000000"  # LangGraph's task of what a command brings
STATUSES = ("open", "answered", "rejected", "timed_out", "superseded")

_SERDE = JsonPlusSerializer()
_INTERRUPT_ID = re.compile(r"[0-9a-f]{32}")

OPEN = """
INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id, graph_id,
                        assistant_id, token, question, deadline)
VALUES (%(thread_id)s, %(checkpoint_id)s, %(task_id)s, %(n)s, %(checkpoint_ns)s, %(interrupt_id)s, %(run_id)s,
        %(graph_id)s, %(assistant_id)s, %(token)s, %(question)s, %(deadline)s)
ON CONFLICT (thread_id, checkpoint_id, task_id, n) DO UPDATE SET status = 'open' WHERE interrupts.status = 'superseded'
RETURNING token, deadline
"""

# what was open and has not been asked again belongs to a past that the run has left
CLOSE_OTHERS = """
UPDATE interrupts SET status = 'superseded'
 WHERE thread_id = %(thread_id)s AND status = 'open' AND NOT interrupt_id = ANY(%(asked)s)
"""


async def record(conn: Conn, run: Claimed, questions: list[Question]) -> list[dict[str, Any]]:
    """Store what a run has asked, in the transaction that ends it.

    A question asked again (a run that answered another one) keeps its row, token and
    deadline. Returns token and deadline of the new ones.
    """
    opened: list[dict[str, Any]] = []
    await conn.execute(
        CLOSE_OTHERS, {"thread_id": run.thread_id, "asked": [question.interrupt_id for question in questions]}
    )
    for question in questions:
        cursor = await conn.execute(
            OPEN,
            {
                "thread_id": run.thread_id,
                "checkpoint_id": question.checkpoint_id,
                "task_id": question.task_id,
                "n": question.n,
                "checkpoint_ns": question.checkpoint_ns,
                "interrupt_id": question.interrupt_id,
                "run_id": run.run_id,
                "graph_id": run.graph_id,
                "assistant_id": run.assistant_id,
                "token": secrets.token_urlsafe(24),
                "question": jsonb(question.value),
                "deadline": _deadline(question.value),
            },
        )
        opened += await cursor.fetchall()
    return opened


def _deadline(value: Any) -> datetime | None:
    """The `deadline` of a question that is a dict: ISO 8601 with an offset; anything else is no deadline."""
    text: Any = value.get("deadline") if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType] (author data)
    if not isinstance(text, str):
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else None


SUPERSEDE = "UPDATE interrupts SET status = 'superseded' WHERE thread_id = %(thread_id)s AND status = 'open'"


async def supersede(conn: Conn, thread_id: UUID) -> None:
    """New input makes the open questions of a thread moot. Part of the caller's transaction."""
    await conn.execute(SUPERSEDE, {"thread_id": thread_id})


OPEN_OF_THREAD = """
SELECT interrupt_id, checkpoint_ns, checkpoint_id, task_id, n, token
  FROM interrupts WHERE thread_id = %(thread_id)s AND status = 'open'
"""

ANSWERS = """
SELECT type, blob FROM checkpoint_writes
 WHERE thread_id = %(thread)s AND checkpoint_ns = %(checkpoint_ns)s AND checkpoint_id = %(checkpoint_id)s
   AND task_id = %(task_id)s AND idx = %(idx)s
"""

GIVE = """
INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
VALUES (%(thread)s, %(checkpoint_ns)s, %(checkpoint_id)s, %(task_id)s, %(idx)s, %(channel)s, %(type)s, %(blob)s)
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
DO UPDATE SET type = excluded.type, blob = excluded.blob
"""

# What LangGraph has kept of an answer that it was given itself (`resuming`); one is enough for a next question.
FORGET_GIVEN = """
DELETE FROM checkpoint_writes
 WHERE thread_id = %(thread)s AND checkpoint_ns = '' AND task_id = %(nobody)s AND channel = %(channel)s
   AND checkpoint_id = (SELECT c.checkpoint_id FROM checkpoints c
                         WHERE c.thread_id = %(thread)s AND c.checkpoint_ns = '' ORDER BY c.checkpoint_id DESC LIMIT 1)
"""

CLOSE = """
UPDATE interrupts
   SET status = %(status)s, answer = %(answer)s, answered_at = now(), answered_by = %(by)s
 WHERE thread_id = %(thread_id)s AND status = 'open' AND interrupt_id = %(interrupt_id)s
"""


async def accept(
    conn: Conn,
    thread_id: UUID,
    resume: Any,
    *,
    status: str = "answered",
    by: str | None = None,
    token: str | None = None,
) -> list[str] | None:
    """Close the questions that `resume` answers and store the answers where their tasks look.

    Part of the caller's transaction, which holds the thread's row. `resume` is one plain
    answer or an object from interrupt id to answer; with `token`, to that question only.
    Returns the answered ids, or None for a plain answer while several questions are open:
    that run fails, as LangGraph says.

    Raises QuestionClosed when it answers nothing that is open: the first answer wins.
    """
    rows = await (await conn.execute(OPEN_OF_THREAD, {"thread_id": thread_id})).fetchall()
    waiting = {row["interrupt_id"]: row for row in rows}
    answers = named(resume)
    if answers:
        closed = [key for key in answers if key not in waiting or (token and waiting[key]["token"] != token)]
        if closed:
            raise QuestionClosed(f"Interrupt {closed[0]} is not open: it is unknown, answered, superseded or timed out")
    elif len(waiting) > 1:
        return None
    elif not waiting:
        raise QuestionClosed(f"Thread {thread_id} has no open question to answer")
    else:
        answers = {next(iter(waiting)): resume}
    await conn.execute(FORGET_GIVEN, {"thread": str(thread_id), "nobody": NOBODY, "channel": RESUME})
    for interrupt_id, answer in answers.items():
        if isinstance(answer, dict) and TIMEOUT in answer and status != "timed_out":
            raise InvalidInput("command.resume", f"the key {TIMEOUT!r} is reserved")
        place = {
            **waiting[interrupt_id],
            "thread": str(thread_id),
            "idx": WRITES_IDX_MAP[RESUME],
            "channel": RESUME,
        }
        before = await (await conn.execute(ANSWERS, place)).fetchone()
        given: list[Any] = _SERDE.loads_typed((before["type"], before["blob"])) if before else []
        kind, blob = _SERDE.dumps_typed([*given, answer])
        await conn.execute(GIVE, {**place, "type": kind, "blob": blob})
        values = {"thread_id": thread_id, "interrupt_id": interrupt_id, "status": status, "by": by}
        await conn.execute(CLOSE, {**values, "answer": jsonb(answer)})
    return list(answers)


def named(resume: Any) -> dict[str, Any]:
    """The answers of an object from interrupt id to answer; nothing of any other answer."""
    given = cast("dict[str, Any]", resume) if isinstance(resume, dict) else {}
    return given if all(_INTERRUPT_ID.fullmatch(key) for key in given) else {}


ANSWERED = """
SELECT 1 FROM interrupts
 WHERE thread_id = %(thread_id)s AND interrupt_id = ANY(%(ids)s) AND status IN ('answered', 'rejected', 'timed_out')
 LIMIT 1
"""


async def any_answered(conn: Conn, thread_id: UUID, ids: list[str]) -> bool:
    """Whether one of these questions of a thread has had its answer."""
    return await (await conn.execute(ANSWERED, {"thread_id": thread_id, "ids": ids})).fetchone() is not None


RECORD: LiteralString = (
    "token, interrupt_id, thread_id, run_id, graph_id AS agent, question, deadline, created_at, status, answer, "
    "answered_at, answered_by"
)
BY_TOKEN: LiteralString = "SELECT " + RECORD + ", assistant_id FROM interrupts WHERE token = %(token)s"


async def get(engine: Engine, token: str, *, within: Within = None) -> dict[str, Any]:
    """A question with its `url`, see `links`. Raises QuestionNotFound, also when its thread is not `within`."""
    row = await _by_token(engine, token, within)
    del row["assistant_id"]
    return (await links.with_urls(engine, [row]))[0]


async def _by_token(engine: Engine, token: str, within: Within = None) -> dict[str, Any]:
    from perdure.engine import threads

    async with engine.pool.connection() as conn:
        row = await (await conn.execute(BY_TOKEN, {"token": token})).fetchone()
        if row is not None and not await threads.permitted(conn, row["thread_id"], within):
            row = None
    if row is None:
        raise QuestionNotFound("No question has this token")
    return row


async def resolve(
    engine: Engine, token: str, value: Any, *, by: str | None = None, status: str = "answered"
) -> dict[str, Any]:
    """Answer the question with this token; returns the run that goes on with it.

    Raises QuestionNotFound, and QuestionClosed when it is answered, superseded or timed out.
    """
    from perdure.engine import runs

    row = await _by_token(engine, token)
    if row["status"] != "open":
        raise QuestionClosed(f"This question is {row['status'].replace('_', ' ')} already")
    command = {"resume": {row["interrupt_id"]: value}}
    try:
        asker = await runs.get(engine, row["thread_id"], row["run_id"])
    except RunNotFound:  # deleted; its configuration went with it
        answer = NewRun(assistant=str(row["assistant_id"]), command=command)
    else:
        answer = runs.again(asker, command=command)
    return await runs.enqueue(engine, row["thread_id"], answer, answered_as=status, by=by, token=token)


async def reject(engine: Engine, token: str, reason: str | None, *, by: str | None = None) -> dict[str, Any]:
    """Answer "no"; `approval()` returns it as `Answer(approved=False, reason=…)`. Raises as `resolve` does."""
    row = await _by_token(engine, token)
    return await resolve(engine, token, decision(row["question"], False, reason), by=by, status="rejected")


def decision(question: Any, approved: bool, reason: str | None = None) -> Any:
    """A person's yes or no as who asked understands it.

    LangChain's human-in-the-loop middleware wants one decision for each of its `action_requests`;
    `approval()`, whose question has a text, understands a bare yes and no.
    """
    asked = cast("dict[str, Any]", question) if isinstance(question, dict) else {}
    actions = asked.get("action_requests")
    if isinstance(actions, list) and actions and "question" not in asked:
        no = {"type": "reject", **({"message": reason} if reason else {})}
        return {"decisions": [{"type": "approve"} if approved else no for _ in cast("list[Any]", actions)]}
    return True if approved else {"approved": False, "reason": reason}


DUE = """
SELECT token, thread_id, question ->> 'deadline' AS deadline FROM interrupts
 WHERE status = 'open' AND deadline <= now() ORDER BY deadline LIMIT 100
"""


REOPEN_SUPERSEDED = """
UPDATE interrupts SET status = 'open'
 WHERE thread_id = %(thread_id)s AND interrupt_id = ANY(%(ids)s) AND status = 'superseded'
"""


async def reopen(conn: Conn, thread_id: UUID, ids: list[str]) -> None:
    """The input that had superseded these questions is gone, and the state still asks them.

    Part of the caller's transaction.
    """
    await conn.execute(REOPEN_SUPERSEDED, {"thread_id": thread_id, "ids": ids})


GIVE_UP = """
UPDATE interrupts SET status = 'timed_out', answered_at = now() WHERE token = %(token)s AND status = 'open'
"""

REOPEN = """
UPDATE interrupts SET status = 'open', answer = NULL, answered_at = NULL, answered_by = NULL
 WHERE thread_id = %(thread_id)s AND interrupt_id = ANY(%(ids)s) AND status IN ('answered', 'rejected', 'timed_out')
RETURNING checkpoint_ns, checkpoint_id, task_id
"""

TAKE_BACK = """
DELETE FROM checkpoint_writes
 WHERE thread_id = %(thread)s AND checkpoint_ns = %(checkpoint_ns)s AND checkpoint_id = %(checkpoint_id)s
   AND task_id = %(task_id)s AND idx = %(idx)s
"""


async def take_back(conn: Conn, thread_id: UUID, ids: list[str]) -> None:
    """The run that consumed these answers is rolled back: its questions are open again.

    Part of the caller's transaction.
    """
    for row in await (await conn.execute(REOPEN, {"thread_id": thread_id, "ids": ids})).fetchall():
        place = {**row, "thread": str(thread_id), "idx": WRITES_IDX_MAP[RESUME], "channel": RESUME}
        given = await (await conn.execute(ANSWERS, place)).fetchone()
        answers: list[Any] = _SERDE.loads_typed((given["type"], given["blob"])) if given else []
        if len(answers) > 1:
            kind, blob = _SERDE.dumps_typed(answers[:-1])
            await conn.execute(GIVE, {**place, "type": kind, "blob": blob})
        else:
            await conn.execute(TAKE_BACK, place)


async def time_out(engine: Engine) -> int:
    """Answer every question whose deadline has passed with its timeout; returns how many.

    Any number of processes may do so at once: the first wins.
    """
    from perdure.engine import queue, threads

    async with engine.pool.connection() as conn:
        due = await (await conn.execute(DUE)).fetchall()
    count = 0
    for row in due:
        try:
            await resolve(engine, row["token"], {TIMEOUT: row["deadline"]}, status="timed_out")
        except (QuestionClosed, QuestionNotFound, ThreadNotFound):
            continue  # answered, superseded or deleted just now
        except EngineError as exc:  # its graph or assistant is gone: nobody can go on with it
            log.error("deadline passed, but the run cannot go on", token=row["token"], error=str(exc))
            async with engine.pool.connection() as conn, conn.transaction():
                await threads.lock(conn, row["thread_id"])
                await conn.execute(GIVE_UP, {"token": row["token"]})
                await queue.promote(conn, row["thread_id"])
            continue
        except psycopg.Error as exc:
            log.warning("deadline not carried out, will be tried again", token=row["token"], error=str(exc).strip())
            continue
        count += 1
    return count
