"""Which webhook addresses a client may name: the engine's rules, which hold again when it is called."""

from __future__ import annotations

from typing import Any

from perdure.engine import urls


def check_webhook(url: str, config: dict[str, Any]) -> str | None:
    """The address, if langgraph.json (`config`) allows it; None where `http.disable_webhooks` is set: nobody is called.

    Raises InvalidInput with the reason otherwise. The name of a host is not looked up here: it
    may mean something else by the time the webhook is sent.
    """
    if urls.webhooks_off(config):
        return None
    return urls.check_url(url, config)
