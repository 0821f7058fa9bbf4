"""The desks of an insurer: specialists check a claim, and somebody decides by their findings."""

import json
from typing import Any

from perdure.simulator import ChatRequest, Reply, ToolCall


def specialists(request: ChatRequest) -> Reply | None:
    """graphs/specialists.py: judges the claim by what the insurer's books say."""
    if request.schema is None or not request.system.startswith("You are an insurance "):
        return None
    seen = json.loads(request.prompt)
    claim = seen["claim"]
    amount, day, category = claim["amount"], claim.get("date", ""), claim.get("category", "unnamed")
    if "policy" in seen:
        policy = seen["policy"]
        if not policy["valid_from"] <= day <= policy["valid_until"]:
            return _finding(False, f"The policy was not valid on {day or 'the day of treatment, which is not named'}.")
        if category not in policy["covered"]:
            return _finding(False, f"The policy does not cover {category} bills.")
        return _finding(True, f"The policy was valid on {day} and covers {category} bills.")
    if "usual_price" in seen:
        usual = seen["usual_price"]
        if usual is None:
            return _finding(True, f"There is no usual price for {category} bills to compare with.")
        price = f"{usual['from']} to {usual['to']} USD that {category} bills usually come to"
        fits = amount <= usual["to"] * 1.1
        return _finding(fits, f"{amount:g} USD {'is within' if fits else 'is far above'} the {price}.")
    paid = [(old["date"], old["amount"], old["placeOfService"]) for old in seen["paid_claims"]]
    if (day, amount, claim.get("placeOfService")) in paid:
        return _finding(False, f"The same bill of {amount:g} USD of {day} was paid before.")
    return _finding(True, "Nothing like this was claimed before.")


def claim_adjusters(request: ChatRequest) -> Reply | None:
    """graphs/multi_agent.py and parallel_tools.py: has the claim checked, then decides by the findings."""
    if not request.system.startswith("You are an insurance claim adjuster."):
        return None
    claim = json.loads(request.prompt[request.prompt.index("{") :])
    if not request.tool_results:
        tools = {"check_claim": 0, "check_eligibility": 0, "compare_rates": 500, "check_fraud": 200}
        wanted = [tool for tool, least in tools.items() if request.offers(tool) and claim["amount"] >= least]
        return Reply(tool_calls=[ToolCall(tool, {"claim": claim}) for tool in wanted])
    findings: list[Any] = []
    for result in request.tool_results:
        found = json.loads(result.content)
        findings += [found] if "passed" in found else found.values()
    return _claim_decision(claim, findings)


def hand_off(request: ChatRequest) -> Reply | None:
    """graphs/hand_off.py: hands the claim to the next desk that it needs, unless a check has failed."""
    if not request.system.startswith("You handle an insurance claim together with other desks."):
        return None
    seen = json.loads(request.prompt)
    claim, findings = seen["claim"], seen["findings"]
    if all(finding["passed"] for finding in findings.values()):
        for desk, least in (("eligibility", 0), ("rate_comparison", 500), ("fraud", 200)):
            if request.offers(f"hand_off_to_{desk}") and claim["amount"] >= least:
                return Reply(tool_calls=[ToolCall(f"hand_off_to_{desk}")])
    return _claim_decision(claim, list(findings.values()))


def parallel_agents(request: ChatRequest) -> Reply | None:
    """graphs/parallel_agents.py: decides by the findings of the three specialists."""
    if not request.system.startswith("You decide insurance claims by the findings of specialists."):
        return None
    seen = json.loads(request.prompt)
    return _claim_decision(seen["claim"], list(seen["findings"].values()))


def _finding(passed: bool, answer: str) -> Reply:
    return Reply(data={"passed": passed, "answer": answer})


def _claim_decision(claim: dict[str, Any], findings: list[Any]) -> Reply:
    wrong = [finding["answer"] for finding in findings if not finding["passed"]]
    said = " ".join(wrong or [finding["answer"] for finding in findings])
    return Reply(text=f"{'Rejected' if wrong else 'Approved'}: {claim['reason']}, {claim['amount']:g} USD. {said}")


rules = [specialists, claim_adjusters, hand_off, parallel_agents]
