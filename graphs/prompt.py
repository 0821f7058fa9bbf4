"""`create_prompt_agent`: LangChain's `create_agent` for callers who have a prompt and want an answer.

The agent takes {"prompt": "…"} as well as {"messages": […]} and gives back {"answer": "…"}; its state keeps
`messages`, which chat front ends show.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import BaseTool
from langgraph.channels import EphemeralValue
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict


class Input(TypedDict):
    """A prompt, or messages from a chat front end."""

    prompt: NotRequired[str]
    messages: NotRequired[list[AnyMessage]]


class Output(TypedDict):
    """The agent's last words."""

    answer: str


class PromptState(AgentState[Any]):
    """What the agent keeps. A prompt is gone after the first step: it has become a message."""

    prompt: NotRequired[Annotated[str, EphemeralValue]]
    answer: NotRequired[str]


class PromptMiddleware(AgentMiddleware[PromptState, Any, Any]):
    """Turns the prompt into a message before the agent, and the last message into the answer after it."""

    state_schema = PromptState

    async def abefore_agent(self, state: PromptState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        prompt = state.get("prompt")
        return {"messages": [HumanMessage(prompt)]} if prompt else None

    async def aafter_agent(self, state: PromptState, runtime: Runtime[Any]) -> dict[str, Any]:
        return {"answer": state["messages"][-1].text}


def create_prompt_agent(
    model: BaseChatModel,
    tools: Sequence[BaseTool],
    *,
    system_prompt: str,
    middleware: Sequence[AgentMiddleware[Any, Any, Any]],
    input_schema: type[Any] = Input,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """`create_agent` with the same arguments, and with the input and output of this file.

    Another `input_schema` shows more fields to callers; the state_schema of a middleware has to keep them.
    """
    agent: CompiledStateGraph[Any, Any, Any, Any] = create_agent(
        model,
        tools,
        system_prompt=system_prompt,
        middleware=[PromptMiddleware(), *middleware],
        state_schema=PromptState,
    )
    # create_agent has no word for its input and output; graph states are still streamed and stored in full
    agent.builder.input_schema, agent.builder.output_schema = input_schema, Output
    return agent.copy({"output_channels": list(Output.__annotations__)})
