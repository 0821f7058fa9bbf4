"""Webhooks: one for each end of a run, sent at least once, and never into the server's own network."""

import asyncio
import base64
import http.server
import ipaddress
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import orjson
import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from standardwebhooks import Webhook
from typing_extensions import TypedDict

from perdure import __version__
from perdure.config import Settings
from perdure.engine import delivery, outbox, queue, runs, stop, sweeper, threads, urls, webhooks
from perdure.engine.delivery import Deliveries, Sender, backoff, extra_headers, signers
from perdure.engine.registry import ConfigError

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()
OPEN = {"url": {"disable_loopback": False, "require_https": False}}
DUE_AGAIN = "UPDATE webhooks SET next_at = now() WHERE next_at IS NOT NULL"


class State(TypedDict, total=False):
    text: str
    answer: Any


class Unsteady(Exception):
    retryable = True


def reply(state: State) -> State:
    match state.get("text"):
        case "boom":
            raise ValueError("boom happened")
        case "again":
            raise Unsteady("try again")
        case "ask":
            return {"answer": interrupt("really?")}
        case text:
            return {"text": f"re: {text}"}


GRAPHS = {"default": StateGraph(State).add_node("reply", reply).add_edge(START, "reply").compile()}


@dataclass
class Sink:
    """A receiver on 127.0.0.1. `answers` are used up one by one, then it answers 200; a callable runs first."""

    url: str = ""
    got: list["Got"] = field(default_factory=list)
    answers: list[int | Callable[[], int]] = field(default_factory=list)
    location: str | None = None


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return orjson.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@pytest.fixture
def make_sink() -> Iterator[Callable[[], Sink]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def make() -> Sink:
        sink = Sink()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                sink.got.append(Got(self.path, headers, body))
                answer = sink.answers.pop(0) if sink.answers else 200
                status = answer() if callable(answer) else answer
                try:
                    self.send_response(status)
                    if sink.location:
                        self.send_header("location", sink.location)
                    self.end_headers()
                    self.wfile.write(b"thanks")
                except OSError:
                    pass  # the sender has gone

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign] (senders that hang up)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        sink.url = f"http://127.0.0.1:{server.server_port}"
        return sink

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def sink(make_sink: Callable[[], Sink]) -> Sink:
    return make_sink()


@pytest.fixture
def settings() -> Settings:
    return Settings(
        database_url="unused",
        retry_initial_seconds=5,
        event_flush_ms=5,
        webhook_secret=SECRET,
        webhook_timeout_seconds=60,
        webhook_max_attempts=3,
    )


@pytest.fixture
async def hooks(lab) -> "Hooks":
    await lab.execute("DELETE FROM webhooks")
    lab.engine.registry.config["webhooks"] = OPEN
    return Hooks(lab)


@dataclass
class Hooks:
    """Deeds of the sending side one by one, or (`sending`) by the real thread."""

    lab: Any
    headers: dict[str, str] = field(default_factory=dict)

    def set(self, **given: Any) -> None:
        """Change settings."""
        self.lab.engine = replace(self.lab.engine, settings=self.lab.engine.settings.model_copy(update=given))

    def rules(self, rules: dict[str, Any]) -> None:
        """Change `webhooks.url` of langgraph.json."""
        self.lab.engine.registry.config["webhooks"] = {"url": rules}

    def sender(self) -> Sender:
        return Sender(self.lab.engine, self.headers)

    async def run(self, url: str, text: str = "hello", thread: UUID | None = None, **given: Any) -> dict[str, Any]:
        """Execute a run with this webhook to its end."""
        thread = None if given.pop("stateless", False) else thread or await self.lab.thread()
        run = await self.lab.enqueue(thread, {"text": text}, webhook=url, **given)
        await self.lab.work()
        return run

    async def row(self) -> dict[str, Any]:
        return await self.lab.one("SELECT * FROM webhooks")

    async def count(self) -> int:
        return (await self.lab.one("SELECT count(*) AS n FROM webhooks"))["n"]

    async def claim(self, **given: Any) -> list[webhooks.Due]:
        options = {"limit": 10, "busy": [], "lease_seconds": 30, **given}
        return await webhooks.claim(self.lab.engine.pool, **options)

    async def deliver(self) -> None:
        """Send what is due, once."""
        async with self.sender() as sender:
            for due in await self.claim():
                await sender.deliver(due)

    @asynccontextmanager
    async def sending(self, n: int = 1) -> AsyncIterator[list[Deliveries]]:
        engine = self.lab.engine
        running = [Deliveries(engine.settings, engine.registry, self.lab.dsn) for _ in range(n)]
        for one in running:
            one.start()
        try:
            yield running
        finally:
            for one in running:
                one.stop()
            for one in running:
                await asyncio.to_thread(one.join, 60)
                assert not one.is_alive()


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


# --- what is sent ----------------------------------------------------------------------------


LISTENING = """
SELECT 1 FROM pg_stat_activity
 WHERE datname = current_database() AND query = 'LISTEN perdure_remote' AND state = 'idle'
"""


async def test_webhook_is_sent_once_with_the_run_and_its_values_and_a_signature(hooks, sink, monkeypatch):
    monkeypatch.setattr(outbox, "POLL_SECONDS", 3600)  # the notification has to do it
    async with hooks.sending():
        await hooks.lab.until(lambda: hooks.lab.rows(LISTENING))
        run = await hooks.run(f"{sink.url}/hook?x=1&y=a%20b")
        await until(lambda: sink.got)
        await asyncio.sleep(0.2)
    (got,) = sink.got
    assert got.path == "/hook?x=1&y=a%20b"
    assert Webhook(SECRET).verify(got.body, got.headers) == got.json
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"] == f"perdure/{__version__}"
    shown = orjson.loads(orjson.dumps(await runs.get(hooks.lab.engine, run["thread_id"], run["run_id"])))
    body = got.json
    assert body["values"] == {"text": "re: hello"}
    assert "error" not in body
    times = {key: body.pop(key) for key in ("run_started_at", "run_ended_at", "webhook_sent_at")}
    assert times["run_started_at"] < times["run_ended_at"] < times["webhook_sent_at"]
    assert all(value.endswith("+00:00") for value in times.values())
    assert {key: body[key] for key in shown} == shown
    row = await hooks.row()
    assert (row["status"], row["attempt"], row["http_status"], row["run"]) == ("delivered", 1, 200, None)


async def test_failed_run_sends_its_error(hooks, sink):
    await hooks.run(sink.url, "boom")
    await hooks.deliver()
    body = sink.got[0].json
    assert body["status"] == "error"
    assert body["error"] == {"error": "ValueError", "message": "boom happened"}
    assert body["values"] == {"text": "boom"}


async def test_cancelled_run_sends_one_too(hooks, sink):
    run = await hooks.lab.enqueue(await hooks.lab.thread(), {}, webhook=sink.url)
    await stop.cancel(hooks.lab.engine, run["thread_id"], run["run_id"])
    await hooks.deliver()
    body = sink.got[0].json
    assert (body["status"], body["run_started_at"], body["values"]) == ("interrupted", None, None)
    assert "error" not in body


async def test_run_that_asks_sends_its_question(hooks, sink):
    await hooks.run(sink.url, "ask")
    await hooks.deliver()
    body = sink.got[0].json
    assert body["status"] == "success"
    assert [question["value"] for question in body["values"]["__interrupt__"]] == ["really?"]


async def test_retried_paused_and_rolled_back_runs_send_nothing(hooks, sink):
    run = await hooks.run(sink.url, "again")
    assert (await hooks.lab.run(run))["status"] == "pending"
    await hooks.lab.execute("UPDATE runs SET failures = 69")
    await hooks.lab.retries_are_due()
    await hooks.lab.work()
    assert (await hooks.lab.run(run))["status"] == "paused"
    await stop.cancel(hooks.lab.engine, run["thread_id"], run["run_id"], "rollback")
    assert await hooks.count() == 0


async def test_run_without_a_webhook_leaves_no_row(hooks):
    await hooks.lab.enqueue(None, {})
    await hooks.lab.work()
    assert await hooks.count() == 0


async def test_webhook_and_status_are_one_transaction(hooks, sink):
    thread = await hooks.lab.thread()
    run = await hooks.lab.enqueue(thread, {}, webhook=sink.url)
    async with hooks.lab.engine.pool.connection() as conn, conn.transaction(force_rollback=True):
        await queue.end_run(conn, thread, run["run_id"], "success", None)
    assert await hooks.count() == 0
    assert (await hooks.lab.run(run))["status"] == "pending"


async def test_values_are_those_of_the_run_even_after_the_next_one(hooks, sink):
    thread = await hooks.lab.thread()
    await hooks.run(f"{sink.url}/1", "one", thread)
    await hooks.lab.enqueue(thread, {"text": "two"})
    await hooks.lab.work()
    await hooks.deliver()
    assert sink.got[0].json["values"] == {"text": "re: one"}


async def test_stateless_run_sends_null_values_after_its_thread_is_gone(hooks, sink):
    run = await hooks.run(sink.url, stateless=True)
    await hooks.lab.execute("UPDATE threads SET expires_at = now() - interval '1 s'")
    async with hooks.lab.connection() as conn:
        assert await sweeper.expired_threads(conn) == 1
    await hooks.deliver()
    body = sink.got[0].json
    assert (body["run_id"], body["status"], body["values"]) == (str(run["run_id"]), "success", None)


async def test_deleted_thread_is_told_of_first_and_forgotten_then(hooks, sink):
    first, second = await hooks.run(sink.url, "1"), await hooks.run(sink.url, "2")
    await threads.delete(hooks.lab.engine, first["thread_id"])
    await hooks.deliver()
    values = {body["thread_id"]: body["values"] for body in (got.json for got in sink.got)}
    assert values == {str(first["thread_id"]): None, str(second["thread_id"]): {"text": "re: 2"}}
    await threads.delete(hooks.lab.engine, second["thread_id"])
    assert (await hooks.row())["thread_id"] == first["thread_id"]


# --- at least once ---------------------------------------------------------------------------


async def test_error_of_the_receiver_is_retried_with_the_same_id(hooks, sink, monkeypatch):
    monkeypatch.setattr(delivery, "RETRY_INITIAL_SECONDS", 1000.0)
    sink.answers = [500, 503]
    await hooks.run(sink.url)
    await hooks.deliver()
    row = await hooks.lab.one("SELECT *, next_at - now() AS wait FROM webhooks")
    assert (row["status"], row["attempt"], row["http_status"]) == ("pending", 1, 500)
    assert 900 < row["wait"].total_seconds() <= 1000
    assert await hooks.claim() == [], "it is not due yet"
    for _ in range(2):
        await hooks.lab.execute(DUE_AGAIN)
        await hooks.deliver()
    assert len(sink.got) == 3
    assert len({got.id for got in sink.got}) == 1
    assert (await hooks.row())["status"] == "delivered"
    for got in sink.got:
        Webhook(SECRET).verify(got.body, got.headers)


async def test_killed_between_sending_and_writing_it_down_sends_again_with_the_same_id(hooks, sink):
    await hooks.run(sink.url)
    (dead,) = await hooks.claim()
    async with hooks.sender() as sender:
        assert await sender._send(dead) == 200  # and here the process dies
    assert await hooks.claim() == []
    await hooks.lab.execute(DUE_AGAIN)  # the lease has ended
    await hooks.deliver()
    first, second = sink.got
    assert first.id == second.id
    row = await hooks.row()
    await webhooks.settle(hooks.lab.engine.pool, dead, "failed", http_status=None, error="late")
    await webhooks.postpone(hooks.lab.engine.pool, dead, delay=0, http_status=None, error="late")
    assert await hooks.row() == row, "the dead one changes nothing any more"


async def test_stopped_while_sending_leaves_the_row_due_for_others(hooks, sink):
    release = threading.Event()
    sink.answers = [lambda: 200 if release.wait(120) else 500]
    hooks.set(webhook_timeout_seconds=300)
    await hooks.run(sink.url)
    async with hooks.sending():
        await until(lambda: sink.got)
    row = await hooks.lab.one("SELECT *, next_at <= now() AS due FROM webhooks")
    assert (row["status"], row["due"]) == ("pending", True)
    await hooks.deliver()
    release.set()
    assert len({got.id for got in sink.got}) == 1
    assert (await hooks.row())["status"] == "delivered"


async def test_two_processes_send_each_webhook_once(hooks, sink):
    for n in range(40):
        await hooks.lab.enqueue(None, {"text": str(n)}, webhook=f"{sink.url}/{n}")

    async def all_are_settled() -> bool:
        return len(await hooks.lab.rows("SELECT 1 FROM webhooks WHERE settled_at IS NOT NULL")) == 40

    async with hooks.sending(2):
        await hooks.lab.work()
        await hooks.lab.until(all_are_settled)
    assert sorted(int(got.path[1:]) for got in sink.got) == list(range(40))
    rows = await hooks.lab.rows("SELECT DISTINCT status, attempt FROM webhooks")
    assert rows == [{"status": "delivered", "attempt": 1}]


async def test_concurrent_claims_share_the_rows(hooks, make_sink):
    for _ in range(3):
        sink = make_sink()
        for _ in range(10):
            await hooks.lab.enqueue(None, {}, webhook=sink.url)
    await hooks.lab.work()
    claimed: list[webhooks.Due] = []
    while round_ := [due for many in await asyncio.gather(*(hooks.claim() for _ in range(4))) for due in many]:
        claimed += round_
    assert len({due.webhook_id for due in claimed}) == len(claimed) == 30


async def test_last_failure_is_kept_and_logged(hooks, sink):
    sink.answers = [500] * 3
    await hooks.run(sink.url)
    for _ in range(4):
        await hooks.deliver()
        await hooks.lab.execute(DUE_AGAIN)
    assert len(sink.got) == 3
    row = await hooks.row()
    assert (row["status"], row["error"], row["next_at"]) == ("failed", "the receiver answered 500", None)
    assert row["run"] is not None
    (line,) = [line for line in hooks.lab.logs if line["event"] == "webhook given up"]
    assert line["log_level"] == "error"
    assert sink.url not in repr(line["host"])


async def test_receiver_that_is_gone_is_not_asked_again(hooks, sink):
    sink.answers = [410]
    await hooks.run(sink.url)
    await hooks.deliver()
    assert (await hooks.row())["status"] == "failed"


async def test_receiver_that_cannot_be_reached_or_says_nothing_is_tried_again(hooks, sink):
    with socket.socket() as bound:  # it does not listen, and nobody else is given its port
        bound.bind(("127.0.0.1", 0))
        await hooks.run(f"http://127.0.0.1:{bound.getsockname()[1]}/")
        await hooks.deliver()
    assert (await hooks.row())["error"].startswith("ConnectError")
    await hooks.lab.execute("DELETE FROM webhooks")
    hooks.set(webhook_timeout_seconds=0.3)
    sink.answers = [lambda: time.sleep(1) or 200]
    await hooks.run(sink.url)
    await hooks.deliver()
    row = await hooks.row()
    assert (row["status"], row["error"]) == ("pending", "no answer within 0.3 s")


async def test_slow_receiver_holds_up_no_other(hooks, make_sink):
    slow, quick = make_sink(), make_sink()
    release = threading.Event()
    slow.answers = [lambda: 200 if release.wait(120) else 500] * 200
    for _ in range(100):
        await hooks.lab.enqueue(None, {}, webhook=slow.url)
    await hooks.lab.enqueue(None, {}, webhook=quick.url)
    await hooks.lab.work()
    hooks.set(webhook_timeout_seconds=300)
    async with hooks.sending():
        await until(lambda: quick.got)
        assert len(slow.got) <= 2 * webhooks.HOST_SLOTS
        release.set()


async def test_restart_of_the_database_does_not_end_the_thread(hooks, sink):
    async with hooks.sending():
        await asyncio.sleep(0.2)
        await hooks.lab.cut_connections()
        await hooks.lab.engine.pool.check()
        await hooks.lab.enqueue(None, {}, webhook=sink.url)
        await hooks.lab.work()
        await until(lambda: sink.got)


async def test_settled_webhooks_are_forgotten_in_time(hooks, sink):
    sink.answers = [200, 410]
    await hooks.run(sink.url)
    await hooks.run(sink.url)
    await hooks.deliver()
    for age, left in (("23 hours", 2), ("2 days", 1), ("31 days", 0)):
        await hooks.lab.execute(f"UPDATE webhooks SET settled_at = now() - interval '{age}'")
        async with hooks.lab.connection() as conn:
            await webhooks.expire(conn)
        assert await hooks.count() == left


def test_back_off_doubles_up_to_an_hour():
    assert [backoff(n) for n in (1, 2, 3, 11, 12, 500)] == [5, 10, 20, 3600, 3600, 3600]


# --- where it may go -------------------------------------------------------------------------


async def test_redirect_is_not_followed(hooks, sink, make_sink):
    other = make_sink()
    sink.answers, sink.location = [302, 307], other.url
    await hooks.run(sink.url)
    await hooks.deliver()
    assert (await hooks.row())["error"] == "the receiver answered 302"
    assert other.got == []


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """Host names of this test and the addresses they have; how often each was looked up is under its `count`."""
    known: dict[str, list[str]] = {"asked": []}
    original = socket.getaddrinfo

    def lookup(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in known:
            return original(host, port, *args, **kwargs)
        known["asked"].append(host)
        return [entry for address in known[host] for entry in original(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::ffff:127.0.0.1"])
async def test_name_of_a_private_address_is_refused_when_it_is_called(hooks, sink, names, address):
    names["hook.example.com"] = [address]
    hooks.rules({"require_https": False})
    await hooks.run(sink.url.replace("127.0.0.1", "hook.example.com"))
    await hooks.deliver()
    row = await hooks.row()
    assert row["status"] == "failed", "trying again would not help"
    assert "which is not allowed" in row["error"]
    assert sink.got == []


async def test_private_address_is_refused_when_it_is_called(hooks, sink):
    await hooks.run(sink.url)  # accepted under rules that the operator has tightened since
    hooks.rules({"require_https": False})
    await hooks.deliver()
    assert (await hooks.row())["status"] == "failed"
    assert sink.got == []


async def test_connection_goes_to_the_address_that_was_checked(hooks, sink, names):
    names["hook.example.com"] = ["127.0.0.1"]
    port = sink.url.rpartition(":")[2]
    await hooks.run(f"http://user:pass@hook.example.com:{port}/x")
    await hooks.deliver()
    (got,) = sink.got
    assert got.headers["host"] == f"hook.example.com:{port}"
    assert got.headers["authorization"] == "Basic " + base64.b64encode(b"user:pass").decode()
    assert names["asked"] == ["hook.example.com"], "looked up once: no second answer can differ"
    assert (await hooks.row())["host"] == f"hook.example.com:{port}", "without the password"


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("93.184.215.14", True, True),
        ("2606:4700::1111", True, True),
        ("64:ff9b::5db8:d70e", True, True),
        ("127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("100.64.0.1", False, True),
        ("0.0.0.0", False, True),
        ("::1", False, True),
        ("::", False, True),
        ("fd00::1", False, True),
        ("::ffff:10.0.0.1", False, True),
        ("::127.0.0.1", False, True),
        ("2002:7f00:1::", False, True),
        ("64:ff9b::7f00:1", False, True),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("fe80::1", False, False),
        ("168.63.129.16", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
    ],
)
def test_addresses(address: str, public: bool, private: bool) -> None:
    parsed = ipaddress.ip_address(address)
    assert urls.allowed(parsed, private=False) is public
    assert urls.allowed(parsed, private=True) is private


# --- what the operator sets ------------------------------------------------------------------


async def test_headers_of_langgraph_json_go_along(hooks, sink, monkeypatch):
    monkeypatch.setenv("LG_WEBHOOK_TOKEN", "t0ken")
    given = {"Authorization": "Bearer ${{ env.LG_WEBHOOK_TOKEN }}", "webhook-id": "mine", "Host": "other"}
    hooks.headers = extra_headers({"webhooks": {"headers": given}})
    await hooks.run(sink.url)
    await hooks.deliver()
    (got,) = sink.got
    assert got.headers["authorization"] == "Bearer t0ken"
    assert got.headers["host"] in sink.url
    assert got.id.startswith("msg_")


@pytest.mark.parametrize(
    "headers", [{"a": "${{ env.OPENAI_API_KEY }}"}, {"a": "${{ env.LG_WEBHOOK_UNSET }}"}, {"a b": "c"}, {"a": 1}, [1]]
)
def test_headers_that_cannot_be_sent_are_an_error_of_the_configuration(headers, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(ConfigError, match=r"webhooks\.headers"):
        extra_headers({"webhooks": {"headers": headers}})


async def test_each_of_several_secrets_verifies(hooks, sink):
    other = "whsec_" + base64.b64encode(b"the secret that comes next year.").decode()
    hooks.set(webhook_secret=Settings(webhook_secret=f"{SECRET} {other}").webhook_secret)
    await hooks.run(sink.url)
    await hooks.deliver()
    for secret in (SECRET, other):
        Webhook(secret).verify(sink.got[0].body, sink.got[0].headers)


@pytest.mark.parametrize("secret", ["whsec_", "not base64!", "whsec_c2hvcnQ="])
def test_secret_that_protects_nothing_is_refused(secret):
    with pytest.raises(ConfigError, match="PERDURE_WEBHOOK_SECRET") as refused:
        signers(Settings(webhook_secret=secret))
    assert secret == "whsec_" or secret not in str(refused.value)
