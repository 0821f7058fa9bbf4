from typing import Any

import pytest

from graphs import specialists
from graphs.tools import insurance
from perdure import TerminalError
from perdure.simulator import RunningSimulator
from tests.graphs.claimants import CLAIM

CONFIG: Any = {"configurable": {"thread_id": "1"}}


@pytest.mark.parametrize(
    ("name", "change", "passed", "said"),
    [
        ("eligibility", {}, True, "covers orthopedic bills"),
        ("eligibility", {"category": "cosmetic"}, False, "does not cover cosmetic bills"),
        ("eligibility", {"date": "2020-01-01"}, False, "not valid on 2020-01-01"),
        ("rate_comparison", {}, True, "3000 USD is within the 1200 to 4500 USD"),
        ("rate_comparison", {"amount": 9000}, False, "9000 USD is far above"),
        ("rate_comparison", {"category": "unheard of"}, True, "no usual price"),
        ("fraud", {}, True, "Nothing like this"),
        ("fraud", {"date": "2024-09-20", "amount": 1800}, False, "was paid before"),
    ],
)
async def test_judges_by_the_books(
    simulator: RunningSimulator, served: Any, name: str, change: dict[str, Any], passed: bool, said: str
) -> None:
    finding = await served(getattr(specialists, name)).ainvoke({**CLAIM, **change}, CONFIG)
    assert finding["passed"] is passed
    assert said in finding["answer"]
    assert finding.keys() == {"passed", "answer"}
    assert len(simulator.requests) == 1


async def test_failing_model_is_asked_again_without_looking_things_up_again(
    simulator: RunningSimulator, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[Any] = []

    async def prices(claim: Any) -> Any:
        looked_up.append(claim)
        return await insurance.prices(claim)

    monkeypatch.setitem(insurance.BOOKS, "rate_comparison", prices)
    agent = served(specialists.rate_comparison)
    simulator.fail({"status": 500, "times": 3})
    with pytest.raises(Exception, match="500") as failure:
        await agent.ainvoke(CLAIM, CONFIG)
    assert getattr(failure.value, "retryable", None) is True
    assert (await agent.ainvoke(None, CONFIG))["passed"] is True
    assert [entry.outcome for entry in simulator.requests] == ["500"] * 3 + ["answered"]
    assert looked_up == [CLAIM]


async def test_next_claim_of_a_session_inherits_nothing(simulator: RunningSimulator, served: Any) -> None:
    agent = served(specialists.eligibility)
    assert (await agent.ainvoke(CLAIM, CONFIG))["passed"] is True
    later = await agent.ainvoke({"amount": 10, "reason": "aspirin"}, CONFIG)
    assert later == {
        "passed": False,
        "answer": "The policy was not valid on the day of treatment, which is not named.",
    }


@pytest.mark.parametrize("wrong", [{"reason": "no amount"}, {**CLAIM, "amount": "much"}, {**CLAIM, "amount": -1}])
async def test_wrong_claim_is_refused_by_name_before_the_model_is_asked(
    simulator: RunningSimulator, served: Any, wrong: Any
) -> None:
    with pytest.raises(TerminalError, match="The claim can't be read: amount:"):
        await served(specialists.fraud).ainvoke(wrong, CONFIG)
    assert simulator.requests == []


def test_input_is_the_claim_itself() -> None:
    schema = specialists.fraud.get_input_jsonschema()
    assert set(schema["properties"]) == {"amount", "reason", "category", "date", "placeOfService"}
    assert set(schema["required"]) == {"amount", "reason"}
    assert set(specialists.fraud.get_output_jsonschema()["properties"]) == {"passed", "answer"}
