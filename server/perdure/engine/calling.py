"""What is said to other servers about the runs that ours have started there: start, look, cancel.

The wire is the Agent Server's, so any such server will do; a perdure server is asked for a run's
outcome in one request, and has sessions. Every try is bounded in time, sends no more than the row
that was claimed, and may be repeated: a start carries an idempotency key and a thread id of its
own. Anything but a clear answer is tried again with growing waits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import httpx
import orjson
import psycopg
import structlog
from psycopg_pool import PoolTimeout

from perdure import __version__
from perdure.engine import tries
from perdure.engine.jsonable import dumps
from perdure.engine.registry import ConfigError
from perdure.engine.tries import Due
from perdure.engine.urls import AddressRefused, GuardedTransport

if TYPE_CHECKING:
    from perdure.config import Settings
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
BUSY = {401, 403, 408, 425, 429}  # a call that is running is not given up for these, nor for a 5xx
REFUSED_WEBHOOK = {400, 403, 422}
NO_ROUTE = {404, 405}
MAX_TEXT_CHARS = 500

# Seconds between two looks at a running child: soon at first, then doubling. One that calls us
# back is looked at in case that got lost.
LOOK_INITIAL, LOOK_CAP = 1.0, 30.0
CALLED_INITIAL, CALLED_CAP = 5.0, 300.0
UNSURE_SECONDS = 30.0  # a start that we saw nothing of may still arrive


@dataclass(frozen=True)
class Started:
    """The other server has accepted the run; `calls_back` if it also took our address."""

    thread_id: str
    run_id: str
    calls_back: bool


@dataclass(frozen=True)
class Ended:
    """A final status of `remote_calls`."""

    status: str
    output: Any = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class Later:
    """Nothing new. `problem`: why not; None while the child runs. `after`: seconds, if not the usual back-off."""

    problem: str | None = None
    plain: bool = False
    after: float | None = None


@dataclass(frozen=True)
class Answer:
    """A status and, if the body is JSON, its value."""

    status: int
    json: bool
    body: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def missing(self) -> bool:
        """404 or 405 in the words of a server, not of a proxy in front of it."""
        return self.status in NO_ROUTE and self.json

    def field(self, name: str) -> Any:
        return _mapping(self.body).get(name)

    def text(self, server: str) -> str:
        detail = self.field("detail")
        told = f": {detail[:MAX_TEXT_CHARS]}" if isinstance(detail, str) else ""
        return f"{server} answered {self.status}{told}"


class Caller:
    """Makes the requests of due calls and notes how they went. Used as a context manager."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys = server_keys(engine.settings)
        # The author has named the server, so one in a private network is meant; link-local ones never are.
        self._client = httpx.AsyncClient(
            transport=GuardedTransport(private=True),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # `speak` ends the whole try in time
            follow_redirects=False,
            trust_env=False,
            headers={"user-agent": f"perdure/{__version__}"},
        )

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    async def speak(self, due: Due) -> None:
        """One try, and its outcome written down; if it can't be written, the lease ends and it is tried again."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._engine.settings.webhook_timeout_seconds):
                said = await self._said(due)
        except asyncio.CancelledError:  # the worker stops: another one may go on at once
            await tries.later(self._engine.pool, due, delay=0, problem="interrupted", plain=due.plain)
            raise
        except AddressRefused as exc:
            said = Ended("failed", error={"error": "AddressRefused", "message": str(exc)})
        except TimeoutError:
            said = Later(f"{due.server} did not answer in time", due.plain)
        except Exception as exc:  # the edge of one try: whatever went wrong, the next one may succeed
            said = Later(f"{type(exc).__name__}: {exc}"[:MAX_TEXT_CHARS], due.plain)
        try:
            await self._note(due, said, round(time.monotonic() - began, 3))
        except (psycopg.Error, PoolTimeout) as exc:
            log.warning("remote call will be tried again", call_id=str(due.call_id), error=str(exc).strip())

    async def _said(self, due: Due) -> Started | Ended | Later:
        if due.cancelling:
            return await self._cancel(due)
        return await (self._start(due) if due.status == "starting" else self._look(due))

    async def _note(self, due: Due, said: Started | Ended | Later, seconds: float) -> None:
        pool, settings = self._engine.pool, self._engine.settings
        told = log.bind(call_id=str(due.call_id), thread_id=str(due.thread_id), host=due.host, agent=due.agent)
        if isinstance(said, Started):
            if due.bound:
                callback = due.callback_url if said.calls_back else None
                delay = due.delay + (CALLED_INITIAL if callback else LOOK_INITIAL)
                await tries.started(
                    *(pool, due), thread_id=said.thread_id, run_id=said.run_id, callback_url=callback, delay=delay
                )
            else:
                await tries.settle(pool, due, "done", thread_id=said.thread_id, run_id=said.run_id)
            told.info("remote run started", remote_run_id=said.run_id, calls_back=said.calls_back, seconds=seconds)
        elif isinstance(said, Ended):
            if await tries.settle(pool, due, said.status, output=said.output, error=said.error):
                told.info("remote run ended", status=said.status, seconds=seconds)
        else:
            waits = (settings.retry_initial_seconds, settings.retry_cap_seconds)
            if due.status == "running" and not due.cancelling:
                waits = (CALLED_INITIAL, CALLED_CAP) if due.callback_url else (LOOK_INITIAL, LOOK_CAP)
            delay = min(waits[1], waits[0] * 2.0 ** min(due.tries, 30)) if said.after is None else said.after
            await tries.later(pool, due, delay=delay, problem=said.problem, plain=said.plain)
            if said.problem:
                told.warning("remote call failed, will be tried again", error=said.problem, delay=delay)

    # -- starting

    async def _start(self, due: Due) -> Started | Ended | Later:
        if due.attempt > 1 and due.key is None and (found := await self._found(due)) is not None:
            return found
        answer = await self._create(due, due.callback_url)
        calls_back = due.callback_url is not None
        if calls_back and answer.status in REFUSED_WEBHOOK:
            # perhaps its rules forbid it to call our address; then we ask
            without = await self._create(due, None)
            if without.ok:
                log.info("remote server does not call back", host=due.host, error=answer.text(due.server))
                answer, calls_back = without, False
        if answer.ok:
            return _started(answer.body, calls_back) or Later(f"{due.server} named no run in its answer")
        if (
            answer.status >= 500
            or answer.status in BUSY - {401, 403}
            or (answer.status in NO_ROUTE and not answer.json)
        ):
            return Later(answer.text(due.server))
        error = {"error": "CallRefused", "message": answer.text(due.server), "status": answer.status}
        return Ended("failed", error=error)

    async def _create(self, due: Due, callback_url: str | None) -> Answer:
        """Create the run: on a thread with the id of the call, or in a session of a perdure server."""
        headers = {"idempotency-key": str(due.call_id), **({"traceparent": due.trace} if due.trace else {})}
        if due.key is not None:
            headers["perdure-callers"] = ",".join(due.callers)
            params = {"delay": f"{due.delay:.3f}s" if due.delay else None, "webhook": callback_url}
            path = f"/agents/{_quoted(due.agent)}/{_quoted(due.key)}/send"
            return await self._request(due, "POST", path, due.input, headers=headers, params=params)
        body: dict[str, Any] = {
            "assistant_id": due.agent,
            "input": due.input,
            "if_not_exists": "create",
            "metadata": {"call_id": str(due.call_id), "callers": due.callers},
        }
        body |= {"after_seconds": due.delay} if due.delay else {}
        body |= {"webhook": callback_url} if callback_url else {}
        return await self._request(due, "POST", f"/threads/{due.call_id}/runs", body, headers=headers)

    async def _found(self, due: Due) -> Started | None:
        """The run that an earlier try has created, although we saw no answer."""
        answer = await self._request(due, "GET", f"/threads/{due.call_id}/runs", params={"limit": 100})
        body: Any = answer.body
        for run in map(_mapping, cast("list[Any]", body) if answer.ok and isinstance(body, list) else []):
            if _mapping(run.get("metadata")).get("call_id") == str(due.call_id):
                return _started(run, bool(_mapping(run.get("kwargs")).get("webhook")))
        return None

    # -- looking

    async def _look(self, due: Due) -> Ended | Later:
        run = _path(due.remote_thread_id, due.remote_run_id)
        if not due.plain:
            answer = await self._request(due, "GET", f"{run}/outcome")
            if answer.ok and isinstance(answer.field("status"), str):
                return _outcome(answer)
            if not answer.missing:
                return Later(answer.text(due.server))
        answer = await self._request(due, "GET", run)
        if answer.missing:
            return Ended("gone")
        if not answer.ok:
            return Later(answer.text(due.server), due.plain)
        status = answer.field("status")
        if status == "interrupted":
            return Ended("cancelled")
        if status in ("pending", "running"):
            return Later(plain=True)
        return await self._look_at_thread(due, failed=status in ("error", "timeout"))

    async def _look_at_thread(self, due: Due, *, failed: bool) -> Ended | Later:
        """The run of an Agent Server has ended: its thread, which is there for this call only, tells the rest."""
        answer = await self._request(due, "GET", f"/threads/{_quoted(due.remote_thread_id or '')}")
        if answer.missing:
            return Ended("gone")
        if not answer.ok:
            return Later(answer.text(due.server), plain=True)
        status = answer.field("status")
        if status == "error" or failed:
            found = answer.field("error")
            known = _mapping(found) or {"message": str(found or "")}
            return Ended(
                "failed", error={"error": known.get("error") or "Error", "message": known.get("message") or ""}
            )
        if status == "idle":
            return Ended("done", answer.field("values"))
        return Later(plain=True)  # busy with the answer to a question, or asking one

    # -- cancelling

    async def _cancel(self, due: Due) -> Ended | Later:
        thread_id, run_id = due.remote_thread_id, due.remote_run_id
        if due.status == "starting":  # some try has been made: did it arrive?
            found = await self._found(due) if due.key is None else await self._start(due)
            if isinstance(found, Later):
                return found
            if not isinstance(found, Started):
                sure = due.key is not None or due.tries > 0
                return Ended("cancelled") if sure else Later("is it started?", after=UNSURE_SECONDS)
            thread_id, run_id = found.thread_id, found.run_id
        run = _path(thread_id, run_id)
        answer = await self._request(due, "DELETE", f"{run}/outcome")
        if answer.missing:
            answer = await self._request(due, "POST", f"{run}/cancel")
        heard = answer.ok or (400 <= answer.status < 500 and answer.status not in BUSY and answer.json)
        return Ended("cancelled") if heard else Later(answer.text(due.server), due.plain)

    # -- the wire

    async def _request(
        self,
        due: Due,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
    ) -> Answer:
        """Raises httpx.HTTPError, AddressRefused, and ValueError for an answer without end."""
        given = {**(headers or {}), "content-type": "application/json"}
        if key := self._keys.get(due.server):
            given["x-api-key"] = key
        request = self._client.build_request(
            method,
            due.server + path,
            content=dumps(body) if method == "POST" and path.endswith(("/runs", "/send")) else None,
            headers=given,
            params={name: value for name, value in (params or {}).items() if value is not None} or None,
        )
        response = await self._client.send(request, stream=True)
        try:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise ValueError(f"{due.server} answered more than {MAX_ANSWER_BYTES} bytes")
        finally:
            await response.aclose()
        try:
            return Answer(response.status_code, True, orjson.loads(content))
        except orjson.JSONDecodeError:
            return Answer(response.status_code, False, None)


def server_keys(settings: Settings) -> dict[str, str]:
    """The keys for other servers, by address. Raises ConfigError, which does not show them."""
    text = settings.remote_keys.get_secret_value() if settings.remote_keys else "{}"
    try:
        given: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        given = None
    keys = _mapping(given)
    valid = isinstance(given, dict) and all(isinstance(key, str) for key in keys.values())
    if not valid or not all(url.startswith(("http://", "https://")) for url in keys):
        raise ConfigError("PERDURE_REMOTE_KEYS must be a JSON object from the address of a server to its key")
    return {url.rstrip("/"): str(key) for url, key in keys.items()}


def _mapping(value: Any) -> dict[str, Any]:
    """A JSON object as it is; anything else is an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _started(run: Any, calls_back: bool) -> Started | None:
    thread_id, run_id = _mapping(run).get("thread_id"), _mapping(run).get("run_id")
    return Started(thread_id, run_id, calls_back) if isinstance(thread_id, str) and isinstance(run_id, str) else None


def _outcome(answer: Answer) -> Ended | Later:
    status, error = answer.field("status"), answer.field("error")
    if status not in ("done", "failed", "cancelled", "gone"):
        return Later()
    return Ended(status, answer.field("output"), _mapping(error) or None)


def _path(thread_id: str | None, run_id: str | None) -> str:
    return f"/threads/{_quoted(thread_id or '')}/runs/{_quoted(run_id or '')}"


def _quoted(part: str) -> str:
    return quote(part, safe="")
