"""Tokens of an OpenID provider: a small provider on a local port signs them, and changes its keys."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from starlette.testclient import TestClient

from perdure.api import create_app, oidc
from perdure.config import Settings
from perdure.engine.registry import ConfigError, Registry

RSA = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
EC = ec.generate_private_key(ec.SECP256R1())


@dataclass
class Issuer:
    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    broken: bool = False
    asked: list[str] = field(default_factory=list[str])

    def token(self, key: Any = RSA[0], *, kid: str | None = "one", alg: str = "RS256", **claims: Any) -> str:
        now = time.time()
        whole = {"iss": self.url, "aud": "perdure", "sub": "alice", "iat": now, "exp": now + 60, **claims}
        given = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(given, key, algorithm=alg, headers={"kid": kid} if kid else {})


def public(key: Any, kid: str) -> dict[str, Any]:
    maker = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(maker.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    found = Issuer(keys=[public(RSA[0], "one"), {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"}, {"kty": "new"}])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            configuration = {"issuer": found.url, "jwks_uri": f"{found.url}/keys"}
            body = json.dumps(configuration if "openid-configuration" in self.path else {"keys": found.keys})
            self.send_response(500 if found.broken else 200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


@pytest.fixture
def http(app: FastAPI, dsn: str, tmp_path: Path, issuer: Issuer) -> Iterator[TestClient]:
    with TestClient(app):
        graphs = app.state.engine.registry.graphs
    settings = Settings(
        config=tmp_path / "langgraph.json", auth="oidc", oidc_issuer=issuer.url, oidc_audience="perdure"
    )
    with TestClient(create_app(settings, Registry({"graphs": {}}, graphs), dsn)) as client:
        yield client


def status(http: TestClient, token: str) -> int:
    return http.get("/agents", headers={"Authorization": f"Bearer {token}"}).status_code


def test_a_token_of_the_provider_opens_and_says_who_it_is(http: TestClient, issuer: Issuer) -> None:
    headers = {"Authorization": f"Bearer {issuer.token()}"}
    thread = http.post("/threads", json={}, headers=headers).json()
    assert thread["metadata"] == {"owner": "alice"}
    bob = {"Authorization": f"Bearer {issuer.token(sub='bob')}"}
    assert http.get(f"/threads/{thread['thread_id']}", headers=bob).status_code == 404
    assert status(http, issuer.token(kid=None)) == 200, "there is only one key that signs"
    assert status(http, issuer.token(exp=time.time() - 10)) == 200, "clocks differ a little"
    assert status(http, issuer.token(aud=["other", "perdure"])) == 200
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"], "asked once"


def test_other_tokens_open_nothing(http: TestClient, issuer: Issuer) -> None:
    whole = issuer.token()
    head, body, signature = whole.split(".")
    pem = RSA[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    wrong = {
        "nothing": "",
        "no token": "x.y.z",
        "no signature": f"{head}.{body}.",
        "changed": f"{head}.{body[:-2]}xx.{signature}",
        "another key": issuer.token(RSA[1]),
        "unsigned": jwt.encode(jwt.decode(whole, options={"verify_signature": False}), None, algorithm="none"),
        "a shared secret": issuer.token(b"secret" * 8, kid="shared", alg="HS256"),
        "the public key as a secret": issuer.token(pem[:64], alg="HS256"),
        "another kind of key under that name": issuer.token(EC, alg="ES256"),
        "over": issuer.token(exp=time.time() - 60),
        "not yet": issuer.token(nbf=time.time() + 300),
        "for others": issuer.token(aud="other"),
        "of others": issuer.token(iss="https://other"),
        **{f"without {name}": issuer.token(**{name: None}) for name in ("exp", "aud", "iss", "sub")},
        "of nobody": issuer.token(sub=""),
        "unknown key": issuer.token(kid="two"),
    }
    for name, token in wrong.items():
        answer = http.get("/agents", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer"), (name, answer.text)
    assert http.get("/agents").status_code == 401
    assert http.get("/agents", headers={"x-api-key": whole}).status_code == 401
    assert status(http, whole) == 200


def test_new_keys_are_fetched_when_one_is_named_and_not_more_often_than_once_a_minute(
    http: TestClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(http, issuer.token()) == 200
    issuer.keys = [public(RSA[1], "two"), public(EC, "three")]
    assert [status(http, issuer.token(RSA[1], kid="two")) for _ in range(5)] == [401] * 5
    assert issuer.asked.count("/keys") == 1, "unknown names cost the provider nothing"
    monkeypatch.setattr(oidc, "PAUSE_SECONDS", 0.0)
    assert status(http, issuer.token(RSA[1], kid="two")) == 200
    assert status(http, issuer.token(EC, kid="three", alg="ES256")) == 200
    assert status(http, issuer.token()) == 401, "the old key is not named any more"


def test_keys_are_fetched_again_after_an_hour_and_stay_while_the_provider_is_away(
    http: TestClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "PAUSE_SECONDS", 0.0)
    issuer.broken = True
    assert status(http, issuer.token()) == 503, "there has never been a key"
    issuer.broken = False
    assert status(http, issuer.token()) == 200
    monkeypatch.setattr(oidc, "KEEP_SECONDS", 0.0)
    issuer.broken = True
    assert status(http, issuer.token()) == 200
    issuer.broken, issuer.keys = False, [public(RSA[1], "two")]
    assert status(http, issuer.token()) == 401


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "PERDURE_OIDC_ISSUER"),
        ({"oidc_issuer": "https://x"}, "PERDURE_OIDC_AUDIENCE"),
        ({"oidc_issuer": "https://x", "oidc_audience": "y", "oidc_algorithms": "RS256,HS256"}, "OIDC_ALGORITHMS"),
        ({"oidc_issuer": "https://x", "oidc_audience": "y", "oidc_algorithms": "none"}, "OIDC_ALGORITHMS"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(dsn: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        create_app(Settings(auth="oidc", **given), Registry({"graphs": {}}, {}), dsn)
