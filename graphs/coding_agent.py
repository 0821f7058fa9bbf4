"""Interruptible coding agent: it edits files and runs commands in a sandbox, and can be spoken to while it works.

What a message does that comes in meanwhile, its sender decides:

- **queue**, as for every call by key: it waits until the agent is done, and then goes on from there.
- **interrupt** (`?multitask_strategy=interrupt`): the running task is cancelled and shows as such, its command is
  killed, and the agent starts again with everything that was said and done so far, and the new message.
- **steer** (`POST /agents/coding_agent/repo1/messages`): it is put before the next call of the model. Nothing is
  lost or begun again; the agent reads it also when it was just about to finish.

Kill the worker at any point: answers of the model and finished tools are not repeated. The command that was
running dies with its worker and is run again; writing a file again changes nothing.

Try it:  perdure invoke coding_agent --key repo1 -i '{"message": "Write hello.py that prints \\"Hello\\" and run it"}'
         perdure invoke coding_agent --key repo1 -i '{"message": "Let it print \\"Goodbye\\" instead"}'
"""

import json
from typing import Any, NotRequired

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, hook_config
from langchain_core.messages import AnyMessage, HumanMessage
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from graphs.models import chat_model
from graphs.prompt import create_prompt_agent
from graphs.tools.sandbox_tools import TOOLS
from perdure import DurableModel, mailbox


class Input(TypedDict):
    """A task or a remark, or messages from a chat front end."""

    message: NotRequired[str]
    messages: NotRequired[list[AnyMessage]]


class Coding(AgentState[Any]):
    message: NotRequired[str | None]


class Listening(AgentMiddleware[Coding, Any, Any]):
    """Takes the task, and then what is said while the agent works."""

    state_schema = Coding

    async def abefore_agent(self, state: Coding, runtime: Runtime[Any]) -> dict[str, Any] | None:
        message = state.get("message")
        return {"messages": [HumanMessage(message)], "message": None} if message else None

    async def abefore_model(self, state: Coding, runtime: Runtime[Any]) -> dict[str, Any] | None:
        new = heard(await mailbox())
        return {"messages": new} if new else None

    @hook_config(can_jump_to=["model"])
    async def aafter_model(self, state: Coding, runtime: Runtime[Any]) -> dict[str, Any] | None:
        last: Any = state["messages"][-1]
        new = [] if last.tool_calls else heard(await mailbox())  # while it was giving its last answer
        return {"messages": new, "jump_to": "model"} if new else None


def heard(messages: list[Any]) -> list[HumanMessage]:
    """What was sent to the session, any JSON: a text, `{"message": text}`, or a message with `content`."""
    texts: list[Any] = []
    for message in messages:
        given: dict[str, Any] = message if isinstance(message, dict) else {}
        texts.append(given.get("message") or given.get("content") or message)
    return [HumanMessage(text if isinstance(text, str) else json.dumps(text)) for text in texts]


graph = create_prompt_agent(
    chat_model(),
    tools=TOOLS,
    system_prompt=(
        "You are a coding agent. You work in one directory, with the tools that you have; run what you write. "
        "Later messages may correct earlier ones. If a task was interrupted, look at what is there, and go on with "
        "what is still wanted. At the end say in a few words what you have done and what it printed."
    ),
    middleware=[Listening(), DurableModel(max_calls=30)],
    input_schema=Input,
)
