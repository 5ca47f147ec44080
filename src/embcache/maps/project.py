"""Projecting vectors to two dimensions: PCA, or UMAP; and the map that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from embcache.errors import ConfigError
from embcache.maps.points import Points, sample_points
from embcache.store import Space

Method = Literal["pca", "umap"]
METHODS = ("pca", "umap")

Vectors = npt.NDArray[np.float32]

_NEIGHBORS = 15  # UMAP's default


@dataclass(frozen=True)
class SpaceMap:
    """Points of a space in two dimensions.

    Attributes:
        points: The points' vectors and texts, and where they come from.
        xy: `(n, 2) float32`, row i is where point i lies.
        method: How the vectors were projected.
        explained: For PCA, the share of the points' variance that each axis shows, from 0 to 1;
            None for UMAP.
    """

    points: Points
    xy: Vectors
    method: Method
    explained: tuple[float, float] | None


def map_space(
    space: Space,
    *,
    method: Method = "pca",
    prompt: str | None = None,
    contains: str | None = None,
    limit: int = 10_000,
    seed: int = 0,
) -> SpaceMap:
    """Draw rows of a space at random, and project their vectors to two dimensions.

    Of the rows that are not drawn only the keys are kept in memory.

    Args:
        space: A space of vectors.
        method: "pca", or "umap" (cosine metric), which keeps neighbours together and takes longer.
        prompt: Draw only rows with exactly this prompt; None for any.
        contains: Draw only rows whose text contains this; None for any.
        limit: How many rows to draw at most, 3 or more.
        seed: The same seed gives the same map.

    Raises:
        ConfigError: `method` is unknown, or its library is not installed; `limit` is below 3; the
            space holds scores or vectors of one component, does not exist, lacks the column that
            a filter needs, or has fewer than 3 undamaged rows that fit the filters.
        CacheError: The space cannot be read.
    """
    check_method(method)
    points = sample_points(space, prompt=prompt, contains=contains, limit=limit, seed=seed)
    return project(points, method, seed)


def check_method(method: str) -> None:
    """Refuse a method that `project` could not use, before any row is read.

    Args:
        method: What the user gave.

    Raises:
        ConfigError: The method is neither "pca" nor "umap", or its library is not installed.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is unknown. Use one of {', '.join(METHODS)}.")
    check_extra("sklearn" if method == "pca" else "umap")


def project(points: Points, method: Method, seed: int = 0) -> SpaceMap:
    """Project points to two dimensions.

    Args:
        points: The points, at least 3.
        method: "pca", or "umap" (cosine metric).
        seed: The same points, method and seed give the same map.

    Raises:
        ConfigError: The vectors have only one component, or the method's library cannot be
            imported.
    """
    if points.vectors.shape[1] < 2:
        raise ConfigError(
            f"{points.location} has vectors of one component: there are no two dimensions to draw."
        )
    if method == "umap":
        return SpaceMap(points, _umap(points.vectors, seed), method, None)
    xy, explained = _pca(points.vectors)
    return SpaceMap(points, xy, method, explained)


def _pca(vectors: Vectors) -> tuple[Vectors, tuple[float, float]]:
    pca = import_extra("sklearn.decomposition").PCA(2, random_state=0)
    # In float64, and centred first: where one component is large, float32 squares lose the rest.
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # 0 / 0 where all vectors are the same
        xy = pca.fit_transform(centred)
    first, second = np.nan_to_num(pca.explained_variance_ratio_)
    return xy.astype(np.float32), (float(first), float(second))


def _umap(vectors: Vectors, seed: int) -> Vectors:
    count = len(vectors)
    model = import_extra("umap").UMAP(
        metric="cosine",
        n_neighbors=min(_NEIGHBORS, count - 1),
        # The spectral start needs more points than dimensions of its eigenvectors.
        init="spectral" if count > _NEIGHBORS else "random",
        disconnection_distance=np.inf,  # else what is opposite to all others lies at NaN
        random_state=seed,
        n_jobs=1,  # a seed allows no more, and UMAP warns where that is left to it
    )
    xy: Vectors = np.asarray(model.fit_transform(vectors), np.float32)
    return xy


_PACKAGES = {"sklearn": "scikit-learn", "umap": "umap-learn"}  # else they are called as imported


def import_extra(module: str) -> Any:
    """Import a module of a library that embcache can do without.

    Args:
        module: Its dotted name, `sklearn.decomposition`, say.

    Returns:
        The module.

    Raises:
        ConfigError: The module cannot be imported; the message says how to install its package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(_missing(module, f"cannot be imported ({error})")) from error


def check_extra(library: str) -> None:
    """Refuse a library that is not installed, without importing it, which may be slow.

    Args:
        library: Name of the library as it is imported, `sklearn`, say.

    Raises:
        ConfigError: The library is not installed; the message says how to install its package.
    """
    if find_spec(library) is None:
        raise ConfigError(_missing(library, "is not installed"))


def _missing(module: str, problem: str) -> str:
    library = module.partition(".")[0]
    package = _PACKAGES.get(library, library)
    return (
        f"This map needs {package}, which {problem}. Run pip install '.[map]' in a clone of "
        f"embcache, or pip install {package}."
    )
