"""The words for graph authors: a durable agent is a LangGraph graph that uses a few of these.

Every name that a graph file needs is here; what is not in `__all__` is the server's own. The words work on
any LangGraph runtime: on a perdure server they are durable, elsewhere each one's docstring says what is left.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.durable.approval import Answer, approval
    from perdure.durable.errors import ApprovalTimeout, RetryableError, TerminalError
    from perdure.durable.model import DurableModel
    from perdure.durable.step import step

__all__ = ["Answer", "ApprovalTimeout", "DurableModel", "RetryableError", "TerminalError", "approval", "step"]

__version__ = version("perdure")

_HOME = {
    "Answer": "approval",
    "ApprovalTimeout": "errors",
    "DurableModel": "model",
    "RetryableError": "errors",
    "TerminalError": "errors",
    "approval": "approval",
    "step": "step",
}


def __getattr__(name: str) -> Any:
    """Import a word at its first use: LangChain takes 3 s, which the command line need not wait for.

    Measure again: python -X importtime -c "from perdure import step".
    """
    if name not in _HOME:
        raise AttributeError(f"module 'perdure' has no attribute {name!r}")
    word = globals()[name] = getattr(import_module(f"perdure.durable.{_HOME[name]}"), name)
    return word
