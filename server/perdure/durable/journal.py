"""Where a word stands: the journal of the run, if there is one, and the place in it.

The engine puts an object that follows `Journal` into the run's config under `JOURNAL_KEY`. Without it (a
notebook, `langgraph dev`, a unit test of a node) `here()` says so and the words fall back to what LangGraph
offers.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, cast

from langgraph.config import get_config
from langgraph.runtime import Runtime, get_runtime
from typing_extensions import TypedDict

JOURNAL_KEY = "__perdure_journal"


class Found(TypedDict):
    """One row of the journal as `find` gives it."""

    n: int
    status: str
    """`new` (never finished an attempt), `retrying`, `done` or `failed`; a saga's is `open` instead of `retrying`."""
    value: Any
    error: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    """`{"started_at": ISO 8601, "seconds": float, "error": {...}, "model": {...}, "undo": True, "input": {...}}`,
    oldest first; the last four where they apply: `undo` is a saga's, `input` the first one's."""
    next_at: float | None
    """Unix seconds before which a retrying step is not to be tried again."""


class Child(TypedDict):
    """A run that was started by a run."""

    thread_id: str
    run_id: str
    server: NotRequired[str]
    """The other server that executes it; `run_id` names the call then, not the run."""


class Outcome(TypedDict):
    """What has become of a child."""

    status: str
    """`running` (also while it asks a person), `done`, `failed`, `cancelled` or `gone`."""
    output: Any
    error: dict[str, Any] | None
    """`{"error": class name, "message": text, "status": int | absent}` of a failed one."""


class Transaction(Protocol):
    """A database transaction that a step and its journal row share."""

    @property
    def conn(self) -> Any:
        """A psycopg AsyncConnection inside of the transaction."""
        ...

    async def save(self, value: Any, attempts: list[dict[str, Any]]) -> None:
        """Write the row as done. TypeError or ValueError: the value can't be stored."""
        ...


class Journal(Protocol):
    """What the engine provides for one attempt. The calls may be made concurrently from one task.

    Each raises LeaseLost, a BaseException, once the run was taken away.
    """

    @property
    def cancelling(self) -> bool:
        """This attempt only compensates: nothing new is to be done but undos."""
        ...

    async def find(self, scope: str, visit: int, name: str, key: str | None, fingerprint: str) -> Found:
        """The row of the `n`-th call of `name` with this key (or, without one, this fingerprint) in this visit.

        `n` counts such calls from 0, in the order in which they are made; others do not count. A call that
        has no row is `new`. StepMismatch if a call in its place was recorded with another fingerprint and
        nothing but changed arguments explains that.
        """
        ...

    def trying(self, name: str, number: int) -> AbstractContextManager[None]:
        """Around the `number`-th try (from 1 on) of a call: whoever watches the run sees how long it takes."""
        ...

    async def save(
        self,
        scope: str,
        visit: int,
        name: str,
        n: int,
        *,
        key: str | None,
        fingerprint: str,
        status: str,
        value: Any = None,
        error: dict[str, Any] | None = None,
        attempts: list[dict[str, Any]] = ...,
        next_at: float | None = None,
    ) -> None:
        """Write the row; durable when it returns. TypeError or ValueError: the value can't be stored."""
        ...

    def transaction(
        self, scope: str, visit: int, name: str, n: int, *, key: str | None, fingerprint: str
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction for the row that `find` gave; without `save`, or by an error, it is rolled back."""
        ...

    def wait_until(self, when: float) -> None:
        """Note a time (Unix seconds) at which the suspended run is to go on; the earliest counts."""
        ...

    def wait_for(self, child: Child) -> None:
        """Note a child run whose end lets the suspended run go on."""
        ...

    async def start(
        self,
        agent: str,
        input: Any,  # the word of the protocol
        *,
        key: str | None,
        idempotency_key: str,
        delay: float = 0.0,
        bound: bool = True,
        server: str | None = None,
    ) -> Child:
        """Start a run of another assistant, or find the one that this idempotency key has started.

        `bound`: it is cancelled with this run. `server`: the start on that server is accepted when this returns.
        """
        ...

    async def outcome(self, child: Child) -> Outcome:
        """What has become of a child. After `running` the suspended run is woken when it ends."""
        ...

    async def cancel(self, child: Child) -> None:
        """Cancel a child; one that has ended stays as it is."""
        ...

    async def acquire(self, name: str, n: int) -> bool:
        """Take one of `n` places of this name. False: none is free, and the suspended run is woken when one is."""
        ...

    async def release(self, name: str) -> None:
        """Give back a place that `acquire` gave to this attempt."""
        ...

    async def receive(self, scope: str, visit: int) -> list[Any]:
        """Take the messages sent to the thread and record that, in one transaction; a replay gives the same."""
        ...


@dataclass(frozen=True)
class Place:
    """The LangGraph task that runs the current node, as the journal names it."""

    journal: Journal | None
    thread_id: str
    scope: str
    """`checkpoint_ns` of the task: the same on every replay, another one at every superstep. Inside of a step
    the step's own name follows: what stands in it is not executed on every replay, so it counts for itself."""
    visit: int
    """Counts the executions of the node inside this run attempt (its own RetryPolicy), from 1; inside of a step
    the step's attempts too."""
    checkpointed: bool
    """A LangGraph checkpointer is there, so `langgraph.func.task` can keep a result."""


VISITS = 1_000_000
"""More attempts than a step makes within one execution of its node."""

nested: ContextVar[tuple[str, int]] = ContextVar("perdure_nested", default=("", 0))
"""What the steps around the caller add to the scope, and which attempt of the innermost one this is."""

NOWHERE = Place(journal=None, thread_id="", scope="", visit=1, checkpointed=False)


def here() -> Place:
    """The place of the caller; `NOWHERE` outside of a graph."""
    try:
        config = get_config()
    except RuntimeError:
        return NOWHERE
    values: dict[str, Any] = config.get("configurable", {})
    if not values:
        return NOWHERE  # a LangChain runnable, but no graph
    runtime = cast("Runtime[Any] | None", get_runtime())
    info = runtime.execution_info if runtime is not None else None
    visit = info.node_attempt if info is not None else 1
    inside, attempt = nested.get()
    return Place(
        journal=values.get(JOURNAL_KEY),
        thread_id=str(values.get("thread_id") or ""),
        scope=f"{values.get('checkpoint_ns') or ''}{inside}",
        visit=visit * VISITS + attempt if inside else visit,
        # Names of LangGraph 1.2; should they change, a step without a journal becomes a plain call.
        checkpointed=values.get("__pregel_checkpointer") is not None and "__pregel_call" in values,
    )
