"""Signing in at an OpenID provider: the authorization code flow with PKCE.

The way there and back needs no memory of ours: `state`, `nonce` and the code's verifier go along in a sealed
cookie, for ten minutes. What comes back is a token that the API would take; the session's cookie holds it, and
ends with it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import Annotated, Any, cast
from urllib.parse import quote, urlencode

import httpx
import orjson
import structlog
from fastapi import APIRouter, Query, Request, Response
from langgraph_sdk import Auth
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from perdure.api.auth import User, recognise
from perdure.api.builtin import Owners
from perdure.api.oidc import TIMEOUT_SECONDS, Provider
from perdure.config import Settings
from perdure.console.login import HOME, enter, login_page, secure, with_header
from perdure.console.pages import PageRoute
from perdure.console.session import HOURS, seal, unseal

log = structlog.get_logger(__name__)

router = APIRouter(prefix="/console/login", include_in_schema=False, route_class=PageRoute, tags=["console"])

COOKIE = "perdure_login"
PURPOSE = "sign-in"  # in place of a header's name: this cookie opens nothing
SECONDS = 600
Text = Annotated[str, Query(max_length=8_000)]


class _Refused(Exception):
    """Why nobody is signed in; the text is for the person."""


@router.get("/start")
async def start(request: Request, next: Text = HOME) -> Response:
    """To the provider, which sends the person back to `finish`."""
    provider, client_id = _provider(request)
    place = (await provider.configuration()).get("authorization_endpoint")
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    query = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": _back(request),
        "scope": _settings(request).oidc_scopes,
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    place = _web_address(place)
    answer = RedirectResponse(f"{place}{'&' if '?' in place else '?'}{urlencode(query)}", 303)
    kept = {"state": state, "nonce": nonce, "verifier": verifier, "next": next, "until": time.time() + SECONDS}
    sealed = await seal(request.app, PURPOSE, orjson.dumps(kept).decode())
    answer.set_cookie(
        COOKIE, sealed, max_age=SECONDS, path=_path(request), httponly=True, samesite="lax", secure=secure(request)
    )
    return answer


@router.get("/callback")
async def finish(
    request: Request, code: Text = "", state: Text = "", iss: Text = "", error: Text = "", error_description: Text = ""
) -> Response:
    """Back from the provider: change the code for a token, and go on to the page that was wanted."""
    provider, client_id = _provider(request)
    kept = await _kept(request)
    wanted = str(kept["next"]) if kept else HOME
    try:
        if kept is None or not hmac.compare_digest(state.encode(), str(kept["state"]).encode()):
            raise _Refused("Signing in took too long, or began in another window. Try again.")
        if iss and iss.rstrip("/") != provider.issuer.rstrip("/"):
            raise _Refused("Another provider has answered. Try again.")
        if error or not code:
            raise _Refused(f"The provider did not sign you in: {(error_description or error or 'no code')[:300]}")
        tokens = await _exchange(request, provider, client_id, code, str(kept["verifier"]))
        await _check(provider, client_id, tokens, str(kept["nonce"]), _settings(request))
        token, user = await _usable(request, tokens)
        seconds = min(HOURS * 3600, int(user.get("claims")["exp"] - time.time()))
        answer = await enter(request, "authorization", f"Bearer {token}", wanted, seconds=max(1, seconds))
        if answer is None:
            raise _Refused("The provider's token is too large for a cookie: let it put fewer claims into it.")
    except _Refused as exc:
        answer = login_page(request, wanted, str(exc), status=401)
    answer.delete_cookie(COOKIE, path=_path(request))
    return answer


async def _kept(request: Request) -> dict[str, Any] | None:
    found = await unseal(request.app, request.cookies.get(COOKIE, ""))
    if found is None or found[0] != PURPOSE:
        return None
    kept: dict[str, Any] = orjson.loads(found[1])
    return kept if kept["until"] > time.time() else None


async def _exchange(request: Request, provider: Provider, client_id: str, code: str, verifier: str) -> dict[str, Any]:
    """The tokens for a code. Raises _Refused."""
    configuration = await provider.configuration()
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": _back(request),
        "client_id": client_id,
        "code_verifier": verifier,
    }
    secret = _settings(request).oidc_client_secret
    basic: Any = httpx.USE_CLIENT_DEFAULT
    if secret is not None:
        methods = configuration.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if "client_secret_basic" in methods:
            basic = (quote(client_id, safe=""), quote(secret.get_secret_value(), safe=""))
        else:
            form["client_secret"] = secret.get_secret_value()
    place = _web_address(configuration.get("token_endpoint"))
    headers = {"Accept": "application/json"}
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            answer = await client.post(place, data=form, auth=basic, headers=headers)
        found: Any = answer.json()
    except (httpx.HTTPError, ValueError) as exc:
        log.warning("code not changed for a token", issuer=provider.issuer, error=repr(exc))
        raise _Refused("The provider did not answer as it should. Try again.") from exc
    given = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if answer.status_code != 200 or not given:
        reason = given.get("error")
        log.warning("code not changed for a token", issuer=provider.issuer, status=answer.status_code, error=reason)
        raise _Refused(f"The provider gave no token: {str(reason or answer.status_code)[:100]}. Try again.")
    return given


async def _check(provider: Provider, client_id: str, tokens: dict[str, Any], nonce: str, settings: Settings) -> None:
    """That the answer belongs to our request: the ID token carries its nonce. Raises _Refused."""
    token = tokens.get("id_token")
    if token is None and "openid" not in settings.oidc_scopes.split():
        return
    try:
        claims = await provider.claims(str(token), audience=client_id)
    except Auth.exceptions.HTTPException as exc:
        raise _Refused(f"The provider's ID token was not accepted: {exc.detail}") from exc
    if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
        raise _Refused("The provider has answered another request. Try again.")
    if claims.get("azp", client_id) != client_id:
        raise _Refused("The provider's ID token is for another client.")


async def _usable(request: Request, tokens: dict[str, Any]) -> tuple[str, User]:
    """The token that the API takes: the access token, or else the ID token. Raises _Refused."""
    reason = "the provider gave none"
    for name in ("access_token", "id_token"):
        token = tokens.get(name)
        if not isinstance(token, str) or not token.isascii() or len(token) > 8_000:
            continue
        try:
            return token, await recognise(
                request.app.state.auth, with_header(request, "authorization", f"Bearer {token}")
            )
        except (HTTPException, Auth.exceptions.HTTPException) as exc:
            reason = str(exc.detail)
    raise _Refused(f"No token for this server: {reason} (PERDURE_OIDC_AUDIENCE says for whom a token must be).")


def _provider(request: Request) -> tuple[Provider, str]:
    auth, client_id = request.app.state.auth, _settings(request).oidc_client_id
    if not isinstance(auth, Owners) or auth.provider is None or not client_id:
        raise HTTPException(404, "This server signs nobody in at a provider: PERDURE_OIDC_CLIENT_ID is not set")
    return auth.provider, client_id


def _settings(request: Request) -> Settings:
    return request.app.state.engine.settings


def _path(request: Request) -> str:
    return request.scope.get("root_path", "") + "/console/login"


def _back(request: Request) -> str:
    """Where the provider sends people back to; it must know this address."""
    base = _settings(request).public_url or str(request.base_url)
    if not _settings(request).public_url and secure(request):
        base = "https://" + base.partition("://")[2]
    return base.rstrip("/") + "/console/login/callback"


def _web_address(given: Any) -> str:
    if not isinstance(given, str) or not given.startswith(("https://", "http://")):
        raise HTTPException(503, "The identity provider's configuration names no usable address")
    return given
