"""HTTP for the commands: one request, its JSON, and an exit code for each way to fail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import httpx
import orjson

from perdure.cli.output import Exit, fail
from perdure.config import load_settings

ABSENT: Any = object()
"""No body at all; None is the JSON null."""


class Client:
    """A connection to one server. Every failure prints the server's words and ends the command."""

    def __init__(self, url: str | None) -> None:
        settings = load_settings(url=url)
        headers = {"x-api-key": settings.api_key.get_secret_value()} if settings.api_key else {}
        self._http = httpx.Client(
            base_url=settings.url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(10, read=None),  # a run may take as long as it likes
        )

    def send(
        self, method: str, path: str, body: Any = ABSENT, headers: dict[str, str] | None = None, **query: Any
    ) -> httpx.Response:
        """Whatever the server answers, errors included."""
        given = {name: value for name, value in query.items() if value is not None}
        content = None if body is ABSENT else orjson.dumps(body)
        headers = {**(headers or {}), **({} if content is None else {"content-type": "application/json"})}
        with self._errors():
            return self._http.request(method, path, params=given, content=content, headers=headers)

    def json(self, method: str, path: str, body: Any = ABSENT, **more: Any) -> Any:
        """The JSON of an answer that the server accepted; None where it has nothing to say. See `refuse`."""
        response = self.send(method, path, body, **more)
        if response.is_error:
            refuse(response)
        return response.json() if response.content else None

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """The events of a stream as (name, data), ending when the server closes it."""
        with self._errors(), self._http.stream("GET", path) as response:
            if response.is_error:
                response.read()
                refuse(response)
            name, data = "", list[str]()
            for line in response.iter_lines():
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data.append(line[5:].removeprefix(" "))
                elif not line and name:
                    yield name, orjson.loads("\n".join(data) or "null")
                    name, data = "", list[str]()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.InvalidURL as exc:
            fail(f"{self._http.base_url} is not a URL: {exc}", Exit.UNREACHABLE)
        except httpx.TransportError as exc:
            fail(
                f"no answer from {self._http.base_url}: {exc or type(exc).__name__}; "
                "start it with `perdure serve`, or name another with --url",
                Exit.UNREACHABLE,
            )


def refuse(response: httpx.Response) -> NoReturn:
    """End the command with the server's explanation."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text.strip() or response.reason_phrase
    code = Exit.REFUSED if response.status_code < 500 else Exit.FAILED
    fail(f"{detail} (HTTP {response.status_code})", code)
