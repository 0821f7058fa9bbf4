"""The commit hook: it counts every commit of a worker's attempts and can kill the process right before or after one.

A commit is a writing statement outside of a transaction, or the end of the outermost
transaction block. Of the attempt loop every commit counts; of the other threads, which go by
the clock, those that fire a cron or note what another server has said.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncTransaction
from psycopg.pq import TransactionStatus

from perdure.engine import groupcommit, queue, stop, ticks, tries

count = 0

ELSEWHERE = {
    ticks.MOVE_ON: "cron",
    tries.STARTED: "remote started",
    tries.LATER: "remote later",
    tries.SETTLE: "remote settled",
}
"""Statements of other threads that count."""


def kind(statements: list[tuple[str, Any]]) -> str:
    """What a commit is about, for choosing and for reporting."""
    texts = [text for text, _ in statements]
    append = next((params for text, params in statements if text.startswith(groupcommit.HEAD)), None)
    if append is not None:
        rows = {"checkpoint": "c_id", "writes": "w_idx", "steps": "s_name", "events": "e_event"}
        return "append " + "+".join(name for name, column in rows.items() if append.get(column))
    names = {
        queue.CLAIM: "claim",
        queue.SETTLE_THREAD: "finish",
        queue.RETRY_RUN: "retry",
        queue.SUSPEND_RUN: "suspend",
        stop.HAND_BACK_RUN: "give way",
        **ELSEWHERE,
    }
    for text, name in names.items():
        if text in texts:
            return name
    return "other"


def die(linger: float) -> None:
    if linger:
        threading.Timer(linger, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def install(*, kill: dict[str, Any] | None, record: str | None, arm: str | None = None) -> None:
    """Watch this process.

    `kill`: {"at": number from 1, "when": "before" | "after", "kind": only count these, "linger": seconds that the
    process still has}. `record`: file that gets the kind of each commit. `arm`: file in which a `kill` may appear
    later, to be counted from the next commit on; it is taken away.
    """
    open_blocks: dict[int, list[tuple[str, Any]]] = {}
    execute = AsyncConnection.execute
    leave = AsyncTransaction.__aexit__

    def point(when: str, name: str) -> None:
        global count
        nonlocal kill
        if when == "before" and arm and os.path.exists(arm):
            with open(arm, encoding="utf-8") as file:
                kill, count = json.load(file), 0
            os.unlink(arm)
        if when == "before" and record:
            handle = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.write(handle, f"{name}\n".encode())
            os.close(handle)
        if kill and kill.get("kind") and not name.startswith(kill["kind"]):
            return
        if when == "before":
            count += 1
        if kill and kill["at"] == count and kill["when"] == when:
            die(kill.get("linger", 0))

    def watched(name: str) -> bool:
        return name in ELSEWHERE.values() or threading.current_thread().name == "perdure-attempts"

    async def watched_execute(self: AsyncConnection[Any], query: Any, params: Any = None, **options: Any) -> Any:
        text = query if isinstance(query, str) else ""
        writes = text.split(maxsplit=1)[0].upper() in ("WITH", "INSERT", "UPDATE", "DELETE") if text.strip() else False
        if not writes:
            return await execute(self, query, params, **options)
        if self.info.transaction_status != TransactionStatus.IDLE:
            open_blocks.setdefault(id(self), []).append((text, params))
            return await execute(self, query, params, **options)
        name = kind([(text, params)])
        if not watched(name):
            return await execute(self, query, params, **options)
        point("before", name)
        result = await execute(self, query, params, **options)
        point("after", name)
        return result

    async def watched_leave(self: AsyncTransaction, *details: Any) -> Any:
        if not self._outer_transaction:
            return await leave(self, *details)
        statements = open_blocks.pop(id(self.connection), [])
        name = kind(statements)
        if not watched(name) or not statements or details[0] is not None:
            return await leave(self, *details)
        point("before", name)
        result = await leave(self, *details)
        point("after", name)
        return result

    psycopg.AsyncConnection.execute = watched_execute  # type: ignore[method-assign]
    psycopg.AsyncTransaction.__aexit__ = watched_leave  # type: ignore[method-assign]
