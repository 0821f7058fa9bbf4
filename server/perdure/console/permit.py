"""Who may see what belongs to nobody: workers, keys of others, SQL, the doctor.

Without authentication everybody; with it those whom the setting `admins` names, and users to whom an Auth
object gives the permission `perdure:admin`.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from perdure.api.auth import USER, User
from perdure.engine.errors import Forbidden

PERMISSION = "perdure:admin"


def is_admin(connection: HTTPConnection) -> bool:
    """Whether the caller may see what belongs to nobody."""
    if connection.app.state.auth is None:
        return True
    user = cast("User | None", connection.scope.get(USER))
    if user is None:
        return False
    admins: list[str] = connection.app.state.engine.settings.admin_list
    return user.identity in admins or PERMISSION in user.permissions


def _admin(connection: HTTPConnection) -> None:
    if not is_admin(connection):
        raise Forbidden("Only for administrators: PERDURE_ADMINS names them")


Admin = Annotated[None, Depends(_admin)]
"""Declared by the routes that only administrators may use."""
