"""The doctor: settings, versions, migrations, and what is wrong with this server and its database."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, SecretStr

from perdure.api.context import EngineDep
from perdure.config import Settings
from perdure.console.pages import PageRoute, page
from perdure.console.permit import Admin
from perdure.engine import db, diagnosis

router = APIRouter(prefix="/console/doctor", include_in_schema=False, route_class=PageRoute, tags=["console"])

UNTOLD = ("database_url", "otlp_endpoint")
"""Settings of which only whether they are given is shown; so are all secrets."""


@router.get("")
async def show_doctor(request: Request, engine: EngineDep, admin: Admin) -> Response:
    """What `perdure doctor` tells, as this server sees it."""
    async with engine.pool.connection() as conn:
        applied = await db.applied(conn)
        postgres = conn.info.server_version
    return page(
        request,
        "doctor.html",
        title="Doctor",
        checks=await diagnosis.checks(engine),
        settings=[_setting(engine.settings, name) for name in Settings.model_fields],
        versions=_versions(postgres),
        migrations=applied,
    )


def _setting(settings: Settings, name: str) -> dict[str, Any]:
    field, value = Settings.model_fields[name], getattr(settings, name)
    alias = field.validation_alias
    env = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"PERDURE_{name.upper()}"
    secret = isinstance(value, SecretStr) or (name in UNTOLD and value is not None)
    shown = "set" if secret else "" if value is None else _without_password(str(value))
    return {
        "name": env,
        "value": shown,
        "changed": value != field.default,
        "about": field.description or "",
    }


def _without_password(text: str) -> str:
    """An address without who logs in there."""
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _versions(postgres: int) -> list[tuple[str, str]]:
    major, minor = divmod(postgres, 10_000)
    found: list[tuple[str, str]] = [("Python", platform.python_version()), ("PostgreSQL", f"{major}.{minor}")]
    for name in diagnosis.PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found
