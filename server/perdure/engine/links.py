"""Signed links to questions: who has one may see and answer that question, without a login, for a while.

    /interrupts/link/<token>.<expires>.<signature>

The signature is over the question's token and the time at which the link ends, with a secret that all
servers of a database share: the setting `secret`, or else a random one in table `secrets`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from perdure.engine.errors import QuestionClosed, QuestionNotFound

if TYPE_CHECKING:
    from perdure.engine.core import Engine

PATH = "/interrupts/link/"
DAY = 86400
LINK_DAYS = 30  # from when it is handed out, or from the question's deadline: it also tells what became of it
SIGNED = re.compile(r"([\w-]{1,100})\.([0-9]{1,12})\.([\w-]{43})", re.ASCII)

READ = "SELECT value FROM secrets WHERE name = %(name)s"
# whoever is first wins; the value is read again afterwards
MAKE = "INSERT INTO secrets (name, value) VALUES (%(name)s, %(value)s) ON CONFLICT (name) DO NOTHING"


async def secret(engine: Engine) -> bytes:
    """What links are signed with: the same at every server, also after a restart."""
    given = engine.settings.secret
    if given is not None:
        return given.get_secret_value().encode()
    async with engine.pool.connection() as conn:
        row = await (await conn.execute(READ, {"name": "links"})).fetchone()
        if row is None:
            await conn.execute(MAKE, {"name": "links", "value": secrets.token_bytes(32)})
            row = await (await conn.execute(READ, {"name": "links"})).fetchone()
    assert row is not None
    return row["value"]


async def with_urls(engine: Engine, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions, each with its link as `url`: absolute if the setting `public_url` is there.

    The link of a question is the same all day, so that lists can be compared.
    """
    if not questions:
        return questions
    key = await secret(engine)
    base = (engine.settings.public_url or "").rstrip("/") + PATH
    return [{**one, "url": base + sign(key, one["token"], _expires(one["deadline"]))} for one in questions]


def _expires(deadline: datetime | None) -> int:
    since = max(time.time(), deadline.timestamp() if deadline else 0)
    return (int(since) // DAY + LINK_DAYS + 1) * DAY


def sign(key: bytes, token: str, expires: int) -> str:
    """The end of a link: the token, when the link ends (Unix seconds), and the signature of both."""
    return f"{token}.{expires}.{_signature(key, token, str(expires))}"


async def token_of(engine: Engine, signed: str) -> str:
    """The token in the end of a link.

    Raises QuestionNotFound for a signature that is not ours, QuestionClosed when the link has ended.
    """
    match = SIGNED.fullmatch(signed)
    wanted = _signature(await secret(engine), match[1], match[2]) if match else ""
    if match is None or not hmac.compare_digest(wanted.encode(), match[3].encode()):
        raise QuestionNotFound("This link is not valid: it is incomplete, or was changed")
    if int(match[2]) <= time.time():
        raise QuestionClosed("This link has ended: ask for a new one")
    return match[1]


def _signature(key: bytes, token: str, expires: str) -> str:
    mac = hmac.digest(key, f"perdure question\0{token}\0{expires}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")
