"""`emit`: tell whoever follows the run what is going on."""

from typing import Any, overload

from langgraph.config import get_stream_writer

_MISSING = object()


@overload
def emit(payload: Any, /) -> None: ...
@overload
def emit(name: str, payload: Any, /) -> None: ...
def emit(first: Any, payload: Any = _MISSING, /) -> None:
    """Send a `custom` stream event: `emit(payload)`, or `emit(name, payload)` for `{"name", "payload"}`.

    Example:
        emit("progress", {"done": 3, "of": 10})

    JSON values. Returns at once. Each execution sends: a node that is executed again emits again, unless the
    word stands in a step that has finished. TypeError if a name is no text. Outside of a graph nobody listens
    and nothing happens.
    """
    if payload is not _MISSING:
        if not isinstance(first, str):
            raise TypeError(f"emit(name, payload): the name must be a text, not {type(first).__qualname__}")
        first = {"name": first, "payload": payload}
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError):  # no graph around
        return
    write(first)
