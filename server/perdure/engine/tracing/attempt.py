"""What one attempt does, as spans: nodes, steps, model calls, tools.

LangChain's callbacks tell of nodes, models and tools and who called them, the journal of steps. Spans hold names, ids
and numbers, never what a model, a tool or a step was given or gave back.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.errors import GraphBubbleUp

from perdure.engine.errors import LeaseLost
from perdure.engine.tracing.spans import Span, Value, attempt_span, failed

if TYPE_CHECKING:
    from perdure.engine.queue import Claimed
    from perdure.engine.tracing.export import Exporter

NODE = "graph:step:"  # how the tag begins that LangGraph gives to what it calls a task
MAX_EVENTS = 128  # of a span, as the SDK has it
GAVE_WAY = "waits for undos"  # it has executed nothing, and its number is used again

_step: ContextVar[tuple[UUID | None, Span] | None] = ContextVar("perdure_step_span", default=None)
"""The step that is being executed here, and the LangChain run that called it."""


class AttemptTrace(BaseCallbackHandler):
    """The spans of one attempt; goes into its graph's callbacks. May be used from several threads."""

    run_inline = True  # where the call is made: `_step` is seen, and nothing here waits

    def __init__(self, exporter: Exporter, run: Claimed, worker: str) -> None:
        self._exporter = exporter
        self._root = attempt_span(run.run_id, run.thread_id, run.attempt, run.trace, time.time_ns(), worker)
        self._open: dict[UUID, Span] = {}
        self._below: dict[UUID, Span] = {}  # runs of LangChain that have no span of their own
        self._closed = False

    # -- the attempt

    def finish(self, outcome: str | None, error: dict[str, Any] | None) -> None:
        """The attempt is over, and what is still open of it.

        `outcome`: how it has ended, which is committed; None: it was taken away, and who took it writes its span.
        `error`: class and message, as the run has them.
        """
        self._closed = True
        for run_id in list(self._open):
            self._leave(run_id, outcome="stopped")
        self._below.clear()
        if outcome is None or outcome == GAVE_WAY:
            return
        self._root.attributes["perdure.outcome"] = outcome
        if error is not None:
            failed(self._root, error["error"], error["message"])
        self._exporter.end(self._root, time.time_ns())

    # -- steps

    @contextmanager
    def step(self, name: str, number: int) -> Iterator[None]:
        """Around the `number`-th try of a step."""
        calling = _caller()
        span = self._span(f"step {name}", calling, {"perdure.step": name, "perdure.try": number})
        token = _step.set((calling, span))
        try:
            yield
        except BaseException as exc:
            _outcome(span, exc)
            raise
        finally:
            _step.reset(token)
            self._exporter.end(span, time.time_ns())

    def replayed(self, name: str) -> None:
        """A step was not executed: its result was there."""
        events = self._parent(_caller()).events
        if len(events) < MAX_EVENTS:
            events.append(("step replayed", time.time_ns(), {"perdure.step": name}))

    # -- nodes, models and tools

    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if not any(tag.startswith(NODE) for tag in tags or ()):
            self._below[run_id] = self._parent(parent_run_id)
            return
        metadata: dict[str, Any] = kwargs.get("metadata") or {}
        name = str(metadata.get("langgraph_node") or kwargs.get("name"))
        about: dict[str, Value] = {"perdure.node": name}
        if isinstance(metadata.get("langgraph_step"), int):
            about["perdure.superstep"] = metadata["langgraph_step"]
        self._enter(run_id, f"node {name}", parent_run_id, about)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._below.pop(run_id, None)
        self._leave(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._below.pop(run_id, None)
        self._leave(run_id, error)

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._ask(run_id, "chat", kwargs)

    def on_llm_start(self, serialized: Any, prompts: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._ask(run_id, "text_completion", kwargs)

    def _ask(self, run_id: UUID, operation: str, kwargs: dict[str, Any]) -> None:
        metadata: dict[str, Any] = kwargs.get("metadata") or {}
        sent: dict[str, Any] = kwargs.get("invocation_params") or {}
        model = metadata.get("ls_model_name") or sent.get("model") or sent.get("model_name")
        about: dict[str, Value] = {"gen_ai.operation.name": operation}
        for name, value in (
            ("gen_ai.provider.name", metadata.get("ls_provider")),
            ("gen_ai.request.model", model),
            ("gen_ai.request.temperature", metadata.get("ls_temperature")),
            ("gen_ai.request.max_tokens", metadata.get("ls_max_tokens")),
        ):
            if isinstance(value, str | int | float):
                about[name] = value
        title = f"{operation} {model}" if isinstance(model, str) else operation
        self._enter(run_id, title, kwargs.get("parent_run_id"), about, client=True)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        span = self._open.get(run_id)
        if span is not None:
            span.attributes |= _answered(response)
        self._leave(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._leave(run_id, error)

    def on_tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        told: dict[str, Any] = serialized or {}
        name = str(told.get("name") or kwargs.get("name"))
        about: dict[str, Value] = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
        call_id = kwargs.get("tool_call_id")
        if isinstance(call_id, str):
            about["gen_ai.tool.call.id"] = call_id
        self._enter(run_id, f"execute_tool {name}", kwargs.get("parent_run_id"), about)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._leave(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._leave(run_id, error)

    # -- the tree

    def _parent(self, calling: UUID | None) -> Span:
        """What stands above something that a run of LangChain calls: the step in which it does so, or its own span."""
        step = _step.get()
        if step is not None and step[0] == calling and step[1].trace_id == self._root.trace_id:
            return step[1]
        if calling is None:
            return self._root
        return self._open.get(calling) or self._below.get(calling) or self._root

    def _span(self, name: str, calling: UUID | None, about: dict[str, Value], *, client: bool = False) -> Span:
        parent = self._parent(calling)
        span_id = secrets.randbits(64) or 1
        return Span(
            trace_id=parent.trace_id,
            span_id=span_id,
            parent_id=parent.span_id,
            name=name,
            start=time.time_ns(),
            attributes=about,
            client=client,
        )

    def _enter(
        self, run_id: UUID, name: str, calling: UUID | None, about: dict[str, Value], *, client: bool = False
    ) -> None:
        if not self._closed:
            self._open[run_id] = self._span(name, calling, about, client=client)

    def _leave(self, run_id: UUID, error: BaseException | None = None, *, outcome: str | None = None) -> None:
        span = self._open.pop(run_id, None)
        if span is None:
            return
        if outcome is not None:
            span.attributes["perdure.outcome"] = outcome
        if error is not None:
            _outcome(span, error)
        self._exporter.end(span, time.time_ns())


def _outcome(span: Span, exc: BaseException) -> None:
    """How something ended that raised: to wait, to ask, to stop, or with an error, of which the class is told."""
    if getattr(exc, "suspends", False):
        span.attributes["perdure.outcome"] = "suspended"
    elif isinstance(exc, GraphBubbleUp):
        span.attributes["perdure.outcome"] = "interrupted"
    elif isinstance(exc, asyncio.CancelledError | LeaseLost):
        span.attributes["perdure.outcome"] = "stopped"
    else:
        failed(span, type(exc).__qualname__)


def _caller() -> UUID | None:
    """The run of LangChain that we are called in."""
    callbacks: Any = (var_child_runnable_config.get() or {}).get("callbacks")
    return getattr(callbacks, "parent_run_id", None)


def _answered(response: LLMResult) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for generation in [one for group in response.generations[:1] for one in group[:1]]:
        message = generation.message if isinstance(generation, ChatGeneration) else None
        if not isinstance(message, AIMessage):
            continue
        if message.usage_metadata:
            found["gen_ai.usage.input_tokens"] = message.usage_metadata["input_tokens"]
            found["gen_ai.usage.output_tokens"] = message.usage_metadata["output_tokens"]
        told: dict[str, Any] = message.response_metadata
        model, reason = told.get("model_name"), told.get("finish_reason")
        if isinstance(model, str):
            found["gen_ai.response.model"] = model
        if isinstance(reason, str):
            found["gen_ai.response.finish_reasons"] = [reason]
    return found
