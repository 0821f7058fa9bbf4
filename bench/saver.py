"""`python -m bench.saver`: the checkpointer alone, in process, against LangGraph's own and against none.

The same graph runs side by side on new threads, in rounds that alternate between the ways of
keeping checkpoints, so that a busy machine is busy for all of them. Only ratios within one run
mean something; they are taken round by round and shown as median (least to greatest).

Ours writes to rows of `threads` that are there beforehand, as in a worker; the queue, the
events and HTTP are not part of this (`python -m bench` measures them).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import orjson
import uvloop
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph.state import CompiledStateGraph
from psycopg import AsyncCursor
from psycopg_pool import AsyncConnectionPool

from bench import graphs, measure
from bench.measure import cpu_seconds, machine, postmaster, show, spread, table
from bench.stage import database
from perdure.engine.db import CONNECT, Pool, migrate
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.saver import FencedSaver

FACTS = {"steps_per_s": "steps/s", "cpu_ms": "CPU-ms/step", "python_ms": "Python", "postgres_ms": "PostgreSQL"}


@dataclass(frozen=True)
class Way:
    """A way of keeping checkpoints. `open` makes, for each run, a graph with its checkpointer."""

    name: str
    open: Callable[[Pool], Callable[[UUID], CompiledStateGraph]]
    loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    durability: Literal["sync"] | None = "sync"


@dataclass(frozen=True)
class Round:
    """What one round has measured. CPU is per step, of this process and PostgreSQL, in ms."""

    steps_per_s: float
    cpu_ms: float
    python_ms: float
    postgres_ms: float
    statements: float  # per run


class CountingCursor(AsyncCursor[Any]):
    """Counts the statements that it sends; of `executemany`, one per row."""

    sent = 0

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        CountingCursor.sent += 1
        return await super().execute(query, params, **options)

    async def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        rows = list(params_seq)
        CountingCursor.sent += len(rows)
        await super().executemany(query, rows, **options)


def ways(nodes: int) -> list[Way]:
    graph = graphs.steps(nodes)

    def bare(_: Pool) -> Callable[[UUID], CompiledStateGraph]:
        return lambda _: graph

    def stock(pool: Pool) -> Callable[[UUID], CompiledStateGraph]:
        kept = graph.copy(update={"checkpointer": AsyncPostgresSaver(pool)})
        return lambda _: kept

    def stock_per_run(pool: Pool) -> Callable[[UUID], CompiledStateGraph]:
        return lambda _: graph.copy(update={"checkpointer": AsyncPostgresSaver(pool)})

    def fenced(pool: Pool) -> Callable[[UUID], CompiledStateGraph]:
        group = GroupCommit(pool, origin="bench")
        return lambda thread: graph.copy(update={"checkpointer": FencedSaver(pool, group, thread, 0)})

    return [
        Way("no checkpointer", bare, durability=None),  # LangGraph 1.2 fails with one
        Way("stock", stock),  # one saver for the process: one lock
        Way("stock, one per run", stock_per_run),
        Way("perdure", fenced),
        Way("perdure on asyncio", fenced, asyncio.new_event_loop),
    ]


async def round_of(way: Way, dsn: str, postgres: int | None, options: argparse.Namespace) -> Round:
    """Runs of one way, warmed up, on a pool and a loop of their own."""
    expected = list(range(options.nodes))
    pool: Pool = AsyncConnectionPool(
        dsn,
        kwargs={**CONNECT, "cursor_factory": CountingCursor},
        min_size=options.concurrency,
        max_size=options.concurrency,
        open=False,
    )
    async with pool:
        await pool.wait()
        graph_for = way.open(pool)
        threads = [uuid4() for _ in range(options.concurrency + options.runs)]
        async with pool.connection() as conn:
            insert = "INSERT INTO threads (thread_id, fence) SELECT unnest(%(threads)s::uuid[]), 0"
            await conn.execute(insert, {"threads": threads})

        async def one(number: int) -> None:
            thread = threads[number]
            config: Any = {"configurable": {"thread_id": str(thread)}}
            values = await graph_for(thread).ainvoke({"log": []}, config, durability=way.durability)
            if values["log"] != expected:
                raise AssertionError(f"expected {expected}, got {values}")

        def cpu() -> tuple[float, float]:
            return time.process_time(), cpu_seconds(postgres) if postgres else 0.0

        await measure.run(options.concurrency, options.concurrency, one)
        sent, before = CountingCursor.sent, cpu()
        timed = await measure.run(options.runs, options.concurrency, lambda n: one(options.concurrency + n))
        after, sent = cpu(), CountingCursor.sent - sent
    if timed.errors:
        raise RuntimeError(f"{way.name}: {len(timed.errors)} runs failed, the first: {timed.errors[0]}")
    steps = options.runs * options.nodes
    python, server = ((b - a) * 1000 / steps for a, b in zip(before, after, strict=True))
    return Round(steps / timed.wall, python + server, python, server, sent / options.runs)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.saver", description="Measure the checkpointer in process.")
    parser.add_argument("--runs", type=int, default=96, help="runs per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=10, help="steps per run (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="runs at a time (default: %(default)s)")
    parser.add_argument("--database-url", help="an expendable database (default: an embedded PostgreSQL)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    contenders = ways(options.nodes)
    rounds: dict[str, list[Round]] = {way.name: [] for way in contenders}
    with database(options.database_url) as dsn:
        migrate(dsn)
        postgres = postmaster(dsn)
        for number in range(options.rounds):
            # there and back: nobody always comes after the same one
            for way in contenders if number % 2 == 0 else reversed(contenders):
                with asyncio.Runner(loop_factory=way.loop) as runner:
                    rounds[way.name].append(runner.run(round_of(way, dsn, postgres, options)))
    ratios = compare(rounds)
    report(rounds, ratios)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        measured = {name: [asdict(one) for one in ones] for name, ones in rounds.items()}
        numbers = {"machine": machine(), "nodes": options.nodes, "rounds": measured, "ratios": ratios}
        options.json.write_bytes(orjson.dumps(numbers, option=orjson.OPT_INDENT_2))
    return 0


def compare(rounds: dict[str, list[Round]]) -> dict[str, dict[str, dict[str, float]]]:
    """Ours divided by each other way, round by round."""
    return {
        name: {
            fact: spread([getattr(a, fact) / getattr(b, fact) for a, b in zip(rounds["perdure"], ones, strict=True)])
            for fact in ("steps_per_s", "cpu_ms", "python_ms")
        }
        for name, ones in rounds.items()
        if name != "perdure"
    }


def report(rounds: dict[str, list[Round]], ratios: dict[str, dict[str, dict[str, float]]]) -> None:
    """Medians, then ratios."""
    show(
        table(
            ["median of rounds", *FACTS.values(), "statements/run"],
            (
                [
                    name,
                    *(f"{statistics.median(getattr(one, fact) for one in ones):.2f}" for fact in FACTS),
                    f"{statistics.median(one.statements for one in ones):.1f}",
                ]
                for name, ones in rounds.items()
            ),
        )
    )
    show("")
    show(
        table(
            ["perdure divided by", *(f"{FACTS[fact]}" for fact in ("steps_per_s", "cpu_ms", "python_ms"))],
            (
                [name, *(f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in facts.values())]
                for name, facts in ratios.items()
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
