"""`agent`: a run of another assistant, with its own thread, as one call."""

import math
import warnings
from collections.abc import Awaitable, Generator
from datetime import timedelta
from typing import Any, cast
from urllib.parse import urlsplit

from langchain_core.runnables import Runnable

from perdure.durable import outside
from perdure.durable.errors import TerminalError
from perdure.durable.fingerprint import fingerprint
from perdure.durable.journal import Child, Journal, Place, here
from perdure.durable.once import Call, idempotency_key, once
from perdure.durable.recorded import described, revived
from perdure.durable.suspend import Suspend, unfinished

RUNNING: Any = object()
"""The outcome of a child that is not there yet."""


class AgentCall(Awaitable[Any]):
    """A call that has not been made: `await` it, or give it to `gather` or `race`."""

    def __init__(self, target: Any, given: Any, key: str | None, server: str | None) -> None:
        self.target, self.input, self.key, self.server = target, given, key, server
        self._used = False

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.run().__await__()

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(f"agent({self.name!r}) was never awaited", RuntimeWarning, stacklevel=2)

    @property
    def name(self) -> str:
        return self.target if isinstance(self.target, str) else str(getattr(self.target, "name", self.target))

    @property
    def local(self) -> bool:
        """A graph object, executed in this process."""
        return not isinstance(self.target, str)

    def close(self) -> None:
        """This call will not be made."""
        self._used = True

    async def run(self) -> Any:
        self.close()
        if self.local:
            return await cast("Runnable[Any, Any]", self.target).ainvoke(self.input)
        place = here()
        if place.journal is None:
            return await self._outside()
        child = await self.start(place)
        result = await self.outcome(place, child)
        if result is RUNNING:
            wait_for(place, [child])
        return result

    async def start(self, place: Place) -> Child:
        """Start the child, once."""
        self.close()
        return await _start(place, self.name, self.input, self.key, 0.0, self.server, bound=True)

    async def _outside(self) -> Any:
        """The call where there is no perdure server: see `outside`."""
        if self.server is not None:
            return await outside.call(self.server, self.name, self.key, self.input)
        return await outside.run(self.name, self.input)

    async def outcome(self, place: Place, child: Child) -> Any:
        """The child's output, recorded from the first time on; RUNNING as long as there is none.

        Raises TerminalError if it failed, was cancelled or deleted.
        """
        journal = _journal(place)
        found = await journal.find(place.scope, place.visit, "outcome", child["run_id"], "")
        if found["status"] == "done":
            return found["value"]
        if found["status"] == "failed":
            raise revived(found["error"] or {})
        unfinished(journal)
        seen = await journal.outcome(child)
        if seen["status"] == "running":
            return RUNNING
        at = (place.scope, place.visit, "outcome", found["n"])
        if seen["status"] == "done":
            await journal.save(
                *at, key=child["run_id"], fingerprint="", status="done", value=seen["output"], attempts=[]
            )
            return seen["output"]
        error = _failure(self.name, child, seen["status"], seen["error"] or {})
        await journal.save(
            *at, key=child["run_id"], fingerprint="", status="failed", error=described(error), attempts=[]
        )
        raise error

    async def cancel(self, place: Place, child: Child) -> None:
        """Cancel the child, once; one that has ended stays as it is."""
        journal = _journal(place)

        async def execute() -> None:
            await journal.cancel(child)

        await once(Call("cancel", execute, "", key=child["run_id"]))


class _Agent:
    """Call another assistant; goes on with its output, perhaps days later and on another machine.

    Example:
        claim = await agent("claim_approval", {"claim": claim})

    The child is a run with its own thread, timeline, questions and retries; this run is suspended meanwhile
    and costs nothing. The node ends here and is executed again from its top when the child has ended: what
    stands above must be a step or without effect. The child is started once, whatever crashes, and its output
    is recorded. While the child asks a person, this run goes on waiting. Cancelling this run cancels it.

    - `name`: a graph or an assistant of this server, or of `server`.
    - `input`: the input of the graph (JSON values, LangChain messages). It must be the same on every replay.
    - `key`: the child works on the thread of this key (`/agents/{name}/{key}`), after what is queued there,
      and finds that thread's state. Without it each call has a new thread.
    - `server`: the address of another server, for example `http://crm:2024`, which knows `name` and executes the
      child: a perdure server or, without `key`, any LangGraph Agent Server. The start, its retries while that
      server is down, and a cancel are rows here. The child's output is JSON then: messages come as objects.

    Gives back the child's final state (its output schema). Raises TerminalError if the child failed (class
    name, text and status are its own), was cancelled or deleted, or if the other server refuses it; also, or
    another error, if it can't be started.

    Outside of a perdure server the graph that `langgraph dev` or a langgraph.json in the working directory knows
    by that name is executed in this process, as part of this run, and `server` is asked by a plain HTTP call.
    A graph object instead of a name is executed in this process everywhere. `key` means nothing in this process.
    """

    def __call__(
        self, name: str | Runnable[Any, Any], input: Any, *, key: str | None = None, server: str | None = None
    ) -> AgentCall:
        if not isinstance(cast("Any", name), (str, Runnable)) or name == "":
            raise TypeError(f"agent() takes the name of an assistant, or a graph, not {name!r}")
        if server is not None and not isinstance(name, str):
            raise TypeError("agent() with `server` takes the name of an assistant there, not a graph")
        return AgentCall(name, input, key, _address(server))

    @staticmethod
    async def send(
        name: str,
        input: Any,  # the word of LangGraph
        *,
        key: str | None = None,
        delay: float | timedelta = 0,
        server: str | None = None,
    ) -> str:
        """Start a run of another assistant and go on at once; gives back its run id.

        Example:
            await agent.send("newsletter", {"topic": topic}, delay=timedelta(days=7))

        Started once, whatever crashes. It begins after `delay` (seconds or timedelta), outlives this run and
        is not cancelled with it. ValueError for a negative delay.

        With `server` it is handed over to that server as soon as it answers, and what comes back is the id of the
        call; without `key` it is also the id of the run's thread there.

        Outside of a perdure server it is a task of this process, which is lost when the process ends, or with
        `server` a plain HTTP call.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"agent.send() takes the name of an assistant, not {name!r}")
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise ValueError(f"agent.send() takes a delay of 0 seconds or more, not {delay!r}")
        place, address = here(), _address(server)
        if place.journal is not None:
            return (await _start(place, name, input, key, seconds, address, bound=False))["run_id"]
        if address is not None:
            return await outside.send(address, name, key, input, seconds)
        return await outside.start(name, input, seconds)


agent = _Agent()


def wait_for(place: Place, children: list[Child]) -> None:
    """Suspend the run until one of the children has ended."""
    journal = _journal(place)
    for child in children:
        journal.wait_for(child)
    raise Suspend(f"{len(children)} child runs")


async def _start(
    place: Place, name: str, given: Any, key: str | None, delay: float, server: str | None, *, bound: bool
) -> Child:
    journal = _journal(place)

    async def execute() -> Child:
        own = idempotency_key()
        return await journal.start(name, given, key=key, idempotency_key=own, delay=delay, bound=bound, server=server)

    try:  # not the server: a child that was started goes on where it is, whatever the address is by now
        identity = fingerprint([given, key, delay, bound])
    except TypeError as exc:
        raise TypeError(f"The input of agent {name!r} can't be compared on a replay: {exc}. Pass plain data") from exc
    return await once(Call(f"agent {name}", execute, identity))


def _address(server: str | None) -> str | None:
    """The address without a slash at its end. ValueError for what is none, or holds a secret."""
    if server is None:
        return None
    try:
        parts = urlsplit(server)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    else:
        if parts.username or parts.password:
            raise ValueError("agent() takes a server without a password in it: put its key into PERDURE_REMOTE_KEYS")
        valid = valid and not (parts.query or parts.fragment) and server.isprintable() and " " not in server
    if not valid:
        raise ValueError(f"agent() takes a server like http://crm:2024, not {server!r}")
    return server.rstrip("/")


def _failure(name: str, child: Child, status: str, error: dict[str, Any]) -> TerminalError:
    who = f"Agent '{name}'" + (f" on {child['server']}" if "server" in child else "")
    if status != "failed":
        word = "cancelled" if status == "cancelled" else "deleted"
        return TerminalError(f"{who} was {word} ({'call' if 'server' in child else 'run'} {child['run_id']})", 409)
    text = f"{error.get('error', 'Error')}: {error.get('message', '')}"
    code = error.get("status")
    return TerminalError(f"{who} failed with {text}", code if isinstance(code, int) else 422)


def _journal(place: Place) -> Journal:
    assert place.journal is not None
    return place.journal
