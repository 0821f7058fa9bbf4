"""What a rule sees and says, and which rule answers.

A rule is a function `(request: ChatRequest) -> Reply | None`. The rules are asked in order and the first
reply is the answer; `None` passes the request on. When no rule answers, a default does: an instance of the
wanted schema, or an echo of the last user message. Rules must be pure: the same messages, the same answer.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import orjson

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """One call that the model asks for: a tool's name and its arguments as plain JSON."""

    name: str
    args: Json = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class ToolResult:
    """What one tool call came back with; `name` and `args` are those of the call it answers."""

    name: str
    args: Json
    content: str


@dataclass(frozen=True)
class Reply:
    """An answer: text, tool calls, or `data` for a request that wants structured output.

    `data` becomes the JSON text of the message, or the arguments of the tool when the request forces one.
    """

    text: str = ""
    tool_calls: Sequence[ToolCall] = ()
    data: Any = None


@dataclass(frozen=True)
class ChatRequest:
    """One chat completion request, with what rules usually ask of it.

    `messages` are the OpenAI messages as they came. `tools` maps the name of each offered tool to the JSON
    schema of its arguments. `schema` is that of the wanted structured output, {} for plain JSON, else None.
    """

    model: str
    messages: Sequence[Json]
    tools: dict[str, Json] = field(default_factory=dict[str, Json])
    forced_tool: str | None = None
    schema: Json | None = None
    parallel_tool_calls: bool = True
    stream: bool = False
    include_usage: bool = False

    @property
    def system(self) -> str:
        """All system and developer messages, one per line."""
        return "\n".join(text_of(m) for m in self.messages if m.get("role") in ("system", "developer"))

    @property
    def prompt(self) -> str:
        """The last user message, "" if there is none."""
        return next((text_of(m) for m in reversed(self.messages) if m.get("role") == "user"), "")

    @property
    def previous_answer(self) -> str:
        """The last text that the assistant said, "" if it has not spoken yet."""
        said = (text_of(m) for m in reversed(self.messages) if m.get("role") == "assistant")
        return next((text for text in said if text), "")

    @property
    def tool_results(self) -> list[ToolResult]:
        """Results that came in since the last user message, oldest first."""
        results: list[ToolResult] = []
        calls: dict[str, tuple[str, Json]] = {}
        for message in self.messages:
            if message.get("role") == "user":
                results.clear()
            for call in cast("list[Json]", message.get("tool_calls") or []):
                calls[call["id"]] = (call["function"]["name"], _arguments(call["function"].get("arguments")))
            if message.get("role") == "tool":
                name, args = calls.get(message["tool_call_id"], ("", {}))
                results.append(ToolResult(name, args, text_of(message)))
        return results

    def offers(self, *tools: str) -> bool:
        """Whether the request offers every one of these tools."""
        return all(tool in self.tools for tool in tools)


Rule: TypeAlias = Callable[[ChatRequest], Reply | None]


class RuleFailed(Exception):
    """A rule raised, or returned something that is no Reply; the text names the rule."""


def text_of(message: Json) -> str:
    """The text of a message, whose content is a string, a list of blocks, or absent."""
    content: Any = message.get("content")
    if isinstance(content, list):
        blocks = cast("list[Any]", content)
        return "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in blocks)
    return content or ""


def answer(rules: Iterable[Rule], request: ChatRequest) -> Reply:
    """The first rule's reply, else the default one's. Raises RuleFailed."""
    for rule in (*rules, default):
        name = getattr(rule, "__name__", repr(rule))
        try:
            reply: object = rule(request)
        except Exception as exc:
            raise RuleFailed(f"Rule '{name}' raised {type(exc).__name__}: {exc}") from exc
        if isinstance(reply, Reply):
            return reply
        if reply is not None:
            raise RuleFailed(f"Rule '{name}' returned {type(reply).__name__}; a rule returns Reply or None")
    raise RuleFailed("No rule replied")  # `default` always does


def default(request: ChatRequest) -> Reply:
    """What is said when no rule has an answer: it fits the request and shows that no rule matched."""
    if request.forced_tool:
        return Reply(data=example(request.tools.get(request.forced_tool, {})))
    if request.schema is not None:
        return Reply(data=example(request.schema))
    if request.tool_results:
        return Reply(text="\n".join(result.content for result in request.tool_results))
    return Reply(text=f"(simulated) You said: {request.prompt}")


def example(schema: Json, root: Json | None = None) -> Any:
    """A small value that fits the JSON schema: required properties only, first choice of everything.

    A schema that needs itself again and again has no finite value; such a branch ends as null.
    """
    return _example(schema, root or schema, depth=0)


def load(rules: str | Rule | Sequence[Rule], config_dir: Path | None = None) -> list[Rule]:
    """The rules named by "./file.py:attribute" (relative to `config_dir`) or "package.module:attribute".

    The attribute is one rule or a list of them. A file is loaded under a name of its own, so it can never be
    mistaken for another module; `config_dir` is put on sys.path for what it imports.
    """
    if not isinstance(rules, str):
        return [rules] if callable(rules) else [*rules]
    where, _, attribute = rules.rpartition(":")
    if not where:
        raise ValueError(f"Rules '{rules}' must look like './graphs/rules.py:rules' or 'package.module:rules'")
    if where.endswith(".py"):
        module = _load_file((config_dir or Path.cwd()).resolve(), where)
    else:
        module = importlib.import_module(where)
    try:
        found: Any = getattr(module, attribute)
    except AttributeError:
        raise ValueError(f"Rules '{rules}': {where} has no '{attribute}'") from None
    return [cast("Rule", found)] if callable(found) else list(found)


def _load_file(folder: Path, where: str) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    path = folder / where
    if not path.is_file():
        raise FileNotFoundError(f"Rules file {path} does not exist")
    name = f"perdure_simulator_rules_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"Rules file {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up there
    spec.loader.exec_module(module)
    return module


def _arguments(text: Any) -> Json:
    try:
        parsed = orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        return {}
    return cast("Json", parsed) if isinstance(parsed, dict) else {}


def _example(schema: Json, root: Json, depth: int) -> Any:
    if depth > 20:
        return None
    if "$ref" in schema:
        target = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            target = cast("Json", target.get(part) or {})
        return _example(target, root, depth + 1)
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return _example(schema[choice][0], root, depth + 1)
    kinds: Any = schema.get("type")
    kind = str(kinds[0] if isinstance(kinds, list) and kinds else kinds)  # pyright: ignore[reportUnknownArgumentType]
    if kind == "object" or "properties" in schema:
        properties: dict[str, Json] = schema.get("properties") or {}
        names: list[str] = schema.get("required") or []
        return {name: _example(properties.get(name, {}), root, depth + 1) for name in names}
    if kind == "array":
        return [_example(schema.get("items") or {}, root, depth + 1) for _ in range(schema.get("minItems") or 0)]
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    simple: Json = {"boolean": False, "null": None, "string": "simulated"}
    return simple.get(kind, {})
