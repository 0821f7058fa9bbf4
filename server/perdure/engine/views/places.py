"""What pages of long lists share: how they read, where they begin (as a text for a link), ids by how they begin."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from perdure.engine.db import Conn
from perdure.engine.errors import InvalidInput

if TYPE_CHECKING:
    from perdure.engine.core import Engine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PLACE = re.compile(r"(\d{1,17})_(\d{1,39})", re.ASCII)
_ID = re.compile(r"[0-9a-f-]{1,36}", re.ASCII)

# Statements here find their rows by an index and say how many they want. Where statistics are old or missing, or
# promise that a match comes soon, PostgreSQL would rather read the table from its beginning.
BY_INDEX = "SET LOCAL enable_seqscan = off"
AT_MOST = "SET LOCAL statement_timeout = '10s'"


@asynccontextmanager
async def looking(engine: Engine) -> AsyncIterator[Conn]:
    """A connection for the statements of one page: they see one state, read by index and never take long."""
    async with engine.pool.connection() as conn, conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        await conn.execute(BY_INDEX)
        await conn.execute(AT_MOST)
        yield conn


def written(at: datetime, number: int) -> str:
    """A place in a list that is ordered by time and number."""
    return f"{(at - _EPOCH) // _MICROSECOND}_{number}"


def read(cursor: str | None, *, below: int = 2**63) -> tuple[datetime, int] | None:
    """The place that `written` has written, with a number below this one. Raises InvalidInput."""
    if cursor is None:
        return None
    match = _PLACE.fullmatch(cursor)
    if match is None or int(match[2]) >= below:
        raise InvalidInput("cursor", "is not one that a page has given")
    return _EPOCH + int(match[1]) * _MICROSECOND, int(match[2])


def uuid_range(prefix: str) -> tuple[UUID, UUID]:
    """The first and the last UUID that begin so. Raises InvalidInput for what no UUID begins with."""
    text = prefix.strip().lower()
    digits = text.replace("-", "")
    if not _ID.fullmatch(text) or not 0 < len(digits) <= 32:
        raise InvalidInput("id", f"no id begins with {prefix!r}")
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
