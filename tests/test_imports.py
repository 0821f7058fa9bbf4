"""Which part may import which: arrows go one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "server" / "perdure"
GRAPHS = ROOT / "graphs"
SHARED_GRAPHS = {"bounds", "claims", "specialists", "tools", "models", "prompt", "rules", "simulated"}
"""Modules in graphs/ that hold what several patterns share."""

FORBIDDEN = {
    "durable": [
        "perdure.engine",
        "perdure.api",
        "perdure.app",
        "perdure.cli",
        "perdure.config",
        "fastapi",
        "psycopg",
    ],
    "engine": [
        "perdure.durable",
        "perdure.api",
        "perdure.app",
        "perdure.cli",
        "perdure.simulator",
        "fastapi",
    ],
    "api": ["perdure.durable", "perdure.app", "perdure.cli", "perdure.simulator", "psycopg", "langgraph"],
    "console": ["perdure.durable", "perdure.app", "perdure.cli", "perdure.simulator", "psycopg", "langgraph"],
    "simulator": [
        "perdure.durable",
        "perdure.engine",
        "perdure.api",
        "perdure.app",
        "perdure.cli",
        "langgraph",
    ],
    "config.py": ["perdure"],
}


def imports(file: Path) -> Iterator[str]:
    """Full names of what a file imports, names out of a module included, imports inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports are not used here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(part: Path) -> list[Path]:
    return [part] if part.is_file() else sorted(part.rglob("*.py"))


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def broken(part: Path, forbidden: list[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files(part)
        for name in imports(file)
        if any(within(name, module) for module in forbidden)
    ]


@pytest.mark.parametrize("part", FORBIDDEN)
def test_part_imports_only_what_lies_below_it(part: str) -> None:
    assert broken(PACKAGE / part, FORBIDDEN[part]) == []


def test_package_never_imports_graphs() -> None:
    assert broken(PACKAGE, ["graphs", "server", "tests"]) == []


def test_graphs_import_only_public_words_of_perdure() -> None:
    public = {f"perdure.{name}" for name in perdure.__all__}
    simulated = GRAPHS / "simulated"  # answers in the simulator's types
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files(GRAPHS)
        for name in imports(file)
        if within(name, "perdure") and name not in public
        if not (file.parent == simulated and within(name, "perdure.simulator"))
    ]
    assert wrong == []


def test_patterns_do_not_import_each_other() -> None:
    patterns = {file.stem for file in GRAPHS.glob("*.py")} - SHARED_GRAPHS - {"__init__"}
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files(GRAPHS)
        for name in imports(file)
        if within(name, "graphs") and len(name.split(".")) > 1 and name.split(".")[1] in patterns
    ]
    assert wrong == []


def test_only_config_touches_the_process_environment() -> None:
    allowed = {
        PACKAGE / "config.py",
        PACKAGE / "engine" / "registry.py",  # loads langgraph.json's env
        PACKAGE / "durable" / "outside.py",  # where there is no perdure server, what langgraph dev says
    }
    wrong: list[str] = []
    for file in set(files(PACKAGE)) - allowed:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


def test_every_module_says_what_it_owns() -> None:
    without = [
        str(file.relative_to(ROOT))
        for file in [*files(PACKAGE), *files(GRAPHS)]
        if file.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert without == []
