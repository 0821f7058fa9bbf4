"""`python -m bench`: measure a server over HTTP; see `bench/README.md`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from langgraph_sdk import get_client

from bench.cases import CASES, Bench, Result
from bench.measure import machine, postmaster, show, table
from bench.stage import Server, database, serve

HEAD = ["case", "n", "per_s", "p50_ms", "p99_ms", "server_cpu_ms", "postgres_cpu_ms", "also"]


def main() -> int:
    """Measure, print, write; 1 if any operation failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure a LangGraph server over HTTP.")
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of: {' '.join(CASES)}; default: all")
    parser.add_argument("--n", type=int, default=200, help="operations per case (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="operations at a time (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=16, help="slots of the server that is started")
    parser.add_argument("--database-url", help="an expendable database for it (default: an embedded PostgreSQL)")
    parser.add_argument("--url", help="measure this server instead, which serves bench/langgraph.json")
    parser.add_argument("--pid", type=int, help="with --url: its process, to know its CPU")
    parser.add_argument("--postgres-pid", type=int, help="with --url: PostgreSQL's main process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are: {' '.join(CASES)}")
    with _server(options) as server:
        results = asyncio.run(_measure(server, options))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        numbers = {"machine": machine(), "n": options.n, "concurrency": options.concurrency, "cases": results}
        options.json.write_bytes(orjson.dumps(numbers, option=orjson.OPT_INDENT_2))
    for result in results:
        if result.first_error:
            sys.stderr.write(f"{result.case}: {result.errors} errors, the first: {result.first_error}\n")
    return int(any(result.errors for result in results))


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[Server]:
    """The server that was named, or one of our own."""
    if options.url:
        yield Server(options.url, options.pid, options.postgres_pid)
        return
    with database(options.database_url) as dsn, serve(dsn, slots=options.slots) as (url, pid):
        yield Server(url, pid, postmaster(dsn))


async def _measure(server: Server, options: argparse.Namespace) -> list[Result]:
    async with get_client(url=server.url, api_key=None, timeout=120) as client:
        bench = Bench(client, server, n=options.n, concurrency=options.concurrency)
        results = [await bench.measure(name) for name in CASES if name in options.cases or not options.cases]
    show(table(HEAD, (_row(result) for result in results)))
    return results


def _row(result: Result) -> list[str]:
    cpu = ["-" if ms is None else f"{ms:.1f}" for ms in (result.server_cpu_ms, result.postgres_cpu_ms)]
    times = [f"{result.per_s:.1f}", f"{result.p50_ms:.1f}", f"{result.p99_ms:.1f}"]
    count = f"{result.ok}" if not result.errors else f"{result.ok} ({result.errors} errors)"
    also = ", ".join(f"{name} {value:.1f}" for name, value in dataclasses.asdict(result)["more"].items())
    return [result.case, count, *times, *cpu, also]


if __name__ == "__main__":
    sys.exit(main())
