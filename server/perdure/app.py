"""Wiring: what a process of perdure consists of, in which order it starts and in which it stops.

Start: database, migrations, model (real or simulated), graphs, HTTP server, worker.
Stop, on SIGTERM or SIGINT: the worker hands its runs back, the server ends its streams, the embedded
PostgreSQL is released, and the process exits. None of that waits for author code.
"""

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urlsplit

import orjson
import structlog
import uvicorn

from perdure.config import Settings, has_model_key, point_at_simulator
from perdure.engine import embedding, tracing
from perdure.engine.db import migrate
from perdure.engine.postgres import embedded, location

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

_GRACE_SECONDS = 1  # for open streams and requests, after the worker has handed its runs back


class StartError(Exception):
    """The process cannot start; the message says what to change."""


@dataclass(frozen=True)
class Started:
    """What a person at the terminal wants to know once everything runs."""

    url: str | None
    graphs: list[str]
    database: str
    simulated: bool
    slots: int
    traces_to: str | None


def run(settings: Settings, *, http: bool, ready: Callable[[Started], None]) -> None:
    """Run until SIGTERM or SIGINT: the HTTP server if `http`, a worker if there are slots.

    Must be called in the main thread. Calls `ready` once, when the first request or run can be served.
    Returns after everything is handed back and stopped; author code may still run in threads, so
    leave with `leave` and not by returning from main.

    Raises StartError, EmbeddedPostgresError, and what the registry raises for a graph it cannot load.
    """
    with _stop_signals() as stop, ExitStack() as stack:
        try:
            _start(settings, stack, stop, http=http, ready=ready)
        finally:
            stop.seen = True  # from here on a signal must not interrupt the clean-up
            log.info("stopping")


def _start(
    settings: Settings, stack: ExitStack, stop: "_StopFlag", *, http: bool, ready: Callable[[Started], None]
) -> None:
    rules = _simulator_rules(settings)
    bound = stack.enter_context(_bound(settings)) if http else None
    dsn = stack.enter_context(database(settings))
    migrate(dsn, dims=embedding.dims(settings.config))
    stack.enter_context(_traces(settings))  # begins before any connection is opened, ends after the last attempt
    settings = settings.model_copy(update={"simulated": stack.enter_context(_model(settings, rules))})

    # Graphs make model clients when they are imported, so this comes after the model.
    from perdure.engine import loopback
    from perdure.engine.registry import Registry

    url = f"http://{_shown(settings.host)}:{bound.getsockname()[1]}" if bound else None
    loopback.install(url or settings.url)
    registry = Registry.load(settings.config)
    threads: list[threading.Thread] = []
    engine: Engine | None = None
    if bound:
        from perdure.api import create_app
        from perdure.api.custom import around
        from perdure.console import install

        app = create_app(settings, registry, dsn)
        install(app, registry)
        server = _HttpServer(around(app, registry, limit=settings.rate_limit_per_minute), bound)
        stack.callback(server.stop)
        server.start()
        engine = app.state.engine
        threads.append(server.thread)
    elif settings.metrics_port is not None:
        stack.enter_context(_metrics(settings.metrics_host, settings.metrics_port))
    if settings.slots:
        from perdure.engine.worker import Worker

        # With the hub of the API's engine, readers in this process get events from memory.
        worker = Worker(
            settings,
            registry,
            dsn,
            hub=engine.hub if engine else None,
            origin=engine.origin if engine else None,
        )
        stack.callback(worker.stop)  # last in, first out: runs go back before the server stops
        worker.start()
        threads.append(worker)
    # What is loaded by now stays; without it each collection is quicker (half the time of a page with large states).
    gc.collect()
    gc.freeze()
    where = describe_database(settings)
    ready(Started(url, registry.graph_ids, where, settings.simulated, settings.slots, settings.traces_to))
    stop.wait(threads)


def leave(code: int) -> NoReturn:
    """End the process now. Threads that run author code do not hold it back."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The DSN to use: the given server, or the embedded one, which runs at least as long as the block."""
    if settings.database_url:
        yield settings.database_url
    else:
        with embedded(settings.data_dir) as dsn:
            yield dsn


def describe_database(settings: Settings) -> str:
    """Where the data lives, without user names and passwords."""
    if not settings.database_url:
        return f"embedded PostgreSQL in {location(settings.data_dir)}"
    if "://" not in settings.database_url:
        return "PostgreSQL (DATABASE_URL)"
    parts = urlsplit(settings.database_url)
    host = parts.netloc.rpartition("@")[2]
    return f"PostgreSQL at {host or 'a local socket'}{parts.path}"


@contextmanager
def _model(settings: Settings, rules: str | None) -> Iterator[bool]:
    """Start the simulator if no model is configured and langgraph.json has rules for it; True if it runs."""
    if rules is None or has_model_key():
        yield settings.simulated
        return
    from perdure import simulator

    running = simulator.start(rules, config_dir=settings.config.resolve().parent)
    try:
        point_at_simulator(running.base_url)
        yield True
    finally:
        running.stop()


def _simulator_rules(settings: Settings) -> str | None:
    """Where langgraph.json says that the simulator's answers are. Raises StartError if there is no such file."""
    try:
        raw: Any = orjson.loads(settings.config.read_bytes())
        rules = raw["simulator"]["rules"]
    except FileNotFoundError as exc:
        raise StartError(f"{settings.config} not found; start where it is, or name it with --config") from exc
    except (ValueError, KeyError, TypeError):
        return None  # the registry reports a broken file, with its cause
    return cast("str", rules)


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """The address of the server, taken before anything slow starts; nobody can connect to it yet."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((settings.host, settings.port))
        except OSError as exc:
            raise StartError(
                f"cannot listen on {settings.host}:{settings.port}: {exc.strerror}; choose a free --port"
            ) from exc
        yield bound


@contextmanager
def _metrics(host: str, port: int) -> Iterator[None]:
    """`/metrics` of a process without an API."""
    from perdure.engine import metrics

    with ExitStack() as stack:
        try:
            taken = stack.enter_context(metrics.served(host, port))
        except OSError as exc:
            raise StartError(
                f"cannot show metrics on {host}:{port}: {exc.strerror}; choose a free PERDURE_METRICS_PORT"
            ) from exc
        log.info("metrics", url=f"http://{_shown(host)}:{taken}/metrics")
        yield


@contextmanager
def _traces(settings: Settings) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(tracing.exporting(settings))
        except ValueError as exc:  # the SDK's, about a variable of its own
            raise StartError(f"traces cannot be sent: {exc}; mend the OTEL_ variables") from exc
        if settings.traces_to is not None:
            log.info("traces", to=settings.traces_to)
        yield


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


class _HttpServer:
    """uvicorn on an event loop in a thread of its own; the main thread stays free for signals."""

    def __init__(self, app: Any, bound: socket.socket) -> None:
        self._bound = bound
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self.thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Return when requests are answered. Raises StartError."""
        self.thread.start()
        while not self._server.started:
            if not self.thread.is_alive():
                raise StartError("the HTTP server did not start; the log above says why")
            time.sleep(0.01)

    def stop(self) -> None:
        """End open requests and streams and return, within a few seconds whatever they do."""
        self._server.should_exit = True
        self.thread.join(_GRACE_SECONDS + 2)
        if self.thread.is_alive():
            self._server.force_exit = True
            self.thread.join(1)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._bound])
        except Exception:
            log.exception("http server failed")


class _Stop(BaseException):
    """SIGTERM or SIGINT has arrived in the main thread."""


class _StopFlag:
    def __init__(self) -> None:
        self.seen = False

    def wait(self, threads: list[threading.Thread]) -> None:
        """Sleep until a signal. Raises StartError if one of `threads` ends by itself."""
        while not self.seen:
            for thread in threads:
                if not thread.is_alive():
                    raise StartError(f"the thread '{thread.name}' has ended by itself; the log above says why")
            time.sleep(0.5)


@contextmanager
def _stop_signals() -> Iterator[_StopFlag]:
    """Turn the first SIGTERM or SIGINT into leaving the block, wherever it is; later ones change nothing.

    All that the block does on its way out is bounded in time, so a second Ctrl-C need not hurry it.
    """
    flag = _StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        if not flag.seen:
            flag.seen = True
            raise _Stop

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    with suppress(_Stop):
        yield flag
