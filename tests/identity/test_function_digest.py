from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from embcache.identity.function_digest import function_digest
from tests.conftest import run_python

PREFIX = "global "


def with_global(text: str) -> str:
    return PREFIX + text


def with_helper(text: str) -> str:
    return helper(text)


def helper(text: str) -> str:
    return "a" + text


def other_helper(text: str) -> str:
    return "b" + text


def closure(prefix: str) -> Callable[[str], str]:
    return lambda text: prefix + text


def recursive(text: str) -> str:
    return recursive(text[1:]) if text else ""


class Template:
    kind = "a"

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __call__(self, text: str) -> str:
        return self.prefix + self.kind + text

    def method(self, text: str) -> str:
        return self.prefix + text


class Unreadable:
    def __call__(self, text: str) -> str:
        return text

    def __init__(self) -> None:
        self.generator = (text for text in "ab")


DIFFERENT: list[Callable[..., Any]] = [
    lambda text: text,
    lambda text: text + " ",
    lambda text, kind=1: text,
    lambda text, kind=2: text,
    lambda text, *, kind=2: text,
    lambda text: text in {"a", "b", "c"},
    lambda text: [one + "a" for one in text],
    lambda text: [one + "b" for one in text],
    with_global,
    with_helper,
    closure("a"),
    closure("b"),
    recursive,
    Template("a"),
    Template("b"),
    Template("a").method,
    Template("b").method,
    Template,
    functools.partial(helper, "a"),
    functools.partial(helper, "b"),
    functools.partial(helper, text="b"),
    functools.cache(helper),
    functools.cache(other_helper),
    "a: {}".format,
    "b: {}".format,
    str.upper,
    str.lower,
]


def test_functions_that_differ() -> None:
    digests = [function_digest(one) for one in DIFFERENT]
    assert len(set(digests)) == len(digests)
    assert digests == [function_digest(one) for one in DIFFERENT]


def test_the_same_function_elsewhere_in_a_file() -> None:
    one = lambda text: "a" + text  # noqa: E731

    two = lambda text: "a" + text  # noqa: E731
    assert function_digest(one) == function_digest(two)


def test_what_a_function_uses_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Template("a")
    functions = (with_global, with_helper, instance, instance.method)
    before = [function_digest(one) for one in functions]
    monkeypatch.setitem(globals(), "PREFIX", "another ")
    monkeypatch.setitem(globals(), "helper", other_helper)
    monkeypatch.setattr(Template, "kind", "b")
    instance.prefix = "b"
    after = [function_digest(one) for one in functions]
    assert not set(before) & set(after)


def test_what_cannot_be_looked_into_is_said_and_like_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = Unreadable(), Unreadable()
    assert function_digest(one) == function_digest(one) != function_digest(two)
    assert caplog.text.count("cannot be looked into") == 2


def test_the_same_in_every_process() -> None:
    code = """
from tests.identity.test_function_digest import DIFFERENT
from embcache.identity.function_digest import function_digest
print([function_digest(one) for one in DIFFERENT])
"""
    assert run_python(code, PYTHONHASHSEED="1") == run_python(code, PYTHONHASHSEED="2")
