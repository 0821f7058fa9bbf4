"""A question about thousands of actions: its page shows the first ones, and each answer is for all of them."""

import re
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from starlette.testclient import TestClient

from perdure.console import answering, pages
from perdure.engine.errors import InvalidInput
from tests.console.test_gates import things
from tests.console.test_hostile import open_client as open_client

MANY = 2000
SHOWN = answering.MAX_ACTIONS
REST = MANY - SHOWN


def about(number: int, *, args: Any = None, **allowed: list[str]) -> dict[str, Any]:
    """A question about `number` actions: 50 are called `first` and the others `other`; what `allowed` says of these."""
    requests = [{"name": "first" if n < SHOWN else "other", "args": args or {"n": n}} for n in range(number)]
    configs = [{"action_name": name, "allowed_decisions": may} for name, may in allowed.items()]
    return {"action_requests": requests, "review_configs": configs}


def shown(client: TestClient, dsn: str, question: Any) -> str:
    token = things(client, dsn, {})["token"]
    with psycopg.connect(dsn) as conn:
        conn.execute("UPDATE interrupts SET question = %s WHERE token = %s", (Jsonb(question), token))
    answer = client.get(f"/console/inbox/{token}")
    assert answer.status_code == 200
    return answer.text


def decided(**given: str) -> dict[str, str]:
    """The form of a question about many actions, with all of those that are shown approved."""
    return {"decision": "decide", **{f"decision.{n}": "approve" for n in range(SHOWN)}, **given}


def test_a_page_shows_and_offers_the_first_of_thousands(open_client: TestClient, dsn: str) -> None:
    page = shown(open_client, dsn, about(MANY, args={"path": "/tmp/x", "text": "x" * 100}))
    assert len(page) < 200_000
    assert f"and {REST:,} more actions" in page
    assert {f"decision.{n}" for n in (*range(SHOWN), "rest")} == set(re.findall(r'name="(decision\.\w+)"', page))
    assert f"Approve all {MANY:,}" in page
    assert f"Reject all {MANY:,}" in page


def test_few_actions_are_all_shown(open_client: TestClient, dsn: str) -> None:
    page = shown(open_client, dsn, about(SHOWN))
    assert page.count("<fieldset") == SHOWN
    assert 'name="decision.rest"' not in page
    assert "more actions" not in page


@pytest.mark.parametrize("text", ["x" * 19_000, {f"k{n}": n for n in range(40)}, [[[0] * 100] * 100]], ids=len)
def test_large_arguments_of_many_actions_make_no_large_page(open_client: TestClient, dsn: str, text: Any) -> None:
    page = shown(open_client, dsn, about(MANY, args=text if isinstance(text, dict) else {"text": text}))
    assert len(page) < 1_500_000
    assert len(set(re.findall(r' name="([^"]+)"', page))) < pages.MAX_FIELDS
    values = re.findall(r'<(?:textarea|input) name="args[^>]*?(?:>([^<]*)| value="([^"]*)")', page)
    assert sum(len(one) + len(other) for one, other in values) < answering.MAX_ANSWER


@pytest.mark.parametrize("kind", ["approve", "reject"])
def test_one_answer_for_all_decides_each(kind: str) -> None:
    given = answering.read(about(MANY), {"decision": kind})
    assert given.value == {"decisions": [{"type": kind}] * MANY}
    assert given.status == ("answered" if kind == "approve" else "rejected")


def test_those_without_a_form_get_the_same_decision() -> None:
    given = answering.read(
        about(MANY), decided(**{"decision.0": "reject", "decision.rest": "reject", "text.rest": "no"})
    )
    decisions = given.value["decisions"]
    assert decisions[:SHOWN] == [{"type": "reject"}, *[{"type": "approve"}] * (SHOWN - 1)]
    assert decisions[SHOWN:] == [{"type": "reject", "message": "no"}] * REST
    assert given.status == "answered"


@pytest.mark.parametrize(
    ("allowed", "form"),
    [
        ({}, decided()),
        ({}, decided(**{"decision.rest": "edit"})),
        ({"other": ["approve"]}, decided(**{"decision.rest": "reject"})),
        ({"other": ["approve"]}, {"decision": "reject"}),
        ({"first": ["reject"]}, {"decision": "approve"}),
    ],
)
def test_what_an_action_does_not_take_is_no_answer(allowed: dict[str, list[str]], form: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        answering.read(about(MANY, **allowed), form)


def test_a_page_offers_only_what_can_be_answered(open_client: TestClient, dsn: str) -> None:
    page = shown(open_client, dsn, about(MANY, first=["approve", "reject"], other=["edit"]))
    assert "<fieldset" not in page
    assert 'value="approve"' not in page
    assert "must be given by the API" in page


def test_the_words_of_a_question_name_some_of_its_actions() -> None:
    requests = [{"name": f"act-{n % 15}"} for n in range(MANY)]
    names = ", ".join(f"act-{n}" for n in range(10))
    assert answering.text_of({"action_requests": requests}) == f"May it call {names} and 5 more?"
