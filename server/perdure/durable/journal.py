"""Where a word stands: the journal of the run, if there is one, and the place in it.

The engine puts an object that follows `Journal` into the run's config under `JOURNAL_KEY`. Without it (a
notebook, `langgraph dev`, a unit test of a node) `here()` says so and the words fall back to what LangGraph
offers.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

from langgraph.config import get_config
from langgraph.runtime import Runtime, get_runtime
from typing_extensions import TypedDict

JOURNAL_KEY = "__perdure_journal"


class Found(TypedDict):
    """One row of the journal as `find` gives it."""

    n: int
    status: str
    """`new` (never finished an attempt), `retrying`, `done` or `failed`."""
    value: Any
    error: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    """`{"started_at": ISO 8601, "seconds": float, "error": {...} | absent}`, oldest first."""
    next_at: float | None
    """Unix seconds before which a retrying step is not to be tried again."""


class Journal(Protocol):
    """What the engine provides. Both calls may be made concurrently from one task."""

    async def find(self, scope: str, visit: int, name: str, key: str | None, fingerprint: str) -> Found:
        """Take the first row of `name` in `scope` that has this key (or, without one, this fingerprint).

        A row is taken once per visit. None left: reserves the lowest free `n` and answers `new`.
        """
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


@dataclass(frozen=True)
class Place:
    """The LangGraph task that runs the current node, as the journal names it."""

    journal: Journal | None
    thread_id: str
    scope: str
    """`checkpoint_ns` of the task: the same on every replay, another one at every superstep."""
    visit: int
    """Counts the executions of the node inside this run attempt (its own RetryPolicy), from 1."""
    checkpointed: bool
    """A LangGraph checkpointer is there, so `langgraph.func.task` can keep a result."""


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
    return Place(
        journal=values.get(JOURNAL_KEY),
        thread_id=str(values.get("thread_id") or ""),
        scope=str(values.get("checkpoint_ns") or ""),
        visit=info.node_attempt if info is not None else 1,
        # Names of LangGraph 1.2; should they change, a step without a journal becomes a plain call.
        checkpointed=values.get("__pregel_checkpointer") is not None and "__pregel_call" in values,
    )
