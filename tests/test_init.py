from __future__ import annotations

import pytest

import embcache
from tests.conftest import run_python


def test_every_name_can_be_imported() -> None:
    assert sorted(embcache._MODULES) == sorted(embcache.__all__)
    for name in embcache.__all__:
        assert getattr(embcache, name).__name__ == name
    assert set(embcache.__all__) <= set(dir(embcache))


def test_importing_it_imports_nothing_heavy() -> None:
    """A command that lists spaces needs neither mteb nor an engine nor the command line."""
    names = "('mteb', 'torch', 'vllm', 'typer')"
    code = f"import embcache; print([name for name in {names} if name in sys.modules])"
    assert run_python(code) == "[]\n"


def test_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'embcache' has no attribute 'Nothing'"):
        _ = embcache.Nothing
