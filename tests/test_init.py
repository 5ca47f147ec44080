from __future__ import annotations

from pathlib import Path

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


def test_lance_itself_prints_no_lines(tmp_path: Path) -> None:
    """Of a hint that it cannot write, say, where a folder is deleted during a commit."""
    code = (
        "import os, pathlib, sys\n"
        "os.dup2(1, 2)\n"
        "from tests.spaces import IDENTITY, Database, folder, make_rows\n"
        f"space = Database({str(tmp_path)!r}, writable=True).space(IDENTITY, 'm', 'v')\n"
        "space.add(make_rows(['a']))\n"
        "hint = folder(space) / '_versions' / 'latest_version_hint.json'\n"
        "hint.unlink()\n"
        "(hint / 'in the way').mkdir(parents=True)\n"
        "print(len(space.add(make_rows(['b']))))\n"
    )
    assert run_python(code) == "2\n"


def test_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'embcache' has no attribute 'Nothing'"):
        _ = embcache.Nothing
