"""Links to questions: signed with one secret by all servers of a database, for a while."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.engine import interrupts, links
from perdure.engine.errors import QuestionClosed, QuestionNotFound

QUESTION: dict[str, Any] = {"token": "t-1_x", "deadline": None}


def with_settings(lab: Any, **given: Any) -> Any:
    given = {"secret": None, "public_url": None, **given}
    settings = lab.engine.settings.model_validate({**lab.engine.settings.model_dump(), **given})
    return replace(lab.engine, settings=settings)


async def link(engine: Any, **question: Any) -> str:
    [shown] = await links.with_urls(engine, [{**QUESTION, **question}])
    return shown["url"]


async def test_servers_of_a_database_make_one_secret_among_them(lab):
    await lab.execute("DELETE FROM secrets")
    made = await asyncio.gather(*(links.secret(lab.engine) for _ in range(10)))
    assert len({*made}) == 1
    assert len(made[0]) == 32
    assert await lab.one("SELECT count(*) AS n FROM secrets") == {"n": 1}


async def test_link_leads_to_its_question_and_no_other_secret_makes_one(lab):
    signed = (await link(lab.engine)).removeprefix(links.PATH)
    assert await links.token_of(lab.engine, signed) == "t-1_x"
    other = with_settings(lab, secret="ours")
    with pytest.raises(QuestionNotFound):
        await links.token_of(other, signed)
    assert await links.token_of(other, (await link(other)).removeprefix(links.PATH)) == "t-1_x"


async def test_link_is_the_same_all_day_and_lives_past_the_deadline(lab):
    assert await link(lab.engine) == await link(lab.engine)
    late = datetime.now(UTC) + timedelta(days=100)
    expires = int((await link(lab.engine, deadline=late)).split(".")[1])
    assert expires - late.timestamp() > 29 * 86400
    ended = links.sign(await links.secret(lab.engine), "t", 1)
    with pytest.raises(QuestionClosed):
        await links.token_of(lab.engine, ended)


async def test_public_url_begins_the_link(lab):
    assert (await link(lab.engine)).startswith("/interrupts/link/")
    for url in ("https://agents.example.org/base", "https://agents.example.org/base/"):
        at = with_settings(lab, public_url=url)
        assert (await link(at)).startswith("https://agents.example.org/base/interrupts/link/t-1_x.")


@pytest.mark.parametrize(
    ("question", "yes", "no"),
    [
        ("Pay?", True, {"approved": False, "reason": "late"}),
        ({"question": "Pay?", "action_requests": [{}]}, True, {"approved": False, "reason": "late"}),
        (
            {"action_requests": [{}, {}]},
            {"decisions": [{"type": "approve"}] * 2},
            {"decisions": [{"type": "reject", "message": "late"}] * 2},
        ),
    ],
)
def test_yes_and_no_are_said_as_the_asker_understands_them(question, yes, no):
    assert interrupts.decision(question, True) == yes
    assert interrupts.decision(question, False, "late") == no
