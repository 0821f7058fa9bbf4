"""Which webhook addresses are accepted."""

from typing import Any

import pytest

from perdure.api.webhook import check_webhook
from perdure.engine.errors import InvalidInput

OPEN: dict[str, Any] = {"webhooks": {"url": {"disable_loopback": False, "require_https": False}}}


@pytest.mark.parametrize(
    "url", ["https://example.com/hook?x=1", "http://93.184.215.14:8080/", "https://[2606:4700::1]/"]
)
def test_public_addresses_pass(url: str) -> None:
    assert check_webhook(url, {}) == url


@pytest.mark.parametrize(
    "url",
    [
        "/relative",
        "example.com/hook",
        "ftp://example.com",
        "http://",
        "http://[::1",
        "http://example.com:99999/",
        "http://exa mple.com/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://a.localhost/",
        "http://127.0.0.1:1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://10.1.2.3/",
        "http://192.168.0.1/",
        "http://169.254.169.254/latest",
        "http://user@127.0.0.1/",
    ],
)
def test_relative_invalid_and_local_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="webhook") as refused:
        check_webhook(url, {})
    assert refused.value.status == 422


def test_the_operator_may_open_loopback_and_http() -> None:
    assert check_webhook("http://127.0.0.1:8000/hook", OPEN)


def test_https_is_required_once_there_is_a_webhooks_section() -> None:
    with pytest.raises(InvalidInput, match="https"):
        check_webhook("http://example.com/", {"webhooks": {}})
    assert check_webhook("https://example.com/", {"webhooks": {}})


def test_allowed_domains_and_ports() -> None:
    rules = {"webhooks": {"url": {"allowed_domains": ["*.example.com", "a.org"], "allowed_ports": [443]}}}
    assert check_webhook("https://x.example.com/", rules)
    assert check_webhook("https://a.org/", rules)
    for url in ("https://example.com/", "https://badexample.com/", "https://x.example.com:8443/"):
        with pytest.raises(InvalidInput):
            check_webhook(url, rules)
