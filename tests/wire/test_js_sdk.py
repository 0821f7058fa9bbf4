"""The JavaScript SDK, in Node.js, against a real server; the tests themselves are in `js/sdk.test.mjs`."""

import os
import re
import subprocess

from tests.wire.conftest import JS

RUN_SECONDS = 300


def test_the_javascript_sdk_works(node: str, wire: str) -> None:
    # Node.js 20 has no WebSocket without asking for it.
    command = [node, "--experimental-websocket", "--test", "--test-reporter=tap", "sdk.test.mjs"]
    ran = subprocess.run(
        command, cwd=JS, env={**os.environ, "WIRE_URL": wire}, capture_output=True, text=True, timeout=RUN_SECONDS
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"^# pass (\d+)$", ran.stdout, re.MULTILINE)
    assert passed, ran.stdout
    assert int(passed[1]) == (JS / "sdk.test.mjs").read_text().count("\ntest(") + 2, ran.stdout
