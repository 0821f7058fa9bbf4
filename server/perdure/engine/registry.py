"""The graphs that langgraph.json names: imported once at start, opened once per use.

A graph named by path is imported under the name its file has from the folder of langgraph.json
(`./graphs/weather.py` is `graphs.weather`), because checkpoints name classes by their module.
That folder and the local `dependencies` come first on `sys.path`, so graph files import their
neighbours as they would in a script started there. One process serves one langgraph.json.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from uuid import UUID, uuid5

import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore

from perdure.engine import drawing, embedding, examples, prices, timelimits, ttl
from perdure.engine.drawing import Graph
from perdure.engine.errors import GraphNotFound, InvalidInput
from perdure.engine.examples import Example
from perdure.engine.timelimits import NO_LIMITS, Limits

log = structlog.get_logger(__name__)

ASSISTANT_NAMESPACE = UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")
UNNAMED = "LangGraph"  # what `compile()` calls a graph that was given no name
MAX_XRAY = 64


class ConfigError(Exception):
    """langgraph.json, or a graph that it names, cannot be used; the text says which and why."""


@dataclass(frozen=True)
class GraphEntry:
    """A graph of langgraph.json: compiled already, or a factory called for each use."""

    graph_id: str
    spec: str
    description: str | None
    graph: Graph | None
    factory: Callable[..., Any] | None = None
    takes_config: bool = False
    examples: tuple[Example, ...] = ()
    limits: Limits = NO_LIMITS


class Registry:
    """All graphs of one langgraph.json; `config` is its raw content, for whoever owns the other sections."""

    def __init__(
        self, config: dict[str, Any], graphs: Mapping[str, GraphEntry], roots: Sequence[Path] = (Path("."),)
    ) -> None:
        self.config = config
        self._roots = list(roots)
        self.embedder: embedding.Embedder | None = None  # for the store, if `store.index` asks for one
        self.graphs = dict(graphs)
        self._shapes: dict[str, Graph] = {}
        self._described: dict[tuple[object, ...], dict[str, Any]] = {}

    @classmethod
    def load(cls, config_path: Path) -> Registry:
        """Read langgraph.json and import every graph, in the calling thread.

        Puts its folder and local dependencies first on `sys.path`. Its `env` is in the environment
        already (`perdure.config.load_settings`).

        Raises ConfigError naming the graph, the file and the cause.
        """
        config = _read(config_path)
        folder = Path(os.path.abspath(config_path)).parent
        roots = _roots(folder, config)
        sys.path[:] = [*map(str, roots), *(p for p in sys.path if Path(p or ".").absolute() not in roots)]
        graphs = {
            graph_id: _load_entry(config_path, graph_id, spec, roots) for graph_id, spec in config["graphs"].items()
        }
        registry = cls(config, graphs, roots)
        try:
            ttl.configured(config)
            prices.read(config)
            registry.embedder = embedding.load(config, registry.named)
        except ValueError as exc:
            raise ConfigError(f"{config_path}: {exc}") from exc
        log.info("graphs loaded", config=str(config_path), graphs=list(graphs))
        return registry

    def named(self, section: str, spec: Any) -> Any:
        """What another section of langgraph.json names as `./file.py:attribute` (`auth`, `http.app`).

        Raises ConfigError naming the section and the cause.
        """
        if not isinstance(spec, str) or not all(spec.rpartition(":")[::2]):
            raise ConfigError(f"{section}: {spec!r} is not of the form './file.py:attribute'")
        where, _, attribute = spec.rpartition(":")
        try:
            return getattr(_import(where, self._roots), attribute)
        except (Exception, SystemExit) as exc:
            raise ConfigError(f"{section} ({spec}) cannot be loaded: {_cause(exc)}") from exc

    @property
    def graph_ids(self) -> list[str]:
        """Names of all graphs, in the order of langgraph.json."""
        return list(self.graphs)

    @staticmethod
    def default_assistant_id(graph_id: str) -> UUID:
        """The id of a graph's default assistant: the same on every server, as clients compute it too."""
        return uuid5(ASSISTANT_NAMESPACE, graph_id)

    def entry(self, graph_id: str) -> GraphEntry:
        """The graph of that name. Raises GraphNotFound, which names those that exist."""
        entry = self.graphs.get(graph_id)
        if entry is None:
            raise GraphNotFound(f"Graph '{graph_id}' not found; langgraph.json defines: {', '.join(self.graphs)}")
        return entry

    @asynccontextmanager
    async def open(
        self,
        graph_id: str,
        config: RunnableConfig | None = None,
        *,
        checkpointer: BaseCheckpointSaver[Any] | None,
        store: BaseStore | None = None,
    ) -> AsyncIterator[Graph]:
        """The graph with this checkpointer and store, for one use: a copy, which costs microseconds.

        A factory is called with `config` first; a plain function in a thread, so that it cannot
        block the event loop. A context manager it returns is left when this one is. What the
        factory raises goes through. Raises GraphNotFound.
        """
        entry = self.entry(graph_id)
        async with AsyncExitStack() as stack:
            graph = entry.graph or await _build(entry, config or {}, stack)
            yield _copy(graph, graph_id, checkpointer, store)

    async def look(
        self,
        graph_id: str,
        config: RunnableConfig | None = None,
        *,
        checkpointer: BaseCheckpointSaver[Any] | None,
    ) -> Graph:
        """As `open`, to read states with the graph and never to run it, on a loop that must not be blocked.

        A factory is executed beside every event loop, and what it has opened is closed again.
        """
        entry = self.entry(graph_id)
        loop = asyncio.get_running_loop()
        graph = entry.graph
        if graph is None:
            graph = await loop.run_in_executor(_FACTORIES, _build_closed, entry, config or {})
        return _copy(graph, graph_id, checkpointer, None)

    async def draw(self, graph_id: str, xray: bool | int = False) -> dict[str, Any]:
        """Nodes and edges, see `drawing.draw`. Do not change the answer: it is kept and shared.

        Raises GraphNotFound; InvalidInput if this graph cannot be drawn.
        """
        levels = xray if isinstance(xray, bool) else min(max(xray, 0), MAX_XRAY)
        key = ("draw", graph_id, str(levels))  # as text, because True == 1
        if key not in self._described:
            self.entry(graph_id)
            try:
                graph = await self._shape(graph_id)
                self._described[key] = await asyncio.to_thread(drawing.draw, graph, levels)
            except Exception as exc:  # a factory that needs a config, a node LangGraph cannot follow
                raise InvalidInput("", f"Graph '{graph_id}' cannot be drawn: {_cause(exc)}") from exc
        return self._described[key]

    async def schemas(self, graph_id: str) -> dict[str, Any]:
        """`graph_id` and JSON schemas, see `drawing.schemas`; kept and shared. Raises only GraphNotFound."""
        key = ("schemas", graph_id)
        if key not in self._described:
            self.entry(graph_id)
            try:
                parts = await asyncio.to_thread(drawing.schemas, await self._shape(graph_id))
            except Exception as exc:  # a factory that needs a config
                log.warning("schemas not available", graph=graph_id, error=repr(exc))
                parts = drawing.NO_SCHEMAS
            self._described[key] = {"graph_id": graph_id, **parts}
        return self._described[key]

    async def subgraphs(
        self, graph_id: str, namespace: str | None = None, recurse: bool = False
    ) -> dict[str, dict[str, Any]]:
        """Schemas of the graphs inside, see `drawing.subgraphs`; kept and shared.

        Raises only GraphNotFound.
        """
        key = ("subgraphs", graph_id, namespace, recurse)
        if key not in self._described:
            self.entry(graph_id)
            try:
                found = await asyncio.to_thread(drawing.subgraphs, await self._shape(graph_id), namespace, recurse)
            except Exception as exc:  # a factory that needs a config
                log.warning("subgraphs not available", graph=graph_id, error=repr(exc))
                return {}
            if not found:  # keep only what exists: clients choose the namespace
                return found
            self._described[key] = found
        return self._described[key]

    async def _shape(self, graph_id: str) -> Graph:
        """The graph to look at, never to run: a factory's is built once, with an empty config."""
        if graph_id not in self._shapes:
            self._shapes[graph_id] = await self.look(graph_id, checkpointer=None)
        return self._shapes[graph_id]


def _read(path: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} not found; name your langgraph.json with --config") from None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} cannot be read: {exc}") from exc
    graphs: Any = cast("dict[str, Any]", config).get("graphs") if isinstance(config, dict) else None
    if not isinstance(graphs, dict) or not graphs:
        raise ConfigError(f'{path} defines no graphs: it needs {{"graphs": {{"<name>": "./<file>.py:<attribute>"}}}}')
    return cast("dict[str, Any]", config)


def _roots(folder: Path, config: dict[str, Any]) -> list[Path]:
    """The folder of langgraph.json and the local folders among its dependencies, absolute, each once."""
    dependencies: list[str] = config.get("dependencies") or []
    local = [d for d in dependencies if d.startswith((".", "/"))]
    return list(dict.fromkeys([folder, *(Path(os.path.abspath(folder / d)) for d in local)]))


def _load_entry(config_path: Path, graph_id: str, spec: Any, roots: list[Path]) -> GraphEntry:
    about: examples.About = {}
    limits = NO_LIMITS
    if isinstance(spec, dict):
        parts = cast("dict[str, Any]", spec)
        try:
            about, limits = examples.read(parts), timelimits.read(parts)
        except ValueError as exc:
            raise ConfigError(f"{config_path}: graph '{graph_id}': {exc}") from exc
        spec = parts.get("path")
    if not isinstance(spec, str) or not all(spec.rpartition(":")[::2]):
        raise ConfigError(
            f"Graph '{graph_id}': {spec!r} is not of the form './file.py:attribute' or 'package.module:attribute'"
        )
    where, _, attribute = spec.rpartition(":")
    try:
        module = _import(where, roots)
        value: Any = getattr(module, attribute)
    except (Exception, SystemExit) as exc:
        raise ConfigError(f"Graph '{graph_id}' ({spec}) cannot be loaded: {_cause(exc)}") from exc
    value = _compiled(value)
    description, shown = about.get("description"), tuple(about.get("examples", ()))
    if isinstance(value, Pregel):
        return GraphEntry(graph_id, spec, description, cast(Graph, value), examples=shown, limits=limits)
    if not callable(value):
        raise ConfigError(
            f"Graph '{graph_id}' ({spec}) is a {type(value).__name__}; expected a graph or a function that returns one"
        )
    takes_config = _takes_config(graph_id, spec, value)
    return GraphEntry(graph_id, spec, description, None, value, takes_config, shown, limits)


def _import(where: str, roots: list[Path]) -> ModuleType:
    """The module that a spec names before its colon: a path to a file, or a dotted name."""
    if "/" not in where and not where.endswith(".py"):
        return importlib.import_module(where)
    file = Path(os.path.abspath(roots[0] / where))
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    if file.suffix != ".py":
        raise ValueError("only Python graphs are supported")
    root = next((r for r in roots if file.is_relative_to(r)), None)
    if root is None:
        root = file.parent
        sys.path.insert(0, str(root))
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
    if any("." in part for part in parts):  # cannot be written in an import statement
        return _import_file("_".join(name.split(".")), file)
    module = importlib.import_module(name)
    if module.__file__ is None or not os.path.samefile(module.__file__, file):
        raise ImportError(f"the name '{name}' is taken by {module.__file__ or module}; rename the file or its folder")
    return module


def _import_file(name: str, file: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _takes_config(graph_id: str, spec: str, factory: Callable[..., Any]) -> bool:
    """Whether a factory wants the run's config: it has one required parameter, or its first is `config`."""
    parameters = inspect.signature(factory).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise ConfigError(
            f"Graph '{graph_id}' ({spec}): a function that makes a graph takes nothing or one config; "
            f"this one takes {', '.join(p.name for p in required)}"
        )
    first = next(iter(parameters), None)
    return bool(required) or (first is not None and first.name == "config")


def _copy(graph: Graph, graph_id: str, checkpointer: BaseCheckpointSaver[Any] | None, store: BaseStore | None) -> Graph:
    update: dict[str, Any] = {"checkpointer": checkpointer}
    if store is not None:
        update["store"] = store
    if graph.name == UNNAMED:
        update["name"] = graph_id
    return graph.copy(update=update)


_FACTORIES = ThreadPoolExecutor(8, thread_name_prefix="factory")


def _build_closed(entry: GraphEntry, config: RunnableConfig) -> Graph:
    """In a thread, with an event loop of its own for as long as the factory needs one."""

    async def build() -> Graph:
        async with AsyncExitStack() as stack:
            return await _build(entry, config, stack)

    return asyncio.run(build())


async def _build(entry: GraphEntry, config: RunnableConfig, stack: AsyncExitStack) -> Graph:
    """Call a factory until it has become a compiled graph; `stack` closes what it opened."""
    assert entry.factory is not None
    args = (config,) if entry.takes_config else ()
    if inspect.iscoroutinefunction(entry.factory):
        made: Any = await entry.factory(*args)
    else:
        made = await asyncio.to_thread(entry.factory, *args)
    if inspect.isawaitable(made):
        made = await made
    if isinstance(made, AbstractAsyncContextManager):
        made = await stack.enter_async_context(cast("AbstractAsyncContextManager[Any]", made))
    elif isinstance(made, AbstractContextManager):
        made = stack.enter_context(cast("AbstractContextManager[Any]", made))
    made = _compiled(made)
    if not isinstance(made, Pregel):
        raise TypeError(f"Graph '{entry.graph_id}' ({entry.spec}) made a {type(made).__name__}, not a graph")
    return cast(Graph, made)


def _compiled(value: Any) -> Any:
    return cast(Any, value).compile() if isinstance(value, StateGraph) else value


def _cause(exc: BaseException) -> str:
    text = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        return f"{text} (install it, or add its folder to `dependencies`)"
    return text
