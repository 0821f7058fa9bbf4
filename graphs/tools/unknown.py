"""`UnknownTools`: a model may ask for a tool that does not exist; it is told so, and goes on."""

from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents.middleware import AgentMiddleware
from langchain.tools.tool_node import ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.types import Command


class UnknownTools(AgentMiddleware[Any, Any, Any]):
    """Answers calls of unknown tools with a message to the model; all others pass."""

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        if request.tool is not None:
            return await handler(request)
        call = request.tool_call
        return ToolMessage(
            f"Tool not found: {call['name']}", tool_call_id=call["id"], name=call["name"], status="error"
        )
