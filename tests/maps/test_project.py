from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embcache import ConfigError, SpaceMap
from embcache.identity.keys import text_keys
from embcache.maps.points import Points
from embcache.maps.project import map_space, project
from embcache.store import Location, Rows, Space
from embcache.store.schema import SpaceMetadata
from tests.spaces import IDENTITY
from tests.tools.test_merge import space_in


def clusters(cache: Path, count: int = 100, dim: int = 16) -> Space:
    """Cats and dogs, far apart from each other."""
    space, rng = space_in(cache), np.random.default_rng(0)
    for axis, animal in enumerate(("cat", "dog")):
        vectors = 0.1 * rng.standard_normal((count, dim)).astype(np.float32)
        vectors[:, axis] += 1
        texts = [f"{animal} {i}" for i in range(count)]
        keys = text_keys(IDENTITY.to_bytes(), f"{animal}: ", texts)
        columns = {"text": texts, "prompt": f"{animal}: ", "task": "Animals"}
        space.add(Rows(keys, vectors, columns, np.arange(count, dtype=np.int32)))
    return space


def assert_apart(found: SpaceMap) -> None:
    is_cat = np.array(["cat" in text for text in found.points.columns["text"].to_pylist()])
    cats, dogs = found.xy[is_cat], found.xy[~is_cat]
    between = np.linalg.norm(cats.mean(axis=0) - dogs.mean(axis=0))
    within = max(np.linalg.norm(part - part.mean(axis=0), axis=1).max() for part in (cats, dogs))
    assert between > 2 * within
    assert found.xy.shape == (len(is_cat), 2) and found.xy.dtype == np.float32


def points_of(vectors: Any) -> Points:
    metadata = SpaceMetadata(IDENTITY, "m", "vllm 1.0", "0")
    return Points(
        Location.of("m.lance"), metadata, np.array(vectors, np.float32), pa.table({}), 3, 0
    )


def test_pca_keeps_clusters_apart(tmp_path: Path) -> None:
    found = map_space(clusters(tmp_path))
    assert_apart(found)
    assert found.method == "pca" and found.explained is not None
    assert 0.5 < found.explained[0] < 1 and 0 < found.explained[1] < 0.5


def test_pca_is_deterministic(tmp_path: Path) -> None:
    path = clusters(tmp_path)
    first, again = map_space(path, limit=50), map_space(path, limit=50)
    assert (first.xy == again.xy).all() and first.explained == again.explained
    other = map_space(path, limit=50, seed=1)
    assert not (first.xy == other.xy).all()


def test_pca_is_that_of_the_vectors() -> None:
    """Against an eigendecomposition, with a mean that would swamp squares in float32."""
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 12)) * np.arange(1, 13)).astype(np.float32) + 3000
    found = project(points_of(vectors), "pca")
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    assert found.explained == pytest.approx(values[:-3:-1] / values.sum(), rel=1e-9)
    assert np.abs(found.xy) == pytest.approx(np.abs(centred @ axes[:, :-3:-1]), abs=1e-3)


def test_vectors_that_are_all_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = project(points_of(np.ones((5, 4))), "pca")
    assert found.explained == (0.0, 0.0) and (found.xy == 0).all()


def test_few_points_and_components() -> None:
    found = project(points_of([[1, 0], [0, 1], [1, 1]]), "pca")
    assert found.explained is not None and sum(found.explained) == pytest.approx(1)
    with pytest.raises(ConfigError, match="vectors of one component"):
        project(points_of([[1], [2], [3]]), "pca")


def test_what_is_missing_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method: Any = "tsne"
    with pytest.raises(ConfigError, match=r"method='tsne' is unknown\. Use one of pca, umap"):
        map_space(tmp_path, method=method)
    monkeypatch.setitem(sys.modules, "umap", None)
    install = r"needs umap-learn.*pip install '\.\[map\]' in a clone .* pip install umap-learn\."
    with pytest.raises(ConfigError, match=install):
        map_space(tmp_path, method="umap")


@pytest.mark.slow
def test_umap(tmp_path: Path) -> None:
    """The one test of it: its import takes a quarter of a minute."""
    path = clusters(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "n_jobs")
        warnings.filterwarnings("error", ".*disconnected")
        found = map_space(path, method="umap")
        assert_apart(found)
        assert found.explained is None
        assert (map_space(path, method="umap").xy == found.xy).all()
        few = [[1, 0], [1, 0], [-1, 0]]  # fewer than its neighbours, and one opposite to all
        assert np.isfinite(project(points_of(few), "umap").xy).all()
