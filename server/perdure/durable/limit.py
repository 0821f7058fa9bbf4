"""`limit`: at most so many at a time, counted over all workers."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from perdure.durable.journal import Journal, here
from perdure.durable.suspend import suspend_until, unfinished

NET_SECONDS = 5.0
"""When to look again should the news that a place is free be lost."""


@dataclass
class _Own:
    """The places that this attempt holds, and who in it waits for one of them."""

    held: int = 0
    freed: asyncio.Event = field(default_factory=asyncio.Event)


_own: WeakKeyDictionary[Journal, defaultdict[str, _Own]] = WeakKeyDictionary()
_local: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], asyncio.Semaphore]] = WeakKeyDictionary()
_inside: ContextVar[frozenset[str]] = ContextVar("perdure_limits", default=frozenset())


def limit(name: str, n: int) -> AbstractAsyncContextManager[None]:
    """Let at most `n` blocks of this name run at the same time, in all runs on all workers.

    Example:
        async with limit("model", 5):
            answer = await ask_model(question)  # a step

    Where no place is free the run is suspended and goes on when one is; inside of one attempt a block waits
    for its neighbour in memory. A place is held while the block is executed, is given back however the block
    is left (to wait, too), and does not outlive a worker that dies. A replay takes a place again, even for a
    step that has finished: keep the block small. All callers should name the same `n`: each checks its own.

    Outside of a perdure server the limit holds within the process. ValueError if `n` is less than 1;
    RuntimeError for a block inside of a block of the same name, which could wait for itself for ever.
    """
    if n < 1:
        raise ValueError(f"limit({name!r}, {n}) would let nothing through; n must be 1 or more")
    return _limit(name, n)


@asynccontextmanager
async def _limit(name: str, n: int) -> AsyncIterator[None]:
    if name in _inside.get():
        raise RuntimeError(f"limit({name!r}) inside of a block of the same limit could wait for itself for ever")
    journal = here().journal
    if journal is None:
        places = _local.setdefault(asyncio.get_running_loop(), {})
        async with places.setdefault((name, n), asyncio.Semaphore(n)):
            with _marked(name):
                yield
        return
    own = _own.setdefault(journal, defaultdict(_Own))[name]
    while not await journal.acquire(name, n):
        unfinished(journal)
        if not own.held:
            suspend_until(journal, time.time() + NET_SECONDS, f"limit {name}")
        await own.freed.wait()
    own.held += 1
    try:
        with _marked(name):
            yield
    finally:
        try:
            await journal.release(name)
        finally:
            own.held -= 1
            own.freed.set()
            own.freed = asyncio.Event()


@contextmanager
def _marked(name: str) -> Iterator[None]:
    outer = _inside.get()
    _inside.set(outer | {name})
    try:
        yield
    finally:
        _inside.set(outer)
