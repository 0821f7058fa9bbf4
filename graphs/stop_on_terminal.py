"""Terminal errors, second way: the agent stops, looks at what has failed for good, and says so.

The same agent as `fail_on_terminal`, but the run is a success: a terminal error of a tool is kept among its
messages, and before the model would be called again the loop ends. What other tools have found is in the
answer too. Denver's weather service is down (FAIL_ON_DENVER).

Try it:  perdure invoke stop_on_terminal -i '{"prompt": "What is the weather like in Denver and Boston?"}'
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile
from typing import Any

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain.tools.tool_node import ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from langgraph.runtime import Runtime
from langgraph.types import Command

from graphs.bounds import BoundedState, Bounds, Input, bounded
from graphs.models import chat_model
from graphs.prompt import create_prompt_agent
from graphs.tools.open_meteo import Weather, current_weather
from perdure import TerminalError


@tool
async def get_weather(city: str, runtime: ToolRuntime[None, BoundedState]) -> Weather:
    """Get the current weather of a city."""
    weather = await bounded(current_weather, runtime.state)(city)
    if isinstance(weather, str):
        raise ValueError(weather)  # no such city: the model is told
    return weather


class StopOnTerminal(AgentMiddleware[AgentState[Any], Any, Any]):
    """Keeps terminal errors of tools as messages, and ends the loop when there is one."""

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        try:
            return await handler(request)
        except TerminalError as exc:
            call, terminal = request.tool_call, {"terminal": True, "status": exc.status}
            return ToolMessage(
                exc.message, tool_call_id=call["id"], name=call["name"], status="error", artifact=terminal
            )

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        results = results_so_far(state["messages"])
        failed = [f"{result.name}: {result.text}" for result in results if is_terminal(result)]
        if not failed:
            return None
        found = [result.text for result in results if result.status == "success"]
        told = f" What I did find out: {'; '.join(found)}." if found else ""
        return {"jump_to": "end", "messages": [AIMessage(f"I stopped, because {'; '.join(failed)}.{told}")]}


def results_so_far(messages: Sequence[AnyMessage]) -> list[ToolMessage]:
    """What tools have said since the last prompt, oldest first."""
    turn = takewhile(lambda message: message.type != "human", reversed(messages))
    return [message for message in reversed(list(turn)) if isinstance(message, ToolMessage)]


def is_terminal(result: ToolMessage) -> bool:
    artifact: Any = result.artifact
    return isinstance(artifact, dict) and artifact.get("terminal") is True


graph = create_prompt_agent(
    chat_model(),
    tools=[get_weather],
    system_prompt="You are a helpful agent that provides weather updates.",
    middleware=[StopOnTerminal(), Bounds()],
    input_schema=Input,
)
