"""What langgraph.json says about a graph for its readers: `description` and `examples`.

An example is a request that works as it stands. The first one is what a playground shows; `perdure tour` runs all.
LangGraph knows neither key of an example nor checks the entry, so what is written here is checked when it is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict


class Example(TypedDict):
    """One request to a graph, and what is to be expected of it."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # pyright: ignore[reportGeneralTypeIssues]  # pydantic's

    input: Any
    """The graph's input, as it is posted."""
    key: NotRequired[Annotated[str, Field(min_length=1, max_length=200)]]
    """The session: examples of one key share a thread, in their order."""
    answer: NotRequired[Any]
    """What each question of the run, and of the runs that it starts, is answered with. True if not given."""
    unanswered: NotRequired[bool]
    """Questions are left alone: their deadline lets the thread go on, whose next end is the outcome."""
    status: NotRequired[Annotated[int, Field(ge=200, le=599)]]
    """The HTTP status of the outcome, 200 if not given; of a run that fails that of its TerminalError, or 422."""
    needs: NotRequired[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]]
    """Another server that has to run: the one of `langgraph.<needs>.json`."""


class About(TypedDict, total=False):
    """The part of a graph's entry that is for readers; its other keys are LangGraph's."""

    description: str | None
    examples: list[Example]


_ABOUT = TypeAdapter(About)


def read(entry: dict[str, Any]) -> About:
    """The checked `description` and `examples` of an entry.

    Raises ValueError, which names the key, what is wrong with it and what stands there.
    """
    try:
        return _ABOUT.validate_python({name: entry[name] for name in ("description", "examples") if name in entry})
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_context=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        message = problem["msg"]
        if problem["type"] == "extra_forbidden":
            message = f"no such key; an example has {', '.join(Example.__annotations__)}"
        elif problem["type"] != "missing":
            message += f", not {problem['input']!r}"
        raise ValueError(f"{where.removeprefix('.')}: {message}") from exc
