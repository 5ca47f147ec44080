"""Text for the demo: docstrings of the Python standard library, read without importing it."""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_NOT_LIBRARY = {"idle_test", "lib2to3", "pydoc_data", "test", "tests", "turtledemo"}
_SUMMARY_CHARS = range(20, 201)
_BODY_CHARS_MIN = 100
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstring:
    """One docstring.

    Attributes:
        name: Qualified name of what it documents: `json.decoder.JSONDecoder.raw_decode`, say.
        summary: Its first paragraph, in one line.
        body: All paragraphs but the first.
    """

    name: str
    summary: str
    body: str

    @property
    def words(self) -> str:
        """The qualified name as a search: "raw decode JSON decoder json"."""
        return name_words(self.name)


def read_docstrings(stdlib: Path | None = None) -> list[Docstring]:
    """Docstrings of public modules, classes and functions, sorted by name.

    No two have the same summary, body or words, so that each query has one right answer.

    Args:
        stdlib: Folder of the modules; None for the standard library of the running Python.
    """
    folder = stdlib or Path(sysconfig.get_path("stdlib"))
    found = sorted(
        (docstring for path in _modules(folder) for docstring in _in_module(path, folder)),
        key=lambda docstring: docstring.name,
    )
    return list(_distinct(found))


def choose(docstrings: list[Docstring], count: int) -> list[Docstring]:
    """Choose docstrings from all over the library, always the same ones.

    Args:
        docstrings: All docstrings.
        count: How many to choose at most.

    Returns:
        The chosen ones, evenly spaced, in the same order.
    """
    if count >= len(docstrings):
        return docstrings
    return [docstrings[i * len(docstrings) // count] for i in range(count)]


def name_words(name: str) -> str:
    """The words of a qualified name as a search.

    Args:
        name: The name, parts separated by dots.

    Returns:
        The words, separated by spaces: the innermost part's first, each once, all in lower case
        but acronyms.
    """
    parts = reversed(name.split("."))
    words = [word for part in parts for word in _WORD.findall(part)]
    shown = [word if word.isupper() and len(word) > 1 else word.lower() for word in words]
    return " ".join(dict.fromkeys(shown))


def _modules(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        # In place: os.walk then leaves them out. site-packages is no identifier.
        folders[:] = [f for f in folders if _is_public(f) and f not in _NOT_LIBRARY]
        for file in map(Path(parent).joinpath, files):
            if file.suffix == ".py" and (_is_public(file.stem) or file.stem == "__init__"):
                yield file


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def _in_module(path: Path, folder: Path) -> Iterator[Docstring]:
    parts = path.relative_to(folder).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escape sequences, in files that are not ours
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return  # a template, or a test's broken example
    if name:
        yield from _in_node(tree, name)


def _in_node(node: ast.Module | ast.ClassDef | _Function, name: str) -> Iterator[Docstring]:
    summary, _, body = (ast.get_docstring(node) or "").partition("\n\n")
    summary, body = " ".join(summary.split()), body.strip()
    if len(summary) in _SUMMARY_CHARS and len(body) >= _BODY_CHARS_MIN:
        yield Docstring(name, summary, body)
    if isinstance(node, _Function):
        return
    for child in node.body:
        if isinstance(child, _Function | ast.ClassDef) and _is_public(child.name):
            yield from _in_node(child, f"{name}.{child.name}")


def _distinct(docstrings: Iterable[Docstring]) -> Iterator[Docstring]:
    seen: set[str] = set()
    for docstring in docstrings:
        texts = {docstring.summary, docstring.body, docstring.words}
        if not texts & seen:
            seen |= texts
            yield docstring
