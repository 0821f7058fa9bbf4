"""Tokens of an OpenID provider (JWT), checked against its public keys.

The keys are fetched when they are first needed, kept for an hour, and fetched again when a token
names one that is unknown, at most once a minute: an unknown name costs the provider nothing. While it
cannot be reached, the keys that are known stay good.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httpx
import jwt
import structlog
from langgraph_sdk import Auth
from starlette.requests import HTTPConnection

from perdure.api.builtin import CHALLENGE, bearer
from perdure.engine.registry import ConfigError

if TYPE_CHECKING:
    from perdure.config import Settings

log = structlog.get_logger(__name__)

KEEP_SECONDS = 3600.0
PAUSE_SECONDS = 60.0
TIMEOUT_SECONDS = 10.0
PUBLIC = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES256K", "ES384", "ES512", "EdDSA"})
"""Signatures that are checked with a public key; `none` and shared secrets are not among them."""


@dataclass(eq=False)
class Provider:
    """One issuer. Belongs to the event loop of the HTTP server."""

    issuer: str
    audience: str
    claim: str = "sub"
    algorithms: frozenset[str] = PUBLIC
    leeway_seconds: float = 30
    jwks_url: str | None = None
    _keys: dict[str | None, jwt.PyJWK] = field(default_factory=dict[str | None, jwt.PyJWK], init=False)
    _fetched_at: float | None = field(default=None, init=False)  # with success
    _tried_at: float | None = field(default=None, init=False)
    _configuration: tuple[float, dict[str, Any]] | None = field(default=None, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    @classmethod
    def of(cls, settings: Settings) -> Provider:
        """Raises ConfigError."""
        algorithms = frozenset(one.strip() for one in settings.oidc_algorithms.split(",") if one.strip())
        if not algorithms or algorithms - PUBLIC:
            raise ConfigError(f"PERDURE_OIDC_ALGORITHMS: must be some of {', '.join(sorted(PUBLIC))}")
        return cls(
            issuer=settings.oidc_issuer or "",
            audience=settings.oidc_audience or "",
            claim=settings.oidc_owner_claim,
            algorithms=algorithms,
            leeway_seconds=settings.oidc_leeway_seconds,
            jwks_url=settings.oidc_jwks_url,
        )

    async def authenticate(self, request: HTTPConnection) -> dict[str, Any]:
        """The user of a bearer token. Raises HTTPException: 401, or 503 while there are no keys."""
        token = bearer(request)
        if not token:
            raise _refused("This server wants a token in Authorization: Bearer")
        claims = await self.claims(token, audience=self.audience)
        identity: Any = claims[self.claim]
        if not isinstance(identity, str) or not identity:
            raise _refused(f"The token's {self.claim} must be a text")
        name: Any = claims.get("name") or claims.get("preferred_username") or claims.get("email")
        scope: Any = claims.get("scope")
        permissions = scope.split() if isinstance(scope, str) else []
        return {
            "identity": identity,
            "display_name": name if isinstance(name, str) else identity,
            "permissions": permissions,
            "claims": claims,
        }

    async def claims(self, token: str, *, audience: str) -> dict[str, Any]:
        """What a token of the provider says that is meant for `audience`. Raises HTTPException, as `authenticate`."""
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self.algorithms:
                raise _refused("The token's signature is of a kind that is not accepted")
            key = await self._key(header.get("kid"))
            return jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],
                audience=audience,
                issuer=self.issuer,
                leeway=self.leeway_seconds,
                options={"require": ["exp", "iss", "aud", self.claim]},
            )
        except (jwt.InvalidTokenError, jwt.InvalidKeyError, TypeError, ValueError) as exc:
            # TypeError, ValueError: a key of another kind than the signature says
            raise _refused(f"The token is not valid: {exc}") from exc

    async def configuration(self) -> dict[str, Any]:
        """Where the provider's endpoints are, as it says itself; kept for an hour.

        Raises HTTPException 503 if it cannot be had, or is another issuer's.
        """
        if self._configuration is None or time.monotonic() - self._configuration[0] > KEEP_SECONDS:
            try:
                async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
                    found = await _json(client, self._configuration_url)
                if str(found["issuer"]).rstrip("/") != self.issuer.rstrip("/"):
                    raise ValueError(f"it is the configuration of {found['issuer']!r}")
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
                log.warning("configuration of the identity provider not fetched", issuer=self.issuer, error=repr(exc))
                text = "The identity provider's configuration cannot be had; try again later"
                raise Auth.exceptions.HTTPException(503, text) from exc
            self._configuration = time.monotonic(), found
        return self._configuration[1]

    @property
    def _configuration_url(self) -> str:
        return f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"

    async def _key(self, kid: Any) -> jwt.PyJWK:
        """The provider's key of that name; a token without one means the only key there is."""
        if not self._fresh() or self._find(kid) is None:
            async with self._turn:
                # another request may have fetched them while this one waited
                if not self._fresh() or self._find(kid) is None:
                    await self._fetch()
        found = self._find(kid)
        if found is None and not self._keys:
            raise Auth.exceptions.HTTPException(503, "The identity provider's keys cannot be had; try again later")
        if found is None:
            raise _refused("The token is signed with a key that the provider does not name")
        return found

    def _fresh(self) -> bool:
        return self._fetched_at is not None and time.monotonic() - self._fetched_at < KEEP_SECONDS

    def _find(self, kid: Any) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    async def _fetch(self) -> None:
        if self._tried_at is not None and time.monotonic() - self._tried_at < PAUSE_SECONDS:
            return
        self._tried_at = time.monotonic()
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
                if self.jwks_url is None:
                    self.jwks_url = str((await _json(client, self._configuration_url))["jwks_uri"])
                document = await _json(client, self.jwks_url)
            found = dict(_usable(document))
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
            log.warning("keys of the identity provider not fetched", issuer=self.issuer, error=repr(exc))
            return
        self._keys, self._fetched_at = found, time.monotonic()


async def _json(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    response = await client.get(url)
    response.raise_for_status()
    return cast("dict[str, Any]", response.json())


def _usable(document: dict[str, Any]) -> list[tuple[str | None, jwt.PyJWK]]:
    """The public keys for signatures; others, and such as we do not know, are left out."""
    found: list[tuple[str | None, jwt.PyJWK]] = []
    for one in cast("list[dict[str, Any]]", document["keys"]):
        if one.get("kty") == "oct" or one.get("use", "sig") != "sig":
            continue
        try:
            found.append((one.get("kid"), jwt.PyJWK(one)))
        except jwt.PyJWTError as exc:
            log.info("key of the identity provider not understood", kid=one.get("kid"), error=str(exc))
    return found


def _refused(text: str) -> Auth.exceptions.HTTPException:
    return Auth.exceptions.HTTPException(401, text, CHALLENGE)
