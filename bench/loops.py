"""`python -m bench.loops`: what uvloop in the engine's own threads saves, against asyncio's loop.

Two servers, each with a database of its own, take turns with the same work, so that a busy
machine is busy for both. HTTP is served on uvloop by both.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import orjson
import psycopg
from langgraph_sdk import get_client
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bench.cases import CASES, Bench
from bench.measure import machine, show, spread, table
from bench.stage import Server, database, serve

PATCH = """
import asyncio, types
from perdure.engine import loops
loops.uvloop = types.SimpleNamespace(new_event_loop=asyncio.new_event_loop)
"""


async def _measure(servers: dict[str, Server], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Server CPU-ms per operation: by case, by loop, one number per round."""
    found: dict[str, dict[str, list[float]]] = {case: {loop: [] for loop in servers} for case in options.cases}
    for case in options.cases:
        for number in range(-1, options.rounds):  # the first round warms up
            for loop, server in list(servers.items())[:: 1 if number % 2 else -1]:
                async with get_client(url=server.url, api_key=None, timeout=120) as client:
                    result = await Bench(client, server, n=options.n, concurrency=16).measure(case)
                if result.errors:
                    raise RuntimeError(f"{case} on {loop}: {result.first_error}")
                if number >= 0:
                    found[case][loop].append(result.server_cpu_ms or 0.0)
    return found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.loops", description="Compare event loops.")
    parser.add_argument("cases", nargs="*", default=["steps", "stream"], help="of python -m bench: %(default)s")
    parser.add_argument("--n", type=int, default=60, help="operations per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}")
    with database(None) as dsn, ExitStack() as stack:
        servers: dict[str, Server] = {}
        for loop, patch in (("uvloop", ""), ("asyncio", PATCH)):
            name = f"bench_{uuid4().hex}"
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            servers[loop] = Server(*stack.enter_context(serve(make_conninfo(dsn, dbname=name), slots=16, patch=patch)))
        found = asyncio.run(_measure(servers, options))
    ratios = {
        case: spread([a / b for a, b in zip(loops["uvloop"], loops["asyncio"], strict=True)])
        for case, loops in found.items()
    }
    head = ["server CPU-ms per operation", "uvloop", "asyncio", "uvloop / asyncio"]
    rows = (
        [
            case,
            *(f"{spread(values)['median']:.1f}" for values in found[case].values()),
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
        ]
        for case, ratio in ratios.items()
    )
    show(table(head, rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        numbers = {"machine": machine(), "server_cpu_ms": found, "ratios": ratios}
        options.json.write_bytes(orjson.dumps(numbers, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
