"""One text for the arguments of a step, the same on every replay and in every process.

Two calls with equal arguments get equal fingerprints, whatever the values went through in between: a tuple
counts as a list and a model object as its fields, because that is what may come back from a checkpoint. Left
out is what the runtime injects (config, runtime, store, callbacks) and what a message carries besides its
content (its id, usage and response metadata), because both may differ on a replay.
"""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, cast, get_type_hints
from uuid import UUID
from zoneinfo import ZoneInfo

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from pydantic import BaseModel

_INJECTED = (Runtime, BaseStore, BaseCallbackHandler, BaseCallbackManager)
_IP = (IPv4Address, IPv4Network, IPv6Address, IPv6Network)
_TEXTUAL = (date, time, timedelta, Decimal, UUID, PurePath, ZoneInfo, complex, range, *_IP)
_VARIES = {"id", "response_metadata", "usage_metadata"}


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical form of `value`; TypeError if a part of it has none."""
    try:
        text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    except RecursionError as exc:
        raise TypeError("The value is nested too deeply, or contains itself") from exc
    return hashlib.sha256(text.encode()).hexdigest()


class Arguments:
    """Fingerprints the calls of one step.

    Raises TypeError for an argument without a stable form, naming the argument and the way out.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function
        self._signature = inspect.signature(function)
        self._config: set[str] | None = None

    def fingerprint(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        parts: dict[str, str] = {}
        for name, value in self.given(args, kwargs).items():
            try:
                # The id tells apart two equal calls that one model answer asked for.
                parts[name] = fingerprint(value.tool_call_id if isinstance(value, ToolRuntime) else value)
            except TypeError as exc:
                raise TypeError(
                    f"Argument '{name}' of step '{self._name}' can't be compared on a replay: {exc}. "
                    "Pass plain data, or tell what identifies the call with @step(key=lambda ...: '...')"
                ) from exc
        return fingerprint(parts)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, with defaults, without what the runtime injects. TypeError as a call."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        names = self._config_names()
        return {
            name: value
            for name, value in bound.arguments.items()
            if name not in names and not isinstance(value, _INJECTED)
        }

    def _config_names(self) -> set[str]:
        """Parameters that LangChain fills with the RunnableConfig: a plain dict, known by its type only."""
        if self._config is None:  # late: the annotations may name what the module defines further down
            hints: dict[str, Any] = dict(getattr(self._function, "__annotations__", {}))
            # A name only known to the type checker: the text of the annotation tells enough.
            with suppress(NameError, TypeError):
                hints = get_type_hints(self._function)
            self._config = {name for name, hint in hints.items() if "RunnableConfig" in _text(hint)}
        return self._config


def _text(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _canonical(value: Any) -> Any:
    """`value` in lists, string-keyed dicts and JSON scalars."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return _canonical(value.value)
    if isinstance(value, Mapping):
        return _mapping(cast("Mapping[Any, Any]", value))
    if isinstance(value, Set):
        parts = [_canonical(item) for item in cast("Set[Any]", value)]
        return {"set": sorted(parts, key=lambda part: json.dumps(part, sort_keys=True))}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": hashlib.sha256(bytes(cast("bytes", value))).hexdigest()}
    if isinstance(value, Sequence):
        return [_canonical(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, _TEXTUAL):
        return {type(value).__name__: str(value)}
    if isinstance(value, BaseMessage):
        skipped = _VARIES - {"id"} if value.type == "remove" else _VARIES
        return {name: _canonical(part) for name, part in _fields(value).items() if name not in skipped}
    if isinstance(value, BaseTool):
        return {"tool": value.name}
    if isinstance(value, BaseLanguageModel):
        return {"model": model_name(cast("BaseLanguageModel[Any]", value))}
    if isinstance(value, BaseModel):
        return _mapping(_fields(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return {"name": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, ModuleType):
        return {"name": value.__name__}
    raise TypeError(f"{type(value).__qualname__} has no stable form")


def model_name(model: Any) -> str:
    """What a chat model calls itself; its class where it has no name."""
    name = getattr(model, "model_name", None) or getattr(model, "model", None)
    return name if isinstance(name, str) else type(model).__name__


def _mapping(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value):
        return {str(key): _canonical(item) for key, item in value.items()}
    pairs = [[_canonical(key), _canonical(item)] for key, item in value.items()]
    return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair, sort_keys=True))}


def _fields(value: BaseModel) -> dict[str, Any]:
    return {name: getattr(value, name) for name in type(value).model_fields} | (value.model_extra or {})
