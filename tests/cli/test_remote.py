"""The commands on a cache in a real object store, with nothing in the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embcache.store import Location, Space
from tests.conftest import ROOT
from tests.object_store import Remote
from tests.spaces import make_rows
from tests.tools.test_merge import space_in

TEXTS = ["a", "b", "c", "d"]
Run = Callable[..., str]


@pytest.fixture
def far(remote: Remote) -> Space:
    """Four rows, in a store."""
    space = space_in(Location.of(remote.url, remote.options))
    space.add(make_rows(TEXTS, dim=4))
    return space


@pytest.fixture
def run(remote: Remote, tmp_path: Path, capfd: Any) -> Run:
    """What a command of its own process prints; options of the store are given with it."""
    outside = {name: os.environ[name] for name in os.environ if not name.startswith("AWS_")}
    outside |= {"PYTHONPATH": str(ROOT / "src"), "AWS_EC2_METADATA_DISABLED": "true"}

    def run_(*arguments: object, code: int = 0, options: dict[str, str] | None = None) -> str:
        pairs = (remote.options if options is None else options).items()
        given = [word for pair in pairs for word in ("--storage-option", "=".join(pair))]
        command = [sys.executable, "-m", "embcache", *map(str, arguments), *given]
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=outside, check=False
        )
        said = result.stdout + result.stderr
        assert result.returncode == code, said
        assert remote.options["aws_secret_access_key"] not in said
        return said if code else result.stdout

    return run_


@pytest.mark.slow  # a process for each
def test_every_command(run: Run, far: Space, remote: Remote, tmp_path: Path) -> None:
    url, table = remote.url, str(far.location)
    assert f"{far.identity.fingerprint()} " in run("ls", url)
    assert json.loads(run("show", table, "--json"))["rows"] == 4
    (vector,) = make_rows(TEXTS, dim=4).values[:1]
    found = json.loads(run("get", "organization", "a", "--prompt", "p: ", "--cache", url, "--json"))
    assert np.array_equal(np.array(found["vector"], np.float32), vector)
    assert len(run("search", url, "a", "--prompt", "p: ").splitlines()) == 3
    assert len(run("search", url, "a", "--fts").splitlines()) == 1
    assert "1.000000" in run("compare", url, table)
    assert "4 of 4 rows" in run("map", url, "map.parquet")
    run("export", url, "rows.parquet")
    assert "0 of 4 rows added" in run("import", "rows.parquet", "--cache", url)
    assert "4 of 4 rows added" in run("merge", url, "--cache", "near")
    assert "4 of 4 rows added" in run("merge", "near", "--cache", f"{url}-copy")
    assert far.location.name in run("check", "--cache", url)
    assert far.location.name in run("check", table, "--fix")
    assert far.location.name in run("compact", "--cache", f"{url}-copy", "--older-than", 0)
    assert "Removed" in run("rm", f"{url}-copy", "--yes")
    assert Location.of(f"{url}-copy", remote.options).tables() == []
    assert [path.name for path in tmp_path.glob("*") if "s3" in path.name] == []


def test_a_wrong_secret(run: Run, far: Space, remote: Remote) -> None:
    """One line, at once, that does not say what it was."""
    wrong = {**remote.options, "aws_secret_access_key": "hush-hush-hush"}
    for command in (("ls", remote.url), ("show", far.location), ("check", far.location)):
        began = time.monotonic()
        said = run(*command, code=1, options=wrong)
        assert "The secret key is not that of the access key" in said and "hush" not in said
        assert "Traceback" not in said and time.monotonic() - began < 15
        assert "On the command line, storage_options is --storage-option." in said


def test_no_credentials_at_all(run: Run, far: Space) -> None:
    said = run("show", far.location, code=1, options={"aws_region": "us-east-1"})
    assert "no credentials were found" in said and "Traceback" not in said
