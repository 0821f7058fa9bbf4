"""The documentation keeps up with the code: what it names exists, and its commands and its example run.

Every pattern and every setting is where readers look for it.
"""

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydantic import AliasChoices
from starlette.routing import Match

import perdure
from perdure.api import create_app
from perdure.cli import app as command
from perdure.config import Settings
from perdure.engine.registry import Registry
from tests.conftest import Process

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {
    str(file.relative_to(ROOT)): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
}
PACKAGE = ROOT / "server" / "perdure"
API = "localhost:2024"
GRAPHS: dict[str, str | dict[str, str]] = {
    graph_id: entry
    for config in ("langgraph.json", "langgraph.crm.json")
    for graph_id, entry in json.loads((ROOT / config).read_text())["graphs"].items()
}
NOT_PATTERNS = {"__init__", "bounds", "claims", "models", "prompt", "rules"}
INTERNAL = {"simulated"}
"""Settings that the server sets itself."""


def file_of(graph_id: str) -> Path:
    entry = GRAPHS[graph_id]
    spec = entry["path"] if isinstance(entry, dict) else entry
    return ROOT / spec.rpartition(":")[0]


@pytest.mark.parametrize("graph_id", GRAPHS)
def test_graph_has_a_title_and_a_command_to_try(graph_id: str) -> None:
    text = ast.get_docstring(ast.parse(file_of(graph_id).read_text(encoding="utf-8"))) or ""
    assert len(text.splitlines()) > 1, f"{file_of(graph_id)} opens with a title and what it promises"
    assert "Try it:" in text


@pytest.mark.parametrize("graph_id", GRAPHS)
def test_graph_has_a_row_in_the_readme(graph_id: str) -> None:
    assert re.search(rf"^\|.*`{re.escape(graph_id)}`.*\|", README, re.MULTILINE), f"no table row names `{graph_id}`"


@pytest.mark.parametrize("graph_id", GRAPHS)
def test_graph_has_a_test(graph_id: str) -> None:
    assert (ROOT / "tests" / "graphs" / f"test_{file_of(graph_id).stem}.py").exists()


def test_every_pattern_is_served() -> None:
    patterns = {file for file in (ROOT / "graphs").glob("*.py") if file.stem not in NOT_PATTERNS}
    assert {file.name for file in patterns} == {file_of(graph_id).name for graph_id in GRAPHS}


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name not in INTERNAL])
def test_setting_is_in_the_readme_and_explains_itself(name: str) -> None:
    field = Settings.model_fields[name]
    alias = field.validation_alias
    first = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"PERDURE_{name.upper()}"
    assert field.description, f"{name} has no description"
    assert f"`{first}`" in README, f"the README does not name {first}"


# -- what the documents name


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def quoted(text: str) -> set[str]:
    """What stands in backticks, outside of blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", prose))


def in_docs(found: Callable[[str], set[str]]) -> list[Any]:
    return [pytest.param(name, id=f"{doc} {name}") for doc, text in DOCS.items() for name in sorted(found(text))]


def paths(text: str) -> set[str]:
    """Files and folders: `engine/queue.py`, `tests/crash/`, `docs/architecture.md`, `.ci/run`."""
    path = re.compile(
        r"(?:[\w.-]+/)+(?:[\w.-]+\.(?:py|sql|md|json|yml)|run)?|[\w-]*\.?[\w-]+\.(?:md|py|toml|yml|lock)|LICENSE"
    )
    return {name for name in quoted(text) if path.fullmatch(name)}


def named_tests(text: str) -> set[str]:
    return {name for name in quoted(text) if "::" in name}


def targets(text: str) -> set[str]:
    commands = "\n".join([*quoted(text), *blocks(text, "bash")])
    return set(re.findall(r"(?:^|\n)make ([a-z-]+)", commands))


def perdure_commands(text: str) -> set[str]:
    commands = "\n".join([*quoted(text), *blocks(text, "bash")])
    return set(re.findall(r"(?:^|[\n/ ])(?<!from )perdure ([a-z]+)", commands))


UNKNOWN = "00000000-0000-0000-0000-000000000000"


@cache
def app() -> FastAPI:
    return create_app(Settings(), Registry({}, {}), "")


def called(method: str, path: str) -> bool:
    """Whether there is a route for this request."""
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
    return any(route.matches(scope)[0] == Match.FULL for route in app().routes)


OWN_FILES = {"refund.py", "graphs/slogan.py", "tests/graphs/test_slogan.py"}
"""Names of files that a reader makes."""


@pytest.mark.parametrize("name", in_docs(paths))
def test_file_that_a_document_names_exists(name: str) -> None:
    assert name in OWN_FILES or any((folder / name).exists() for folder in (ROOT, PACKAGE))


@pytest.mark.parametrize("name", in_docs(named_tests))
def test_test_that_a_document_names_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^(async )?def {function}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", in_docs(targets))
def test_make_target_that_a_document_names_exists(name: str) -> None:
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", in_docs(perdure_commands))
def test_command_that_a_document_names_exists(name: str) -> None:
    commands = {info.name for info in command.registered_commands}
    assert name in commands | {group.name for group in command.registered_groups}


def routes(text: str) -> set[str]:
    """`POST /runs/search`: method and path, perhaps with parameters in braces."""
    return {name for name in quoted(text) if re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) /\S*", name)}


@pytest.mark.parametrize("name", in_docs(routes))
def test_route_that_a_document_names_exists(name: str) -> None:
    method, path = name.split()
    assert called(method, re.sub(r"{\w+}", UNKNOWN, path)), f"no route for {name}"


@pytest.mark.parametrize("word", perdure.__all__)
def test_word_has_a_row_in_the_readme(word: str) -> None:
    assert re.search(rf"^\|[^|]*`{word}`[^|]*\|", README, re.MULTILINE), f"no table row begins with `{word}`"


@pytest.mark.parametrize("document", [name for name in DOCS if name.startswith("docs/")])
def test_readme_leads_to_every_document(document: str) -> None:
    assert f"`{document}`" in README


def test_every_table_is_in_the_architecture() -> None:
    schema = "\n".join(file.read_text(encoding="utf-8") for file in (PACKAGE / "engine" / "schema").glob("*.sql"))
    tables = set(re.findall(r"^CREATE TABLE (\w+)", schema, re.MULTILINE))
    assert tables - quoted(DOCS["docs/architecture.md"]) == set()


def test_every_make_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert {name for name in phony[1].split() if not re.search(rf"^{name}:.*## ", makefile, re.MULTILINE)} == set()


# -- its commands


def curls(text: str) -> list[str]:
    """Every curl of bash blocks and of table cells, up to what its output goes into."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    cells = [name for name in quoted(text) if name.startswith("curl ")]
    found = [match[0] for line in (*lines, *cells) for match in re.finditer(r"curl (?:'[^']*'|[^'|;>)])*", line)]
    return sorted({one.strip() for one in found})


@pytest.mark.parametrize("document", DOCS)
def test_bash_of_a_document_parses(document: str) -> None:
    for block in blocks(DOCS[document], "bash"):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("curl", in_docs(lambda text: set(curls(text))))
def test_curl_of_a_document_calls_a_route_with_json(curl: str) -> None:
    words = shlex.split(curl)
    url = next(urlsplit(f"http://{word}") for word in words if word.startswith(API))
    data = words[words.index("-d") + 1] if "-d" in words else None
    if data is not None:
        json.loads(data)
    assert called("GET" if data is None else "POST", url.path), f"no route for {url.path}"


def test_curls_of_the_pattern_table_work_as_pasted(server: Callable[..., Process]) -> None:
    process = server()
    section = README.partition("\n## Patterns\n")[2].partition("\n## ")[0]
    rows = [curls(line) for line in section.splitlines() if line.startswith("| `")]
    assert rows
    assert all(rows), "a row without a request"
    for curl in (curl for row in rows for curl in row):
        done = subprocess.run(
            ["bash", "-c", curl.replace(API, process.url)], capture_output=True, text=True, timeout=120, check=True
        )
        answer = json.loads(done.stdout)
        assert "answer" in answer or "run_id" in answer, f"{curl}\n{done.stdout}"


# -- its example


def test_example_of_the_readme_pays_small_refunds_and_asks_about_large_ones(
    tmp_path: Path, server: Callable[..., Process]
) -> None:
    example, config = blocks(README, "python")[0], blocks(README, "json")[1]
    (tmp_path / "refund.py").write_text(example, encoding="utf-8")
    (tmp_path / "langgraph.json").write_text(config, encoding="utf-8")
    process = server(config=tmp_path / "langgraph.json")
    with httpx.Client(base_url=process.url, timeout=60) as http:
        small = http.post("/agents/refund/run", json={"order": "A-17", "amount": 30})
        assert small.status_code == 200
        assert small.json()["result"].startswith("paid 30 USD for order A-17, reference ")
        for decide, result in (("resolve", "paid 300 USD"), ("reject", "refused: too much")):
            asked = http.post("/agents/refund/run", json={"order": "A-18", "amount": 300})
            assert asked.status_code == 202
            question = asked.json()["interrupts"][0]
            assert question["question"]["question"] == "Refund 300 USD for order A-18?"
            given: Any = True if decide == "resolve" else {"reason": "too much"}
            run = http.post(f"/interrupts/{question['token']}/{decide}", json=given)
            assert run.status_code == 202
            path = f"/threads/{run.json()['thread_id']}/runs/{run.json()['run_id']}/join"
            assert http.get(path).json()["result"].startswith(result)
