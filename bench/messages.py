"""`python -m bench.messages`: bytes that PostgreSQL writes for one turn of a chat, by the length of the chat.

A turn adds two messages of about 360 characters. Bytes are write-ahead log, the median of a
few turns: whole pages, which PostgreSQL logs once after each of its own checkpoints, and its
background work would blur a mean. The last column says how a turn's cost grows with the
chat: 1 is what a long chat deserves.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph_sdk import get_client

from bench import graphs
from bench.measure import machine, show, table
from bench.stage import database, serve
from perdure.engine.db import Pool, open_pool
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.saver import FencedSaver

Turn = Callable[[list[dict[str, str]]], Awaitable[int]]
"""Sends messages to a chat and returns how many it has then."""


async def stock(pool: Pool) -> Turn:
    """LangGraph's own saver, in process."""
    return _in_process(AsyncPostgresSaver(pool), str(uuid4()))


async def fenced(pool: Pool) -> Turn:
    """Our saver, in process."""
    thread = uuid4()
    async with pool.connection() as conn:
        await conn.execute("INSERT INTO threads (thread_id, fence) VALUES (%(thread)s, 0)", {"thread": thread})
    return _in_process(FencedSaver(pool, GroupCommit(pool, origin="bench"), thread, 0), str(thread))


def _in_process(saver: Any, thread_id: str) -> Turn:
    graph = graphs.chat.copy(update={"checkpointer": saver})

    async def turn(messages: list[dict[str, str]]) -> int:
        config: Any = {"configurable": {"thread_id": thread_id}}
        return len((await graph.ainvoke({"messages": messages}, config, durability="sync"))["messages"])

    return turn


async def whole_server(client: Any) -> Turn:
    """A run over HTTP: the queue, the events and the status are written as well."""
    thread_id: str = (await client.threads.create())["thread_id"]

    async def turn(messages: list[dict[str, str]]) -> int:
        return len((await client.runs.wait(thread_id, "chat", input={"messages": messages}))["messages"])

    return turn


async def bytes_per_turn(turn: Turn, length: int, turns: int, conn: psycopg.AsyncConnection[Any]) -> int:
    """Fill a new chat with `length` messages, then take turns; the median of what each has written."""

    async def written() -> int:
        cursor = await conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        return int((await cursor.fetchone() or (0,))[0])

    count = await turn([_message(n) for n in range(length - 1)])
    sizes: list[int] = []
    for n in range(turns):
        before = await written()
        count = await turn([_message(n)])
        sizes.append(await written() - before)
    if count != length + 2 * turns:
        raise AssertionError(f"expected {length + 2 * turns} messages, got {count}")
    return round(statistics.median(sizes))


def _message(number: int) -> dict[str, str]:
    return {"role": "user", "content": graphs.prose(number)}


async def _measure(dsn: str, url: str, lengths: list[int], turns: int) -> dict[str, dict[int, int]]:
    pool = await open_pool(dsn, size=4, name="bench")
    async with (
        pool,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        get_client(url=url, api_key=None, timeout=120) as client,
    ):
        openers: dict[str, Callable[[], Awaitable[Turn]]] = {
            "stock saver": lambda: stock(pool),
            "perdure's saver": lambda: fenced(pool),
            "perdure, whole run": lambda: whole_server(client),
        }
        return {
            name: {length: await bytes_per_turn(await opener(), length, turns, conn) for length in lengths}
            for name, opener in openers.items()
        }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.messages", description="Measure bytes written per turn.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 100, 500], help="messages before the turns")
    parser.add_argument("--turns", type=int, default=7, help="turns at each length (default: %(default)s)")
    parser.add_argument("--database-url", help="an expendable database nobody else uses (default: an embedded one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    with database(options.database_url) as dsn, serve(dsn, slots=4) as (url, _):
        sizes = asyncio.run(_measure(dsn, url, options.lengths, options.turns))
    show(
        table(
            ["kB written per turn", *(f"{length} messages" for length in options.lengths), "last / first"],
            (
                [name, *(f"{size / 1000:.1f}" for size in found.values()), f"{_growth(found):.1f}"]
                for name, found in sizes.items()
            ),
        )
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        numbers = {"machine": machine(), "bytes_per_turn": {k: list(v.items()) for k, v in sizes.items()}}
        options.json.write_bytes(orjson.dumps(numbers, option=orjson.OPT_INDENT_2))
    return 0


def _growth(found: dict[int, int]) -> float:
    sizes = list(found.values())
    return sizes[-1] / sizes[0]


if __name__ == "__main__":
    sys.exit(main())
