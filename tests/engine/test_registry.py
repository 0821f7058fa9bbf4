"""Loading langgraph.json: any project layout that LangGraph users have, and errors that say what to do."""

import asyncio
import json
import re
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure.engine.errors import GraphNotFound, InvalidInput
from perdure.engine.registry import ConfigError, GraphEntry, Registry

GRAPHS = """
import contextlib
from dataclasses import dataclass
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict


class State(TypedDict, total=False):
    note: str


@dataclass
class Ctx:
    tone: str = "plain"


def line(*names, context=None):
    g = StateGraph(State, context_schema=context)
    for before, name in zip((START, *names), names):
        g.add_node(name, lambda s: {"note": "x"})
        g.add_edge(before, name)
    g.add_edge(names[-1], END)
    return g


builder = line("a", "b")
graph = builder.compile()
toned = line("a", context=Ctx).compile()
closed = []


def no_args():
    return graph


def by_config(config: RunnableConfig):
    return line("short") if config.get("configurable", {}).get("short") else graph


async def by_async(config):
    return builder


@contextlib.asynccontextmanager
async def by_context(config):
    try:
        yield graph
    finally:
        closed.append("async")


@contextlib.contextmanager
def by_sync_context():
    try:
        yield graph
    finally:
        closed.append("sync")


def needy(config):
    return {}[config["configurable"]["user"]]


def two(a, b):
    return graph


number = 3

inner = line("in_a", "in_b").compile()
_mid = StateGraph(State)
_mid.add_node("deep", inner)
_mid.add_edge(START, "deep")
mid = _mid.compile()
_outer = StateGraph(State)
_outer.add_node("child", mid)
_outer.add_edge(START, "child")
nested = _outer.compile()
"""


def project(folder: Path, files: dict[str, str], **config: object) -> Path:
    """A project on disk; returns its langgraph.json."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    path = folder / "langgraph.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load graphs of one module with a name of its own, because modules stay in the process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"graphs_{uuid.uuid4().hex}"

    def load(*attributes: str, **config: object) -> Registry:
        graphs = {a: f"./{name}.py:{a}" for a in attributes}
        return Registry.load(project(tmp_path, {f"{name}.py": GRAPHS}, graphs=graphs, **config))

    load.module = name
    yield load
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "attribute", ["graph", "builder", "no_args", "by_config", "by_async", "by_context", "by_sync_context"]
)
async def test_every_way_to_export_a_graph(load, attribute):
    registry = load(attribute)
    async with registry.open(attribute, {}, checkpointer=None) as graph:
        assert list(graph.nodes) == ["__start__", "a", "b"]
        assert graph.name == attribute
        assert await graph.ainvoke({}) == {"note": "x"}
    closed = sys.modules[load.module].closed
    assert closed == {"by_context": ["async"], "by_sync_context": ["sync"]}.get(attribute, [])


async def test_factory_is_called_per_use_with_the_config(load):
    registry = load("by_config")
    async with registry.open("by_config", {"configurable": {"short": True}}, checkpointer=None) as graph:
        assert list(graph.nodes) == ["__start__", "short"]
    async with registry.open("by_config", checkpointer=None) as graph:
        assert list(graph.nodes) == ["__start__", "a", "b"]


async def test_open_gives_a_copy_and_leaves_the_module_alone(load):
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.store.memory import InMemoryStore

    registry, saver, store = load("graph"), InMemorySaver(), InMemoryStore()
    async with registry.open("graph", checkpointer=saver, store=store) as graph:
        assert graph.checkpointer is saver
        assert graph.store is store
    assert sys.modules[load.module].graph.checkpointer is None


@pytest.mark.parametrize("kind", ["async", "plain", "context"])
async def test_a_graph_to_look_at_is_made_beside_the_event_loop_and_closed_again(load, kind):
    """The sweeper reads states on the loop that renews the leases: author code must not block it."""
    registry, closed, began, released = load("graph"), [], threading.Event(), threading.Event()

    def blocking() -> Any:
        began.set()
        assert released.wait(60), "the loop was blocked: it could not release this"
        return sys.modules[load.module].builder

    async def asynchronous(config: Any) -> Any:
        return blocking()

    @asynccontextmanager
    async def context(config: Any) -> AsyncIterator[Any]:
        yield blocking()
        closed.append(True)

    factory = {"async": asynchronous, "plain": lambda config: blocking(), "context": context}[kind]
    registry.graphs["slow"] = GraphEntry("slow", "slow", None, None, factory, takes_config=True)
    looking = asyncio.create_task(registry.look("slow", {}, checkpointer=None))
    assert await asyncio.to_thread(began.wait, 60)
    released.set()
    assert list((await looking).nodes) == ["__start__", "a", "b"]
    assert closed == ([True] if kind == "context" else [])


async def test_unknown_graph_names_the_known_ones(load):
    registry = load("graph", "builder")
    with pytest.raises(GraphNotFound, match=r"'zzz' not found; langgraph\.json defines: graph, builder"):
        async with registry.open("zzz", checkpointer=None):
            pass
    for describe in (registry.draw, registry.schemas, registry.subgraphs):
        with pytest.raises(GraphNotFound):
            await describe("zzz")


def test_default_assistant_id_is_the_one_clients_compute():
    expected = uuid.uuid5(uuid.UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8"), "steps")
    assert Registry.default_assistant_id("steps") == expected


async def test_draw(load):
    registry = load("graph", "nested", "needy")
    drawn = await registry.draw("graph")
    assert drawn["nodes"][1] == {"id": "a", "type": "runnable", "data": {"name": "a"}}
    assert drawn["nodes"][-1] == {"id": "__end__"}
    assert {"source": "a", "target": "b"} in drawn["edges"]
    assert await registry.draw("graph") is drawn

    async def ids(xray):
        return {n["id"] for n in (await registry.draw("nested", xray))["nodes"]} - {"__start__", "__end__"}

    assert await ids(False) == await ids(0) == await ids(-1) == {"child"}
    assert await ids(1) == {"child:deep"}
    assert await ids(True) == await ids(10**30) == {"child:deep:in_a", "child:deep:in_b"}
    with pytest.raises(InvalidInput, match="'needy' cannot be drawn: KeyError"):
        await registry.draw("needy")


async def test_schemas(load):
    registry = load("graph", "toned", "needy", "by_context")
    plain = await registry.schemas("graph")
    assert plain["graph_id"] == "graph"
    assert plain["input_schema"]["properties"]["note"]["type"] == "string"
    assert plain["output_schema"] == plain["input_schema"] == plain["state_schema"]
    assert plain["config_schema"] == {}
    assert plain["context_schema"] is None
    toned = await registry.schemas("toned")
    assert toned["context_schema"]["properties"]["tone"]["default"] == "plain"
    assert toned["config_schema"] == toned["context_schema"]
    assert (await registry.schemas("by_context"))["state_schema"] == plain["state_schema"]
    needy = await registry.schemas("needy")
    assert needy["graph_id"] == "needy"
    assert needy["input_schema"] is None


async def test_a_schema_that_cannot_be_made_is_null(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"odd_{uuid.uuid4().hex}"
    source = """
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict
    class Odd: ...
    class State(TypedDict):
        odd: Odd
    g = StateGraph(State, output_schema=State)
    g.add_node("a", lambda s: s)
    g.add_edge(START, "a")
    """
    path = project(tmp_path, {f"{name}.py": source}, graphs={"g": f"./{name}.py:g"})
    schemas = await Registry.load(path).schemas("g")
    assert schemas["input_schema"] is schemas["state_schema"] is None


async def test_subgraphs(load):
    registry = load("nested", "needy")
    assert list(await registry.subgraphs("nested")) == ["child"]
    assert list(await registry.subgraphs("nested", recurse=True)) == ["child", "child|deep"]
    assert list(await registry.subgraphs("nested", "child")) == ["child"]
    assert list(await registry.subgraphs("nested", "child|deep")) == ["child|deep"]
    assert await registry.subgraphs("nested", "zzz") == {}
    assert await registry.subgraphs("needy") == {}
    schemas = (await registry.subgraphs("nested"))["child"]
    assert "note" in schemas["state_schema"]["properties"]
    assert "graph_id" not in schemas


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "./nope.py:graph",
            r"Graph 'g' \(./nope.py:graph\) cannot be loaded: FileNotFoundError: .*/nope.py does not exist",
        ),
        ("./bad.py:graph", r"cannot be loaded: ZeroDivisionError: division by zero"),
        (
            "./missing.py:graph",
            r"ModuleNotFoundError: No module named 'not_installed' \(install it, or add its folder",
        ),
        ("./good_module.py:zzz", r"AttributeError: module 'good_module' has no attribute 'zzz'"),
        ("./good_module.py:number", r"is a int; expected a graph or a function"),
        ("./good_module.py:two", r"takes nothing or one config; this one takes a, b"),
        ("./exits.py:graph", r"cannot be loaded: SystemExit: 2"),
        ("./graph.ts:graph", r"only Python graphs are supported"),
        ("./calendar.py:graph", r"the name 'calendar' is taken by .*calendar.py; rename the file"),
        ("good_module", r"'good_module' is not of the form"),
        (["x"], r"is not of the form"),
    ],
)
def test_load_errors_name_graph_file_and_cause(tmp_path, monkeypatch, spec, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    import calendar  # noqa: F401  already imported, so the file of that name cannot be

    files = {
        "bad.py": "1 / 0",
        "missing.py": "import not_installed",
        "exits.py": "raise SystemExit(2)",
        "good_module.py": GRAPHS,
        "graph.ts": "",
        "calendar.py": "graph = 1",
    }
    try:
        with pytest.raises(ConfigError, match=message):
            Registry.load(project(tmp_path, files, graphs={"g": spec}))
    finally:
        sys.modules.pop("good_module", None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"graphs": {}}', '{"graphs": []}', "\xff"])
def test_a_langgraph_json_without_graphs_is_a_clear_error(tmp_path, text):
    (tmp_path / "langgraph.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"langgraph\.json"):
        Registry.load(tmp_path / "langgraph.json")
    with pytest.raises(ConfigError, match=r"not found; name your langgraph\.json with --config"):
        Registry.load(tmp_path / "other.json")


def test_spec_as_an_object_with_a_description(load, tmp_path):
    load("graph")
    path = project(tmp_path, {}, graphs={"g": {"path": f"./{load.module}.py:graph", "description": "Says x"}})
    assert Registry.load(path).graphs["g"].description == "Says x"


def test_examples_are_kept_as_they_are_written(load, tmp_path):
    load("graph")
    path = f"./{load.module}.py:graph"
    examples = [
        {"input": {"note": "x"}},
        {"input": None, "key": "k", "answer": {"decisions": []}, "unanswered": False, "status": 422, "needs": "crm"},
    ]
    graphs = {"g": {"path": path, "examples": examples, "of_langgraph": 1}, "plain": path}
    registry = Registry.load(project(tmp_path, {}, graphs=graphs))
    assert list(registry.graphs["g"].examples) == examples
    assert registry.graphs["plain"].examples == ()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"description": 7}, "description: Input should be a valid string, not 7"),
        ({"examples": {}}, "examples: Input should be a valid list, not {}"),
        ({"examples": [{}]}, "examples[0].input: Field required"),
        ({"examples": [{"input": 1}, 3]}, "examples[1]: Input should be a valid dictionary, not 3"),
        (
            {"examples": [{"input": 1, "status": "200"}]},
            "examples[0].status: Input should be a valid integer, not '200'",
        ),
        (
            {"examples": [{"input": 1, "status": 99}]},
            "examples[0].status: Input should be greater than or equal to 200",
        ),
        ({"examples": [{"input": 1, "key": ""}]}, "examples[0].key: String should have at least 1 character"),
        (
            {"examples": [{"input": 1, "anwser": 1}]},
            "examples[0].anwser: no such key; an example has input, key, answer, unanswered, status, needs",
        ),
    ],
)
def test_errors_in_examples_name_file_graph_and_key(load, tmp_path, about, message):
    load("graph")
    path = project(tmp_path, {}, graphs={"g": {"path": f"./{load.module}.py:graph", **about}})
    with pytest.raises(ConfigError, match=re.escape(f"{path}: graph 'g': {message}")):
        Registry.load(path)


LAYOUTS = {
    "own graphs.py": ({"graphs.py": GRAPHS}, "./graphs.py:graph", [], "graphs"),
    "own server.py": ({"server.py": GRAPHS}, "./server.py:graph", [], "server"),
    "own graphs folder": (
        {"graphs/main.py": "from graphs.tools.make import graph", "graphs/tools/make.py": GRAPHS},
        "./graphs/main.py:graph",
        [],
        "graphs.main",
    ),
    "relative imports in a package": (
        {"graphs/__init__.py": "", "graphs/main.py": "from .make import graph", "graphs/make.py": GRAPHS},
        "./graphs/main.py:graph",
        ["."],
        "graphs.main",
    ),
    "dependency folder": (
        {"src/agent/graph.py": "from agent.make import graph", "src/agent/make.py": GRAPHS},
        "./src/agent/graph.py:graph",
        ["./src", "langchain_openai"],
        "src.agent.graph",
    ),
    "dotted module": ({"pkg/agent.py": GRAPHS}, "pkg.agent:graph", ["."], "pkg.agent"),
    "package init": ({"pkg/__init__.py": GRAPHS}, "./pkg/__init__.py:graph", ["."], "pkg"),
    "folder with a hyphen": (
        {"my-agent/agent.py": GRAPHS},
        "./my-agent/agent.py:graph",
        [],
        "my-agent.agent",
    ),
    "folder with a dot": ({"v1.2/agent.py": GRAPHS}, "./v1.2/agent.py:graph", [], "v1_2_agent"),
    "file outside": ({"../outside_agent.py": GRAPHS}, "../outside_agent.py:graph", [], "outside_agent"),
}


LOAD_EACH = """
import os, sys
from pathlib import Path
from perdure.engine.registry import Registry

failed = []
for path, module in {projects!r}:
    child = os.fork()
    if child == 0:
        try:
            registry = Registry.load(Path(path))
            assert list(registry.graphs["g"].graph.nodes) == ["__start__", "a", "b"]
            assert module in sys.modules
            assert str(Path(path).parent) in sys.path[:2]
            os._exit(0)
        finally:
            import traceback
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        failed.append(path)
sys.exit(", ".join(failed) or 0)
"""


def test_project_layouts(tmp_path):
    """Each in a process of its own, started elsewhere: that is how users start the server."""
    projects: list[tuple[str, str]] = []
    for name, (files, spec, dependencies, module) in LAYOUTS.items():
        folder = tmp_path / name / "project"
        projects.append((str(project(folder, files, graphs={"g": spec}, dependencies=dependencies)), module))
    code = LOAD_EACH.format(projects=projects)
    done = subprocess.run([sys.executable, "-c", code], cwd="/", timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
