"""Which addresses the server may be told to call: webhooks must not reach into its own network.

Without rules of the operator, any http(s) address that is not on this machine or in a private
network; `webhooks.url` of langgraph.json loosens and tightens that. The text of a URL is
checked when it is accepted; what its host name means is checked when it is called, and the
connection goes to the very address that was checked. Link-local addresses (where clouds keep
credentials) and multicast are never called.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

import httpx

from perdure.engine.errors import InvalidInput

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARS = 65_536
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
HOST_AGENTS = (ipaddress.ip_address("168.63.129.16"),)  # Azure: a public address that is the host's own
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(Exception):
    """The rules forbid this address; trying again would not help."""


def check_url(url: str, config: dict[str, Any]) -> str:
    """The webhook address, if langgraph.json (`config`) allows it.

    Raises InvalidInput with the reason otherwise.
    """
    if webhooks_off(config):
        raise InvalidInput("webhook", "webhooks are switched off (http.disable_webhooks in langgraph.json)")
    rules = _section(_section(config, "webhooks"), "url")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise InvalidInput("webhook", "not a valid URL") from None
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or not c.isprintable() for c in url):
        raise InvalidInput("webhook", "must be an absolute http or https URL")
    if isinstance(config.get("webhooks"), dict) and rules.get("require_https", True) and parts.scheme != "https":
        raise InvalidInput("webhook", "must be an https URL, because langgraph.json has a webhooks section")
    if len(url) > int(rules.get("max_url_length") or MAX_URL_CHARS):
        raise InvalidInput("webhook", "the URL is too long")
    if _is_refused(host, private=private_allowed(config)):
        raise InvalidInput("webhook", f"{host} is on this machine or in a private network")
    domains: list[str] = rules.get("allowed_domains") or []
    if domains and not any(_matches(host, domain) for domain in domains):
        raise InvalidInput("webhook", f"{host} is not among the allowed domains")
    ports: list[int] = rules.get("allowed_ports") or []
    if ports and (port or {"http": 80, "https": 443}[parts.scheme]) not in ports:
        raise InvalidInput("webhook", "its port is not among the allowed ports")
    return url


def webhooks_off(config: dict[str, Any]) -> bool:
    """Whether the operator wants no webhook to be sent, also none that was accepted before."""
    return _section(config, "http").get("disable_webhooks") is True


def private_allowed(config: dict[str, Any]) -> bool:
    """Whether the operator lets webhooks go to this machine and to private networks."""
    return _section(_section(config, "webhooks"), "url").get("disable_loopback", True) is False


def allowed(address: Address, *, private: bool) -> bool:
    """Whether a connection may go there; addresses that carry an IPv4 address inside are judged by both."""
    return all(_allowed(one, private) for one in _readings(address))


class GuardedTransport(httpx.AsyncBaseTransport):
    """Looks names up itself and connects only to addresses that are allowed; for one request a connection.

    Certificates are checked against the name. Connections are not kept: they would be shared by
    all names of an address. Raises AddressRefused, and httpx.ConnectError for an unknown name.
    """

    def __init__(self, *, private: bool) -> None:
        self._private = private
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._inner = httpx.AsyncHTTPTransport(limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.raw_host.decode("ascii")
        found = await _lookup(host, request.url.port or {"http": 80, "https": 443}[request.url.scheme])
        usable = [address for address in found if allowed(address, private=self._private)]
        if not usable:
            raise AddressRefused(f"{host} resolves to {found[0]}, which is not allowed")
        original = request.url
        request.extensions = {**request.extensions, "sni_hostname": host}
        for address in usable[:-1]:
            request.url = original.copy_with(host=str(address))
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        request.url = original.copy_with(host=str(usable[-1]))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _lookup(host: str, port: int) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise httpx.ConnectError(f"cannot resolve {host}: {exc}") from exc
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def _readings(address: Address) -> Iterator[Address]:
    """The address, or the IPv4 address that the network makes of it."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
    elif address.ipv4_mapped:
        yield address.ipv4_mapped
    elif address in NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    else:
        yield address
        if address.sixtofour:
            yield address.sixtofour
        if address.teredo:
            yield from address.teredo


def _allowed(address: Address, private: bool) -> bool:
    if address.is_multicast or address.is_link_local or address in HOST_AGENTS:
        return False
    if private:
        return True
    reserved = isinstance(address, ipaddress.IPv6Address) and address.is_reserved  # ::a.b.c.d among others
    return address.is_global and not reserved


def _is_refused(host: str, *, private: bool) -> bool:
    """Whether the host's text alone shows that it may not be called."""
    if host.lower() in LOCAL_NAMES or host.lower().endswith((".localhost", ".local", ".internal")):
        return not private
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:  # 127.1, 0x7f000001, 2130706433: what the C library would connect to
            address = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return False
    return not allowed(address, private=private)


def _matches(host: str, domain: str) -> bool:
    host, domain = host.lower(), domain.lower()
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
