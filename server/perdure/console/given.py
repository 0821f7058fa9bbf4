"""What forms say, checked as the API checks the same fields."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar, cast

from fastapi import Query, Request
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from starlette.exceptions import HTTPException

from perdure.api.errors import validation_detail
from perdure.console import jsonform

Model = TypeVar("Model", bound=BaseModel)


def _blank(value: Any) -> Any:
    return value.strip() or None if isinstance(value, str) else value


Blank = BeforeValidator(_blank)
"""A field of a filter that was left empty."""

Word = Annotated[Annotated[str, Field(max_length=200)] | None, Blank, Query()]
Words = Annotated[Annotated[str, Field(max_length=4000)] | None, Blank, Query()]
"""Texts in the query of an address; None where they were left empty."""


def json_of(request: Request, field: str, text: str) -> Any:
    """The JSON value that a person has typed, with the API's limits. Raises InvalidInput."""
    return jsonform.json_of(text, field, max_depth=request.app.state.engine.settings.max_json_depth)


def object_of(request: Request, field: str, text: str) -> dict[str, Any]:
    """As `json_of`, of an object; empty for nothing."""
    if not text.strip():
        return {}
    value = json_of(request, field, text)
    if not isinstance(value, dict):
        raise HTTPException(422, f'{field}: must be a JSON object such as {{"name": "value"}}')
    return cast("dict[str, Any]", value)


def number_of(field: str, text: str) -> float:
    """The number that a person has typed. Raises HTTPException 422, naming the field."""
    try:
        return float(text)
    except ValueError as exc:
        raise HTTPException(422, f"{field}: must be a number") from exc


def checked(model: type[Model], value: dict[str, Any]) -> Model:
    """The body that the API would make of it. Raises HTTPException 422."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in exc.errors()]
        raise HTTPException(422, validation_detail(errors)) from exc
