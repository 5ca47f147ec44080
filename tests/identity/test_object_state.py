from __future__ import annotations

import enum
import functools
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase

from embcache.identity.object_state import StateReader, tensor_digest


def leaves(found: Any) -> dict[str, str]:
    return StateReader().read(found).leaves


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


def adds(number: float) -> Callable[[float], float]:
    return lambda value: value + number


def model(**attributes: Any) -> Any:
    return SimpleNamespace(**attributes)


def words(*names: str) -> Tokenizer:
    return Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="a"))


PAIRS: dict[str, tuple[Any, Any]] = {
    "number": (1, 2),
    "one and True": (1, True),
    "text": ("a", "b"),
    "long text": ("a" * 500, "a" * 499 + "b"),
    "a list's order": ([1, 2], [2, 1]),
    "a long list's order": (list(range(900)), list(range(899, -1, -1))),
    "a long list's middle": (list(range(900)), [*range(400), -1, *range(401, 900)]),
    "nested": ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}),
    "keys that are no text": ({(1, 2): "x"}, {(1, 3): "x"}),
    "set": ({"a"}, {"a", "b"}),
    "enum": (Color.RED, Color.BLUE),
    "pattern": (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "array": (np.arange(3000), np.where(np.arange(3000) == 1234, 0, np.arange(3000))),
    "array's type": (np.zeros(3, np.float32), np.zeros(3, np.float64)),
    "array of objects": (np.array([[1], None], object), np.array([[2], None], object)),
    "tensor that is no parameter": (torch.zeros(3), torch.ones(3)),
    "sparse tensor": (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()),
    "slots": (Slotted(1.0), Slotted(2.0)),
    "class": (Slotted(1.0), model(scale=1.0)),
    "closure": (adds(1), adds(2)),
    "another function": (adds(1), lambda value: value * 1),
    "partial": (functools.partial(max, 1), functools.partial(max, 2)),
    "bound method": (MethodType(adds(1), model(a=1)), MethodType(adds(1), model(a=2))),
    "dtype": (torch.float16, torch.bfloat16),
    "vocabulary": (words("a", "b"), words("a", "c")),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))
def test_what_differs_is_told_apart(pair: tuple[Any, Any]) -> None:
    one, other = pair
    assert leaves(model(x=one)) != leaves(model(x=other))
    assert leaves(model(x=[{"deep": one}])) != leaves(model(x=[{"deep": other}]))
    assert leaves(model(x=one)) == leaves(model(x=one))


def buffer(layer: torch.nn.BatchNorm1d) -> None:
    layer.running_mean += 1


def forward(layer: torch.nn.Module) -> None:
    layer.forward = adds(1)  # type: ignore[assignment, method-assign]


def hook(layer: torch.nn.Module) -> None:
    layer.register_forward_hook(lambda module, given, result: result * 2)


def pre_hook(layer: torch.nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, given: given)


def submodule(layer: torch.nn.Module) -> None:
    layer.add_module("extra", torch.nn.Dropout(0.1))


def setting(layer: torch.nn.BatchNorm1d) -> None:
    layer.eps = 1e-3


@pytest.mark.parametrize("change", [buffer, forward, hook, pre_hook, submodule, setting])
def test_changes_of_a_module(change: Callable[[Any], None]) -> None:
    layer = torch.nn.BatchNorm1d(4)
    whole = model(model=torch.nn.Sequential(layer))
    reader = StateReader()
    before = reader.read(whole).leaves
    assert reader.read(whole).leaves == before
    change(layer)
    assert reader.read(whole).leaves != before


def test_training_is_no_change_and_neither_is_the_number_of_a_hook() -> None:
    layer = torch.nn.Linear(2, 2)
    before = leaves(layer)
    layer.eval()
    assert leaves(layer) == before
    layer.register_forward_hook(print)
    hooked = leaves(layer)
    layer._forward_hooks.clear()
    layer.register_forward_hook(print)
    assert leaves(layer) == hooked != before


def test_a_tokenizer_as_its_calls_leave_it() -> None:
    tokenizer = words("a", "b")
    reader = StateReader()
    before = reader.read(model(tokenizer=tokenizer)).leaves
    tokenizer.enable_truncation(7)  # done anew in each call of transformers
    assert reader.read(model(tokenizer=tokenizer)).leaves == before
    tokenizer.normalizer = Lowercase()
    assert reader.read(model(tokenizer=tokenizer)).leaves != before


def test_what_decides_no_vector() -> None:
    quiet = model(lock=threading.Lock(), device=torch.device("cpu"), api_key="s", module=sys)
    assert leaves(quiet) == {}
    other = StateReader(frozenset({"prompts"}))
    assert other.read(model(prompts={"query": "q: "}, scale=2)).leaves == {"scale": "2"}


def test_circles_and_shared_parts() -> None:
    circle = model(a=1)
    circle.self = circle
    shared = model(x=1)
    assert leaves(circle) == {"a": "1", "self": "same as "}
    assert leaves(model(a=shared, b=shared)) != leaves(model(a=shared, b=model(x=2)))


def test_the_order_of_attributes_does_not_count() -> None:
    one, other = OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)
    assert leaves(model(x=one)) == leaves(model(x=other))


def test_what_cannot_be_looked_into_is_named() -> None:
    state = StateReader().read(model(engine=iter([1]), client=subprocess))
    assert state.closed == {"engine": "builtins.list_iterator"}


def test_equal_objects_have_equal_leaves_in_other_processes() -> None:
    code = (
        "from tests.identity.test_object_state import *\n"
        "made = {name: leaves(model(x=pair[0])) for name, pair in PAIRS.items()}\n"
        "print(sorted((name, sorted(found.items())) for name, found in made.items()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1 and "vocabulary" in found.pop()


def test_digest_of_a_tensor() -> None:
    assert tensor_digest(torch.zeros(2)) != tensor_digest(torch.zeros(2, 1))
    assert tensor_digest(torch.zeros(2, device="meta")) == "(2,) torch.float32"
