"""What a compiled graph looks like from outside: its nodes and edges, schemas and subgraphs.

Pure functions of a graph; they run none of its nodes. Shapes are those of the Agent Server's
`GET /assistants/{id}/graph`, `/schemas` and `/subgraphs` (langgraph-api 0.16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import structlog
from langgraph.pregel import Pregel
from langgraph.pregel.protocol import PregelProtocol
from pydantic import TypeAdapter

log = structlog.get_logger(__name__)

Graph = Pregel[Any, Any, Any, Any]

NO_SCHEMAS: dict[str, Any] = {
    "input_schema": None,
    "output_schema": None,
    "state_schema": None,
    "config_schema": {},
    "context_schema": None,
}


def draw(graph: Graph, xray: bool | int) -> dict[str, Any]:
    """`{"nodes": [...], "edges": [...]}`; with `xray` a subgraph is replaced by its inner nodes.

    `xray` as a number opens that many levels. Inner nodes have ids `outer:inner`; `__end__`
    has an id and nothing else.
    """
    drawn: dict[str, list[dict[str, Any]]] = graph.get_graph(xray=xray).to_json()
    for node in drawn["nodes"]:
        if node.get("type") == "runnable":
            node["data"].pop("id", None)  # the path of the Python class, of no use to a client
    return drawn


def schemas(graph: PregelProtocol[Any, Any, Any, Any]) -> dict[str, Any]:
    """The JSON schemas of a graph; a part that cannot be made is None, and logged.

    Without a context schema `config_schema` is {} and `context_schema` None; otherwise both hold it.
    """
    if not isinstance(graph, Pregel):  # a remote graph: its server knows
        return NO_SCHEMAS
    context = _attempt(graph, "context_schema", graph.get_context_jsonschema)
    return {
        "input_schema": _attempt(graph, "input_schema", graph.get_input_jsonschema),
        "output_schema": _attempt(graph, "output_schema", graph.get_output_jsonschema),
        "state_schema": _attempt(graph, "state_schema", lambda: _state_schema(graph)),
        "config_schema": {} if context is None and graph.context_schema is None else context,
        "context_schema": context,
    }


def subgraphs(graph: Graph, namespace: str | None, recurse: bool) -> dict[str, Any]:
    """`{namespace: schemas}` of the graphs inside; {} for a namespace that names none.

    A namespace is node names joined by `|`; one of several levels implies `recurse`.
    """
    deep = recurse or (namespace is not None and "|" in namespace)
    inner = cast(Any, graph).get_subgraphs(namespace=namespace, recurse=deep)
    return {name: schemas(subgraph) for name, subgraph in inner}


def _state_schema(graph: Graph) -> dict[str, Any]:
    builder = getattr(graph, "builder", None)
    if builder is not None:
        return TypeAdapter(builder.state_schema).json_schema()
    return graph.copy(update={"output_channels": graph.stream_channels_asis}).get_output_jsonschema()


def _attempt(graph: Graph, part: str, make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    try:
        return make()
    except Exception as exc:  # any type an author puts into a state may refuse
        log.warning("schema not available", graph=graph.name, part=part, error=repr(exc))
        return None
