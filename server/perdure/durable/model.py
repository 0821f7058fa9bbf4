"""`DurableModel`: the model calls of `create_agent` as steps."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.types import RetryPolicy
from pydantic import BaseModel, TypeAdapter, ValidationError

from perdure.durable.brief import brief
from perdure.durable.errors import TerminalError
from perdure.durable.fingerprint import fingerprint, model_name
from perdure.durable.once import DEFAULT_RETRY, Call, once, seconds

SHOWN_MESSAGES = 3
"""Of those that a call was given, the newest that a person who looks at the run is shown."""


class DurableModel(AgentMiddleware[Any, Any, Any]):
    """Makes each model call of an agent a step: once answered, the model is never asked the same again.

    Example:
        graph = create_agent(model, tools, middleware=[DurableModel(timeout=60)])

    Put it last in the list: what other middleware does around the call is then executed on a replay too, and
    only the call itself is recorded. Tokens stream as usual while the model answers; on a replay the whole
    message comes at once. A call is recognised by the model's name, the names of the tools and the messages,
    but not by the system prompt, which may tell the time.

    - `name`, `retry`, `timeout` are those of `@step`. Give the model client `max_retries=0`, so that each
      attempt is seen.
    - `max_calls`: how often the model may be called for one human message; one more raises TerminalError.
      None: no limit.
    - A tool call that was never answered, because its run was cancelled, is answered with "cancelled" in what
      the model is sent: models refuse a history with such a hole. The thread's state stays as it is.

    Works on `ainvoke` and `astream` only: RuntimeError from `invoke`.
    """

    def __init__(
        self,
        *,
        name: str = "model",
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
        max_calls: int | None = 50,
    ) -> None:
        super().__init__()
        self._step = name
        self._retry = retry or DEFAULT_RETRY
        self._timeout = seconds(timeout)
        self._max_calls = max_calls

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        request = request.override(messages=_mended(request.messages))
        calls = _calls_so_far(request)
        if self._max_calls is not None and calls >= self._max_calls:
            raise TerminalError(
                f"The agent has called its model {calls} times without coming to an end; "
                f"DurableModel(max_calls={self._max_calls}) allows no more"
            )

        async def execute() -> dict[str, Any]:
            return _stored(await handler(request))

        tools = sorted(tool.name if isinstance(tool, BaseTool) else fingerprint(tool) for tool in request.tools)
        identity = fingerprint([model_name(request.model), tools, request.messages])
        call = Call(
            self._step,
            execute,
            identity,
            retry=self._retry,
            timeout=self._timeout,
            given=lambda: brief({"messages": request.messages[-SHOWN_MESSAGES:], "of": len(request.messages)}),
        )
        return _restored(await once(call), request)

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        raise RuntimeError("DurableModel is async only: run the agent with ainvoke() or astream()")


def _mended(messages: list[AnyMessage]) -> list[AnyMessage]:
    """The messages, with an answer to each tool call that has none, right behind those that it has."""
    answered = {message.tool_call_id for message in messages if isinstance(message, ToolMessage)}
    mended: list[AnyMessage] = []
    holes: list[AnyMessage] = []
    for message in messages:
        if not isinstance(message, ToolMessage):
            mended += holes
            holes = []
        mended.append(message)
        if isinstance(message, AIMessage):
            open_calls = [call for call in message.tool_calls if call["id"] not in answered]
            holes = [
                ToolMessage(
                    "The call was cancelled before it had a result.", tool_call_id=call["id"] or "", status="error"
                )
                for call in open_calls
            ]
    return [*mended, *holes]


def _calls_so_far(request: ModelRequest[Any]) -> int:
    """AI messages since the last human one, in the agent's state: middleware may have trimmed the request."""
    messages = request.state.get("messages") or request.messages
    calls = 0
    for message in reversed(messages):
        if message.type == "human":
            break
        calls += message.type == "ai"
    return calls


def _stored(response: ModelResponse[Any]) -> dict[str, Any]:
    """The response in messages and plain data, which every serializer of LangGraph reads back."""
    structured: Any = response.structured_response
    if structured is not None and not isinstance(structured, dict):
        kind = cast("type[Any]", type(structured))
        by_alias = isinstance(structured, BaseModel)
        structured = TypeAdapter(kind).dump_python(structured, mode="json", by_alias=by_alias)
    return {"result": response.result, "structured_response": structured}


def _restored(stored: dict[str, Any], request: ModelRequest[Any]) -> ModelResponse[Any]:
    """The response, its structured part in the class that the agent asks for; plain if that has changed."""
    structured: Any = stored["structured_response"]
    schema: Any = getattr(request.response_format, "schema", request.response_format)
    if structured is not None and schema is not None and not isinstance(schema, dict):
        with suppress(ValidationError):
            structured = TypeAdapter(schema).validate_python(structured)
    return ModelResponse(result=stored["result"], structured_response=structured)
