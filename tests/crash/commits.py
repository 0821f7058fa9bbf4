"""The commit hook: it counts every commit of a worker's attempts and can kill the process right before or after one.

A commit is a writing statement outside of a transaction, or the end of the outermost
transaction block. Only the attempt loop is watched: leases and sweeps go by the clock.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncTransaction
from psycopg.pq import TransactionStatus

from perdure.engine import groupcommit, queue

count = 0


def kind(statements: list[tuple[str, Any]]) -> str:
    """What a commit is about, for choosing and for reporting."""
    texts = [text for text, _ in statements]
    append = next((params for text, params in statements if text.startswith(groupcommit.HEAD)), None)
    if append is not None:
        rows = {"checkpoint": "c_id", "writes": "w_idx", "steps": "s_name", "events": "e_event"}
        return "append " + "+".join(name for name, column in rows.items() if append.get(column))
    for text, name in ((queue.CLAIM, "claim"), (queue.SETTLE_THREAD, "finish"), (queue.RETRY_RUN, "retry")):
        if text in texts:
            return name
    return "other"


def install(*, kill: dict[str, Any] | None, record: str | None) -> None:
    """Watch this process. `kill`: {"at": number from 1, "when": "before" | "after", "kind": only count these}."""
    open_blocks: dict[int, list[tuple[str, Any]]] = {}
    execute = AsyncConnection.execute
    leave = AsyncTransaction.__aexit__

    def point(when: str, name: str) -> None:
        global count
        if kill and kill.get("kind") and not name.startswith(kill["kind"]):
            return
        if when == "before":
            count += 1
            if record:
                handle = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                os.write(handle, f"{name}\n".encode())
                os.close(handle)
        if kill and kill["at"] == count and kill["when"] == when:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched() -> bool:
        return threading.current_thread().name == "perdure-attempts"

    async def watched_execute(self: AsyncConnection[Any], query: Any, params: Any = None, **options: Any) -> Any:
        text = query if isinstance(query, str) else ""
        writes = text.split(maxsplit=1)[0].upper() in ("WITH", "INSERT", "UPDATE", "DELETE") if text.strip() else False
        if not watched() or not writes:
            return await execute(self, query, params, **options)
        if self.info.transaction_status != TransactionStatus.IDLE:
            open_blocks.setdefault(id(self), []).append((text, params))
            return await execute(self, query, params, **options)
        name = kind([(text, params)])
        point("before", name)
        result = await execute(self, query, params, **options)
        point("after", name)
        return result

    async def watched_leave(self: AsyncTransaction, *details: Any) -> Any:
        statements = open_blocks.pop(id(self.connection), [])
        if not watched() or not statements or details[0] is not None:
            return await leave(self, *details)
        name = kind(statements)
        point("before", name)
        result = await leave(self, *details)
        point("after", name)
        return result

    psycopg.AsyncConnection.execute = watched_execute  # type: ignore[method-assign]
    psycopg.AsyncTransaction.__aexit__ = watched_leave  # type: ignore[method-assign]
