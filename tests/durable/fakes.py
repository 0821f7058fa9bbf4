"""A journal in memory that follows the protocol of the engine's, a thread to crash on, a scripted model."""

import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy
from typing_extensions import TypedDict

from perdure.durable.journal import Child, Found, Outcome
from perdure.durable.suspend import Suspend


class StepMismatch(Exception):
    retryable = False


class Killed(BaseException):
    """The process dies here: no handler of the code under test runs to its end."""


class FakeTransaction:
    """What is written through `conn` (a list) stays only if the block ends after `save`."""

    def __init__(self) -> None:
        self.conn: list[Any] = []
        self.saved: dict[str, Any] | None = None

    async def save(self, value: Any, attempts: list[dict[str, Any]]) -> None:
        JsonPlusSerializer().dumps_typed(value)
        self.saved = {"value": value, "attempts": attempts}


class FakeJournal:
    """Rows survive `restart()`, which calls were made does not. Values go through the serializer.

    The process dies before the `die_in`-th next call that changes anything, `save` or another.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]] = {}
        self.saves: list[dict[str, Any]] = []
        self.tries: list[tuple[str, int]] = []
        self.die_at_save = False
        self.die_in: int | None = None
        self.cancelling = False
        self.waits: list[Any] = []
        self.children: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.cancelled: list[str] = []
        self.places: Counter[str] = Counter()
        self.elsewhere: Counter[str] = Counter()
        self.inbox: list[Any] = []
        self.database: list[Any] = []
        self.commit_error: Exception | None = None
        self._made: dict[tuple[str, int], Counter[Any]] = {}
        self._call: dict[Any, int] = {}
        self._in_flight: set[Any] = set()
        self._overlapped: set[Any] = set()
        self._serde = JsonPlusSerializer(allowed_msgpack_modules=None)

    def restart(self) -> "FakeJournal":
        for marks in (self._made, self._call, self._in_flight, self._overlapped):
            marks.clear()
        self.waits.clear()
        self.places.clear()
        return self

    def age(self, seconds: float) -> None:
        """Let time pass: what is due gets due sooner."""
        for (_, name), rows in self.rows.items():
            for row in rows.values():
                row["next_at"] = row["next_at"] and row["next_at"] - seconds
                if name == "sleep":
                    row["stored"] = self._serde.dumps_typed(self._serde.loads_typed(row["stored"]) - seconds)

    def end(self, n: int, output: Any = None, status: str = "done", **error: Any) -> None:
        """The n-th child that was started ends."""
        run_id = list(self.children.values())[n]["run_id"]
        self.outcomes[run_id] = {"status": status, "output": output, "error": error or None}

    def _acts(self) -> None:
        if self.die_in is not None:
            self.die_in -= 1
            if self.die_in < 0:
                self.die_in = None
                raise Killed

    def wait_until(self, when: float) -> None:
        self.waits.append(when)

    def wait_for(self, child: Child) -> None:
        self.waits.append(child["run_id"])

    async def start(self, agent: str, input: Any, *, key: str | None, idempotency_key: str, **more: Any) -> Child:
        self._acts()
        number = len(self.children)
        child = {"agent": agent, "input": input, "key": key, **more, "run_id": f"run-{number}"}
        child = self.children.setdefault(idempotency_key, child)
        started: Child = {"thread_id": f"thread-{child['run_id']}", "run_id": child["run_id"]}
        return {**started, "server": child["server"]} if child.get("server") else started

    async def outcome(self, child: Child) -> Outcome:
        return self.outcomes.get(child["run_id"], {"status": "running", "output": None, "error": None})

    async def cancel(self, child: Child) -> None:
        self._acts()
        self.cancelled.append(child["run_id"])

    def trying(self, name: str, number: int) -> AbstractContextManager[None]:
        self.tries.append((name, number))
        return nullcontext()

    async def acquire(self, name: str, n: int) -> bool:
        free = self.places[name] + self.elsewhere[name] < n
        self.places[name] += free
        return free

    async def release(self, name: str) -> None:
        assert self.places[name] > 0
        self.places[name] -= 1

    async def receive(self, scope: str, visit: int) -> list[Any]:
        found = await self.find(scope, visit, "mailbox", None, "")
        if found["status"] == "done":
            return found["value"]
        taken = list(self.inbox)
        await self.save(scope, visit, "mailbox", found["n"], key=None, fingerprint="", status="done", value=taken)
        self.inbox.clear()
        return taken

    @asynccontextmanager
    async def transaction(
        self, scope: str, visit: int, name: str, n: int, *, key: str | None, fingerprint: str
    ) -> AsyncIterator[FakeTransaction]:
        transaction = FakeTransaction()
        yield transaction
        if transaction.saved is None:
            return
        error, self.commit_error = self.commit_error, None
        if error is not None and getattr(error, "sqlstate", None):
            raise error
        fields = {"key": key, "fingerprint": fingerprint, "status": "done", **transaction.saved}
        await self.save(scope, visit, name, n, **fields)
        self.database += transaction.conn
        if error is not None:
            raise error

    def config(self, thread_id: str = "t", **configurable: Any) -> Any:
        return {"configurable": {"thread_id": thread_id, "__perdure_journal": self, **configurable}}

    def named(self, name: str) -> list[dict[str, Any]]:
        return [row for (_, called), rows in self.rows.items() if called == name for row in rows.values()]

    async def find(self, scope: str, visit: int, name: str, key: str | None, fingerprint: str) -> Found:
        """As the engine: calls of one name and identity are told apart by their order."""
        assert scope, "every step of these tests stands in a node"
        identity, rows = fingerprint if key is None else key, self.rows.get((scope, name), {})
        made = self._made.setdefault((scope, visit), Counter())
        n, call = made[name, identity], made[name]
        made.update([(name, identity), name])
        row = rows.get((identity, n))
        if row is None:
            if key is None and not self._in_flight:
                for (other, m), earlier in rows.items():
                    alone = earlier["status"] == "done" and earlier["key"] is None and not earlier["overlapped"]
                    if alone and earlier["call"] == call and made[name, other] <= m:
                        raise StepMismatch(f"Step '{name}' was called with other arguments than before")
            row = {"status": "new", "stored": None, "error": None, "attempts": [], "next_at": None, "call": call}
        if row["status"] in ("new", "retrying"):
            self._in_flight.add((scope, name, identity, n))
            if len(self._in_flight) > 1:
                self._overlapped |= self._in_flight
        self._call[scope, name, identity, n] = row["call"]
        value = self._serde.loads_typed(row["stored"]) if row["stored"] else None
        return cast("Found", {**row, "n": n, "value": value, "attempts": list(row["attempts"])})

    async def save(self, scope: str, visit: int, name: str, n: int, **fields: Any) -> None:
        if self.die_at_save:
            raise Killed
        self._acts()
        stored = self._serde.dumps_typed(fields["value"]) if fields["status"] == "done" and "value" in fields else None
        identity = fields["fingerprint"] if fields["key"] is None else fields["key"]
        place = (scope, name, identity, n)
        if fields["status"] != "retrying":
            self._in_flight.discard(place)
        known = {"call": self._call.get(place, 0), "overlapped": place in self._overlapped}
        row = {"error": None, "next_at": None, "attempts": [], **fields, **known, "stored": stored}
        self.rows.setdefault((scope, name), {})[identity, n] = row
        self.saves.append({"name": name, "n": n, "visit": visit, **fields})


class State(TypedDict, total=False):
    out: Any


def graph_of(node: Callable[..., Awaitable[Any]], *, saver: Any = None, retry: RetryPolicy | None = None) -> Any:
    async def run(state: State) -> State:
        return {"out": await node()}

    return StateGraph(State).add_node("run", run, retry_policy=retry).add_edge(START, "run").compile(saver)


class Bench:
    """One thread: each `run()` is a run attempt in a new process."""

    def __init__(self) -> None:
        self.journal, self.saver = FakeJournal(), InMemorySaver()
        self._begun = False

    async def run(self, node: Callable[..., Awaitable[Any]], command: Any = None, **options: Any) -> Any:
        return await self.run_graph(graph_of(node, saver=self.saver, **options), command)

    async def run_graph(self, graph: Any, command: Any = None) -> Any:
        entry = command if self._begun else {}
        self._begun = True
        result = await graph.ainvoke(entry, self.journal.restart().config(), durability="sync")
        return result["__interrupt__"] if "__interrupt__" in result else result.get("out")

    async def until_done(self, node: Callable[..., Awaitable[Any]], on_wait: Callable[[], None] | None = None) -> Any:
        """Attempt after attempt, as the engine would: after a wait (with what `on_wait` does) and after a crash."""
        while True:
            try:
                return await self.run(node)
            except Suspend:
                assert self.journal.waits
                times = [wait for wait in self.journal.waits if isinstance(wait, float)]
                if on_wait is not None:
                    on_wait()
                elif times:
                    self.journal.age(min(times) - time.time())
                else:
                    raise
            except Killed:
                continue


async def crash_everywhere(scenario: Callable[[Bench], Awaitable[Any]]) -> int:
    """The scenario, killed before its 1st, 2nd, … write, each on a new thread; how many points there were.

    Ends with the execution in which the process was not killed any more.
    """
    for point in itertools.count():
        bench = Bench()
        bench.journal.die_in = point
        await scenario(bench)
        if bench.journal.die_in is not None:
            return point
    raise AssertionError


class ScriptedModel(BaseChatModel):
    """Answers by a function of the messages and counts how often it was asked."""

    answer: Callable[[Sequence[BaseMessage]], AIMessage]
    calls: list[int] = []  # noqa: RUF012  # pydantic copies it for each instance
    model_name: str = "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.calls.append(len(messages))
        return ChatResult(generations=[ChatGeneration(message=self.answer(messages))])

    @property
    def _llm_type(self) -> str:
        return "scripted"


def tool_call(name: str, call_id: str, **args: Any) -> Any:
    return {"name": name, "args": args, "id": call_id, "type": "tool_call"}
