"""What is looked at on every node before an engine starts: seconds instead of minutes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from embcache.cluster.connect import on_node
from embcache.cluster.layout import Node
from embcache.errors import ClusterError, printable
from embcache.store import Location
from embcache.store.leftovers import TRIAL

_PATIENCE_SECONDS = 120


def preflight(nodes: Sequence[Node], cache: Location, *, engine: bool) -> str | None:
    """Ask every node whether a replica could work there.

    Args:
        nodes: The nodes.
        cache: Where the cache is; this process can write there.
        engine: Whether vllm must be installed.

    Returns:
        Package and version of vllm, which is the same on all of them; None where it is on none.

    Raises:
        ClusterError: A node lacks embcache or vllm, has another version of one of them, or sees
            another cache, or none.
    """
    with _marked(cache) as mark:
        answers = _asked(nodes, cache, mark)
    for node, answer in answers:
        _check(node, answer, cache)
    _same("embcache", answers)
    if engine:
        _same("engine", answers)
    found: str | None = answers[0][1]["engine"]
    if engine and found is None:
        raise ClusterError(
            f"vllm is not installed on {answers[0][0].host}. Install it on every node of the "
            "cluster, with the README's lines."
        )
    return found


def _same(name: str, answers: Sequence[tuple[Node, Mapping[str, Any]]]) -> None:
    versions = {answer[name]: node.host for node, answer in answers}
    if len(versions) > 1:
        listed = ", ".join(f"{host} has {version}" for version, host in versions.items())
        raise ClusterError(
            f"The cluster's nodes have different versions of {name}: {listed}. Vectors of "
            "different versions agree closely, not bit for bit: install the same on all."
        )


def _asked(
    nodes: Sequence[Node], cache: Location, mark: str | None
) -> list[tuple[Node, Mapping[str, Any]]]:
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(_examination())
    options = dict(cache.storage_options)
    asked = [
        task.options(scheduling_strategy=on_node(node.id)).remote(cache.uri, options, mark)
        for node in nodes
    ]
    answers: list[tuple[Node, Mapping[str, Any]]] = []
    for node, one in zip(nodes, asked, strict=True):
        try:
            answers.append((node, ray.get(one, timeout=_PATIENCE_SECONDS)))
        except Exception as error:  # Ray's: the node is gone, or no process starts there
            raise ClusterError(
                f"On host {node.host} nothing can be run: {type(error).__name__}: "
                f"{str(error).strip()}"
            ) from error
    return answers


def _examination() -> Any:
    """The function that runs on a node: pickled by value, since embcache may not be there."""

    def examine(uri: str, options: dict[str, str], mark: str | None) -> dict[str, Any]:
        import importlib.metadata
        import sys

        found: dict[str, Any] = {"executable": sys.executable}
        try:
            from embcache.identity.dtype import vllm_version
            from embcache.store import Location
        except Exception as error:
            return {**found, "embcache": None, "error": f"{type(error).__name__}: {error}"}
        found |= {"embcache": importlib.metadata.version("embcache"), "engine": vllm_version()}
        try:
            location = Location.of(uri, options)
            location.check()
            folder = location.folder
            found["seen"] = folder is None or mark is None or (folder / mark).exists()
            if found["seen"]:
                location.try_writing()
        except Exception as error:
            found["error"] = f"{error}"
        return found

    return examine


def _check(node: Node, answer: Mapping[str, Any], cache: Location) -> None:
    if answer["embcache"] is None:
        raise ClusterError(
            f"On host {node.host}, embcache cannot be imported by {answer['executable']} "
            f"({answer['error']}). Install embcache[ray] and vllm on every node, for the Python "
            "that Ray runs there."
        )
    if "error" in answer:
        raise ClusterError(
            f"On host {node.host}, the cache {cache} cannot be used: {printable(answer['error'])}"
        )
    if not answer["seen"]:
        raise ClusterError(
            f"Host {node.host} does not see the cache {cache} that is here: that folder is on no "
            "file system that both share. Put the cache on one, or into an object store: "
            "s3://bucket/cache, say."
        )


@contextmanager
def _marked(cache: Location) -> Iterator[str | None]:
    """A file in the cache's folder, by which another host can tell that it sees the same folder."""
    folder = cache.folder
    if folder is None:
        yield None
        return
    mark = Path(folder, f"{TRIAL}{os.getpid()}-{secrets.token_hex(8)}")
    mark.touch()
    try:
        yield mark.name
    finally:
        with suppress(FileNotFoundError):
            mark.unlink()
