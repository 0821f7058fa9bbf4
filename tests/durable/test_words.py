"""The public words are there, and asking for them is what imports LangChain."""

import subprocess
import sys

import pytest

import perdure


@pytest.mark.parametrize("name", perdure.__all__)
def test_every_public_word_can_be_imported_and_says_what_it_does(name: str):
    assert getattr(perdure, name).__doc__


def test_unknown_word_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'stepp'"):
        perdure.stepp  # type: ignore[attr-defined]  # noqa: B018


def test_package_itself_imports_no_langchain():
    code = "import perdure, sys; print(perdure.__version__, 'langchain_core' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [perdure.__version__, "False"]
