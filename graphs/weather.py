"""Durable agent: every answer of the model and every result of a tool is kept the moment it is there.

Kill the server at any point: the agent goes on where it was, and neither calls the model nor the tool again
for what it already knows. Denver's weather service is down while FAIL_ON_DENVER is true, which is the
default: the run is tried again and again, each attempt later than the one before. Restart the server with
FAIL_ON_DENVER=false and the same run finishes, without asking the model again which tool to call.

Try it:  perdure invoke weather -i '{"prompt": "What is the weather like in San Francisco?"}'
         perdure invoke weather -i '{"prompt": "What is the weather like in Denver?"}'
"""

from langchain_core.tools import tool

from graphs.models import chat_model
from graphs.prompt import create_prompt_agent
from graphs.tools.open_meteo import Weather, current_weather
from perdure import DurableModel, step


@tool
@step
async def get_weather(city: str) -> Weather | str:
    """Get the current weather in a city."""
    return await current_weather(city)


graph = create_prompt_agent(
    chat_model(),
    tools=[get_weather],
    system_prompt="You are a helpful agent that provides weather updates.",
    middleware=[DurableModel()],  # makes each model call a step, as @step does for the tool
)
