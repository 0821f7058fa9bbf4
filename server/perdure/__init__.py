"""The words for graph authors: a durable agent is a LangGraph graph that uses a few of these.

Every name that a graph file needs is here; what is not in `__all__` is the server's own. The words work on
any LangGraph runtime: on a perdure server they are durable, elsewhere each one's docstring says what is left.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.durable.agent import agent
    from perdure.durable.approval import Answer, approval
    from perdure.durable.emit import emit
    from perdure.durable.errors import ApprovalTimeout, RetryableError, TerminalError
    from perdure.durable.gather import gather, race
    from perdure.durable.limit import limit
    from perdure.durable.mailbox import mailbox
    from perdure.durable.model import DurableModel
    from perdure.durable.saga import saga
    from perdure.durable.sleep import sleep, sleep_until
    from perdure.durable.step import step
    from perdure.durable.suspend import Cancelled

__all__ = [
    "Answer",
    "ApprovalTimeout",
    "Cancelled",
    "DurableModel",
    "RetryableError",
    "TerminalError",
    "agent",
    "approval",
    "emit",
    "gather",
    "limit",
    "mailbox",
    "race",
    "saga",
    "sleep",
    "sleep_until",
    "step",
]

__version__ = version("perdure")

_HOME = {
    "Answer": "approval",
    "ApprovalTimeout": "errors",
    "Cancelled": "suspend",
    "DurableModel": "model",
    "RetryableError": "errors",
    "TerminalError": "errors",
    "agent": "agent",
    "approval": "approval",
    "emit": "emit",
    "gather": "gather",
    "limit": "limit",
    "mailbox": "mailbox",
    "race": "gather",
    "saga": "saga",
    "sleep": "sleep",
    "sleep_until": "sleep",
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
