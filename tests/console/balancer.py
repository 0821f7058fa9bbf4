"""A load balancer without sticky sessions: every request goes to the next server that is there."""

import asyncio
import threading
from contextlib import suppress
from itertools import cycle
from types import TracebackType
from urllib.parse import urlsplit

from tests.conftest import START_SECONDS

HEAD_BYTES = 1 << 20


class Balancer:
    """Listens on a free port of 127.0.0.1 while the block runs; `url` is its address."""

    def __init__(self, *servers: str) -> None:
        self._servers = cycle([(urlsplit(one).hostname, urlsplit(one).port) for one in servers])
        self._count = len(servers)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)

    def __enter__(self) -> "Balancer":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0, limit=HEAD_BYTES), self._loop
        ).result(START_SECONDS)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection that is open, in the middle of whatever is being said."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._pass_on(reader, writer)
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(b"connection:")]
        back, forth = await self._connect()
        # one request for each connection, so that the next one goes to another server
        forth.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
        pipes = [asyncio.create_task(_pipe(reader, forth)), asyncio.create_task(_pipe(back, writer))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)  # whoever hangs up first
        finally:
            for one in pipes:
                one.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            forth.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(self._count):
            host, port = next(self._servers)
            with suppress(ConnectionRefusedError):
                return await asyncio.open_connection(host, port)
        raise ConnectionError("no server is there")


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
