"""The files of other projects are those that were taken over, and our own load nothing from elsewhere."""

import hashlib
import re
from pathlib import Path

import pytest

from perdure import console

STATIC = Path(console.__file__).parent / "static"
VENDOR = STATIC / "vendor"
OWN = sorted(path for path in STATIC.rglob("*") if path.suffix in (".js", ".css") and path.parent != VENDOR)


def test_every_vendored_file_has_its_checksum() -> None:
    sums = dict(reversed(line.split()) for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in VENDOR.iterdir()}
    assert {name: found.pop(name, None) for name in sums} == sums
    assert set(found) == {"SHA256SUMS", "README.md"}


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_our_own_files_name_no_other_host(path: Path) -> None:
    hosts = set(re.findall(r"https?://([\w.-]+)", path.read_text(encoding="utf-8"))) - {"www.w3.org"}
    assert hosts == set()


def test_templates_have_no_script_and_no_style_of_their_own() -> None:
    """The content security policy would refuse them."""
    for path in (STATIC.parent / "templates").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), path.name
        assert not re.search(r"\|\s*safe\b|autoescape false", text), path.name
