"""An OTLP collector for tests: takes traces over HTTP, and answers as it is told to."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.conftest import eventually


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A span as the collector has it; ids in hexadecimal, `parent` empty for a root, times in ns."""

    trace: str
    id: str
    parent: str
    name: str
    start: int
    end: int
    about: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    failed: bool
    message: str
    service: str


@dataclass
class Collector:
    """What has arrived. `raw` is all bodies, to look for what must not be in them."""

    url: str = ""
    hangs: bool = False
    raw: bytes = b""
    requests: int = 0
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    spans: list[Seen] = field(default_factory=list[Seen])
    stopped: threading.Event = field(default_factory=threading.Event)

    def environment(self, **more: str) -> dict[str, str]:
        """For a process that sends its traces here, soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100", **more}

    def of(self, trace: str) -> list[Seen]:
        return [span for span in list(self.spans) if span.trace == trace]

    def named(self, trace: str, name: str) -> list[Seen]:
        return [span for span in self.of(trace) if span.name == name]

    def one(self, trace: str, name: str) -> Seen:
        """The only span of that name, as soon as it is there."""
        found = eventually(lambda: self.named(trace, name))
        assert len(found) == 1, found
        return found[0]

    def tree(self, trace: str) -> dict[str, Any]:
        """The trace as names within names, siblings in the order of their beginning. Equal names: the last counts."""
        spans = sorted(self.of(trace), key=lambda span: span.start)
        ids = {span.id for span in spans}
        below: dict[str, dict[str, Any]] = {span.id: {} for span in spans}
        roots: dict[str, Any] = {}
        for span in spans:
            (below[span.parent] if span.parent in ids else roots)[span.name] = below[span.id]
        return roots


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.requests += 1
            if collector.hangs:
                collector.stopped.wait()
                return
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            collector.raw += body
            collector.headers.append(dict(self.headers))
            collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Seen]:
    for resource in request.resource_spans:
        service = _about(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    name=span.name,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    about=_about(span.attributes),
                    events=[(event.name, _about(event.attributes)) for event in span.events],
                    failed=span.status.code == Status.STATUS_CODE_ERROR,
                    message=span.status.message,
                    service=service,
                )


def _about(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
