"""The conformance suite of the wire API: black-box tests that know nothing of this repository, run as they are."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import Launch

SUITE = Path(__file__).parent / "conformance"
LIMIT_SECONDS = 300
"""So that a hanging server fails the test. The suite takes about 15 s on a quiet machine."""


def test_the_conformance_suite_passes(server: Launch) -> None:
    process = server(config=SUITE / "langgraph.json", slots=16)
    suite = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:randomly", "open"],
        cwd=SUITE,
        env={**os.environ, "BASE_URL": process.url, "RUN_TIMEOUT": "30"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert suite.returncode == 0, suite.stdout[-8000:] + suite.stderr[-2000:]
    assert "skipped" not in suite.stdout.splitlines()[-1]
