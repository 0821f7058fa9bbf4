"""What can go wrong in the engine, as small nouns that know no HTTP.

    EngineError
    ├── NotFound        ThreadNotFound RunNotFound AssistantNotFound GraphNotFound
    │                   QuestionNotFound CheckpointNotFound CronNotFound QueryNotFound
    ├── Forbidden
    ├── Conflict        ThreadExists AssistantExists ThreadBusy RunRejected RunFinished
    │                   QuestionClosed SqlOff
    ├── Invalid         InvalidInput IdempotencyMismatch
    └── EmbeddingFailed

`StorageError`, `IdleTimeout` and `StepMismatch` end an attempt. `LeaseLost` is control flow, not an error:
author code must not swallow it, so it is a BaseException.
"""

from __future__ import annotations


class EngineError(Exception):
    """A request that the engine refuses; the text is meant for a person."""

    retryable: bool | None = False


class NotFound(EngineError):
    """Something that the request names does not exist."""


class ThreadNotFound(NotFound):
    """No thread has that id."""


class RunNotFound(NotFound):
    """The thread has no run with that id."""


class AssistantNotFound(NotFound):
    """No assistant has that id."""


class GraphNotFound(NotFound):
    """langgraph.json defines no graph of that name."""


class QuestionNotFound(NotFound):
    """No question has that token."""


class CheckpointNotFound(NotFound):
    """The thread has no checkpoint with that id."""


class CronNotFound(NotFound):
    """No cron has that id."""


class QueryNotFound(NotFound):
    """No saved query has that name."""


class Forbidden(EngineError):
    """Whoever asks may not do that, to anything."""


class Conflict(EngineError):
    """The state of things forbids the request."""


class ThreadExists(Conflict):
    """A thread with that id exists already."""


class AssistantExists(Conflict):
    """An assistant with that id exists already."""


class ThreadBusy(Conflict):
    """The thread has a run that is pending or running."""


class RunRejected(Conflict):
    """`multitask_strategy: reject` and the thread is busy."""


class RunFinished(Conflict):
    """The run's state does not allow what was asked of it."""


class QuestionClosed(Conflict):
    """The question is answered, superseded or timed out already."""


class SqlOff(Conflict):
    """There is no database role that SQL may be executed by; the text says what to set."""


class Invalid(EngineError):
    """The request is malformed or makes no sense."""


class InvalidInput(Invalid):
    """A field has a value that makes no sense; `status` is the HTTP code clients expect."""

    def __init__(self, field: str, problem: str, *, status: int = 422) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.status = status


class IdempotencyMismatch(Invalid):
    """The Idempotency-Key was used before with another request."""


class EmbeddingFailed(EngineError):
    """The embedding model of the store did not answer, or not with the vectors that were asked for.

    In a graph it is like any exception of an author's: retried in a step, the end of the run outside of one.
    """

    retryable = None


class StepMismatch(Exception):
    """The journal shows that a step was called with other arguments before the crash."""

    retryable = False


class LeaseLost(BaseException):
    """This worker no longer owns the run; nothing that it writes counts any more."""


class IdleTimeout(Exception):
    """An attempt has made no progress for longer than it may; the run is tried again."""

    retryable = True


class StorageError(Exception):
    """The database could not be reached while a run was writing; the run is tried again."""

    retryable = True
