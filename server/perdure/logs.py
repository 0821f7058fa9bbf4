"""Log lines: structlog for ours, the standard library's for everybody else's, in one format on stderr.

For people on a terminal, one JSON object a line elsewhere.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from perdure.config import Settings

_QUIET = ("httpx", "httpx2", "httpcore", "openai", "urllib3", "asyncio", "uvicorn", "psycopg.pool", "mcp")
"""Libraries that tell at INFO what ours tell already; they are heard from WARNING on."""


def setup(settings: Settings) -> None:
    """Send all log lines of this process to stderr. Called once, before anything logs."""
    as_json = settings.log_json if settings.log_json is not None else not sys.stderr.isatty()
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True) if as_json else _clock,
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        plain = structlog.dev.plain_traceback
        final.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


_stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)


def _clock(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    return _stamp(logger, name, event)
