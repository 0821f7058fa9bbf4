"""ThreadState as the wire has it (langgraph-api 0.16), from LangGraph's StateSnapshot. Pure functions.

Values, metadata and results stay as they are; `perdure.engine.jsonable` makes JSON of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.types import Interrupt, PregelTask, StateSnapshot


def thread_state(snapshot: StateSnapshot) -> dict[str, Any]:
    """A snapshot with its tasks, and their subgraphs' states where the snapshot has them."""
    if snapshot.metadata is None:  # a subgraph that has not started
        return empty_state(_configurable(snapshot.config))
    checkpoint = address(_configurable(snapshot.config))
    parent = address(_configurable(snapshot.parent_config)) if snapshot.parent_config else None
    tasks = [_task(task) for task in snapshot.tasks]
    return {
        "values": {} if snapshot.values is None else snapshot.values,
        "next": list(snapshot.next),
        "tasks": tasks,
        "metadata": _metadata(snapshot.metadata, checkpoint),
        "created_at": snapshot.created_at,
        "checkpoint": checkpoint,
        "parent_checkpoint": parent,
        "interrupts": [interrupt for task in tasks for interrupt in task["interrupts"]],
        "checkpoint_id": checkpoint["checkpoint_id"],
        "parent_checkpoint_id": parent["checkpoint_id"] if parent else None,
    }


def _metadata(stored: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's checkpoint names its thread; LangGraph leaves that out of what it stores, as its address says it."""
    return {**stored, "thread_id": checkpoint["thread_id"]} if "run_id" in stored else stored


def empty_state(configurable: Mapping[str, Any] | None) -> dict[str, Any]:
    """The state where there is none; `configurable` is the address that a client asked for."""
    checkpoint = address(configurable) if configurable else None
    return {
        "values": {},
        "next": [],
        "tasks": [],
        "metadata": None,
        "created_at": None,
        "checkpoint": checkpoint,
        "parent_checkpoint": None,
        "interrupts": [],
        "checkpoint_id": checkpoint.get("checkpoint_id") if checkpoint else None,
        "parent_checkpoint_id": None,
    }


def _task(task: PregelTask) -> dict[str, Any]:
    inner = task.state
    return {
        "id": task.id,
        "name": task.name,
        "path": list(cast(Any, task).path),
        "error": repr(task.error) if isinstance(task.error, BaseException) else task.error,
        "interrupts": [question(i) for i in task.interrupts],
        "checkpoint": address(_configurable(inner)) if isinstance(inner, dict) else None,
        "state": thread_state(inner) if isinstance(inner, StateSnapshot) else None,
        "result": task.result,
    }


def question(interrupt: Interrupt) -> dict[str, Any]:
    """An interrupt in a state or a thread; in streams it has a `response_schema` too."""
    return {"id": interrupt.id, "value": interrupt.value}


def address(configurable: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that names a checkpoint."""
    keys = ("checkpoint_id", "thread_id", "checkpoint_ns", "checkpoint_map")
    return {key: configurable[key] for key in keys if key in configurable}


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    return config.get("configurable") or {}
