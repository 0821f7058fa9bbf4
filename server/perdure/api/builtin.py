"""Authentication for those who write none: API keys, or tokens of an OpenID provider.

Both are an `Auth` object like any other. Everything belongs to the `owner` who made it, and nobody
else sees it; in the store each owner has a namespace, which clients do not see either.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from langgraph_sdk import Auth
from starlette.requests import HTTPConnection

from perdure.engine import keys
from perdure.engine.registry import ConfigError

if TYPE_CHECKING:
    from perdure.api.oidc import Provider
    from perdure.config import Settings

OWNER = "owner"
KEY_ID, RATE_LIMIT = "key_id", "rate_limit"
"""What the user of a key says besides: which key it was, and how often it may call."""

CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Owners(Auth):
    """Everything belongs to whoever made it. `provider`: whose tokens they are, if it is not keys."""

    provider: Provider | None = None


def auth_of(settings: Settings) -> Auth | None:
    """What PERDURE_AUTH asks for. Raises ConfigError."""
    match settings.auth:
        case "keys":
            return owners(by_key)
        case "oidc":
            from perdure.api.oidc import Provider

            if not settings.oidc_issuer or not settings.oidc_audience:
                raise ConfigError("PERDURE_AUTH=oidc needs PERDURE_OIDC_ISSUER and PERDURE_OIDC_AUDIENCE")
            provider = Provider.of(settings)
            auth = owners(provider.authenticate)
            auth.provider = provider
            return auth
        case "none":
            return None


def owners(authenticate: Callable[[HTTPConnection], Coroutine[Any, Any, dict[str, Any]]]) -> Owners:
    """An Auth object that keeps owners apart."""
    auth = Owners()

    async def user(request: HTTPConnection) -> Any:
        return await authenticate(request)

    async def own(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> Any:
        return {OWNER: ctx.user.identity}

    async def own_namespace(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> Any:
        value["namespace"] = (label(ctx.user.identity), *(value.get("namespace") or ()))

    auth.authenticate(user)
    auth.on(own)
    auth.on.store(own_namespace)
    return auth


def label(identity: str) -> str:
    """An identity as the first label of its namespaces: percent-encoded, dots too."""
    return quote(identity, safe="@:+|").replace(".", "%2E")


async def by_key(request: HTTPConnection) -> dict[str, Any]:
    """The owner of the key in `x-api-key` or `Authorization: Bearer`."""
    key = request.headers.get("x-api-key") or bearer(request) or ""
    found = await keys.find(request.app.state.engine.pool, key)
    if found is None:
        raise Auth.exceptions.HTTPException(401, "This server wants a valid key in x-api-key", CHALLENGE)
    user = {"identity": found["owner"], "display_name": found["name"], KEY_ID: str(found["key_id"])}
    return user if found["rate_limit"] is None else {**user, RATE_LIMIT: found["rate_limit"]}


def bearer(request: HTTPConnection) -> str | None:
    """The token of the Authorization header."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
