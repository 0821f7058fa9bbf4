"""What the simulated model answers: one rule for each pattern, in the order in which they are asked.

Not a language model: each rule knows the requests of its pattern and says something plausible about them.
"""

import json
import re
from typing import Any

from perdure.simulator import ChatRequest, Reply, ToolCall

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
KINDS = ("hospital", "dental", "pharmacy")


def weather(request: ChatRequest) -> Reply | None:
    """graphs/weather.py, graphs/manual_loop.py: asks for each city in the prompt at once, then says what came back."""
    if not request.offers("get_weather"):
        return None
    if request.tool_results:
        reports = [f"{result.args.get('city')}: {result.content}" for result in request.tool_results]
        return Reply(text="Here is the current weather. " + " ".join(reports))
    named = re.search(r"\b(?:in|for|at)\s+([^?.!]+)", request.prompt)
    if not named:
        return Reply(text="For which city would you like to know the weather?")
    cities = re.split(r",\s*and\s+|,\s*|\s+and\s+", named[1])
    cities = [re.sub(r"\s+(?:right now|now|today|please)$", "", city.strip()) for city in cities]
    return Reply(tool_calls=[ToolCall("get_weather", {"city": city}) for city in cities if city])


def approval(request: ChatRequest) -> Reply | None:
    """graphs/approval.py: a claim above 1000 USD goes to a person, a smaller one is paid."""
    if not request.offers("human_approval"):
        return None
    if request.tool_results:
        return Reply(text=f"Your claim has been decided. {request.tool_results[-1].content}")
    claim = _claim(request.prompt)
    if claim is None:
        return Reply(text=NO_AMOUNT)
    tool = "human_approval" if claim["amount"] > 1000 or not request.offers("pay_claim") else "pay_claim"
    return Reply(tool_calls=[ToolCall(tool, {"claim": claim})])


def approval_with_timeout(request: ChatRequest) -> Reply | None:
    """graphs/approval_with_timeout.py: as `approval`, but pays what nobody has decided in time."""
    if not request.offers("human_approval", "pay_claim") or "timed out" not in request.system:
        return None
    if request.tool_results and "timed out" in request.tool_results[-1].content:
        return Reply(tool_calls=[ToolCall("pay_claim", request.tool_results[-1].args)])
    return approval(request)


def sub_workflow(request: ChatRequest) -> Reply | None:
    """graphs/sub_workflow.py: a claim above 1000 USD is reviewed, a smaller one is paid."""
    if not request.offers("request_review", "pay_small_claim"):
        return None
    if request.tool_results:
        return Reply(text=f"Your claim has been decided. {request.tool_results[-1].content}")
    claim = _claim(request.prompt)
    if claim is None:
        return Reply(text=NO_AMOUNT)
    return Reply(
        tool_calls=[ToolCall("request_review" if claim["amount"] > 1000 else "pay_small_claim", {"claim": claim})]
    )


NO_AMOUNT = "Which amount do you claim, and what for?"


def _claim(prompt: str) -> dict[str, Any] | None:
    """The claim that a prompt describes, None without an amount."""
    amount = re.search(r"\d[\d,]*(?:\.\d+)?", prompt)
    if not amount:
        return None
    reason = re.search(r"\bfor (?:a |an |the )?([^.?!]+)", prompt)
    return {
        "amount": float(amount[0].replace(",", "")),
        "reason": reason[1].strip() if reason else prompt,
        "category": next((kind for kind in KINDS if kind in prompt.lower()), "other"),
    }


def scheduled(request: ChatRequest) -> Reply | None:
    """graphs/scheduled.py: says what to be reminded of."""
    if request.tools or request.schema is not None or not request.system.startswith("You write reminders:"):
        return None
    _, _, topic = request.prompt.partition("Remind me of: ")
    return Reply(text=f"A friendly reminder: it is time for {topic}.")


def chat(request: ChatRequest) -> Reply | None:
    """graphs/chat.py: writes a poem, and shortens what it said before, which shows that it remembers."""
    if request.tools or request.schema is not None:
        return None
    prompt = request.prompt.lower()
    if "shorten" in prompt:
        wanted = re.search(r"\b(\d+|one|two|three|four|five)\b", prompt)
        lines = (NUMBERS.get(wanted[1]) or int(wanted[1])) if wanted else 1
        shortened = "\n".join(request.previous_answer.splitlines()[:lines])
        return Reply(text=shortened or "There is nothing to shorten yet.")
    if "poem" in prompt:
        about = re.search(r"\babout ([^.?!]+)", request.prompt)
        return Reply(text=POEM.format(subject=about[1].strip() if about else "nothing at all"))
    return None


def booking(request: ChatRequest) -> Reply | None:
    """graphs/booking.py: reads city, dates, hotel, flight and car out of the request."""
    wanted = {"city", "dates", "hotel", "flight", "car"}
    if request.schema is None or not wanted <= set(request.schema.get("properties", {})):
        return None
    said = {
        "city": r"\bto ([A-Z]\w+(?: [A-Z]\w+)*)",
        "dates": r"\b(from [A-Z]\w+ \d+ to (?:[A-Z]\w+ )?\d+)",
        "hotel": r"\ba hotel ([^.,]+?)(?= and |[.,]|$)",
        "flight": r"\bflying (from [A-Z]\w+(?: [A-Z]\w+)*)",
        "car": r"\b(rental car|SUV|convertible)\b",
    }
    found = {name: re.search(pattern, request.prompt) for name, pattern in said.items()}
    trip = {name: match[1] if match else None for name, match in found.items()}
    return Reply(data=trip | {"city": trip["city"] or "", "dates": trip["dates"] or ""})


def support(request: ChatRequest) -> Reply | None:
    """graphs/support.py: looks the account up, opens a ticket now or later, or uses the tool that it is told to."""
    if not request.offers("my_account", "create_ticket"):
        return None
    if request.tool_results:
        result = request.tool_results[-1]
        plan = re.search(r'"plan": ?"(\w+)"', result.content)
        return Reply(text=f"You are on the plan {plan[1]}." if plan else f"{result.content.rstrip('.')}.")
    if asked := re.search(r"\buse the (\w+) tool\b", request.prompt, re.IGNORECASE):
        return Reply(tool_calls=[ToolCall(asked[1])])
    if ticket := re.search(r"\bticket\b([^:]*):\s*(.+)", request.prompt, re.IGNORECASE | re.DOTALL):
        tool = "create_ticket_later" if re.search(r"later|background", ticket[1]) else "create_ticket"
        title = ticket[2].strip().rstrip(".")
        return Reply(tool_calls=[ToolCall(tool, {"title": title, "description": f"The customer says: {title}"})])
    if re.search(r"\b(plan|account)\b", request.prompt, re.IGNORECASE):
        return Reply(tool_calls=[ToolCall("my_account")])
    return Reply(text="I can look up your account and open tickets. What can I do for you?")


POEM = """\
A poem about {subject}:
The lights went out, the process died,
yet every finished step was kept;
another worker, by its side,
went on from where the first one slept."""


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


def racing(request: ChatRequest) -> Reply | None:
    """graphs/racing.py: a plan and then a long answer, or a short one."""
    about = re.search(r"\b(?:learn|about) ([^?.!]+)", request.prompt)
    subject = about[1].strip() if about else "this"
    if request.system.startswith("List the three aspects that matter most"):
        return Reply(text="Foundations\nPractice\nFeedback")
    if request.system.startswith("Think it through and answer thoroughly, aspect by aspect."):
        _, _, aspects = request.system.partition("The aspects:\n")
        parts = [f"{aspect}: plan a month for it, and write down what you find." for aspect in aspects.splitlines()]
        return Reply(text=f"On {subject}, thoroughly. {' '.join(parts)}")
    if request.system.startswith("Answer in one sentence, with what comes to mind first."):
        return Reply(text=f"On {subject}: start with a small project of your own and learn what it asks for.")
    return None


def progress(request: ChatRequest) -> Reply | None:
    """graphs/progress.py: names the chapters of a report, then writes one after the other."""
    if request.tools or request.schema is not None or not request.system.startswith("You write a report on a topic"):
        return None
    topic, _, chapter = request.prompt.removeprefix("Topic: ").partition("\nChapter: ")
    if not chapter:
        return Reply(text="The problem\nThe idea\nHow it works\nWhat it costs")
    return Reply(text=f"{chapter}, with regard to {topic}: here stands what a model would have written.")


def coding_agent(request: ChatRequest) -> Reply | None:
    """graphs/coding_agent.py: does what all messages together ask for and no call has done yet."""
    if not request.offers("write_file", "run_command"):
        return None
    wanted: list[tuple[int, ToolCall]] = []
    file = "notes.txt"
    for place, message in enumerate(request.messages):
        if message.get("role") != "user":
            continue
        asked = str(message.get("content") or "")
        if re.search(r"\b(?:instead|stop|forget)\b", asked, re.IGNORECASE):
            wanted = []
        named = re.search(r"[\w./-]+\.(?:py|txt|md|sh)\b", asked)
        file = named[0] if named else file
        command = re.search(r"`([^`]+)`", asked)
        text = re.search(r"'([^']*)'|\"([^\"]*)\"", asked)
        if text and not command:
            content = f"print({text[1] or text[2]!r})\n" if file.endswith(".py") else f"{text[1] or text[2]}\n"
            wanted.append((place, ToolCall("write_file", {"path": file, "content": content})))
        if command:
            wanted.append((place, ToolCall("run_command", {"command": command[1]})))
        elif file.endswith(".py") and re.search(r"\b(?:run|print)\b", asked):
            wanted.append((place, ToolCall("run_command", {"command": f"python3 {file}"})))
    results = _results_by_place(request)
    outcomes: list[str] = []
    for asked_at, call in wanted:
        done = [r for at, name, args, r in results if at > asked_at and (name, args) == (call.name, call.args)]
        if not done or "cancelled before it had a result" in done[-1]:
            return Reply(tool_calls=[call])
        outcomes.append(done[-1].strip())
    return Reply(text=f"Done. {' '.join(outcomes)}" if outcomes else "What shall I write, and into which file?")


def _results_by_place(request: ChatRequest) -> list[tuple[int, str, dict[str, Any], str]]:
    """Every tool result of the conversation: its place, the tool, the arguments, the text."""
    calls: dict[str, tuple[str, dict[str, Any]]] = {}
    found: list[tuple[int, str, dict[str, Any], str]] = []
    for place, message in enumerate(request.messages):
        for call in message.get("tool_calls") or []:
            calls[call["id"]] = (call["function"]["name"], json.loads(call["function"]["arguments"]))
        if message.get("role") == "tool":
            found.append((place, *calls[message["tool_call_id"]], str(message.get("content") or "")))
    return found


rules = [
    progress,
    coding_agent,
    weather,
    approval_with_timeout,
    approval,
    sub_workflow,
    scheduled,
    specialists,
    claim_adjusters,
    hand_off,
    parallel_agents,
    racing,
    chat,
    booking,
    support,
]
