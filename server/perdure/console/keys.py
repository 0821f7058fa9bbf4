"""API keys of the built-in authentication: one's own, or all for administrators. A key is shown once, when made."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from perdure.api.auth import USER, User
from perdure.api.builtin import KEY_ID, Owners
from perdure.api.context import EngineDep
from perdure.api.gate import Gate, GateDep
from perdure.console.pages import PageRoute, done, form, page
from perdure.console.permit import is_admin
from perdure.engine import keys
from perdure.engine.errors import Conflict, InvalidInput, NotFound

router = APIRouter(prefix="/console/keys", include_in_schema=False, route_class=PageRoute, tags=["console"])

PER_PAGE = 100
MAX_VALID = 100
"""Keys of one owner that are valid at once, unless an administrator makes more: each has a rate limit of its own."""
MAX_NAME, MAX_DAYS, MAX_RATE = 200, 3650, 1_000_000


@router.get("")
async def show_keys(request: Request, gate: GateDep, after: Annotated[UUID | None, Query()] = None) -> Response:
    """The keys that the caller may see, revoked ones too; without PERDURE_AUTH=keys, how to switch it on."""
    return await _keys(request, gate, after=after)


@router.post("")
async def create(request: Request, gate: GateDep, engine: EngineDep) -> Response:
    """A new key. Only this answer has it: it is no redirect, and nobody keeps it.

    Each form brings the id of the key that it makes: sent again, it makes no second one (409).
    """
    _only_with_keys(request)
    given = await form(request)
    admin = is_admin(request)
    try:
        name = _text(given, "name")
        owner = _text(given, "owner") if admin and given.get("owner", "").strip() else gate.identity
        days, rate = _number(given, "days", MAX_DAYS), _number(given, "rate_limit", MAX_RATE, whole=True)
        key_id = _id(given)
    except InvalidInput as exc:
        return await _keys(request, gate, problem=str(exc), given=given, status=422)
    async with engine.pool.connection() as conn, conn.transaction():
        if not admin and await keys.count_valid(conn, owner) >= MAX_VALID:
            raise Conflict(f"You have {MAX_VALID} valid keys; revoke those that nobody uses")
        made = await keys.create(
            conn,
            name=name,
            owner=owner,
            rate_limit=int(rate) if rate is not None else None,
            expires_at=None if days is None else datetime.now(UTC) + timedelta(days=days),
            by=None if admin else _signed_in_with(request),
            key_id=key_id,
        )
    return await _keys(request, gate, made=made)


@router.post("/{key_id}/revoke")
async def revoke(request: Request, key_id: UUID, gate: GateDep, engine: EngineDep) -> Response:
    """The key opens nothing from now on."""
    _only_with_keys(request)
    async with engine.pool.connection() as conn:
        gone = await keys.revoke(conn, key_id, owner=_whose(request, gate))
    if gone is None:
        raise NotFound("No such key is valid")
    return done(request, "/console/keys", f"The key {gone['name'][:100]} is revoked.")


async def _keys(
    request: Request,
    gate: Gate,
    *,
    after: UUID | None = None,
    made: dict[str, Any] | None = None,
    problem: str = "",
    given: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    if not isinstance(request.app.state.auth, Owners) or gate.engine.settings.auth != "keys":
        kind = "custom" if request.app.state.auth is not None else "none"
        kind = gate.engine.settings.auth if isinstance(request.app.state.auth, Owners) else kind
        return page(request, "keys_off.html", title="Keys", kind=kind, issuer=gate.engine.settings.oidc_issuer)
    async with gate.engine.pool.connection() as conn:
        rows = await keys.list_keys(conn, owner=_whose(request, gate), after=after, limit=PER_PAGE + 1)
    now = datetime.now(UTC)
    return page(
        request,
        "keys.html",
        title="Keys",
        status=status,
        keys=[{**row, "state": _state(row, now)} for row in rows[:PER_PAGE]],
        older=rows[PER_PAGE - 1]["key_id"] if len(rows) > PER_PAGE else None,
        first=after is None,
        made=made,
        problem=problem,
        given={"id": str(uuid4()), **(given or {})},
        this=_signed_in_with(request),
        identity=gate.identity,
    )


def _state(row: dict[str, Any], now: datetime) -> str:
    if row["revoked_at"]:
        return "revoked"
    return "expired" if row["expires_at"] and row["expires_at"] <= now else "enabled"


def _whose(request: Request, gate: Gate) -> str | None:
    return None if is_admin(request) else gate.identity


def _signed_in_with(request: Request) -> UUID | None:
    """The key of this request."""
    user = cast("User | None", request.scope.get(USER))
    found = user.get(KEY_ID) if user else None
    return UUID(found) if found else None


def _only_with_keys(request: Request) -> None:
    if not isinstance(request.app.state.auth, Owners) or request.app.state.engine.settings.auth != "keys":
        raise HTTPException(404, "This server has no keys: PERDURE_AUTH is not keys")


def _text(given: dict[str, str], name: str) -> str:
    text = given.get(name, "").strip()
    if not 0 < len(text) <= MAX_NAME:
        raise InvalidInput(name, f"must have 1 to {MAX_NAME} characters")
    return text


def _id(given: dict[str, str]) -> UUID | None:
    try:
        return UUID(given["id"]) if given.get("id") else None
    except ValueError as exc:
        raise InvalidInput("id", "must be a UUID") from exc


def _number(given: dict[str, str], name: str, most: int, *, whole: bool = False) -> float | None:
    text = given.get(name, "").strip()
    if not text:
        return None
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= most:
        raise InvalidInput(name.replace("_", " "), f"must be a number up to {most:,}, or empty")
    return number
