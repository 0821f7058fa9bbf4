"""The HTTP side of the simulator: chat completions, models, the fault queue and the request log.

| call | answer |
|---|---|
| `POST /v1/chat/completions` | as OpenAI: one JSON object, or SSE with `stream: true` |
| `GET /v1/models` | the one model it plays |
| `POST /faults` (a list of faults), `GET`, `DELETE` | what is waiting |
| `GET /requests`, `DELETE /requests` | the log, oldest first; the newest 2,000 requests are kept |

Any API key is accepted, and any model name: the answer repeats it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from perdure.simulator import openai
from perdure.simulator.faults import Fault, FaultQueue
from perdure.simulator.rules import ChatRequest, Json, Rule, RuleFailed, answer, text_of

MODEL_NAME = "simulated-1"
KEPT_REQUESTS = 2_000
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
FAULTS = TypeAdapter(list[Fault])


@dataclass
class LoggedRequest:
    """One request as the log shows it.

    `time` is Unix seconds. `outcome` is "open" while the request is being answered, then "answered",
    "left" (the client hung up), "cut", "hung", "rejected" (400), or a fault's HTTP status as text.
    """

    time: float
    model: str
    messages: Sequence[Json]
    tools: list[str]
    stream: bool
    outcome: str = "open"


class Simulator:
    """Rules, faults, log, and the ASGI application `app` that answers with them.

    For a server around it use `perdure.simulator.start`. One instance is one model with one log.
    """

    def __init__(self, rules: Sequence[Rule], *, token_delay_seconds: float = 0) -> None:
        self.rules = list(rules)
        self.token_delay_seconds = token_delay_seconds
        self.faults = FaultQueue()
        self.log: deque[LoggedRequest] = deque(maxlen=KEPT_REQUESTS)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/faults", self._faults, methods=["GET", "POST", "DELETE"]),
                Route("/requests", self._requests, methods=["GET", "DELETE"]),
            ]
        )

    async def _chat(self, http: Request) -> Response:
        entry = LoggedRequest(time=time.time(), model="", messages=[], tools=[], stream=False)
        self.log.append(entry)
        try:
            request = openai.read(openai.loads(await http.body()))
        except openai.BadRequest as exc:
            entry.outcome = "rejected"
            return _error(400, str(exc), param=exc.param, code=exc.code)
        entry.model, entry.messages, entry.stream = request.model, request.messages, request.stream
        entry.tools = list(request.tools)
        entry.outcome = "left"  # unless a line below says otherwise, the client hung up while we waited
        fault = self.faults.take("\n".join(map(text_of, request.messages)))
        if fault and fault.status is not None:
            entry.outcome = str(fault.status)
            return _faulty(fault, fault.status)
        if fault and fault.hang is not None:
            await asyncio.sleep(fault.hang)
            entry.outcome = "hung"
            return _broken(b"")
        if fault and fault.delay is not None:
            await asyncio.sleep(fault.delay)
        try:
            said = openai.message(request, answer(self.rules, request))
        except (RuleFailed, orjson.JSONEncodeError) as exc:
            entry.outcome = "rejected"
            return _error(400, str(exc), code="rule_failed")
        cut = fault is not None and fault.cut
        if request.stream:
            return StreamingResponse(self._stream(request, said, entry, cut=cut), media_type="text/event-stream")
        body = orjson.dumps(openai.completion(request, said))
        entry.outcome = "cut" if cut else "answered"
        return _broken(body[: len(body) // 2]) if cut else Response(body, media_type="application/json")

    async def _stream(
        self, request: ChatRequest, said: Json, entry: LoggedRequest, *, cut: bool
    ) -> AsyncIterator[bytes]:
        chunks = list(openai.chunks(request, said))
        for chunk in chunks[: max(1, len(chunks) // 2)] if cut else chunks:
            yield b"data: " + orjson.dumps(chunk) + b"\n\n"
            if self.token_delay_seconds:
                await asyncio.sleep(self.token_delay_seconds)
        if cut:
            entry.outcome = "cut"
            raise Cut  # the server closes the connection without the end of the body
        entry.outcome = "answered"
        yield b"data: [DONE]\n\n"

    async def _models(self, http: Request) -> Response:
        model = {"id": MODEL_NAME, "object": "model", "created": 0, "owned_by": "perdure"}
        return JSONResponse({"object": "list", "data": [model]})

    async def _faults(self, http: Request) -> Response:
        if http.method == "DELETE":
            self.faults.clear()
        elif http.method == "POST":
            try:
                self.faults.add(FAULTS.validate_json(await http.body()))
            except ValidationError as exc:
                return _error(400, f"/faults takes a list of faults: {exc}")
        return JSONResponse([fault.model_dump(exclude_defaults=True) for fault in self.faults.waiting()])

    async def _requests(self, http: Request) -> Response:
        if http.method == "DELETE":
            self.log.clear()
        return Response(orjson.dumps([asdict(entry) for entry in self.log]), media_type="application/json")


class Cut(Exception):
    """Raised to break a stream off on purpose."""


def _error(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Response:
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return JSONResponse(openai.error(message, kind=kind, code=code, param=param), status)


def _faulty(fault: Fault, status: int) -> Response:
    response = _error(status, f"Simulated fault: HTTP {status}", code="simulated_fault")
    if fault.retry_after is not None:
        response.headers["retry-after"] = f"{fault.retry_after:g}"
    return response


def _broken(body: bytes) -> Response:
    """Promises more bytes than it sends, so the server breaks the connection after them."""
    headers: dict[str, Any] = {"content-length": str(len(body) + 1)}
    return Response(body, headers=headers, media_type="application/json")
