"""How often a step calls a model and how many tokens that takes, for the journal: LangChain's callbacks tell."""

from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook

_counter: ContextVar["ModelCalls | None"] = ContextVar("perdure_model_calls", default=None)
# Not inheritable: a model that is called inside of a graph inside of the step is seen by its own configuration.
register_configure_hook(_counter, inheritable=False)


class ModelCalls(BaseCallbackHandler):
    """Counts the calls that begin in its `with` block, also those that fail; steps inside count for themselves."""

    run_inline = True  # in the caller's task: nothing here waits

    def __init__(self) -> None:
        self._calls = self._input = self._output = 0

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

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self._calls += 1

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self._calls += 1

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        for generation in response.generations[0][:1]:
            message = generation.message if isinstance(generation, ChatGeneration) else None
            usage = message.usage_metadata if isinstance(message, AIMessage) else None
            self._input += usage["input_tokens"] if usage else 0
            self._output += usage["output_tokens"] if usage else 0

    def recorded(self) -> dict[str, Any]:
        """What an attempt says about it; {} if no model was called."""
        if not self._calls:
            return {}
        return {"model": {"calls": self._calls, "input_tokens": self._input, "output_tokens": self._output}}
