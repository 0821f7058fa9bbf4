"""What the simulated model answers: one rule for each pattern, in the order in which they are asked.

Not a language model: each rule knows the requests of its pattern and says something plausible about them.
"""

import re

from perdure.simulator import ChatRequest, Reply, ToolCall

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
KINDS = ("hospital", "dental", "pharmacy")


def weather(request: ChatRequest) -> Reply | None:
    """graphs/weather.py: asks for each city in the prompt at once, then says what came back."""
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
    amount = re.search(r"\d[\d,]*(?:\.\d+)?", request.prompt)
    if not amount:
        return Reply(text="Which amount do you claim, and what for?")
    reason = re.search(r"\bfor (?:a |an |the )?([^.?!]+)", request.prompt)
    claim = {
        "amount": float(amount[0].replace(",", "")),
        "reason": reason[1].strip() if reason else request.prompt,
        "category": next((kind for kind in KINDS if kind in request.prompt.lower()), "other"),
    }
    tool = "human_approval" if claim["amount"] > 1000 or not request.offers("pay_claim") else "pay_claim"
    return Reply(tool_calls=[ToolCall(tool, {"claim": claim})])


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


POEM = """\
A poem about {subject}:
The lights went out, the process died,
yet every finished step was kept;
another worker, by its side,
went on from where the first one slept."""

rules = [weather, approval, chat]
