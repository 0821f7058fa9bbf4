"""`get_client()` of langgraph_sdk without a URL, in a graph: it talks to the API of this deployment, over HTTP.

The SDK leaves the way of such clients to the server that runs the graph, and notes each in a list; the one put in
its place here gives them their way at once. Calls are not durable: a node that is executed again calls again.
That is what the word `agent` is for.
"""

from __future__ import annotations

from typing import Any

import httpx
import structlog

from perdure.config import leave_loopback_to_us

log = structlog.get_logger(__name__)

HOOK = "_registered_transports"


def install(url: str) -> None:
    """From now on clients without a URL reach `url`. Call it before graphs are imported: they may make clients then."""
    from langgraph_sdk._async import client as sdk  # pyright: ignore[reportPrivateImportUsage]

    if not hasattr(sdk, HOOK):
        log.warning("get_client() needs a url in graphs: this version of langgraph_sdk has no place for ours")
        return
    leave_loopback_to_us()
    setattr(sdk, HOOK, _Clients(httpx.URL(url)))


class _Clients:
    """In the place of the SDK's list."""

    def __init__(self, base: httpx.URL) -> None:
        self._base = base

    def append(self, transport: Any) -> None:
        way = _Way(self._base)
        transport.handle_async_request = way.handle_async_request
        transport.aclose = way.aclose


class _Way(httpx.AsyncBaseTransport):
    """To the API, whatever host a request names. Keeps no connections: nodes rarely close their clients."""

    def __init__(self, base: httpx.URL) -> None:
        self._base = base
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = self._base.raw_path.rstrip(b"/") + request.url.raw_path
        request.url = self._base.copy_with(raw_path=path)
        request.headers["host"] = self._base.netloc.decode("ascii")
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()
