"""docker-compose.yml does what it says: its commands, in its environment, as plain processes.

No Docker here: a real PostgreSQL of the tests stands for the service `postgres`, a folder with what the Dockerfile
copies for the image, and addresses and volumes of the containers become ones of this machine.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from perdure.config import Settings
from tests.conftest import ROOT, START_SECONDS, STOP_SECONDS, Launch, Process, eventually

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
WORKERS = [name for name in OURS if SERVICES[name]["command"][0] == "worker"]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
PATIENCE_SECONDS = 60.0


def instruction(name: str) -> str:
    """The last instruction of this name in the Dockerfile."""
    return re.findall(rf"^\s*{name} (.*)$", DOCKERFILE, re.MULTILINE)[-1]


def interpolated(value: str) -> str:
    """`${NAME:-default}`, with nothing set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def environment(service: str) -> dict[str, str]:
    """What a container of this service finds, apart from PATH; names without a value are handed through."""
    image = dict(pair.split("=", 1) for pair in shlex.split(instruction("ENV")))
    given = SERVICES[service].get("environment", {})
    found = image | {name: interpolated(value) for name, value in given.items() if value is not None}
    return {name: value for name, value in found.items() if name != "PATH"}


def test_the_file_is_whole() -> None:
    assert len(WORKERS) == 2
    assert {"api", "crm", *WORKERS} == set(OURS)
    volumes = [volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert set(volumes) == set(COMPOSE["volumes"])
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_the_database_is_the_one_of_the_service_postgres() -> None:
    postgres = {name: interpolated(value) for name, value in SERVICES["postgres"]["environment"].items()}
    for name in ("api", *WORKERS):
        url = urlsplit(environment(name)["DATABASE_URL"])
        assert (url.hostname, url.port or 5432) == ("postgres", 5432)
        assert (url.username, url.path) == (postgres["POSTGRES_USER"], f"/{postgres['POSTGRES_DB']}")
        assert environment(name)["PGPASSWORD"] == postgres["POSTGRES_PASSWORD"]
        assert SERVICES[name]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert "DATABASE_URL" not in environment("crm")  # it has a database of its own


def test_the_published_port_is_the_one_that_the_api_listens_on() -> None:
    [published] = SERVICES["api"]["ports"]
    assert published == f"127.0.0.1:2024:{Settings.model_fields['port'].default}"
    assert environment("api")["PERDURE_HOST"] == "0.0.0.0"


def test_every_worker_shares_the_folder_of_the_sandboxes() -> None:
    for name in WORKERS:
        [volume] = SERVICES[name]["volumes"]
        assert volume.split(":") == ["sandboxes", environment(name)["CODING_SANDBOX"]]
    made = re.search(r"install -d -o perdure (.*)", instruction("RUN"))
    assert made
    assert {"/data", "/sandboxes"} == set(made[1].split())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The working directory of the image: what the Dockerfile copies, apart from the package, which is installed."""
    folder = tmp_path / "app"
    folder.mkdir()
    for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            where = folder / (Path(source).name if target.endswith("/") else target)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, where, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, where)
    shutil.rmtree(folder / "server")
    return folder


@pytest.fixture
def up(launch: Launch, image: Path, free_port: Callable[[], int], dsn: str, tmp_path: Path) -> dict[str, Process]:
    """`docker compose up`, as far as this machine can: every service of ours, started and healthy."""
    assert json.loads(instruction("ENTRYPOINT")) == ["perdure"]
    ports = {name: free_port() for name in OURS}
    places = {"0.0.0.0": "127.0.0.1"}
    places |= {f"http://{name}:2024": f"http://127.0.0.1:{port}" for name, port in ports.items()}
    processes: dict[str, Process] = {}
    for name in OURS:
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(0o755)
        mounts = {"/data": str(folder), "/sandboxes": str(tmp_path / "sandboxes")}
        env = {key: (places | mounts).get(value, value) for key, value in environment(name).items()}
        if "DATABASE_URL" in env:
            env["DATABASE_URL"] = dsn
        env["PERDURE_PORT"] = str(ports[name])
        processes[name] = launch(*SERVICES[name]["command"], env=env, cwd=image)
        processes[name].url = f"http://127.0.0.1:{ports[name]}"
    for name in ("api", "crm"):
        eventually(lambda name=name: healthy(processes[name]), seconds=START_SECONDS)
    for name in WORKERS:
        processes[name].until("perdure worker")
    return processes


def healthy(process: Process) -> bool:
    """What the image's HEALTHCHECK says about this process."""
    words = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert words[0] == "python"
    check = [sys.executable, *(word.replace("http://127.0.0.1:2024", process.url) for word in words[1:])]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


def test_a_run_finishes_and_survives_the_kill_of_a_worker(up: dict[str, Process], tmp_path: Path) -> None:
    with httpx.Client(base_url=up["api"].url, timeout=PATIENCE_SECONDS) as http:
        prompt = {"prompt": "What is the weather like in San Francisco?"}
        answer = http.post("/agents/weather/run", json=prompt)
        assert answer.status_code == 200, answer.text
        assert "San Francisco" in answer.json()["answer"]

        ticket = {"user_id": "user_12345", "message": "create a ticket: my login fails"}
        opened = http.post("/agents/support/user_12345/run", json=ticket)
        assert opened.status_code == 200, opened.text
        assert http.get("/ok").status_code == 200
        assert up["crm"].output.count('"claimed"') == 1  # the ticket was opened there

        task = {"message": "Run `echo $$ > pid; until test -e go; do sleep 0.01; done`"}
        run = http.post("/agents/coding_agent/repo0/send", json=task).json()
        folder = tmp_path / "sandboxes" / run["thread_id"]
        path = f"/threads/{run['thread_id']}/runs/{run['run_id']}"

        def claimed_by() -> list[str]:
            return [name for name in WORKERS if re.search(rf'"run_id": "{run["run_id"]}".*"claimed"', up[name].output)]

        [victim] = eventually(claimed_by)
        eventually((folder / "pid").exists)
        up[victim].kill()
        eventually(claimed_by, lambda names: names == WORKERS)
        (folder / "go").touch()
        done = eventually(lambda: (found := http.get(path).json())["status"] == "success" and found)
        assert done["attempt"] == 2
        assert http.get(f"{path}/join").json()["answer"] == "Done. [no output]"

        coded = http.post("/agents/coding_agent/repo1/run", json={"message": "Write a.py that prints 'x' and run it"})
        assert coded.json()["answer"].endswith(" x"), coded.text

    stop_seconds = float(SERVICES["api"]["stop_grace_period"].removesuffix("s"))
    assert stop_seconds <= STOP_SECONDS
    started = time.monotonic()
    left = [process for name, process in up.items() if name != victim]
    for process in left:
        process.popen.terminate()
    assert [process.wait() for process in left] == [0] * len(left)
    assert time.monotonic() - started < stop_seconds
    assert not healthy(up["api"])


def test_nothing_of_the_machine_goes_into_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", ".env", ".perdure"} <= set(ignored)
