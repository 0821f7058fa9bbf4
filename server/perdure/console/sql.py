"""SQL for administrators: one statement that reads, its rows as a table or as CSV, and statements that were saved."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from perdure.api.context import EngineDep
from perdure.console.pages import HEADERS, PageRoute, done, form, link, page
from perdure.console.permit import Admin
from perdure.engine import queries
from perdure.engine.errors import InvalidInput, SqlOff
from perdure.engine.views import reading

router = APIRouter(prefix="/console/sql", include_in_schema=False, route_class=PageRoute, tags=["console"])

Statement = Annotated[str, Query(max_length=reading.MAX_SQL)]
NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", re.IGNORECASE)


@router.get("")
async def show_sql(request: Request, engine: EngineDep, admin: Admin, q: Statement = "") -> Response:
    """The statement in the address, executed: it can only read, so the address may be shared."""
    off = await reading.available(engine)
    result, problem, status = None, "", 200
    if q.strip() and not off:
        try:
            result = await reading.run(engine, q)
        except InvalidInput as exc:
            problem, status = str(exc), 422
        except SqlOff as exc:  # the role may do too much, or cannot log in
            off = str(exc)
    return page(
        request,
        "sql.html",
        title="SQL",
        status=status,
        q=q,
        off=off,
        result=result,
        problem=problem,
        saved=await queries.saved(engine),
        seconds=reading.SECONDS,
        max_rows=reading.MAX_ROWS,
    )


@router.get("/export")
async def export(engine: EngineDep, admin: Admin, q: Statement = "") -> Response:
    """The same rows as CSV."""
    result = await reading.run(engine, q)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([_cell(column["name"]) for column in result["columns"]])
    writer.writerows([["" if value is None else _cell(value) for value in row] for row in result["rows"]])
    name = f"perdure-{datetime.now(UTC):%Y%m%d-%H%M%S}.csv"
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(text: str) -> str:
    """A value that a spreadsheet does not take for a formula: what agents have written ends up here."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not NUMBER.fullmatch(text) else text


@router.post("/saved")
async def save(request: Request, engine: EngineDep, admin: Admin) -> Response:
    """Keep a statement under a name; one of that name is replaced."""
    given = await form(request)
    q, name = given.get("q", ""), given.get("name", "").strip()
    await queries.save(engine, name, q)
    return done(request, _address(q), f"Saved as {name}.")


@router.post("/forget")
async def forget(request: Request, engine: EngineDep, admin: Admin) -> Response:
    """Forget a saved statement."""
    given = await form(request)
    await queries.forget(engine, given.get("name", ""))
    return done(request, _address(given.get("q", "")), "Deleted.")


def _address(q: str) -> str:
    return link("", "/console/sql", q=q if len(q) <= reading.MAX_SQL else "")
