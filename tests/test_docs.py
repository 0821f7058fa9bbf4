"""The documentation keeps up with the code: every pattern and every setting is where readers look."""

import ast
import json
import re
from pathlib import Path

import pytest
from pydantic import AliasChoices

from perdure.config import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GRAPHS: dict[str, str | dict[str, str]] = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
NOT_PATTERNS = {"__init__", "claims", "specialists", "models", "prompt", "rules"}
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
