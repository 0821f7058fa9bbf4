"""The cases: what a client does again and again, written with `langgraph_sdk`, so that any server can be asked.

Each checks every answer; a wrong one counts as an error, not as a quick operation.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from langgraph_sdk.client import LangGraphClient

from bench import measure
from bench.graphs import TOKENS
from bench.measure import Timed, cpu_seconds
from bench.stage import Server

FANOUT = 50  # tasks in one superstep
WARM_UP = 4  # operations that are not counted


@dataclass
class Result:
    """One case. CPU is per operation, in ms; None where the process is not ours to see."""

    case: str
    ok: int
    errors: int
    per_s: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float | None
    postgres_cpu_ms: float | None
    more: dict[str, float] = field(default_factory=dict[str, float])
    first_error: str | None = None


class Bench:
    """`n` operations per case (a quarter where one takes long), `concurrency` at a time where a case is parallel."""

    def __init__(self, client: LangGraphClient, server: Server, *, n: int, concurrency: int) -> None:
        self.client = client
        self.server = server
        self.n = n
        self.concurrency = concurrency

    async def measure(self, name: str) -> Result:
        """One case by its name."""
        return await CASES[name](self)

    # -- the cases

    async def seq(self) -> Result:
        """One run of five steps at a time, each on a new thread: the latency of a server that is not busy."""
        return await self._measure("seq", self._few, 1, self._five_steps)

    async def steps(self) -> Result:
        """The same, many at a time: the throughput."""
        return await self._measure("steps", self.n, self.concurrency, self._five_steps)

    async def stateless(self) -> Result:
        """Five steps without a thread."""

        async def one(_: int) -> None:
            expect(await self.client.runs.wait(None, "steps5", input={"log": []}), "log", [0, 1, 2, 3, 4])

        return await self._measure("stateless", self.n, self.concurrency, one)

    async def chat(self) -> Result:
        """One long conversation: does a turn get slower the longer it is?"""
        thread = await self._thread()

        async def one(number: int) -> None:
            message = {"role": "user", "content": f"hello {number}"}
            values = await self.client.runs.wait(thread, "chat", input={"messages": [message]})
            expect({"messages": len(values["messages"])}, "messages", 2 * number + 2)

        def more(timed: Timed) -> dict[str, float]:
            part = max(1, len(timed.seconds) // 4)
            return {
                "first_quarter_ms": statistics.median(timed.seconds[:part]) * 1000,
                "last_quarter_ms": statistics.median(timed.seconds[-part:]) * 1000,
            }

        return await self._measure("chat", self.n, 1, one, more=more, warm_up=0)

    async def fanout(self) -> Result:
        """Fifty tasks in one superstep, four runs at a time."""

        async def one(_: int) -> None:
            values = await self.client.runs.wait(await self._thread(), "fanout", input={"n": FANOUT, "done": []})
            expect(values, "done", list(range(FANOUT)))

        return await self._measure("fanout", self._few, 4, one)

    async def approval(self) -> Result:
        """A run that asks, a look at the state, the answer: three requests on one new thread."""

        async def one(number: int) -> None:
            thread = await self._thread()
            await self.client.runs.wait(thread, "approval", input={"amount": number})
            state: Any = await self.client.threads.get_state(thread)
            expect(state, "next", ["ask"])
            values = await self.client.runs.wait(thread, "approval", command={"resume": True})
            expect(values, "approved", True)

        return await self._measure("approval", self.n, self.concurrency, one)

    async def stream(self) -> Result:
        """An answer of 200 tokens, four at a time; `first_token_ms` from sending the request."""
        first: list[float] = []

        async def one(_: int) -> None:
            thread, began, count = await self._thread(), time.perf_counter(), 0
            message = {"role": "user", "content": "hi"}
            frames = self.client.runs.stream(
                thread, "tokens", input={"messages": [message]}, stream_mode="messages-tuple"
            )
            async for frame in frames:
                if frame.event == "error":
                    raise RuntimeError(frame.data)
                if frame.event.startswith("messages"):
                    if not count:
                        first.append(time.perf_counter() - began)
                    count += 1
            if count < TOKENS:
                raise AssertionError(f"{count} of {TOKENS} tokens arrived")

        def more(timed: Timed) -> dict[str, float]:
            return {"first_token_ms": statistics.median(first[-len(timed.seconds) :]) * 1000}

        return await self._measure("stream", self._few, 4, one, more=more)

    async def burst(self) -> Result:
        """Background runs on as many threads, enqueued all at once; then each is waited for."""
        threads = [await self._thread() for _ in range(self.n)]
        enqueued = 0.0
        runs: list[Any] = []

        async def enqueue() -> None:
            nonlocal enqueued
            began = time.perf_counter()
            create = self.client.runs.create
            runs.extend(await asyncio.gather(*(create(thread, "steps5", input={"log": []}) for thread in threads)))
            enqueued = time.perf_counter() - began

        async def one(number: int) -> None:
            values: Any = await self.client.runs.join(threads[number], runs[number]["run_id"])
            expect(values, "log", [0, 1, 2, 3, 4])

        def more(_: Timed) -> dict[str, float]:
            return {"enqueued_per_s": self.n / enqueued}

        return await self._measure("burst", self.n, self.n, one, more=more, first=enqueue, warm_up=0)

    # -- how they are measured

    @property
    def _few(self) -> int:
        return max(1, self.n // 4)

    async def _thread(self) -> str:
        return (await self.client.threads.create())["thread_id"]

    async def _five_steps(self, _: int) -> None:
        values: Any = await self.client.runs.wait(await self._thread(), "steps5", input={"log": []})
        expect(values, "log", [0, 1, 2, 3, 4])

    async def _measure(
        self,
        case: str,
        count: int,
        concurrency: int,
        one: Callable[[int], Awaitable[None]],
        *,
        more: Callable[[Timed], dict[str, float]] | None = None,
        first: Callable[[], Awaitable[None]] | None = None,
        warm_up: int = WARM_UP,
    ) -> Result:
        """Warm up, do `first`, then the operations; rate and CPU include `first`."""
        await measure.run(warm_up, concurrency, one)
        before, began = self._cpu(), time.perf_counter()
        if first:
            await first()
        timed = await measure.run(count, concurrency, one)
        wall, after = time.perf_counter() - began, self._cpu()
        cpu = [None if a is None or b is None else (b - a) / count * 1000 for a, b in zip(before, after, strict=True)]
        return Result(
            case=case,
            ok=len(timed.seconds),
            errors=len(timed.errors),
            per_s=len(timed.seconds) / wall,
            p50_ms=timed.ms(0.50),
            p99_ms=timed.ms(0.99),
            server_cpu_ms=cpu[0],
            postgres_cpu_ms=cpu[1],
            more=more(timed) if more and timed.seconds else {},
            first_error=timed.errors[0] if timed.errors else None,
        )

    def _cpu(self) -> tuple[float | None, float | None]:
        server, postgres = self.server.pid, self.server.postgres_pid
        return (cpu_seconds(server) if server else None, cpu_seconds(postgres) if postgres else None)


def expect(values: Any, key: str, wanted: Any) -> None:
    """Raise AssertionError if an answer is not what the graph gives."""
    if not isinstance(values, dict) or values.get(key) != wanted:
        raise AssertionError(f"expected {key} = {wanted!r}, got {values!r}")


CASES: dict[str, Callable[[Bench], Awaitable[Result]]] = {
    "seq": Bench.seq,
    "steps": Bench.steps,
    "stateless": Bench.stateless,
    "chat": Bench.chat,
    "fanout": Bench.fanout,
    "approval": Bench.approval,
    "stream": Bench.stream,
    "burst": Bench.burst,
}
