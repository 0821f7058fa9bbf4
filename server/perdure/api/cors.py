"""Cross-origin requests: any web page may use the API unless langgraph.json says otherwise.

It stands outside everything else, so error answers carry the headers too, and preflights
are answered without reaching authentication.
"""

from __future__ import annotations

import re
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

EXPOSED = ("content-location", "location", "x-pagination-total", "x-pagination-next")
MAX_AGE_SECONDS = 600
OPTIONS = (
    "allow_origins",
    "allow_methods",
    "allow_headers",
    "allow_credentials",
    "allow_origin_regex",
    "max_age",
)


class Cors(CORSMiddleware):
    """Starlette's middleware; each preflight it allows also allows private networks.

    A page from the internet may then talk to a server on localhost (LangGraph Studio does).
    """

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            response.headers.setdefault("Access-Control-Allow-Private-Network", "true")
            if "access-control-allow-headers" not in response.headers:
                response.headers["Access-Control-Allow-Headers"] = (
                    "x-api-key, x-auth-scheme, last-event-id, prefer, content-type"
                )
        return response


def origin_allowed(origin: str, config: dict[str, Any]) -> bool:
    """Whether pages of this origin may use the API; asked where an answer that nobody can read would not be enough."""
    options = cors_options(config)
    regex = options.get("allow_origin_regex")
    origins = options["allow_origins"]
    return "*" in origins or origin in origins or bool(regex and re.fullmatch(regex, origin))


def cors_options(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the middleware, from `http.cors` of langgraph.json."""
    http = config.get("http")
    cors: Any = cast("dict[str, Any]", http).get("cors") if isinstance(http, dict) else None
    given: dict[str, Any] = cast("dict[str, Any]", cors) if isinstance(cors, dict) else {}
    options: dict[str, Any] = {
        "allow_origins": () if given.get("allow_origin_regex") else ("*",),
        "allow_methods": ("*",),
        "allow_headers": ("*",),
        "max_age": MAX_AGE_SECONDS,
        "allow_private_network": True,
    }
    options |= {name: given[name] for name in OPTIONS if given.get(name) is not None}
    exposed = [str(name) for name in given.get("expose_headers") or ()]
    return options | {"expose_headers": [*EXPOSED, *(name for name in exposed if name.lower() not in EXPOSED)]}
