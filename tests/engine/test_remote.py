"""Children on other servers: started once, learned of, cancelled; whatever the other side and the processes do."""

import asyncio
import base64
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from pydantic import SecretStr
from standardwebhooks import Webhook
from typing_extensions import TypedDict

from perdure import TerminalError, agent, gather, race
from perdure.config import Settings
from perdure.engine import calling, children, interrupts, orphans, queue, remote, runs, stop, threads, tries
from perdure.engine.calling import Caller, server_keys
from perdure.engine.errors import InvalidInput, LeaseLost, QuestionClosed
from perdure.engine.registry import ConfigError
from perdure.engine.tracing import ids
from perdure.engine.views import questions

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()
DUE = "UPDATE remote_calls SET next_at = now() WHERE next_at IS NOT NULL"
NOT_YET_DUE = "UPDATE remote_calls SET next_at = next_at + interval '1 hour'"


class State(TypedDict, total=False):
    server: str
    key: str
    out: Any


class World:
    """What the graphs of this file note, outside of the database."""

    caught: list[TerminalError] = []  # noqa: RUF012


async def call(state: State) -> State:
    try:
        return {"out": await agent("crm", {"q": 1}, key=state.get("key"), server=state["server"])}
    except TerminalError as exc:
        World.caught.append(exc)
        raise


async def both(state: State) -> State:
    return {"out": await gather(agent("crm", {"q": 1}, server=state["server"]), agent("local", {}))}


async def fastest(state: State) -> State:
    return {"out": await race(agent("crm", {"q": 1}, server=state["server"]), agent("local", {}))}


async def send(state: State) -> State:
    return {"out": await agent.send("crm", {"q": 1}, delay=6000, server=state["server"])}


async def local(state: State) -> State:
    return {"out": "local"}


async def ask(state: State) -> State:
    if state.get("server") == "quiet":
        return {"out": "two"}
    return {"out": interrupt("really?")}


async def delegate(state: State) -> State:
    return {"out": (await agent("ask", {"server": state.get("server", "")}, key=state.get("key")))["out"]}


async def itself(state: State) -> State:
    return {"out": await agent("itself", {"key": "k"}, key="k")}


async def deeper(state: State) -> State:
    return {"out": await agent("deeper", {})}


def graph(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile()


NODES = {"default": call, "both": both, "fastest": fastest, "send": send, "local": local, "ask": ask}
NODES |= {"delegate": delegate, "itself": itself, "deeper": deeper}
GRAPHS = {name: graph(node) for name, node in NODES.items()}


@dataclass
class Got:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Far:
    """Another server. `answers[method path ending]` is a status and a body, or what gives them."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def paths(self) -> list[str]:
        return [f"{one.method} {one.path}" for one in self.got]


@pytest.fixture
def far() -> Iterator[Far]:
    far = Far()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = Got(self.command, self.path, headers, orjson.loads(raw) if raw else None)
            far.got.append(got)
            place = f"{self.command} {self.path.partition('?')[0]}"
            found = next((answer for ending, answer in far.answers.items() if matches(place, ending)), (404, None))
            status, body = found(got) if callable(found) else found
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else orjson.dumps(body or {"detail": "Not Found"}))
            except OSError:
                pass  # the sender has gone

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    def matches(place: str, ending: str) -> bool:
        method, _, path = ending.partition(" ")
        return place.startswith(f"{method} ") and place.endswith(path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    far.url = f"http://127.0.0.1:{server.server_port}"
    yield far
    server.shutdown()
    server.server_close()


@pytest.fixture
def settings() -> Settings:
    return Settings(database_url="unused", retry_initial_seconds=5, webhook_timeout_seconds=60, event_flush_ms=5)


@pytest.fixture
def calls(lab: Any, far: Far) -> "Calls":
    World.caught.clear()
    return Calls(lab, far)


@dataclass
class Calls:
    """Deeds of the speaking side, one by one."""

    lab: Any
    far: Far
    began: float = 0.0
    """When `speak` was last called."""

    def set(self, **given: Any) -> None:
        self.lab.engine = replace(self.lab.engine, settings=self.lab.engine.settings.model_copy(update=given))

    async def parent(self, assistant: str = "default", **given: Any) -> dict[str, Any]:
        """A run that has called the other server and waits."""
        run = await self.lab.enqueue(await self.lab.thread(), {"server": self.far.url, **given}, assistant=assistant)
        await self.lab.work()
        return run

    async def row(self) -> dict[str, Any]:
        return await self.lab.one("SELECT * FROM remote_calls ORDER BY created_at DESC LIMIT 1")

    async def claim(self) -> list[tries.Due]:
        return await tries.claim(self.lab.engine.pool, limit=10, busy=[], lease_seconds=30)

    async def speak(self, *, due: bool = True) -> dict[str, Any]:
        """Say what is due, once."""
        if due:
            await self.lab.execute(DUE)
        self.began = time.monotonic()
        async with Caller(self.lab.engine) as caller:
            for one in await self.claim():
                await caller.speak(one)
        return await self.row()

    async def started(self, assistant: str = "default", **given: Any) -> dict[str, Any]:
        """A run whose child the other server has accepted."""
        self.far.answers["POST /runs"] = (200, {"thread_id": "t-1", "run_id": "r-1"})
        run = await self.parent(assistant, **given)
        await self.speak()
        return run

    def ends(self, **outcome: Any) -> None:
        self.far.answers["GET /outcome"] = (200, {"output": None, "error": None, **outcome})

    async def seconds(self) -> float:
        """Until the call is due."""
        query = (
            "SELECT extract(epoch FROM next_at - now())::float8 AS s FROM remote_calls ORDER BY created_at DESC LIMIT 1"
        )
        return (await self.lab.one(query))["s"]

    async def waits(self, seconds: float) -> None:
        """What was said last has made the call due so many seconds later, however long ago that was."""
        left = await self.seconds()
        assert seconds - (time.monotonic() - self.began) <= left <= seconds

    async def status(self, run: dict[str, Any]) -> str:
        return (await self.lab.run(run))["status"]

    async def callback(self, token: str, body: bytes = b"{}", headers: dict[str, str] | None = None) -> None:
        await remote.called_back(self.lab.engine, token, body, headers or {})


# -- starting


async def test_a_child_is_one_row_then_one_request_and_its_output_the_callers(calls: Calls) -> None:
    run = await calls.parent()
    row = await calls.row()
    assert (row["status"], row["bound"], row["callback_url"]) == ("starting", True, None)
    assert await calls.status(run) == "suspended"
    assert (await calls.lab.run(run))["ready_at"] is None
    assert not calls.far.got
    calls.far.answers["POST /runs"] = (200, {"thread_id": "t-1", "run_id": "r-1"})
    row = await calls.speak()
    (got,) = calls.far.got
    assert got.path == f"/threads/{row['call_id']}/runs"
    assert got.headers["idempotency-key"] == str(row["call_id"])
    assert got.body == {
        "assistant_id": "crm",
        "input": {"q": 1},
        "if_not_exists": "create",
        "metadata": {"call_id": str(row["call_id"]), "callers": [str(run["thread_id"])]},
    }
    assert (row["status"], row["remote_thread_id"], row["remote_run_id"]) == ("running", "t-1", "r-1")
    calls.ends(status="done", output={"plan": "pro"})
    row = await calls.speak()
    assert calls.far.got[-1].path == "/threads/t-1/runs/r-1/outcome"
    assert (row["status"], row["next_at"], row["input"]) == ("done", None, None)
    await calls.lab.work()
    assert await calls.status(run) == "success"
    assert await runs.result(calls.lab.engine, run["thread_id"], run["run_id"]) == {
        "server": calls.far.url,
        "out": {"plan": "pro"},
    }


async def test_a_replay_after_a_crash_finds_the_same_call(calls: Calls) -> None:
    for writes in range(20):
        run = await calls.lab.enqueue(await calls.lab.thread(), {"server": calls.far.url})
        died = await calls.lab.work_until_killed(writes)
        await calls.lab.retries_are_due()
        await calls.lab.work()
        assert await calls.status(run) == "suspended"
        ids = await calls.lab.rows("SELECT call_id FROM remote_calls WHERE run_id = %(id)s", id=run["run_id"])
        assert len(ids) == 1, f"killed before write {writes}"
        if not died:
            return
    pytest.fail("the attempt never ended")


async def test_the_start_waits_as_a_row_with_growing_waits_while_the_server_is_down(calls: Calls) -> None:
    run = await calls.parent()
    calls.far.answers["POST /runs"] = (503, {"detail": "starting up"})
    for seconds in (5, 10, 20, 40, 60, 60):
        row = await calls.speak()
        assert row["status"] == "starting"
        await calls.waits(seconds)
    assert row["problem"] == f"{calls.far.url} answered 503: starting up"
    assert await calls.status(run) == "suspended"
    await calls.lab.execute("UPDATE remote_calls SET server = 'http://127.0.0.1:1'")
    assert "ConnectError" in (await calls.speak())["problem"]
    await calls.lab.execute("UPDATE remote_calls SET server = %(url)s", url=calls.far.url)
    calls.far.answers["POST /runs"] = (200, {"thread_id": "t-1", "run_id": "r-1"})
    row = await calls.speak()
    assert (row["status"], row["tries"], row["problem"]) == ("running", 0, None)
    keys = {got.headers["idempotency-key"] for got in calls.far.got if got.method == "POST"}
    assert keys == {str(row["call_id"])}


async def test_a_start_whose_answer_was_lost_is_found_again_at_a_server_without_idempotency(calls: Calls) -> None:
    await calls.parent()
    calls.far.answers["POST /runs"] = (500, None)
    row = await calls.speak()
    mine = {"thread_id": "t-1", "run_id": "r-1", "metadata": {"call_id": str(row["call_id"])}}
    calls.far.answers["GET /runs"] = (200, [{"run_id": "other", "metadata": {}}, mine])
    row = await calls.speak()
    assert (row["status"], row["remote_run_id"]) == ("running", "r-1")
    assert [got.method for got in calls.far.got] == ["POST", "GET"]


@pytest.mark.parametrize(
    ("status", "detail", "text"),
    [(404, "Assistant 'crm' not found", "404: Assistant 'crm' not found"), (401, "no key", "401"), (307, None, "307")],
)
async def test_a_refused_start_is_a_terminal_error_with_status_and_text(
    calls: Calls, status: int, detail: str | None, text: str
) -> None:
    run = await calls.parent()
    calls.far.answers["POST /runs"] = (status, {"detail": detail} if detail else None)
    assert (await calls.speak())["status"] == "failed"
    await calls.lab.work()
    assert await calls.status(run) == "error"
    (caught,) = World.caught
    assert caught.status == status
    assert "CallRefused" in str(caught)
    assert text in str(caught)


async def test_a_404_of_a_proxy_refuses_nothing(calls: Calls) -> None:
    await calls.parent()
    calls.far.answers["POST /runs"] = (404, b"<html>no backend</html>")
    assert (await calls.speak())["status"] == "starting"
    await calls.lab.execute("DELETE FROM remote_calls")
    await calls.started()
    for answer in (404, b"<html>"), (200, b"<html>"), (200, {"status": "?"}), (500, None), (403, None):
        calls.far.answers["GET "] = answer
        assert (await calls.speak())["status"] == "running"


async def test_addresses_that_are_never_called(calls: Calls) -> None:
    run = await calls.parent()
    await calls.lab.execute("UPDATE remote_calls SET server = 'http://169.254.169.254'")
    row = await calls.speak()
    assert (row["status"], row["error"]["error"]) == ("failed", "AddressRefused")
    await calls.lab.work()
    assert await calls.status(run) == "error"
    owner = await calls.lab.claim_one() if await calls.lab.enqueue(await calls.lab.thread(), {"server": "x"}) else None
    with pytest.raises(InvalidInput, match="no http or https address"):
        await remote.start(
            *(calls.lab.engine, owner, "file:///etc/passwd", "crm", {}),
            key=None,
            callers=[],
            idempotency_key="1",
            delay=0,
            bound=True,
        )


async def test_a_key_of_the_settings_goes_to_its_server_only_and_is_never_logged(calls: Calls) -> None:
    calls.set(remote_keys=SecretStr(orjson.dumps({f"{calls.far.url}/": "geheim", "http://other": "x"}).decode()))
    await calls.started()
    calls.far.answers["GET "] = (500, {"detail": "no"})
    await calls.speak()
    assert [got.headers.get("x-api-key") for got in calls.far.got] == ["geheim", "geheim"]
    await calls.lab.execute("UPDATE remote_calls SET server = replace(server, '127.0.0.1', 'localhost')")
    await calls.speak()
    assert "x-api-key" not in calls.far.got[-1].headers
    assert "geheim" not in repr(calls.lab.logs)
    assert "geheim" not in repr(await calls.row())
    for wrong in ("geheim", '["geheim"]', '{"crm": "geheim"}', '{"http://crm": 5}'):
        with pytest.raises(ConfigError, match="PERDURE_REMOTE_KEYS") as caught:
            server_keys(calls.lab.engine.settings.model_copy(update={"remote_keys": SecretStr(wrong)}))
        assert "geheim" not in str(caught.value)


async def test_with_a_key_the_child_is_a_call_of_a_session(calls: Calls) -> None:
    calls.set(public_url="https://us.example/")
    run = await calls.parent(key="user/1")
    calls.far.answers["POST /send"] = (202, {"thread_id": "t-1", "run_id": "r-1", "status": "pending"})
    row = await calls.speak()
    (got,) = calls.far.got
    path, _, query = got.path.partition("?")
    assert path == "/agents/crm/user%2F1/send"
    assert query == f"webhook=https%3A%2F%2Fus.example%2Fcallbacks%2F{row['token']}"
    assert got.body == {"q": 1}
    assert got.headers["perdure-callers"] == str(run["thread_id"])
    attempt = ids.Parent(run["run_id"].int, ids.attempt_span(run["run_id"], 1))
    assert got.headers["traceparent"] == str(attempt), "the child goes on with the caller's trace"
    assert (row["status"], row["callback_url"]) == ("running", f"https://us.example/callbacks/{row['token']}")


async def test_send_hands_the_run_over_and_nobody_waits(calls: Calls) -> None:
    run = await calls.parent("send")
    row = await calls.row()
    out = await runs.result(calls.lab.engine, run["thread_id"], run["run_id"])
    assert out["out"] == str(row["call_id"])
    await calls.lab.execute("UPDATE remote_calls SET available_at = available_at - interval '2000 s'")
    await threads.delete(calls.lab.engine, run["thread_id"])
    await orphans.cancel_orphans(calls.lab.engine)
    calls.far.answers["POST /runs"] = (200, {"thread_id": "t-1", "run_id": "r-1"})
    row = await calls.speak()
    body = calls.far.got[0].body
    assert 3000 < body["after_seconds"] <= 4000, "what is left of the delay"
    assert body["metadata"]["callers"] == []
    assert "webhook" not in body
    assert (row["status"], row["remote_run_id"]) == ("done", "r-1")


# -- learning of the end


async def test_a_running_child_is_looked_at_with_growing_waits(calls: Calls) -> None:
    await calls.started()
    await calls.waits(calling.LOOK_INITIAL)
    calls.ends(status="running")
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        await calls.speak()
        await calls.waits(seconds)


async def test_a_server_that_calls_back_is_looked_at_rarely_and_one_that_may_not_as_without(calls: Calls) -> None:
    calls.set(public_url="http://10.0.0.1")
    await calls.started()
    assert calls.far.got[0].body["webhook"] == f"http://10.0.0.1/callbacks/{(await calls.row())['token']}"
    await calls.waits(calling.CALLED_INITIAL)
    await calls.lab.execute("DELETE FROM remote_calls")

    def refuses(got: Got) -> tuple[int, Any]:
        if "webhook" in got.body:
            return 422, {"detail": "webhook: 10.0.0.1 is on this machine or in a private network"}
        return 200, {"thread_id": "t-1", "run_id": "r-1"}

    await calls.parent()
    calls.far.answers["POST /runs"] = refuses
    row = await calls.speak()
    assert (row["status"], row["callback_url"]) == ("running", None)
    await calls.waits(calling.LOOK_INITIAL)


@pytest.mark.parametrize(
    ("outcome", "text", "status"),
    [
        ({"status": "failed", "error": {"error": "Card", "message": "no money", "status": 402}}, "Card: no money", 402),
        ({"status": "failed", "error": {"error": "ValueError", "message": "boom"}}, "ValueError: boom", 422),
        ({"status": "cancelled"}, "was cancelled", 409),
        ({"status": "gone"}, "was deleted", 409),
    ],
)
async def test_a_child_that_does_not_succeed_is_a_terminal_error(
    calls: Calls, outcome: dict[str, Any], text: str, status: int
) -> None:
    run = await calls.started()
    calls.ends(**outcome)
    await calls.speak()
    await calls.lab.work()
    row = await calls.lab.run(run)
    assert row["status"] == "error"
    assert text in row["error"]["message"]
    assert calls.far.url in row["error"]["message"]
    (caught,) = World.caught
    assert caught.status == status


async def test_a_callback_is_a_nudge_and_may_come_any_number_of_times(calls: Calls) -> None:
    calls.set(public_url="https://us.example")
    run = await calls.started()
    token = (await calls.row())["token"]
    calls.ends(status="running")
    await calls.lab.execute(NOT_YET_DUE)
    assert await calls.claim() == []
    for _ in range(3):
        await calls.callback(token, b'{"status": "success", "values": {"forged": true}}')
        await calls.speak(due=False)
    assert [got.method for got in calls.far.got] == ["POST", "GET", "GET", "GET"]
    assert await calls.status(run) == "suspended", "what the callback says is not believed"
    calls.ends(status="done", output="true")
    await calls.callback(token)
    assert (await calls.speak(due=False))["output"] == "true"
    await calls.callback(token)
    assert (await calls.row())["next_at"] is None
    for unknown in ("x", "", token[:-1], "a" * 1000):
        with pytest.raises(InvalidInput, match="Nobody waits") as caught:
            await calls.callback(unknown)
        assert caught.value.status == 410


async def test_a_callback_that_comes_while_we_look_is_not_lost(calls: Calls) -> None:
    calls.set(public_url="https://us.example")
    await calls.started()
    token = (await calls.row())["token"]
    await calls.lab.execute(DUE)
    (due,) = await calls.claim()
    await calls.callback(token)
    assert await calls.claim() == [], "somebody is speaking"
    await tries.later(calls.lab.engine.pool, due, delay=300, problem=None, plain=False)
    assert len(await calls.claim()) == 1
    # before the start was noted as well
    await calls.lab.execute("UPDATE remote_calls SET status = 'starting'")
    await calls.callback(token)
    due = replace(due, attempt=(await calls.row())["attempt"])
    ids = {"thread_id": "t", "run_id": "r", "callback_url": None}
    await tries.started(calls.lab.engine.pool, due, **ids, delay=300)
    assert len(await calls.claim()) == 1


async def test_a_callback_needs_our_signature_where_we_sign(calls: Calls) -> None:
    other = "whsec_" + base64.b64encode(b"another secret of the tests, 32.").decode()
    calls.set(public_url="https://us.example", webhook_secret=SecretStr(f"{other} {SECRET}"))
    await calls.started()
    await calls.lab.execute(NOT_YET_DUE)
    token, now, body = (await calls.row())["token"], datetime.now(UTC), b'{"run_id": "r-1"}'

    def signed(secret: str, at: datetime = now) -> dict[str, str]:
        stamp = str(int(at.timestamp()))
        signature = Webhook(secret).sign("msg_1", at, body.decode())
        return {"webhook-id": "msg_1", "webhook-timestamp": stamp, "webhook-signature": signature}

    wrong = [
        {},
        {"webhook-id": "msg_1"},
        signed("whsec_" + base64.b64encode(b"x" * 32).decode()),
        signed(SECRET, now.replace(year=now.year - 1)),
        {**signed(SECRET), "webhook-timestamp": "x"},
    ]
    for headers in wrong:
        with pytest.raises(InvalidInput, match="no valid signature") as caught:
            await calls.callback(token, body, headers)
        assert caught.value.status == 401
    with pytest.raises(InvalidInput, match="no valid signature"):
        await calls.callback(token, b"{}", signed(SECRET))
    assert await calls.claim() == []
    for secret in (SECRET, other):
        await calls.callback(token, body, signed(secret))
    assert len(await calls.claim()) == 1


async def test_gather_waits_for_both_kinds_and_race_takes_the_first(calls: Calls) -> None:
    run = await calls.started("both")
    assert await calls.status(run) == "suspended"
    calls.ends(status="done", output={"plan": "pro"})
    await calls.speak()
    await calls.lab.work()
    out = await runs.result(calls.lab.engine, run["thread_id"], run["run_id"])
    assert out["out"] == [{"plan": "pro"}, {"out": "local"}]
    await calls.lab.execute("DELETE FROM remote_calls")
    run = await calls.parent("fastest")
    assert (await runs.result(calls.lab.engine, run["thread_id"], run["run_id"]))["out"] == {"out": "local"}
    assert (await calls.row())["status"] == "cancelled", "it was never tried: no word is needed"


# -- an Agent Server that is not perdure


async def test_an_agent_server_without_outcomes_is_asked_for_run_and_thread(calls: Calls) -> None:
    run = await calls.started()
    far = calls.far.answers
    run_path, thread_path = "GET /threads/t-1/runs/r-1", "GET /threads/t-1"
    far[run_path] = (200, {"status": "running"})
    row = await calls.speak()
    assert (row["status"], row["plain"]) == ("running", True)
    far[run_path], far[thread_path] = (200, {"status": "success"}), (200, {"status": "interrupted"})
    before = len(calls.far.got)
    assert (await calls.speak())["status"] == "running", "it asks a person"
    assert calls.far.paths()[before:] == [run_path, thread_path]
    far[thread_path] = (200, {"status": "busy"})
    assert (await calls.speak())["status"] == "running", "it goes on with the answer"
    far[thread_path] = (200, {"status": "idle", "values": {"plan": "pro"}})
    assert (await calls.speak())["output"] == {"plan": "pro"}
    await calls.lab.work()
    assert await calls.status(run) == "success"


@pytest.mark.parametrize(
    ("run", "thread", "status", "error"),
    [
        ({"status": "error"}, {"status": "error", "error": {"error": "Card", "message": "x"}}, "failed", "Card"),
        ({"status": "timeout"}, {"status": "idle", "error": "late"}, "failed", "Error"),
        ({"status": "success"}, {"status": "error", "error": None}, "failed", "Error"),
        ({"status": "interrupted"}, None, "cancelled", None),
        (None, None, "gone", None),
        ({"status": "success"}, None, "gone", None),
    ],
)
async def test_ends_of_a_run_at_an_agent_server(calls: Calls, run: Any, thread: Any, status: str, error: Any) -> None:
    await calls.started()
    for path, body in (("GET /threads/t-1/runs/r-1", run), ("GET /threads/t-1", thread)):
        calls.far.answers[path] = (200, body) if body else (404, None)
    row = await calls.speak()
    assert row["status"] == status
    assert (row["error"] or {}).get("error") == error


# -- cancelling


@pytest.mark.parametrize("how", ["cancel", "rollback", "delete"])
async def test_a_child_is_cancelled_with_its_caller_until_the_other_server_has_heard(calls: Calls, how: str) -> None:
    run = await calls.started()
    if how == "delete":
        await threads.delete(calls.lab.engine, run["thread_id"])
        await orphans.cancel_orphans(calls.lab.engine)
    else:
        action = "rollback" if how == "rollback" else "interrupt"
        await stop.cancel(calls.lab.engine, run["thread_id"], run["run_id"], action)
    row = await calls.row()
    assert (row["status"], row["cancelling"]) == ("running", True)
    assert await calls.seconds() <= 0
    calls.far.answers["DELETE /outcome"] = (503, None)
    for seconds in (5, 10, 20):
        await calls.speak()
        await calls.waits(seconds)
    calls.far.answers["DELETE /outcome"] = (202, b"")
    assert (await calls.speak())["status"] == "cancelled"
    assert calls.far.paths()[1:] == ["DELETE /threads/t-1/runs/r-1/outcome"] * 4


@pytest.mark.parametrize("status", [202, 204, 404, 409])
async def test_an_agent_server_hears_of_a_cancel_in_its_own_words(calls: Calls, status: int) -> None:
    run = await calls.started()
    await stop.cancel(calls.lab.engine, run["thread_id"], run["run_id"])
    calls.far.answers["POST /cancel"] = (status, None)
    assert (await calls.speak())["status"] == "cancelled"
    assert calls.far.paths()[-1] == "POST /threads/t-1/runs/r-1/cancel"


async def test_a_start_that_was_never_tried_is_cancelled_without_a_word(calls: Calls) -> None:
    run = await calls.parent()
    await stop.cancel(calls.lab.engine, run["thread_id"], run["run_id"])
    assert (await calls.row())["status"] == "cancelled"
    await calls.speak()
    assert not calls.far.got


async def test_a_start_that_may_have_arrived_is_looked_for_before_it_counts_as_cancelled(calls: Calls) -> None:
    run = await calls.parent()
    calls.far.answers["POST /runs"] = (500, None)
    row = await calls.speak()
    await stop.cancel(calls.lab.engine, run["thread_id"], run["run_id"])
    calls.far.answers["GET /runs"] = (200, [])
    row = await calls.speak()
    assert (row["status"], row["next_at"] is None) == ("starting", False)
    await calls.waits(calling.UNSURE_SECONDS)
    mine = {"thread_id": "t-1", "run_id": "r-1", "metadata": {"call_id": str(row["call_id"])}}
    calls.far.answers |= {"GET /runs": (200, [mine]), "DELETE /outcome": (202, None)}
    assert (await calls.speak())["status"] == "cancelled"
    assert calls.far.paths()[-1] == "DELETE /threads/t-1/runs/r-1/outcome"


async def test_a_cancel_that_comes_while_the_start_is_under_way_is_carried_out(calls: Calls) -> None:
    run = await calls.parent()
    (due,) = await calls.claim()
    await stop.cancel(calls.lab.engine, run["thread_id"], run["run_id"])
    assert await calls.claim() == []
    ids = {"thread_id": "t-1", "run_id": "r-1", "callback_url": None}
    await tries.started(calls.lab.engine.pool, due, **ids, delay=300)
    calls.far.answers["DELETE /outcome"] = (202, None)
    assert (await calls.speak(due=False))["status"] == "cancelled"


async def test_the_loser_of_a_race_is_cancelled_over_there(calls: Calls) -> None:
    calls.far.answers["POST /runs"] = (200, {"thread_id": "t-1", "run_id": "r-1"})
    run = await calls.lab.enqueue(await calls.lab.thread(), {"server": calls.far.url}, assistant="fastest")
    await calls.lab.play(calls.lab.attempt(await calls.lab.claim_one()))
    await calls.speak()
    await calls.lab.work()
    assert await calls.status(run) == "success"
    calls.far.answers["DELETE /outcome"] = (202, None)
    assert (await calls.speak(due=False))["status"] == "cancelled"


# -- who may write


async def test_a_stale_try_changes_nothing(calls: Calls) -> None:
    await calls.parent()
    (stale,) = await calls.claim()
    await calls.lab.execute(DUE)
    (fresh,) = await calls.claim()
    pool, before = calls.lab.engine.pool, await calls.row()
    ids = {"thread_id": "t", "run_id": "r"}
    await tries.started(pool, stale, **ids, callback_url=None, delay=0)
    await tries.later(pool, stale, delay=0, problem="x", plain=True)
    assert await tries.settle(pool, stale, "done", output=1) is False
    assert await calls.row() == before
    assert await tries.settle(pool, fresh, "done", output=1) is True
    assert await tries.settle(pool, fresh, "failed") is False
    assert (await calls.row())["status"] == "done"


async def test_a_worker_that_has_lost_the_run_starts_and_cancels_nothing(calls: Calls) -> None:
    await calls.lab.enqueue(await calls.lab.thread(), {"server": calls.far.url})
    zombie = await calls.lab.claim_one()
    engine = calls.lab.engine
    child = await children.start(
        *(engine, zombie, "crm", {}), key=None, idempotency_key="1", delay=0, bound=True, server=calls.far.url
    )
    await calls.lab.fence_off(zombie.thread_id)
    with pytest.raises(LeaseLost):
        await children.start(
            *(engine, zombie, "crm", {}), key=None, idempotency_key="2", delay=0, bound=True, server=calls.far.url
        )
    with pytest.raises(LeaseLost):
        await orphans.cancel(engine, zombie, child)
    row = await calls.row()
    assert (row["cancelling"], row["status"]) == (False, "starting")
    # nor does it become the one who is woken
    with pytest.raises(LeaseLost):
        await children.outcome(engine, replace(zombie, run_id=uuid4()), child)
    assert (await calls.row())["run_id"] == zombie.run_id


async def test_the_end_is_not_missed_between_looking_and_suspending(calls: Calls) -> None:
    run = await calls.lab.enqueue(await calls.lab.thread(), {"server": calls.far.url})
    owner = await calls.lab.claim_one()
    attempt = calls.lab.attempt(owner)
    calls.far.answers["POST /runs"] = (200, {"thread_id": "t-1", "run_id": "r-1"})
    calls.ends(status="done", output="quick")
    suspend = attempt._suspend

    async def too_late() -> str:
        await calls.speak()
        await calls.speak()
        return await suspend()

    attempt._suspend = too_late
    await calls.lab.play(attempt)
    assert (await calls.lab.run(run))["ready_at"] is not None
    await calls.lab.work()
    assert await calls.status(run) == "success"


async def test_a_run_that_goes_on_for_another_one_is_woken_in_its_place(calls: Calls) -> None:
    run = await calls.started()
    owner = {"thread_id": run["thread_id"], "run_id": run["run_id"]}
    await calls.lab.execute("UPDATE remote_calls SET run_id = %(other)s", other=uuid4())
    await calls.lab.execute("UPDATE runs SET ready_at = now() WHERE run_id = %(id)s", id=run["run_id"])
    await calls.lab.work()  # looks, and notes that it is the one who waits
    assert (await calls.row())["run_id"] == owner["run_id"]
    calls.ends(status="done", output="x")
    await calls.speak()
    await calls.lab.work()
    assert await calls.status(run) == "success"


async def test_nothing_is_left_behind(calls: Calls) -> None:
    run = await calls.started()
    calls.ends(status="done", output="x")
    await calls.speak()
    await calls.lab.execute("UPDATE remote_calls SET settled_at = settled_at - interval '2 days'")
    async with calls.lab.connection() as conn:
        await remote.expire(conn)
        assert (await calls.row())["output"] == "x", "its caller has not looked yet"
        await calls.lab.work()
        await remote.expire(conn)
        assert await calls.lab.rows("SELECT 1 FROM remote_calls") == []
        await calls.started()
        await calls.speak()
        await threads.delete(calls.lab.engine, (await calls.row())["thread_id"])
        assert await calls.lab.rows("SELECT 1 FROM remote_calls") == []
        # what nobody waits for is given up after a month; what somebody waits for never
        run = await calls.started()
        await calls.lab.execute("UPDATE remote_calls SET created_at = now() - interval '31 days'")
        await remote.expire(conn)
        assert (await calls.row())["status"] == "running"
        await stop.cancel(calls.lab.engine, run["thread_id"], run["run_id"])
        await remote.expire(conn)
        assert (await calls.row())["status"] == "cancelled"


# -- children of this server


async def test_the_outcome_of_a_child_in_a_session_is_its_own_not_that_of_an_answer_before_it(calls: Calls) -> None:
    lab = calls.lab
    lab.graph = "delegate"
    first = await lab.enqueue(await lab.thread(), {"key": "s"})
    await lab.work()
    second = await lab.enqueue(await lab.thread(), {"key": "s", "server": "quiet"})
    await lab.work()
    (question,) = await questions.search(lab.engine, status="open")
    await interrupts.resolve(lab.engine, question["token"], "one")
    await lab.work()
    outs = [(await runs.result(lab.engine, run["thread_id"], run["run_id"]))["out"] for run in (first, second)]
    assert outs == ["one", "two"]


async def test_a_child_that_is_just_ending_is_not_missed(calls: Calls) -> None:
    lab = calls.lab
    await lab.enqueue(await lab.thread(), {})
    parent = await lab.claim_one()
    given = {"key": None, "idempotency_key": "1", "delay": 0, "bound": True}
    child = await children.start(lab.engine, parent, "local", {}, **given)
    owner = await lab.claim_one()
    async with lab.connection() as conn, conn.transaction():
        await queue.settle_thread(
            conn, owner.thread_id, owner.run_id, fence=owner.fence, status="idle", error=None, interrupts={}
        )
        await queue.end_run(conn, owner.thread_id, owner.run_id, "success", None)
        await queue.promote(conn, owner.thread_id)  # nobody has noted that it waits
        looking = asyncio.create_task(children.outcome(lab.engine, parent, child))
        await asyncio.sleep(0.2)
        assert not looking.done(), "it would suspend its run, and nobody would wake it"
    assert (await looking)["status"] == "done"


async def test_a_cancelled_caller_cancels_who_goes_on_for_its_child_and_withdraws_its_question(calls: Calls) -> None:
    lab = calls.lab
    lab.graph = "delegate"
    run = await lab.enqueue(await lab.thread(), {})
    await lab.work()
    (question,) = await questions.search(lab.engine, status="open")
    await stop.cancel(lab.engine, run["thread_id"], run["run_id"])
    assert await questions.search(lab.engine, status="open") == []
    with pytest.raises(QuestionClosed):
        await interrupts.resolve(lab.engine, question["token"], "late")
    child = await threads.get(lab.engine, question["thread_id"])
    assert (child["status"], child["interrupts"]) == ("interrupted", {})
    # the thread can be used again
    again = await lab.enqueue(question["thread_id"], {"key": "new"}, assistant="local")
    await lab.work()
    assert await calls.status(again) == "success"

    run = await lab.enqueue(await lab.thread(), {})
    await lab.work()
    (question,) = await questions.search(lab.engine, status="open")
    answer = await interrupts.resolve(lab.engine, question["token"], "yes")
    assert (await lab.run(answer))["parent_run_id"] == run["run_id"]
    await stop.cancel(lab.engine, run["thread_id"], run["run_id"])
    assert await calls.status(answer) == "interrupted"


async def test_new_input_that_supersedes_the_question_of_a_child_is_a_cancelled_child(calls: Calls) -> None:
    lab = calls.lab
    lab.graph = "delegate"
    run = await lab.enqueue(await lab.thread(), {})
    await lab.work()
    (question,) = await questions.search(lab.engine, status="open")
    await lab.enqueue(question["thread_id"], {"key": "other"}, assistant="local")
    await lab.work()
    row = await lab.run(run)
    assert row["status"] == "error"
    assert "was cancelled" in row["error"]["message"]


async def test_a_call_that_would_wait_for_itself_is_refused(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "MAX_CALLERS", 5)
    lab = calls.lab
    thread = children.session_thread(lab.engine.registry.default_assistant_id("itself"), "k")
    run = await lab.enqueue(thread, {}, assistant="itself", if_not_exists="create")
    await lab.work()
    row = await lab.run(run)
    assert (row["status"], row["error"]["error"]) == ("error", "InvalidInput")
    assert "would wait for itself" in row["error"]["message"]
    run = await lab.enqueue(await lab.thread(), {}, assistant="deeper")
    await lab.work()
    assert (await lab.one("SELECT count(*) AS n FROM runs WHERE graph_id = 'deeper'"))["n"] == 6
    assert "levels deep" in (await lab.run(run))["error"]["message"]


async def test_outcome_for_another_server_is_read_without_waiting(calls: Calls) -> None:
    lab = calls.lab
    run = await lab.enqueue(await lab.thread(), {}, assistant="ask")
    thread_id, run_id = run["thread_id"], run["run_id"]
    look = await children.look(lab.engine, thread_id, run_id)
    assert look == {"status": "running", "output": None, "error": None}
    await lab.work()
    assert (await children.look(lab.engine, thread_id, run_id))["status"] == "running", "it asks a person"
    (question,) = await questions.search(lab.engine, status="open")
    await interrupts.resolve(lab.engine, question["token"], "yes")
    await lab.work()
    assert await children.look(lab.engine, thread_id, run_id) == {
        "status": "done",
        "output": {"out": "yes"},
        "error": None,
    }
    assert (await children.look(lab.engine, uuid4(), run_id))["status"] == "gone"
    other = await lab.enqueue(await lab.thread(), {}, assistant="ask")
    await lab.work()
    for _ in range(2):
        await orphans.abandon(lab.engine, other["thread_id"], other["run_id"])
    assert (await children.look(lab.engine, other["thread_id"], other["run_id"]))["status"] == "cancelled"
    assert await questions.search(lab.engine, status="open") == []
