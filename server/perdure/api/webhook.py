"""Which webhook addresses a client may name.

Without rules of the operator, any http(s) address that is not on this machine or in a private
network. `webhooks.url` of langgraph.json loosens and tightens that. The name of a host is not
looked up here: it may resolve to something else by the time the webhook is sent.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, cast
from urllib.parse import urlsplit

from perdure.engine.errors import InvalidInput

MAX_URL_CHARS = 65_536
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


def check_webhook(url: str, config: dict[str, Any]) -> str:
    """The address, if langgraph.json (`config`) allows it.

    Raises InvalidInput with the reason otherwise.
    """
    section = config.get("webhooks")
    rules: Any = cast("dict[str, Any]", section).get("url") if isinstance(section, dict) else None
    rules = cast("dict[str, Any]", rules) if isinstance(rules, dict) else {}
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise InvalidInput("webhook", "not a valid URL") from None
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or not c.isprintable() for c in url):
        raise InvalidInput("webhook", "must be an absolute http or https URL")
    if isinstance(section, dict) and rules.get("require_https", True) and parts.scheme != "https":
        raise InvalidInput("webhook", "must be an https URL, because langgraph.json has a webhooks section")
    if len(url) > int(rules.get("max_url_length") or MAX_URL_CHARS):
        raise InvalidInput("webhook", "the URL is too long")
    if rules.get("disable_loopback", True) is not False and _is_local(host):
        raise InvalidInput("webhook", f"{host} is on this machine or in a private network")
    domains: list[str] = rules.get("allowed_domains") or []
    if domains and not any(_matches(host, domain) for domain in domains):
        raise InvalidInput("webhook", f"{host} is not among the allowed domains")
    ports: list[int] = rules.get("allowed_ports") or []
    if ports and (port or {"http": 80, "https": 443}[parts.scheme]) not in ports:
        raise InvalidInput("webhook", "its port is not among the allowed ports")
    return url


def _is_local(host: str) -> bool:
    if host.lower() in LOCAL_NAMES or host.lower().endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:  # 127.1, 0x7f000001, 2130706433: what the C library would connect to
            address = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return not address.is_global or address.is_multicast


def _matches(host: str, domain: str) -> bool:
    host, domain = host.lower(), domain.lower()
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain
