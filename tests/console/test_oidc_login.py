"""Signing in at an OpenID provider: a small one on a local port, and two servers, of which any may get the answer."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from playwright.sync_api import Browser, expect

from tests.console.conftest import WAIT_SECONDS, Replicas, axe, eventually, replicate

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CLIENT, SECRET, AUDIENCE = "console", "s3 cret", "perdure"


@dataclass
class Provider:
    """Signs everybody in as alice at once. What a test changes here holds for its next answer."""

    url: str = ""
    claims: dict[str, Any] = field(default_factory=dict[str, Any])
    access: dict[str, Any] = field(default_factory=dict[str, Any])
    answer: dict[str, Any] | None = None
    codes: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def reset(self) -> None:
        self.claims, self.access, self.answer = {}, {}, None

    def signed(self, **claims: Any) -> str:
        now = time.time()
        whole = {"iss": self.url, "sub": "alice", "name": "Alice <b>", "iat": now, "exp": now + 300, **claims}
        return jwt.encode(whole, KEY, algorithm="RS256", headers={"kid": "one"})

    def tokens(self, form: dict[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        """What RFC 6749 and 7636 ask of a provider, and no more."""
        asked = self.codes.pop(form.get("code", ""), None)
        basic = base64.b64encode(f"{CLIENT}:s3%20cret".encode()).decode()
        challenge = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if (
            asked is None
            or authorization != f"Basic {basic}"
            or form.get("redirect_uri") != asked["redirect_uri"]
            or base64.urlsafe_b64encode(challenge).decode().rstrip("=") != asked["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        if self.answer is not None:
            return 200, self.answer
        ident = self.signed(**{"aud": CLIENT, "nonce": asked["nonce"], **self.claims})
        return 200, {"access_token": self.signed(**{"aud": AUDIENCE, **self.access}), "id_token": ident}


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    found = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path == "/authorize":
                code = f"code{len(found.codes)}{time.monotonic_ns()}"
                found.codes[code] = asked
                back = urlencode({"code": code, "state": asked["state"], "iss": found.url})
                self.answer(303, b"", location=f"{asked['redirect_uri']}?{back}")
                return
            public = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key())), "kid": "one", "use": "sig"}
            configuration = {
                "issuer": found.url,
                "jwks_uri": f"{found.url}/keys",
                "authorization_endpoint": f"{found.url}/authorize",
                "token_endpoint": f"{found.url}/token",
            }
            self.answer(200, json.dumps({"keys": [public]} if parts.path == "/keys" else configuration).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            status, answer = found.tokens(form, self.headers.get("authorization", ""))
            self.answer(status, json.dumps(answer).encode())

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.reset()
    return running


@pytest.fixture(scope="module")
def servers(database_url: str, tmp_path_factory: pytest.TempPathFactory, running: Provider) -> Iterator[Replicas]:
    env = {
        "PERDURE_AUTH": "oidc",
        "PERDURE_OIDC_ISSUER": running.url,
        "PERDURE_OIDC_AUDIENCE": AUDIENCE,
        "PERDURE_OIDC_CLIENT_ID": CLIENT,
        "PERDURE_OIDC_CLIENT_SECRET": SECRET,
        "PERDURE_OIDC_LEEWAY_SECONDS": "0",
    }
    with replicate(database_url, tmp_path_factory.mktemp("oidc"), **env) as found:
        yield found


@pytest.fixture
def visitor(servers: Replicas) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=servers.url, timeout=WAIT_SECONDS) as client:
        yield client


def start(visitor: httpx.Client, **query: str) -> str:
    """Where the provider sends the visitor back to."""
    there = visitor.get("/console/login/start", params=query)
    assert there.status_code == 303, there.text
    back = httpx.get(there.headers["location"], timeout=WAIT_SECONDS)
    return str(back.headers["location"])


def test_a_person_signs_in_at_the_provider_and_lands_where_they_wanted(
    browser: Browser, servers: Replicas, provider: Provider
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{servers.url}/console/threads?status=idle")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert axe(page) == []
    page.get_by_role("link", name="Sign in with 127.0.0.1").click()
    page.wait_for_url(f"{servers.url}/console/threads?status=idle")
    expect(page.locator(".who")).to_contain_text("Alice <b>")
    names = {one["name"]: one for one in context.cookies()}
    assert set(names) == {"perdure_session"}
    assert names["perdure_session"]["httpOnly"]
    assert names["perdure_session"]["expires"] <= time.time() + 301
    for _ in range(2):  # at either server, and at the API
        assert page.evaluate("fetch('/threads/search', {method: 'POST', body: '{}'}).then(r => r.status)") == 200
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    context.close()


def test_a_session_ends_with_its_token(visitor: httpx.Client, provider: Provider) -> None:
    for seconds in (2, 10, 50):  # it must live until somebody has signed in, which takes longer on a busy machine
        provider.access = {"exp": time.time() + seconds}
        if visitor.get(start(visitor)).status_code == 303:
            break
    cookies = dict(visitor.cookies)
    assert "perdure_session" in cookies
    headers = {"cookie": f"perdure_session={cookies['perdure_session']}"}  # also if a browser would keep it

    def look() -> httpx.Response:
        return httpx.get(f"{visitor.base_url}/console/threads", headers=headers, timeout=WAIT_SECONDS)

    answer = eventually(look, lambda answer: answer.status_code != 200)
    assert answer.status_code == 303
    assert "/console/login" in answer.headers["location"]


def test_the_id_token_serves_where_access_tokens_are_opaque(visitor: httpx.Client, provider: Provider) -> None:
    provider.claims, provider.access = {"aud": [CLIENT, AUDIENCE], "azp": CLIENT}, {"aud": "another-api"}
    assert visitor.get(start(visitor)).status_code == 303
    assert visitor.get("/console/threads").status_code == 200


@pytest.mark.parametrize(
    ("claims", "access", "told"),
    [
        ({"nonce": "other"}, {}, "another request"),
        ({"aud": "other"}, {}, "ID token was not accepted"),
        ({"iss": "https://evil.example"}, {}, "ID token was not accepted"),
        ({"azp": "other"}, {}, "another client"),
        ({"exp": 1}, {}, "ID token was not accepted"),
        ({}, {"aud": "other"}, "PERDURE_OIDC_AUDIENCE"),
        ({}, {"iss": "https://evil.example"}, "PERDURE_OIDC_AUDIENCE"),
        ({}, {"pad": "".join(hashlib.sha512(bytes([n])).hexdigest() for n in range(60))}, "for this server|too large"),
    ],
)
def test_tokens_that_are_not_for_us_sign_nobody_in(
    visitor: httpx.Client, provider: Provider, claims: dict[str, Any], access: dict[str, Any], told: str
) -> None:
    provider.claims, provider.access = claims, access
    answer = visitor.get(start(visitor))
    assert answer.status_code == 401
    assert any(part in answer.text for part in told.split("|")), answer.text
    assert "perdure_session" not in visitor.cookies


@pytest.mark.parametrize("answer", [{}, {"access_token": 5}, {"id_token": "x.y.z"}, {"error": "<script>"}])
def test_a_provider_that_answers_nonsense_signs_nobody_in(
    visitor: httpx.Client, provider: Provider, answer: dict[str, Any]
) -> None:
    provider.answer = answer
    told = visitor.get(start(visitor))
    assert told.status_code == 401
    assert "<script>" not in told.text.partition("<main")[2]


def test_only_the_browser_that_began_can_finish(visitor: httpx.Client, servers: Replicas, provider: Provider) -> None:
    """Nobody can be signed in as somebody else by a link."""
    with httpx.Client(base_url=servers.url, timeout=WAIT_SECONDS) as attacker:
        without = visitor.get(start(attacker))
        start(visitor)
        of_another_attempt = visitor.get(start(attacker))
    for answer in (without, of_another_attempt):
        assert answer.status_code == 401
        assert "began in another window" in answer.text, "refused before the code is used"
    assert "perdure_session" not in visitor.cookies


def test_an_answer_serves_once(visitor: httpx.Client, servers: Replicas, provider: Provider) -> None:
    back = start(visitor)
    kept = visitor.cookies["perdure_login"]
    assert visitor.get(back).status_code == 303
    assert "perdure_login" not in visitor.cookies
    again = httpx.get(back, headers={"cookie": f"perdure_login={kept}"}, timeout=WAIT_SECONDS)
    assert again.status_code == 401
    assert "invalid_grant" in again.text


@pytest.mark.parametrize(
    "query", ["error=access_denied&error_description=<b>no</b>", "iss=https://evil.example&code=x", ""]
)
def test_what_the_provider_refuses_is_said(visitor: httpx.Client, provider: Provider, query: str) -> None:
    state = parse_qs(urlsplit(start(visitor)).query)["state"][0]
    answer = visitor.get(f"/console/login/callback?state={state}&{query}")
    assert answer.status_code == 401
    assert "<b>no</b>" not in answer.text
    assert 'role="alert"' in answer.text


def test_the_sign_in_cookie_opens_nothing(visitor: httpx.Client, provider: Provider) -> None:
    start(visitor)
    cookie = visitor.cookies["perdure_login"]
    headers = {"cookie": f"perdure_session={cookie}"}
    answer = httpx.get(f"{visitor.base_url}/console/threads", headers=headers, timeout=WAIT_SECONDS)
    assert answer.status_code == 303


@pytest.mark.parametrize("next", ["//evil.example/console/", "https://evil.example/console/"])
def test_the_way_back_leads_to_no_other_site(visitor: httpx.Client, provider: Provider, next: str) -> None:
    assert visitor.get(start(visitor, next=next)).headers["location"] == "/console/"


def test_without_a_client_there_is_no_way_to_the_provider(guarded: Replicas) -> None:
    assert httpx.get(f"{guarded.url}/console/login/start", timeout=WAIT_SECONDS).status_code == 404
    assert httpx.get(f"{guarded.url}/console/login/callback?code=x&state=y", timeout=WAIT_SECONDS).status_code == 404
