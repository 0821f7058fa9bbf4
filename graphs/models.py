"""The chat model that every pattern uses: which one it is comes from the settings, not from the code.

With no model key, `perdure serve` sets `PERDURE_MODEL` to the simulator's model; `graphs/simulated/` says
what that one answers.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import langchain_openai  # noqa: F401  its import takes a second, which must not pass on an event loop
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic_settings import BaseSettings, SettingsConfigDict


class ModelSettings(BaseSettings):
    """Environment: PERDURE_MODEL, and the same name with _TEMPERATURE and _TIMEOUT_SECONDS."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="PERDURE_", env_ignore_empty=True)

    model: str = "openai:gpt-5-mini"
    """`provider:name`, as LangChain's `init_chat_model` takes it."""
    model_temperature: float | None = None
    """None leaves it to the provider; reasoning models accept nothing else."""
    model_timeout_seconds: float = 120
    """Longest silence of the model before a call counts as failed."""


def chat_model() -> BaseChatModel:
    """The model named by the settings.

    It is made at its first call, because graph files are imported before keys are known. Its own retries are
    off: the step around a model call retries, so that each attempt is seen and counted.
    """
    return ConfiguredModel()


@lru_cache
def made(settings: ModelSettings) -> BaseChatModel:
    """The real model for these settings, the same object each time: it keeps its connections open."""
    options: dict[str, Any] = {"timeout": settings.model_timeout_seconds, "max_retries": 0}
    if settings.model_temperature is not None:
        options["temperature"] = settings.model_temperature
    if settings.model.startswith("openai:"):
        options["stream_usage"] = True  # off by default as soon as a base URL is set
    return init_chat_model(settings.model, **options)


class ConfiguredModel(BaseChatModel):
    """Passes every call on to the model that the settings name at that time."""

    @property
    def real(self) -> BaseChatModel:
        return made(ModelSettings())  # pyright: ignore[reportArgumentType] - frozen, so hashable

    @property
    def _llm_type(self) -> str:
        return "configured"

    def _get_ls_params(self, *args: Any, **kwargs: Any) -> Any:
        return self.real._get_ls_params(*args, **kwargs)

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        return self.real.bind_tools(tools, **kwargs)

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        return self.real.with_structured_output(schema, **kwargs)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self.real._generate(messages, *args, **kwargs)

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return await self.real._agenerate(messages, *args, **kwargs)

    def _stream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        return self.real._stream(messages, *args, **kwargs)

    def _astream(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        return self.real._astream(messages, *args, **kwargs)
