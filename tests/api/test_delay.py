"""`?delay=` in all its spellings."""

from datetime import UTC, datetime

import pytest

from perdure.api.delay import delay_seconds
from perdure.engine.errors import InvalidInput

NOW = datetime(2030, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("10", 10),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("2 d", 172800),
        ("PT10S", 10),
        ("PT0.5S", 0.5),
        ("PT5M", 300),
        ("P1DT2H", 93600),
        ("P1W", 604800),
        ("2030-01-31T12:00:30Z", 30),
        ("2030-01-31T13:00:30+01:00", 30),
        ("2030-01-31T13:00:30 01:00", 30),
        ("2030-01-31T12:00:30", 30),
        ("2001-01-01T00:00:00Z", 0),
    ],
)
def test_spellings(text: str, seconds: float) -> None:
    assert delay_seconds(text, now=NOW) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["soon", "-5s", "P", "PT", "P1Y", "10x", "", "9" * 40, "1s2", "99999w", "nan"])
def test_nonsense_is_refused_with_the_forms_that_work(text: str) -> None:
    with pytest.raises(InvalidInput, match="delay"):
        delay_seconds(text, now=NOW)
