"""`Bounds`: how often an agent tries a model call or a tool before it gives up, chosen by the request.

A step whose attempts are used up is not finished: the server tries its run again, for hours. Here giving up
is the end: what still fails after so many attempts becomes a TerminalError. (A worker that dies in that very
moment costs another round of attempts.)
"""

from collections.abc import Awaitable, Callable
from typing import Any, NotRequired, ParamSpec, TypeVar

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain.tools.tool_node import ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import Command, RetryPolicy

from graphs import prompt
from perdure import DurableModel, TerminalError, step

P = ParamSpec("P")
R = TypeVar("R")

ATTEMPTS = 3
MOST_ATTEMPTS = 20
MODEL_CALLS = 10
"""Model calls for one prompt."""


class Input(prompt.Input):
    """A prompt and its bounds."""

    tool_attempts: NotRequired[int]
    model_attempts: NotRequired[int]


class BoundedState(AgentState[Any]):
    """The bounds, kept for the whole run."""

    tool_attempts: NotRequired[int]
    model_attempts: NotRequired[int]


class Bounds(AgentMiddleware[BoundedState, Any, Any]):
    """Model calls as steps with `model_attempts`; errors of tools as messages to the model, terminal ones not.

    Put it last in the list, like DurableModel, whose place it takes. TerminalError for a bound that is none.
    """

    state_schema = BoundedState

    async def abefore_agent(self, state: BoundedState, runtime: Runtime[Any]) -> None:
        for name in ("tool_attempts", "model_attempts"):
            attempts: Any = state.get(name, ATTEMPTS)
            if type(attempts) is not int or not 1 <= attempts <= MOST_ATTEMPTS:
                raise TerminalError(f"{name} must be a number from 1 to {MOST_ATTEMPTS}, not {attempts!r}")

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        attempts = request.state.get("model_attempts", ATTEMPTS)
        model = DurableModel(retry=_policy(attempts), max_calls=MODEL_CALLS)
        return await _finally("The model", attempts, model.awrap_model_call(request, handler))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        try:
            return await handler(request)
        except GraphBubbleUp:
            raise
        except Exception as exc:
            if hasattr(exc, "retryable"):  # it comes out of a step, or its author has decided
                raise
            call = request.tool_call
            return ToolMessage(f"Error: {exc}", tool_call_id=call["id"], name=call["name"], status="error")


def bounded(function: Callable[P, Awaitable[R]], state: BoundedState) -> Callable[P, Awaitable[R]]:
    """`function` as a step with the `tool_attempts` of the agent's state. TerminalError when it gives up."""
    attempts = state.get("tool_attempts", ATTEMPTS)
    tried = step(retry=_policy(attempts))(function)

    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return await _finally(getattr(function, "__name__", "The tool"), attempts, tried(*args, **kwargs))

    return call


def _policy(attempts: int) -> RetryPolicy:
    return RetryPolicy(initial_interval=0.2, max_attempts=attempts, jitter=False)


async def _finally(what: str, attempts: int, call: Awaitable[R]) -> R:
    try:
        return await call
    except Exception as exc:
        if getattr(exc, "retryable", None) is not True:
            raise
        raise TerminalError(f"{what} failed {attempts} times and is given up: {exc}", 424) from exc
