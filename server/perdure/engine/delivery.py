"""Sending webhooks: a thread of every worker, with an event loop of its own, which also calls other servers.

Author code that blocks the attempt loop does not hold up webhooks, and a slow receiver holds up
neither runs nor, beyond its own few slots, other receivers. Each try is bounded in time. A 2xx
answer is a delivery; anything else is tried again after 5 s, doubling up to an hour, until the
tries are used up. Requests follow https://www.standardwebhooks.com: `webhook-id` is the same in
every try, and a receiver that has seen it has seen this webhook.
"""

from __future__ import annotations

import asyncio
import base64
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httpx
import psycopg
import structlog
from psycopg_pool import PoolTimeout
from standardwebhooks import Webhook

from perdure import __version__
from perdure.config import fill_template
from perdure.engine import a2a, state, tries, webhooks
from perdure.engine.calling import Caller, server_keys
from perdure.engine.core import Engine
from perdure.engine.errors import InvalidInput, ThreadNotFound
from perdure.engine.jsonable import dumps
from perdure.engine.outbox import SLOTS, Outbox
from perdure.engine.registry import ConfigError, Registry
from perdure.engine.signals import listen
from perdure.engine.urls import AddressRefused, GuardedTransport, check_url, private_allowed
from perdure.engine.webhooks import Due

if TYPE_CHECKING:
    from perdure.config import Settings

log = structlog.get_logger(__name__)

LEASE_MARGIN_SECONDS = 15.0
RETRY_INITIAL_SECONDS, RETRY_CAP_SECONDS = 5.0, 3600.0
CONNECT_SECONDS = 5.0
RESTART_SECONDS = 1.0
MIN_SECRET_BYTES = 16
GONE = 410  # the receiver wants no more of this

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Deliveries(threading.Thread):
    """Sends what is due, webhooks and calls of other servers, until stopped.

    Raises ConfigError if a header or secret cannot be used.
    """

    def __init__(self, settings: Settings, registry: Registry, dsn: str) -> None:
        super().__init__(name="perdure-webhooks", daemon=True)
        self._settings = settings
        self._registry = registry
        self._dsn = dsn
        self._headers = extra_headers(registry.config)
        signers(settings)
        server_keys(settings)
        self._outboxes: list[Outbox[Any]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    def stop(self) -> None:
        """Claim nothing more; the thread ends when the tries under way have, or after a short grace."""
        self._stopping = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for outbox in self._outboxes:
            outbox.wake()

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(SLOTS, thread_name_prefix="webhook-dns"))
        while not self._stopping:
            try:
                async with Engine.open(self._settings, self._registry, self._dsn, background=True) as engine:
                    await self._serve(engine)
            except Exception as exc:  # the edge of a background loop
                log.warning("webhooks stopped, starting again", error=repr(exc))
                await asyncio.sleep(RESTART_SECONDS)

    async def _serve(self, engine: Engine) -> None:
        lease_seconds = self._settings.webhook_timeout_seconds + LEASE_MARGIN_SECONDS
        async with Sender(engine, self._headers) as sender, Caller(engine) as caller:
            hooks = Outbox(
                "webhooks",
                host_slots=webhooks.HOST_SLOTS,
                claim=partial(webhooks.claim, engine.pool, lease_seconds=lease_seconds),
                next_due=partial(webhooks.next_due, engine.pool),
                send=sender.deliver,
            )
            calls = Outbox(
                "remote calls",
                host_slots=tries.HOST_SLOTS,
                claim=partial(tries.claim, engine.pool, lease_seconds=lease_seconds),
                next_due=partial(tries.next_due, engine.pool),
                send=caller.speak,
            )
            self._outboxes = [hooks, calls]
            channels = {"perdure_webhook": hooks.told, "perdure_remote": calls.told}
            listener = asyncio.create_task(listen(self._dsn, channels, missed=self._wake), name="listen")
            try:
                async with asyncio.TaskGroup() as group:
                    for outbox in self._outboxes:
                        group.create_task(outbox.serve(lambda: self._stopping), name=outbox.name)
            finally:
                listener.cancel()


class Sender:
    """Makes requests of webhooks and notes how they went. Used as a context manager."""

    def __init__(self, engine: Engine, headers: dict[str, str]) -> None:
        self._engine = engine
        self._headers = headers
        self._signers = signers(engine.settings)
        self._client = httpx.AsyncClient(
            transport=GuardedTransport(private=private_allowed(engine.registry.config)),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # `deliver` ends the whole try in time
            follow_redirects=False,
            trust_env=False,  # no proxy from the environment: it would look the name up again
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    async def deliver(self, due: Due) -> None:
        """Try once and write down the outcome; if that cannot be written, the lease ends and it is sent again."""
        started = time.monotonic()
        http_status: int | None = None
        problem: str | None = None
        final = False
        try:
            async with asyncio.timeout(self._engine.settings.webhook_timeout_seconds):
                http_status = await self._send(due)
            if not 200 <= http_status < 300:
                problem, final = f"the receiver answered {http_status}", http_status == GONE
        except asyncio.CancelledError:  # the worker stops: another one may go on at once
            await webhooks.postpone(self._engine.pool, due, delay=0, http_status=None, error="interrupted")
            raise
        except (AddressRefused, InvalidInput) as exc:
            problem, final = str(exc), True
        except TimeoutError:
            problem = f"no answer within {self._engine.settings.webhook_timeout_seconds:g} s"
        except Exception as exc:  # the edge of one try: whatever went wrong, the next one may succeed
            problem = f"{type(exc).__name__}: {exc}"
        try:
            await self._note(due, http_status, problem, final, time.monotonic() - started)
        except (psycopg.Error, PoolTimeout) as exc:
            log.warning("webhook will be sent again", webhook_id=str(due.webhook_id), error=str(exc).strip())

    async def _note(self, due: Due, http_status: int | None, problem: str | None, final: bool, seconds: float) -> None:
        pool = self._engine.pool
        told = log.bind(
            webhook_id=str(due.webhook_id),
            run_id=str(due.run_id),
            thread_id=str(due.thread_id),
            host=due.host,
            attempt=due.attempt,
            seconds=round(seconds, 3),
        )
        if problem is None:
            await webhooks.settle(pool, due, "delivered", http_status=http_status, error=None)
            told.info("webhook delivered", status=http_status)
        elif final or due.attempt >= self._engine.settings.webhook_max_attempts:
            await webhooks.settle(pool, due, "failed", http_status=http_status, error=problem)
            told.error("webhook given up", error=problem)
        else:
            delay = backoff(due.attempt)
            await webhooks.postpone(pool, due, delay=delay, http_status=http_status, error=problem)
            told.warning("webhook failed, will be tried again", error=problem, delay=delay)

    async def _send(self, due: Due) -> int:
        """The status of the answer; its body is not read. The rules may have changed since the URL was accepted."""
        check_url(due.url, self._engine.registry.config)
        more: dict[str, str] = {}
        if due.push_id is not None:
            payload, more = await a2a.notification(self._engine, due.push_id, due.thread_id)
        else:
            payload = await self._payload(due)
        body = dumps(payload)
        request = self._client.build_request("POST", due.url, content=body, headers={**self._signed(due, body), **more})
        response = await self._client.send(request, stream=True)
        await response.aclose()
        return response.status_code

    def _signed(self, due: Due, body: bytes) -> dict[str, str]:
        webhook_id = f"msg_{due.webhook_id.hex}"
        now = due.now.astimezone(UTC)  # the library takes any datetime for UTC
        headers = {
            **self._headers,
            "content-type": "application/json",
            "user-agent": f"perdure/{__version__}",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
        }
        if self._signers:
            text = body.decode()
            headers["webhook-signature"] = " ".join(one.sign(webhook_id, now, text) for one in self._signers)
        return headers

    async def _payload(self, due: Due) -> dict[str, Any]:
        """What langgraph-api 0.16 sends: the run record, times, values, and the error of a failed run."""
        run = await webhooks.ended_run(self._engine.pool, due)
        if run is None:
            raise LookupError("the webhook was settled meanwhile")
        values = await self._values(due, asked=run["status"] == "success")
        return {**run, "webhook_sent_at": due.now, "values": values}

    async def _values(self, due: Due, *, asked: bool) -> Any:
        """The thread's values when the run ended, as `wait` answers them; None for a thread that is gone.

        The newest state shows more than the checkpoint alone (what finished tasks of a failed step
        have written), so it is used as long as no later run has made a newer checkpoint.
        """
        if due.temporary or due.checkpoint_id is None:
            return None
        try:
            found = await state.read(self._engine, due.thread_id)
            if found["checkpoint_id"] != due.checkpoint_id:
                found = await state.read(self._engine, due.thread_id, checkpoint_id=due.checkpoint_id)
        except ThreadNotFound:
            return None
        values = found["values"] if found["metadata"] is not None else None
        if asked and found["interrupts"] and isinstance(values, dict):
            questions = [{**question, "response_schema": None} for question in found["interrupts"]]
            return {**cast("dict[str, Any]", values), "__interrupt__": questions}
        return values


def backoff(attempt: int) -> float:
    """Seconds between this try (the first is 1) and the next."""
    return min(RETRY_CAP_SECONDS, RETRY_INITIAL_SECONDS * 2.0 ** min(attempt - 1, 30))


def signers(settings: Settings) -> list[Webhook]:
    """One for each secret that is set. Raises ConfigError, which does not show the secret."""
    made: list[Webhook] = []
    for secret in settings.webhook_secret.get_secret_value().split() if settings.webhook_secret else ():
        text = secret.removeprefix("whsec_").rstrip("=")
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError:
            key = b""
        if len(key) < MIN_SECRET_BYTES:
            raise ConfigError(
                f"PERDURE_WEBHOOK_SECRET must be whsec_ and base64 of at least {MIN_SECRET_BYTES} random bytes"
            )
        made.append(Webhook(key))
    return made


def extra_headers(config: dict[str, Any]) -> dict[str, str]:
    """`webhooks.headers` of langgraph.json, names in lower case, with `${{ env.NAME }}` filled in.

    Only variables that begin with `webhooks.env_prefix` (`LG_WEBHOOK_` if it is not given) may be
    named. Raises ConfigError.
    """
    section: Any = config.get("webhooks")
    given: Any = cast("dict[str, Any]", section).get("headers") if isinstance(section, dict) else None
    if not given:
        return {}
    if not isinstance(given, dict):
        raise ConfigError("webhooks.headers in langgraph.json must be an object of texts")
    prefix = str(cast("dict[str, Any]", section).get("env_prefix") or "LG_WEBHOOK_")
    headers: dict[str, str] = {}
    for name, text in cast("dict[str, Any]", given).items():
        try:
            value = fill_template(text, prefix) if isinstance(text, str) else ""
        except ValueError as exc:
            raise ConfigError(f"webhooks.headers.{name} in langgraph.json: {exc}") from exc
        if not _HEADER_NAME.fullmatch(name) or not value.isascii() or not value.isprintable() or not value:
            raise ConfigError(f"webhooks.headers.{name} in langgraph.json cannot be sent as a header")
        headers[name.lower()] = value
    return {name: value for name, value in headers.items() if name not in ("host", "content-length")}
