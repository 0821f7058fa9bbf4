"""JSON arrays of any size, from rows that are read while the answer is being sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response

from perdure.api.sse import Live, closing
from perdure.engine import jsonable

WHOLE_BYTES = 1024 * 1024


async def array(rows: AsyncGenerator[Any], *, headers: Mapping[str, str] | None = None) -> Response:
    """A bare array of `rows`: in one piece up to `WHOLE_BYTES`, beyond that as fast as the client reads it.

    So memory is that of a few rows, however many there are. What fails before the first `WHOLE_BYTES` is an error
    like any other; what fails later breaks the answer off, so that no client can take a part for the whole.
    """
    parts: list[bytes] = []
    size = 0
    async for row in rows:
        parts.append((b"," if parts else b"[") + jsonable.dumps(row))
        size += len(parts[-1])
        if size > WHOLE_BYTES:
            return Live(_rest(b"".join(parts), rows), media_type="application/json", headers=headers or {})
    return Response(b"".join(parts or [b"["]) + b"]", headers=headers, media_type="application/json")


async def _rest(begun: bytes, rows: AsyncGenerator[Any]) -> AsyncIterator[bytes]:
    async with closing(rows):
        yield begun
        async for row in rows:
            yield b"," + jsonable.dumps(row)
        yield b"]"
