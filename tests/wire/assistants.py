"""A project of agents that work, stream, fail and ask, for the tests of MCP and A2A, and processes that serve it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import START_SECONDS, Process, clean_environment

WAIT_SECONDS = 60.0

GRAPHS = '''
"""Graphs that are offered to other agents."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import TerminalError, approval, step


class Prompt(TypedDict, total=False):
    prompt: str
    seconds: float
    effects: str
    answer: Any


class Chat(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]


@step
async def note(path: str, word: str) -> str:
    with Path(path).open("a") as file:
        file.write(word + "\\n")
    return word


async def work(state: Prompt) -> Prompt:
    if "effects" in state:
        await note(state["effects"], "before")
    if "effects" in state and state.get("seconds", 0):
        Path(state["effects"] + ".held").touch()  # what it has done until here is recorded
        while not Path(state["effects"] + ".go").exists():
            await asyncio.sleep(0.02)
    if "effects" in state:
        await note(state["effects"], "after")
    return {"answer": f"did {state.get('prompt')}"}


async def fail(state: Prompt) -> Prompt:
    raise TerminalError("the stove is broken")


async def ask(state: Prompt) -> Prompt:
    first = await approval(f"May I {state.get('prompt')}?")
    if not first.approved:
        return {"answer": f"refused: {first.reason}"}
    name = interrupt("Under which name?")
    return {"answer": f"{state.get('prompt')} as {name}"}


async def hang(state: Prompt) -> Prompt:
    await asyncio.sleep(600)
    return {}


async def say(state: Chat) -> Chat:
    heard = len([message for message in state["messages"] if message.type == "human"])
    model = GenericFakeChatModel(messages=iter([AIMessage(f"turn {heard}: hello my dear friend")]))
    return {"messages": [await model.ainvoke(state["messages"])]}


async def see(state: Chat) -> Chat:
    """Says which blocks it was given, and draws."""
    content = state["messages"][-1].content
    kinds = [content] if isinstance(content, str) else [json.dumps(block, sort_keys=True) for block in content]
    drawn = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png", "extras": {"filename": "drawn.png"}}
    linked = {"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}}
    thought = {"type": "reasoning", "reasoning": "secret"}
    return {"messages": [AIMessage([thought, {"type": "text", "text": "; ".join(kinds)}, drawn, linked])]}


class Claim(TypedDict, total=False):
    customer: str
    reason: str


async def note_claim(state: Claim) -> Claim:
    return {}


def single(schema: Any, node: Any) -> Any:
    return StateGraph(schema).add_node("node", node).add_edge(START, "node").compile()


works, fails, asks, hangs = (single(Prompt, node) for node in (work, fail, ask, hang))
talks, claims, sees = single(Chat, say), single(Claim, note_claim), single(Chat, see)
'''
NAMES = ("works", "fails", "asks", "hangs", "talks", "claims", "sees")


def make_project(folder: Path) -> Path:
    """The langgraph.json of that project, in a folder of its own; webhooks may go to this machine."""
    (folder / "wired.py").write_text(GRAPHS)
    graphs = {name: {"path": f"./wired.py:{name}", "description": f"The agent that {name}."} for name in NAMES}
    webhooks = {"url": {"disable_loopback": False, "require_https": False}}
    (folder / "langgraph.json").write_text(json.dumps({"graphs": graphs, "webhooks": webhooks}))
    return folder / "langgraph.json"


@contextmanager
def served(dsn: str, config: Path, *, command: str = "serve", slots: int = 8) -> Iterator[Process]:
    """`perdure serve` (or a `worker`) on this database, ready; SIGTERM at the end, unless it was killed."""
    log = config.parent / f"{command}.log"
    arguments = [command, "--config", str(config), "--slots", str(slots)]
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli", *arguments, *(["--port", "0"] if command == "serve" else [])],
            cwd=config.parent,
            env=clean_environment(DATABASE_URL=dsn, PERDURE_HEARTBEAT_SECONDS="0.3"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process = Process(popen, log)
    try:
        if command == "serve":
            process.url = process.until(r"http://127\.0\.0\.1:\d+", START_SECONDS)[0]
            assert httpx.get(f"{process.url}/ok", timeout=START_SECONDS).status_code == 200
        else:
            process.until(r"perdure worker", START_SECONDS)
        yield process
    finally:
        process.stop()


def get(url: str) -> Any:
    """The JSON of an answer, which must be a good one."""
    answer = httpx.get(url, timeout=WAIT_SECONDS)
    assert answer.is_success, answer.text
    return answer.json()


def post(url: str, body: Any) -> httpx.Response:
    return httpx.post(url, json=body, timeout=WAIT_SECONDS)


def rpc(url: str, method: str, params: Any = None, **headers: str) -> dict[str, Any]:
    """One JSON-RPC request; the whole answer."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, **({} if params is None else {"params": params})}
    answer = httpx.post(url, json=body, headers=headers, timeout=WAIT_SECONDS)
    assert answer.status_code < 500, answer.text
    return answer.json()
