"""Other assistants where there is no perdure server: `langgraph dev`, a notebook, a plain script.

By name, as part of this process: the graphs that `langgraph dev` serves (it tells them in LANGSERVE_GRAPHS) or
that a langgraph.json in the working directory names. On another server: one HTTP call. Nothing here is a row.
There are no settings either, nobody has read any: this file asks the environment itself, at each call.
"""

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import Context
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from urllib.parse import quote
from uuid import uuid4

import httpx
import structlog
from langchain_core.runnables import Runnable
from langgraph.graph import StateGraph

from perdure.durable.errors import RetryableError, TerminalError
from perdure.durable.fingerprint import fingerprint
from perdure.durable.once import Call, idempotency_key, once

log = structlog.get_logger(__name__)

BUSY = {408, 425, 429, 502, 503, 504}
"""Answers after which the same request may succeed."""

_started: set[asyncio.Task[Any]] = set()
"""What `start` has begun; the event loop itself keeps only weak references."""


async def run(name: str, given: Any) -> Any:
    """Execute a graph by name in this process, as part of the graph that calls. RuntimeError if nobody knows it."""
    made: Any = await asyncio.to_thread(_load, name)  # langgraph dev forbids files on its event loop
    async with AsyncExitStack() as stack:
        if not isinstance(made, (Runnable, StateGraph)) and callable(made):
            made = made({}) if _takes_config(made) else made()
            made = await made if inspect.isawaitable(made) else made
        if isinstance(made, AbstractAsyncContextManager) and not isinstance(made, Runnable):
            made = await stack.enter_async_context(cast("AbstractAsyncContextManager[Any]", made))
        if isinstance(made, StateGraph):
            made = cast("Any", made).compile()
        return await cast("Runnable[Any, Any]", made).ainvoke(given)


async def start(name: str, given: Any, delay: float) -> str:
    """Run a graph by name in the background of this process; a made-up id. It is lost when the process ends."""

    async def later() -> None:
        await asyncio.sleep(delay)
        await run(name, given)

    def ended(task: asyncio.Task[None]) -> None:
        _started.discard(task)
        if not task.cancelled() and (exc := task.exception()):
            log.error("agent.send failed, and nobody tries it again", agent=name, error=repr(exc))

    await asyncio.to_thread(_known, name)
    run_id = str(uuid4())
    log.warning("agent.send without a perdure server: lost when this process ends", agent=name, run_id=run_id)
    # In an empty context: it is no part of the graph that sends it, and goes on when that has ended.
    task = asyncio.get_running_loop().create_task(later(), context=Context())
    _started.add(task)
    task.add_done_callback(ended)
    return run_id


async def call(server: str, name: str, key: str | None, given: Any) -> Any:
    """Call an agent of a perdure server and wait for its output; where LangGraph checkpoints, a task."""

    async def execute() -> Any:
        answer = await _post(server, name, key, "run", given)
        if answer.status_code == 202:
            raise TerminalError(
                f"Agent '{name}' on {server} asks a person ({server}/interrupts), and only a caller on a perdure "
                "server waits for the answer",
                409,
            )
        return answer.json()

    return await once(Call(f"agent {name}", execute, fingerprint([server, given, key])))


async def send(server: str, name: str, key: str | None, given: Any, delay: float) -> str:
    """Start an agent of a perdure server; gives back its run id."""

    async def execute() -> str:
        return (await _post(server, name, key, "send", given, delay)).json()["run_id"]

    return await once(Call(f"send {name}", execute, fingerprint([server, given, key, delay])))


async def _post(server: str, name: str, key: str | None, verb: str, given: Any, delay: float = 0) -> httpx.Response:
    place = "/".join(quote(part, safe="") for part in (name, *([key] if key is not None else []), verb))
    headers = {"idempotency-key": idempotency_key()}
    own = _keys().get(server)
    if own:
        headers["x-api-key"] = own
    params = {"delay": f"{delay}s"} if delay else None
    async with httpx.AsyncClient(timeout=httpx.Timeout(30, read=None)) as http:  # the agent takes its time
        answer = await http.post(f"{server}/agents/{place}", json=_plain(given), params=params, headers=headers)
    if answer.status_code in BUSY:
        raise RetryableError(f"{server} answered {answer.status_code}")
    if not answer.is_success:
        raise TerminalError(f"Agent '{name}' on {server} failed with {_detail(answer)}", answer.status_code)
    return answer


def _plain(given: Any) -> Any:
    """JSON of an input; messages as objects."""

    def unfold(value: Any) -> Any:
        if hasattr(value, "model_dump"):
            return value.model_dump()
        raise TypeError(f"A {type(value).__qualname__} can't be sent to another server. Pass plain data")

    return json.loads(json.dumps(given, default=unfold))


def _detail(answer: httpx.Response) -> str:
    try:
        body: Any = answer.json()
    except ValueError:
        body = None
    detail = cast("dict[str, Any]", body).get("detail") if isinstance(body, dict) else None
    return str(detail or f"HTTP {answer.status_code}")


def _keys() -> dict[str, str]:
    """PERDURE_REMOTE_KEYS, as perdure's own server reads it."""
    return {url.rstrip("/"): key for url, key in json.loads(os.environ.get("PERDURE_REMOTE_KEYS") or "{}").items()}


def _known(name: str) -> str:
    """Where the graph of this name is: `./file.py:attribute` or `module:attribute`."""
    text = os.environ.get("LANGSERVE_GRAPHS")
    where = "langgraph dev"
    if not text:
        where = "langgraph.json"
        try:
            text = json.dumps(json.loads(Path("langgraph.json").read_text(encoding="utf-8")).get("graphs") or {})
        except FileNotFoundError:
            raise RuntimeError(
                f"agent({name!r}) needs a perdure server, or a langgraph.json in the working directory; here, pass "
                "the graph itself"
            ) from None
    graphs: dict[str, Any] = json.loads(text)
    found: Any = graphs.get(name)
    spec = cast("dict[str, Any]", found).get("path") if isinstance(found, dict) else found
    if not isinstance(spec, str) or not all(spec.rpartition(":")[::2]):
        raise RuntimeError(f"agent({name!r}): no such graph; {where} knows: {', '.join(graphs) or 'none'}")
    return spec


def _load(name: str) -> Any:
    module, _, attribute = _known(name).rpartition(":")
    return getattr(_module(module), attribute)


def _module(where: str) -> ModuleType:
    """The module at a path or under a dotted name; one that is loaded from that file already is taken as it is."""
    if "/" not in where and not where.endswith(".py"):
        return importlib.import_module(where)
    file = Path(where).resolve()
    same = ((module, getattr(module, "__file__", None)) for module in list(sys.modules.values()))
    loaded = (
        module for module, path in same if path and os.path.basename(path) == file.name and Path(path).resolve() == file
    )
    if (found := next(loaded, None)) is not None:
        return found
    home = Path.cwd()
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    if file.is_relative_to(home) and all(part.isidentifier() for part in file.relative_to(home).with_suffix("").parts):
        return importlib.import_module(".".join(file.relative_to(home).with_suffix("").parts))
    name = f"perdure_outside_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{file} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _takes_config(factory: Any) -> bool:
    parameters = inspect.signature(factory).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
