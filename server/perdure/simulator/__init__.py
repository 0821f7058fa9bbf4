"""A stand-in for a model: an OpenAI-compatible HTTP server whose answers are rules.

Owns everything that `perdure serve` needs when there is no model key, and everything that a test needs
to run an agent without one: the real client library talks to it over real HTTP, with token streaming,
tool calls, structured output and usage. An answer is a pure function of the request, so a test may
assert on it; a fault queue makes the next requests fail; a request log tells how often the model was called.

In your own tests:

    from perdure.simulator import ChatRequest, Reply, ToolCall, start

    def weather(request: ChatRequest) -> Reply | None:
        if not request.offers("get_weather"):
            return None                                   # the next rule is asked
        if not request.tool_results:
            return Reply(tool_calls=[ToolCall("get_weather", {"city": "Paris"})])
        return Reply(text=f"It is {request.tool_results[-1].content}.")

    def test_agent():
        with start([weather]) as simulator:
            model = ChatOpenAI(model="simulated-1", base_url=simulator.openai_url, api_key="none")
            simulator.fail({"status": 429, "times": 2})
            ...
            assert len(simulator.requests) == 4

As a process of its own, which outlives a server that is killed: `python -m perdure.simulator --rules
./graphs/rules.py:rules --port 0` prints its URL; faults and log are then at `/faults` and `/requests`.
"""

from perdure.simulator.app import MODEL_NAME, Simulator
from perdure.simulator.faults import Fault
from perdure.simulator.rules import ChatRequest, Reply, Rule, ToolCall, ToolResult
from perdure.simulator.server import RunningSimulator, start

__all__ = [
    "MODEL_NAME",
    "ChatRequest",
    "Fault",
    "Reply",
    "Rule",
    "RunningSimulator",
    "Simulator",
    "ToolCall",
    "ToolResult",
    "start",
]
