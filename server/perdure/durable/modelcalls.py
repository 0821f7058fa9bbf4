"""How often a step calls which model, how many tokens that takes and how soon the first one comes, for the journal.

LangChain's callbacks tell. A model is known by the name that the author asked for (`gpt-5-mini`), not by the one
that the provider answers with (`gpt-5-mini-2025-08-07`): that is what prices are given for.
"""

import time
from collections import defaultdict
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from langchain_core.tracers.context import register_configure_hook

UNNAMED = "unnamed"

_counter: ContextVar["ModelCalls | None"] = ContextVar("perdure_model_calls", default=None)
# Not inheritable: a model that is called inside of a graph inside of the step is seen by its own configuration.
register_configure_hook(_counter, inheritable=False)


class ModelCalls(BaseCallbackHandler):
    """Counts the calls that begin in its `with` block, also those that fail; steps inside count for themselves."""

    run_inline = True  # in the caller's task: nothing here waits

    def __init__(self) -> None:
        self._models: defaultdict[str, dict[str, int]] = defaultdict(
            lambda: {"calls": 0, "input_tokens": 0, "output_tokens": 0}
        )
        self._open: dict[UUID, tuple[str, float]] = {}
        self._first_token: float | None = None

    def __enter__(self) -> "ModelCalls":
        self._token: Token[ModelCalls | None] = _counter.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        _counter.reset(self._token)

    @property
    def ignore_chain(self) -> bool:
        return True

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._start(run_id, kwargs)

    def on_llm_start(self, serialized: Any, prompts: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._start(run_id, kwargs)

    def _start(self, run_id: UUID, about: dict[str, Any]) -> None:
        name = _name(about)
        self._models[name]["calls"] += 1
        self._open[run_id] = name, time.monotonic()

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        if self._first_token is None and run_id in self._open and (token or _calls_a_tool(chunk)):
            self._first_token = time.monotonic() - self._open[run_id][1]

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._open.pop(run_id, None)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        used = self._models[self._open.pop(run_id, (UNNAMED, 0.0))[0]]
        for generation in response.generations[0][:1]:
            message = generation.message if isinstance(generation, ChatGeneration) else None
            usage = message.usage_metadata if isinstance(message, AIMessage) else None
            used["input_tokens"] += usage["input_tokens"] if usage else 0
            used["output_tokens"] += usage["output_tokens"] if usage else 0

    def recorded(self) -> dict[str, Any]:
        """What an attempt says about it; {} if no model was called.

        `calls` and tokens in all and, in `names`, of each model; `first_token_seconds` of the first call that
        streamed, if one did.
        """
        if not self._models:
            return {}
        keys = ("calls", "input_tokens", "output_tokens")
        said: dict[str, Any] = {key: sum(used[key] for used in self._models.values()) for key in keys}
        if self._first_token is not None:
            said["first_token_seconds"] = self._first_token
        return {"model": {**said, "names": dict(self._models)}}


def _name(about: dict[str, Any]) -> str:
    """LangChain's own parameter for tracing, or what the provider is sent."""
    sent: dict[str, Any] = about.get("invocation_params") or {}
    metadata: dict[str, Any] = about.get("metadata") or {}
    found: Any = metadata.get("ls_model_name") or sent.get("model") or sent.get("model_name")
    return found if isinstance(found, str) else UNNAMED


def _calls_a_tool(chunk: Any) -> bool:
    message = chunk.message if isinstance(chunk, ChatGenerationChunk) else None
    return isinstance(message, AIMessageChunk) and bool(message.tool_call_chunks)
