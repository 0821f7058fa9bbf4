"""What handlers take from the app and the request: the engine, headers that several share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, HTTPException, Request

from perdure.engine.core import Engine

MAX_KEY_CHARS = 255


async def _engine(request: Request) -> Engine:
    return request.app.state.engine


async def _idempotency_key(
    idempotency_key: Annotated[
        str | None, Header(description="Same key and body: the first request's run again; kept for 24 hours.")
    ] = None,
) -> str | None:
    if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_KEY_CHARS:
        raise HTTPException(422, f"Idempotency-Key: must have 1 to {MAX_KEY_CHARS} characters")
    return idempotency_key


EngineDep = Annotated[Engine, Depends(_engine)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
LastEventId = Annotated[str | None, Header(description="`<ms>-<n>`: go on after that event; `-1`: from the beginning.")]
