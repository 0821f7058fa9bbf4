"""A run's graph, executed: what LangGraph streams meanwhile, piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.pregel import Pregel

from perdure.engine import beginning
from perdure.engine.channels import MODES
from perdure.engine.frames import EVENTS, graph_modes
from perdure.engine.queue import Claimed

Chunk = tuple[tuple[str, ...], str, Any]  # namespace, mode, data
HIDDEN = "langsmith:hidden"  # a tag of what LangGraph calls for itself


def modes_of(run: Claimed) -> list[str]:
    """The stream modes that the run's client asked for."""
    return run.kwargs.get("stream_mode") or ["values"]


def tells_events(run: Claimed) -> bool:
    """Whether the run streams LangChain's events beside what LangGraph streams."""
    return EVENTS in modes_of(run) and not run.kwargs.get("protocol")


def keeps_last_only(run: Claimed) -> bool:
    """Whether the run was asked to leave its last checkpoint only. Until its end it needs them all."""
    return run.kwargs.get("durability") == "exit"


async def stream(graph: Pregel[Any, Any, Any, Any], run: Claimed, config: RunnableConfig) -> AsyncIterator[Chunk]:
    """Execute the graph as far as it goes. Raises what the graph raises.

    LangChain's events are made by the same execution: what LangGraph streams comes among them, as the
    stream of the graph itself. They come through a queue, so the graph may be ahead of its reader.
    """
    kwargs = run.kwargs
    protocol = bool(kwargs.get("protocol"))
    subgraphs = protocol or bool(kwargs.get("subgraphs"))
    given = beginning.delivery(run)
    options: dict[str, Any] = {
        "context": beginning.context_of(graph, kwargs.get("context") or {}, config),
        "stream_mode": MODES if protocol else graph_modes(modes_of(run)),
        "subgraphs": subgraphs,
        "durability": "sync",
        "interrupt_before": kwargs.get("interrupt_before"),
        "interrupt_after": kwargs.get("interrupt_after"),
    }
    if not tells_events(run):
        async for chunk in cast("AsyncIterator[Any]", cast(Any, graph).astream(given, config, **options)):
            yield _chunk(chunk, subgraphs)
        return
    source: Any = cast(Any, graph).astream_events(given, config, version="v2", **options)
    async with aclosing(source) as events:
        async for event in events:
            if event["event"] == "on_chain_stream" and event["run_id"] == str(run.run_id):
                yield _chunk(event["data"]["chunk"], subgraphs)
            elif HIDDEN not in event["tags"]:
                yield (), EVENTS, event


def _chunk(chunk: Any, subgraphs: bool) -> Chunk:
    return chunk if subgraphs else ((), *chunk)
