"""What an author raises to say how a failure is to be treated.

    Exception
     ├─ TerminalError       retryable = False: stop the run
     │   └─ ApprovalTimeout nobody answered before the deadline
     └─ RetryableError      retryable = True: try again, perhaps after a while

Any other exception that leaves a `@step` counts as retryable; raised outside of a step it ends the run as in
LangGraph. Whoever runs the graph looks at the attribute `retryable` only, never at these classes. What the
words themselves raise to leave a node stands in `suspend.py`.
"""


class TerminalError(Exception):
    """Stop: trying again can't help. Ends the run at once unless it is caught.

    A step that raised it is finished: on replay it raises the same error again and does nothing. A subclass
    comes back as that subclass if it stands at the top of a module, with its message and status but without
    other attributes.

    Example:
        raise TerminalError("Card 4711 was declined", status=402)
    """

    retryable = False

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        """HTTP status of the answer to whoever waits for the run."""


class RetryableError(Exception):
    """Try again: after `after` seconds if given, else when the policy of the step says so.

    Example:
        raise RetryableError("The bank is closed for maintenance", after=30)
    """

    retryable = True

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = after
        """Seconds to wait before the next attempt; None leaves it to the policy."""


class ApprovalTimeout(TerminalError):
    """Nobody answered an `approval(within=…)` before its deadline. Uncaught it ends the run."""

    def __init__(self, message: str, status: int = 422, *, question: str = "", deadline: str = "") -> None:
        super().__init__(message, status)
        self.question = question
        self.deadline = deadline
        """ISO 8601 with offset, as shown in the question."""
