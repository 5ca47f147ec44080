"""Misspelt arguments of vLLM's engine, refused before it is started or imported."""

from __future__ import annotations

import importlib.machinery
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embcache import ConfigError, VllmCrossEncoderWrapper, VllmEncoderWrapper
from embcache.engine import vllm_arguments
from embcache.engine.vllm_arguments import check_engine_arguments
from tests.conftest import run_python

SOURCE = """
from dataclasses import dataclass

class Other:
    not_here: int = 0

@dataclass
class EngineArgs:
    model: str = "x"
    seed: int = 0
    max_model_len: int | None = None
    not_a_field = 3

    def method(self) -> None:
        local: int = 1
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of a vllm that has nothing but the source of its arguments."""
    folder = tmp_path / "vllm"
    (folder / "engine").mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("vllm", None, is_package=True)
    assert spec.submodule_search_locations is not None
    spec.submodule_search_locations.append(str(folder))
    monkeypatch.setattr(vllm_arguments, "find_spec", lambda name: spec)
    monkeypatch.setattr(vllm_arguments, "vllm_version", lambda: "vllm 9.8.7")
    vllm_arguments._fields.cache_clear()
    yield folder
    vllm_arguments._fields.cache_clear()


def test_the_message_names_argument_version_and_what_is_near(package: Path) -> None:
    (package / "engine" / "arg_utils.py").write_text(SOURCE)
    check_engine_arguments({"seed", "max_model_len"}, None, own=True)
    message = "^max_modl_len is not an argument of EngineArgs in vllm 9.8.7, .* Is max_model_len"
    with pytest.raises(ConfigError, match=message):
        check_engine_arguments({"seed", "max_modl_len"}, None, own=True)
    for name in ("not_here", "not_a_field", "local", "zzz"):
        with pytest.raises(ConfigError, match=f"^{name} is not an .* Leave it out"):
            check_engine_arguments({name}, None, own=True)


@pytest.mark.parametrize(
    "source", [None, "", "EngineArgs = 3", "class EngineArgs(Base):\n  a: int"]
)
def test_what_cannot_be_found_out_refuses_nothing(package: Path, source: str | None) -> None:
    if source is not None:
        (package / "engine" / "arg_utils.py").write_text(source)
    check_engine_arguments({"seed", "zzz"}, {"zzz": 1}, own=True)
    assert vllm_arguments._fields("engine/arg_utils.py", "EngineArgs") == frozenset()


def test_another_engine_may_take_what_vllm_does_not_know(package: Path) -> None:
    (package / "engine" / "arg_utils.py").write_text(SOURCE)
    check_engine_arguments({"of_the_future", "url"}, None, own=False)
    with pytest.raises(ConfigError, match="Is max_model_len meant"):
        check_engine_arguments({"max_model_lem"}, None, own=False)


# The vLLM that is installed


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip("vllm", exc_type=ImportError)
    return {"model": str(tiny_model), "cache_path": tmp_path / "cache"}


@pytest.mark.parametrize("wrapper", [VllmEncoderWrapper, VllmCrossEncoderWrapper])
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"enforce_eagr": True}, "^enforce_eagr is not .* Is enforce_eager meant"),
        ({"quantisation": "fp8"}, "Is quantization"),
        ({"max_lenght": 3}, "^max_lenght is not an argument of EngineArgs in vllm"),
        ({"of_the_future": 1}, "^of_the_future is not an argument of EngineArgs .* Leave it out"),
        ({"pooler_config": {"pooling_typ": "CLS"}}, r"^pooling_typ is not a field .* pooling_type"),
        ({"runner": "generate"}, "^runner is set by this wrapper. Leave it out"),
        ({"convert": "embed"}, "^convert is set by this wrapper"),
    ],
    ids=str,
)
def test_refused_at_construction(
    folder: dict[str, Any], wrapper: Callable[..., Any], given: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        wrapper(**folder, **given)


def test_no_vllm_is_imported_for_it(tiny_model: Path, tmp_path: Path) -> None:
    code = f"""
from embcache import ConfigError, VllmEncoderWrapper
try:
    VllmEncoderWrapper({str(tiny_model)!r}, cache_path={str(tmp_path / "cache")!r}, sed=1)
except ConfigError as error:
    print(error)
VllmEncoderWrapper({str(tiny_model)!r}, cache_path={str(tmp_path / "cache")!r}, seed=1)
print("vllm" in sys.modules)
"""
    message, imported = run_python(code).splitlines()
    assert message.startswith("sed is not an argument") and "Is seed meant?" in message
    assert imported == "False"


def test_without_vllm_nothing_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    code = f"""
from embcache import VllmEncoderWrapper
encoder = VllmEncoderWrapper({str(tiny_model)!r}, cache_path={str(tmp_path / "c")!r}, sed=1)
print(encoder.identity.arguments)
"""
    assert run_python(code, blocked=("vllm",)) == "{'sed': 1}\n"


@pytest.mark.engine
def test_the_names_are_those_that_vllm_has() -> None:
    code = """
import dataclasses
from vllm import EngineArgs
from vllm.config import PoolerConfig
from embcache.engine.vllm_arguments import _ENGINE_ARGS, _POOLER_CONFIG, _fields
for where, kind in ((_ENGINE_ARGS, EngineArgs), (_POOLER_CONFIG, PoolerConfig)):
    print({field.name for field in dataclasses.fields(kind)} == _fields(*where) != set())
"""
    assert run_python(code).splitlines()[-2:] == ["True", "True"]
