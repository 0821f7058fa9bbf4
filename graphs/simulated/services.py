"""Weather, trips and a support desk: what is wanted is read out of the prompt."""

import re

from perdure.simulator import ChatRequest, Reply, ToolCall


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


rules = [weather, booking, support]
