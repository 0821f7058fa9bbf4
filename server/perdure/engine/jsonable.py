"""JSON as the wire wants it, from anything a graph may hold in its state.

`dumps` gives the bytes of a response or an event, `jsonable` the same as plain Python values.
Neither ever raises: what JSON cannot say becomes the nearest thing it can (a set a list, bytes
base64, NaN null, a pydantic model its fields, an exception or an unknown object its repr).

- Aware datetimes are UTC with microseconds and `+00:00`; naive ones keep having no offset.
- LangChain messages are flat objects with a `type`, never the constructor form.
- The bytes are valid UTF-8 on one line: lone surrogates become U+FFFD, NUL stays `\\u0000`.
"""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, cast
from uuid import UUID

import orjson
from pydantic import BaseModel

OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY

# orjson itself stops at 254 levels, counting nested `default` calls too.
MAX_DEPTH = 200


def dumps(obj: object) -> bytes:
    """`obj` as compact JSON, UTF-8, on one line."""
    try:
        return orjson.dumps(obj, _default, OPTIONS)
    except (TypeError, RecursionError):
        # A lone surrogate, an integer beyond 64 bits, a tuple as a key, a cycle, too deep: rare.
        return json.dumps(_plain(obj), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def jsonable(obj: object) -> Any:
    """`obj` as dicts, lists, strings, numbers, booleans and None: what `dumps` would write."""
    try:
        return orjson.loads(orjson.dumps(obj, _default, OPTIONS))
    except (TypeError, RecursionError):
        return _plain(obj)


def _default(obj: Any) -> Any:
    """One level of what orjson does not know; orjson goes on with the result."""
    try:
        return _unfold(obj)
    except Exception:  # a broken __repr__, model_dump or __iter__ of the author's
        return f"<{type(obj).__name__}>"


def _unfold(obj: Any) -> Any:
    if isinstance(obj, BaseModel):
        return obj.model_dump(warnings=False)
    if isinstance(obj, datetime):
        aware = obj.astimezone(UTC) if obj.tzinfo else obj
        return aware.isoformat(timespec="microseconds")
    if isinstance(obj, date | time):
        return obj.isoformat()
    if isinstance(obj, timedelta):
        return obj.total_seconds()
    if isinstance(obj, type):
        return repr(cast(object, obj))
    if isinstance(obj, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(cast(Any, obj))).decode()
    if isinstance(obj, set | frozenset | deque | tuple):
        items = cast(Any, obj)
        return items._asdict() if hasattr(items, "_asdict") else list(items)
    if isinstance(obj, Mapping):
        return dict(cast(Mapping[Any, Any], obj))
    if isinstance(obj, Decimal | PurePath | UUID):
        return str(obj)
    if isinstance(obj, BaseException):
        return repr(obj)
    if type(obj).__name__ == "Send" and hasattr(obj, "node"):
        return {"node": obj.node, "arg": obj.arg}
    if callable(as_dict := getattr(obj, "dict", None)):  # store items, models of pydantic 1
        return as_dict()
    return repr(obj)


def _plain(obj: Any, inside: tuple[int, ...] = ()) -> Any:
    """`obj` walked by hand, for what orjson refuses; `inside` holds the ids of the containers around it."""
    if obj is None or isinstance(obj, bool):
        return obj
    if isinstance(obj, Enum):
        return _plain(obj.value, inside)
    if isinstance(obj, str):
        return _text(obj)
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if id(obj) in inside or len(inside) >= MAX_DEPTH:
        return f"<{type(obj).__name__}>"
    inside = (*inside, id(obj))
    if isinstance(obj, dict):
        return {_key(k): _plain(v, inside) for k, v in cast("dict[Any, Any]", obj).items()}
    if isinstance(obj, list):
        return [_plain(v, inside) for v in cast("list[Any]", obj)]
    if is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: _plain(getattr(obj, f.name, None), inside) for f in fields(obj) if f.name[0] != "_"}
    if callable(tolist := getattr(obj, "tolist", None)):  # numpy arrays and scalars
        return _plain(tolist(), inside)
    return _plain(_default(obj), inside)


def _key(key: Any) -> str:
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return _text(key)
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    try:
        return _text(str(_unfold(key) if isinstance(key, datetime | bytes) else key))
    except Exception:  # an author's __str__ may do anything, and an answer must come out
        return f"<{type(key).__name__}>"


def _text(text: str) -> str:
    """`text` as valid Unicode: surrogate pairs are joined, lone ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return str(text)
