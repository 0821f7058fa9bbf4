"""Terminal errors, first way: what fails for good fails the run, at once.

An error of a tool goes to the model as a message, so that it can do better: an unknown city is one. A
transient error is tried again, `tool_attempts` times in a tool and `model_attempts` times in a model call.
What still fails then is terminal: it leaves the agent, the model is not asked again, and the caller gets
its text and its status. Denver's weather service is down (FAIL_ON_DENVER).

`stop_on_terminal` answers instead; `weather` never gives up.

Try it:  perdure invoke fail_on_terminal -i '{"prompt": "What is the weather like in Denver?", "tool_attempts": 2}'
         perdure invoke fail_on_terminal -i '{"prompt": "What is the weather like in Atlantis?"}'
"""

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime

from graphs.bounds import BoundedState, Bounds, Input, bounded
from graphs.models import chat_model
from graphs.prompt import create_prompt_agent
from graphs.tools.open_meteo import Weather, current_weather


@tool
async def get_weather(city: str, runtime: ToolRuntime[None, BoundedState]) -> Weather:
    """Get the current weather of a city."""
    weather = await bounded(current_weather, runtime.state)(city)
    if isinstance(weather, str):
        raise ValueError(weather)  # no such city: the model is told
    return weather


graph = create_prompt_agent(
    chat_model(),
    tools=[get_weather],
    system_prompt="You are a helpful agent that provides weather updates.",
    middleware=[Bounds()],
    input_schema=Input,
)
