"""An agent that writes files and runs commands."""

import json
import re
from typing import Any

from perdure.simulator import ChatRequest, Reply, ToolCall


def coding_agent(request: ChatRequest) -> Reply | None:
    """graphs/coding_agent.py: does what all messages together ask for and no call has done yet."""
    if not request.offers("write_file", "run_command"):
        return None
    wanted: list[tuple[int, ToolCall]] = []
    file = "notes.txt"
    for place, message in enumerate(request.messages):
        if message.get("role") != "user":
            continue
        asked = str(message.get("content") or "")
        if re.search(r"\b(?:instead|stop|forget)\b", asked, re.IGNORECASE):
            wanted = []
        named = re.search(r"[\w./-]+\.(?:py|txt|md|sh)\b", asked)
        file = named[0] if named else file
        command = re.search(r"`([^`]+)`", asked)
        text = re.search(r"'([^']*)'|\"([^\"]*)\"", asked)
        if text and not command:
            content = f"print({text[1] or text[2]!r})\n" if file.endswith(".py") else f"{text[1] or text[2]}\n"
            wanted.append((place, ToolCall("write_file", {"path": file, "content": content})))
        if command:
            wanted.append((place, ToolCall("run_command", {"command": command[1]})))
        elif file.endswith(".py") and re.search(r"\b(?:run|print)\b", asked):
            wanted.append((place, ToolCall("run_command", {"command": f"python3 {file}"})))
    results = _results_by_place(request)
    outcomes: list[str] = []
    for asked_at, call in wanted:
        done = [r for at, name, args, r in results if at > asked_at and (name, args) == (call.name, call.args)]
        if not done or "cancelled before it had a result" in done[-1]:
            return Reply(tool_calls=[call])
        outcomes.append(done[-1].strip())
    return Reply(text=f"Done. {' '.join(outcomes)}" if outcomes else "What shall I write, and into which file?")


def _results_by_place(request: ChatRequest) -> list[tuple[int, str, dict[str, Any], str]]:
    """Every tool result of the conversation: its place, the tool, the arguments, the text."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {}
    found: list[tuple[int, str, dict[str, Any], str]] = []
    for place, message in enumerate(request.messages):
        for call in message.get("tool_calls") or []:
            calls[call["id"]] = (call["function"]["name"], json.loads(call["function"]["arguments"]))
        if message.get("role") == "tool":
            found.append((place, *calls[message["tool_call_id"]], str(message.get("content") or "")))
    return found


rules = [coding_agent]
