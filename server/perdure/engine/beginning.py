"""How an attempt begins: the config that the nodes see, and what LangGraph is given.

What a crash has left behind decides: the input again, a command, or nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.pregel import Pregel
from langgraph.types import Command, Send

from perdure.engine.access import USER_KEYS, Actor
from perdure.engine.newrun import start_of
from perdure.engine.queue import Claimed

if TYPE_CHECKING:
    from perdure.engine.journal import Journal

LANGGRAPH_VERSION = version("langgraph")
JOURNAL = "__perdure_journal"  # where graph code finds the step journal in its config


def config_of(run: Claimed, journal: Journal) -> RunnableConfig:
    """What the nodes see; the run's own keys win over what clients sent."""
    given: dict[str, Any] = run.kwargs.get("config") or {}
    configurable: dict[str, Any] = given.get("configurable") or {}
    own = {
        "run_id": str(run.run_id),
        "thread_id": str(run.thread_id),
        "assistant_id": str(run.assistant_id),
        "graph_id": run.graph_id,
    }
    context: dict[str, Any] = run.kwargs.get("context") or {}
    clean = {k: v for k, v in {**context, **configurable}.items() if not k.startswith("__")}
    for key in ("checkpoint_id", "checkpoint_ns", "checkpoint_map", *USER_KEYS):
        clean.pop(key, None)
    actor = Actor.of(run.actor)
    user = {"user_id": actor.identity, **actor.configurable()} if actor else {}
    metadata: dict[str, Any] = {
        "langgraph_version": LANGGRAPH_VERSION,
        **(given.get("metadata") or {}),
        **run.metadata,
        **own,
        "run_attempt": run.attempt,
    }
    config: dict[str, Any] = {
        **{key: given[key] for key in ("tags", "recursion_limit", "max_concurrency", "run_name") if given.get(key)},
        "run_id": run.run_id,
        "metadata": metadata,
        "configurable": {"user_id": "", **clean, **user, **own, JOURNAL: journal},
    }
    # LangGraph forks each time it is given a checkpoint: only as long as the head is not this run's, and never
    # for an answer, which stands in the head that it was sent with
    if run.kwargs.get("answered") is None and run.head_run_id != str(run.run_id):
        config["configurable"] |= start_of(run.kwargs).configurable
    return cast(RunnableConfig, config)


def given_by_langgraph(kwargs: Mapping[str, Any]) -> bool:
    """Whether a run's answer is in its command only, for LangGraph to give, and not in a checkpoint (`resuming`)."""
    command: dict[str, Any] = kwargs.get("command") or {}
    return command.get("resume") is not None and kwargs.get("answered") is None


def delivery(run: Claimed) -> Any:
    """What LangGraph is given: the input, a command, or None to go on from the head.

    The input may be given again: under the same `metadata.run_id` LangGraph continues
    from this run's checkpoint. An answer stands in the checkpoint already. A command's
    update and goto are given only while the head is the checkpoint they were meant for
    and does not hold them yet.
    """
    kwargs = run.kwargs
    command: dict[str, Any] | None = kwargs.get("command")
    if command is None:
        return kwargs.get("input")
    wanted = {key: command[key] for key in ("update", "goto") if command.get(key) is not None}
    if given_by_langgraph(kwargs):
        wanted["resume"] = command["resume"]
    elif not wanted:  # LangGraph cannot take a command of nothing
        return kwargs.get("input") if kwargs.get("answered") is None else None
    applied = (run.head or "") != run.base_checkpoint_id or run.head_commanded
    if applied and run.attempt > 1:
        return None
    if "goto" in wanted:
        wanted["goto"] = _goto(wanted["goto"])
    return Command(**wanted)


def _goto(goto: Any) -> Any:
    if isinstance(goto, list):
        return [_goto(one) for one in cast("list[Any]", goto)]
    if isinstance(goto, dict):
        return Send(str(goto.get("node")), goto.get("input"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return goto


def context_of(graph: Pregel[Any, Any, Any, Any], given: dict[str, Any], config: RunnableConfig) -> Any:
    """The run's context (`configurable` reaches it too), without the keys that the graph's schema does not know."""
    schema = graph.context_schema
    if schema is None:
        return given or None
    if dataclasses.is_dataclass(schema):
        names = {field.name for field in dataclasses.fields(schema)}
    else:
        names = set(getattr(schema, "model_fields", None) or getattr(schema, "__annotations__", {}))
    values: dict[str, Any] = config.get("configurable", {})
    return {key: value for key, value in values.items() if key in names}
