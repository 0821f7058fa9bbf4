"""A journal in memory that follows the protocol of the engine's, a thread to crash on, a scripted model."""

import itertools
from collections.abc import Awaitable, Callable, Sequence
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

from perdure.durable.journal import Found


class StepMismatch(Exception):
    retryable = False


class Killed(BaseException):
    """The process dies here: no handler of the code under test runs to its end."""


class FakeJournal:
    """Rows survive `restart()`, which of them were taken does not. Values go through the serializer."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        self.saves: list[dict[str, Any]] = []
        self.die_at_save = False
        self._taken: set[tuple[str, int, str, int]] = set()
        self._serde = JsonPlusSerializer(allowed_msgpack_modules=None)

    def restart(self) -> "FakeJournal":
        self._taken.clear()
        return self

    def config(self, thread_id: str = "t", **configurable: Any) -> Any:
        return {"configurable": {"thread_id": thread_id, "__perdure_journal": self, **configurable}}

    def named(self, name: str) -> list[dict[str, Any]]:
        return [row for (_, called), rows in self.rows.items() if called == name for _, row in sorted(rows.items())]

    async def find(self, scope: str, visit: int, name: str, key: str | None, fingerprint: str) -> Found:
        assert scope, "every step of these tests stands in a node"
        rows = self.rows.get((scope, name), {})
        free = [n for n in sorted(rows) if (scope, visit, name, n) not in self._taken]
        for n in free:
            row = rows[n]
            if row["key"] == key and (key is not None or row["fingerprint"] == fingerprint):
                self._taken.add((scope, visit, name, n))
                value = self._serde.loads_typed(row["stored"]) if row["stored"] else None
                return cast("Found", {**row, "n": n, "value": value, "attempts": list(row["attempts"])})
        numbers = (n for n in itertools.count() if n not in rows and (scope, visit, name, n) not in self._taken)
        n = next(numbers)
        if any(free_n < n for free_n in free):
            raise StepMismatch(f"Step '{name}' was called with other arguments than before")
        self._taken.add((scope, visit, name, n))
        return Found(n=n, status="new", value=None, error=None, attempts=[], next_at=None)

    async def save(self, scope: str, visit: int, name: str, n: int, **fields: Any) -> None:
        if self.die_at_save:
            raise Killed
        stored = self._serde.dumps_typed(fields["value"]) if fields["status"] == "done" else None
        row = {"error": None, "next_at": None, **fields, "stored": stored}
        self.rows.setdefault((scope, name), {})[n] = row
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
        entry = command if self._begun else {}
        self._begun = True
        graph = graph_of(node, saver=self.saver, **options)
        result = await graph.ainvoke(entry, self.journal.restart().config(), durability="sync")
        return result["__interrupt__"] if "__interrupt__" in result else result["out"]


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
