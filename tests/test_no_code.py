"""Nothing in the package runs what it reads: no pickles, no eval, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "runpy",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "os.system", "os.popen", "np.load", "numpy.load", "torch.load", "yaml.load", "pd.read_pickle",
    "subprocess.getoutput", "pa.deserialize",
}  # fmt: skip
SOURCES = sorted((ROOT / "src" / "embcache").rglob("*.py"))


def findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            yield from (name for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_NAMES | FORBIDDEN_CALLS:
                yield called
            for keyword in node.keywords:
                if (
                    keyword.arg in ("shell", "allow_pickle")
                    and ast.unparse(keyword.value) != "False"
                ):
                    yield f"{called}({keyword.arg}=...)"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT / "src")))
def test_nothing_that_runs_what_it_reads(file: Path) -> None:
    assert not [*findings(ast.parse(file.read_text(encoding="utf-8")))]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "eval(x)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "x.load(f, allow_pickle=yes)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "__import__(x)",
    ],
)
def test_that_it_would_be_found(code: str) -> None:
    assert [*findings(ast.parse(code))]


def test_that_all_sources_are_looked_at() -> None:
    assert len(SOURCES) > 90
