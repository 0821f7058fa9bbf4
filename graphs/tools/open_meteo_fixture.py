"""RECORDED ANSWERS, not live weather: the two calls of Open-Meteo that our tool makes, for eight cities.

Served in the same process; to see its requests, run it alone: `uvicorn graphs.tools.open_meteo_fixture:app`,
with OPEN_METEO_URL pointing there.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

CITIES = {
    # name: (latitude, longitude, temperature in °C, WMO weather code)
    "San Francisco": (37.77493, -122.41942, 16.4, 2),
    "New York": (40.71427, -74.00597, 21.8, 1),
    "Boston": (42.35843, -71.05977, 18.9, 3),
    "Denver": (39.73915, -104.9847, 24.1, 0),
    "Miami": (25.77427, -80.19366, 29.7, 2),
    "London": (51.50853, -0.12574, 14.2, 61),
    "Berlin": (52.52437, 13.41053, 15.6, 3),
    "Paris": (48.85341, 2.3488, 17.3, 1),
}


async def search(request: Request) -> JSONResponse:
    """GET /v1/search?name=: where a city is; `results` is absent when there is none, as in the original."""
    wanted = request.query_params.get("name", "").strip().lower()
    places = [
        {"id": number, "name": name, "latitude": latitude, "longitude": longitude}
        for number, (name, (latitude, longitude, *_)) in enumerate(CITIES.items(), start=1)
        if name.lower() == wanted
    ]
    return JSONResponse({"results": places, "generationtime_ms": 0.5} if places else {"generationtime_ms": 0.5})


async def forecast(request: Request) -> JSONResponse:
    """GET /v1/forecast?latitude=&longitude=&current=: the weather at a place."""
    where = (request.query_params.get("latitude"), request.query_params.get("longitude"))
    for latitude, longitude, temperature, code in CITIES.values():
        if where == (str(latitude), str(longitude)):
            current = {"time": "2025-06-01T12:00", "interval": 900}
            current |= {"temperature_2m": temperature, "weather_code": code}
            return JSONResponse({"latitude": latitude, "longitude": longitude, "current": current})
    return JSONResponse({"error": True, "reason": f"Nothing is recorded for {where}"}, status_code=400)


app = Starlette(routes=[Route("/v1/search", search), Route("/v1/forecast", forecast)])
