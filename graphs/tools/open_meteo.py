"""Current weather from Open-Meteo (https://open-meteo.com/en/docs), a weather service that needs no key.

With `OPEN_METEO_URL` unset, recorded answers are used (`open_meteo_fixture.py`), so that the patterns run
without a network. For the real service set OPEN_METEO_URL=https://api.open-meteo.com and
OPEN_METEO_GEOCODING_URL=https://geocoding-api.open-meteo.com.
"""

import httpx
from pydantic_settings import BaseSettings, SettingsConfigDict
from typing_extensions import TypedDict

from graphs.tools.open_meteo_fixture import app as recorded_answers
from perdure import RetryableError

CONDITIONS = {
    0: "clear sky",
    1: "mainly clear",
    2: "partly cloudy",
    3: "overcast",
    45: "fog",
    61: "light rain",
}
"""WMO weather codes, the ones that come up most."""


class WeatherSettings(BaseSettings):
    """Environment: OPEN_METEO_URL, OPEN_METEO_GEOCODING_URL, FAIL_ON_DENVER. Read again at each call."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    open_meteo_url: str | None = None
    """Base URL of the forecast API; unset: recorded answers."""
    open_meteo_geocoding_url: str | None = None
    """Base URL of the geocoding API; unset: the same as the forecast API's."""
    fail_on_denver: bool = True
    """Whether Denver's weather service is down."""


class Weather(TypedDict):
    """Current weather of one place."""

    place: str
    temperature_celsius: float
    condition: str


async def current_weather(city: str) -> Weather | str:
    """The weather in `city` now, or a text that says that there is no such city.

    Raises RetryableError for Denver while FAIL_ON_DENVER is true, httpx.HTTPError when the service fails.
    """
    settings = WeatherSettings()
    if settings.fail_on_denver and city.strip().lower() == "denver":
        raise RetryableError("The weather service of Denver is down (FAIL_ON_DENVER)")
    async with _client(settings) as http:
        found = await _get(http, f"{settings.open_meteo_geocoding_url or ''}/v1/search", name=city, count=1)
        if not found.get("results"):
            return f"No city is called {city!r}"
        place = found["results"][0]
        where = {"latitude": place["latitude"], "longitude": place["longitude"]}
        forecast = await _get(http, "/v1/forecast", **where, current="temperature_2m,weather_code")
    current = forecast["current"]
    return {
        "place": place["name"],
        "temperature_celsius": current["temperature_2m"],
        "condition": CONDITIONS.get(current["weather_code"], f"weather code {current['weather_code']}"),
    }


def _client(settings: WeatherSettings) -> httpx.AsyncClient:
    if settings.open_meteo_url:
        return httpx.AsyncClient(base_url=settings.open_meteo_url, timeout=10)
    transport = httpx.ASGITransport(app=recorded_answers)
    return httpx.AsyncClient(transport=transport, base_url="http://recorded.open-meteo.invalid")


async def _get(http: httpx.AsyncClient, url: str, **parameters: str | float) -> dict:
    response = await http.get(url, params=parameters)
    response.raise_for_status()
    return response.json()
