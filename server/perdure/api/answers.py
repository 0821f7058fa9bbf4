"""What every answer is made of: JSON bytes, errors, pages and locations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from starlette.responses import Response

from perdure.engine import jsonable


class Json(Response):
    """A JSON answer, written by the engine's encoder: fast, and safe for whatever a state holds."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return jsonable.dumps(content)


def error(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Json:
    """The one shape of errors: `{"detail": "<text>"}`."""
    return Json({"detail": detail, **more}, status, headers=headers)


def no_content() -> Response:
    return Response(status_code=204)


def page(rows: list[dict[str, Any]], total: int, *, offset: int, select: Iterable[str] | None = None) -> Json:
    """One page of a search: a bare array, and the paging headers."""
    return Json([pick(row, select) for row in rows], headers=paging(len(rows), total, offset=offset))


def paging(count: int, total: int, *, offset: int) -> dict[str, str]:
    """The paging headers (WIRE: Search paging) of `count` rows; `total` counts all that match.

    `X-Pagination-Next` is there only if a further row exists.
    """
    headers = {"X-Pagination-Total": str(total)}
    if offset + count < total and count:
        headers["X-Pagination-Next"] = str(offset + count)
    return headers


def pick(row: dict[str, Any], select: Iterable[str] | None) -> dict[str, Any]:
    """Only the fields that were asked for; all of them if none was named."""
    return {name: row.get(name) for name in select} if select else row


def location(thread_id: UUID | str, run_id: UUID | str, reconnect: str | None = None) -> dict[str, str]:
    """The headers that name a run and, with `reconnect`, the address to come back to after a cut."""
    run = f"/threads/{thread_id}/runs/{run_id}"
    return {"Content-Location": run} | ({"Location": f"{run}/{reconnect}"} if reconnect else {})
