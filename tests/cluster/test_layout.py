from __future__ import annotations

from typing import Any

import pytest

from embcache.cluster.layout import Layout, Node, check_count, lay_out
from embcache.errors import ClusterError, ConfigError


def cluster(*sizes: tuple[float, float]) -> list[Node]:
    """Nodes of so many CPUs and GPUs."""
    return [Node(f"id{i}", f"host{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(sizes)]


def laid_out(nodes: list[Node], replicas: Any, gpus: int = 0, **free: float) -> Layout:
    """Where nobody else uses anything, if nothing else is said."""
    every = {"CPU": sum(n.cpus for n in nodes), "GPU": sum(n.gpus for n in nodes), **free}
    return lay_out(nodes, replicas, gpus, every)


@pytest.mark.parametrize(
    ("nodes", "replicas", "gpus", "layout"),
    [
        (cluster((8, 0)), "auto", 0, Layout(1, 8, 0, 1)),
        (cluster((8, 0)), 2, 0, Layout(2, 4, 0, 2)),
        (cluster((8, 0)), 3, 0, Layout(3, 2, 0, 3)),
        (cluster((4, 0), (4, 0), (0, 0)), "auto", 0, Layout(2, 4, 0, 1)),
        (cluster((4, 0), (4, 0)), 3, 0, Layout(3, 2, 0, 2)),  # one alone, two share
        (cluster((2, 0), (16, 0)), 2, 0, Layout(2, 8, 0, 2)),
        (cluster((0.5, 0), (3.5, 0)), "auto", 0, Layout(1, 3, 0, 1)),
        (cluster((1.5, 0), (2.7, 0)), 3, 0, Layout(3, 1, 0, 2)),
        (cluster((64, 8), (64, 8)), "auto", 1, Layout(16, 1, 1, 8)),
        (cluster((64, 8), (64, 8)), "auto", 4, Layout(4, 1, 4, 2)),
        (cluster((64, 8), (64, 8)), 2, 8, Layout(2, 1, 8, 1)),
        (cluster((96, 0), (8, 2)), "auto", 1, Layout(2, 1, 1, 2)),  # GPUs on some nodes only
        (cluster((0, 8), (4, 2)), "auto", 1, Layout(2, 1, 1, 2)),  # GPUs that no CPU is beside
        (cluster((1, 8)), "auto", 1, Layout(1, 1, 1, 1)),
        (cluster((8, 3)), "auto", 2, Layout(1, 1, 2, 1)),
        (cluster((8, 1.5)), "auto", 1, Layout(1, 1, 1, 1)),
    ],
)
def test_where_there_is_room(nodes: list[Node], replicas: Any, gpus: int, layout: Layout) -> None:
    assert laid_out(nodes, replicas, gpus) == layout


@pytest.mark.parametrize(
    ("nodes", "replicas", "gpus", "message"),
    [
        (cluster((4, 0), (4, 0)), 9, 0, r"replicas=9 need a CPU each, .* room for 8 \(host0: 4"),
        (cluster((0.5, 0)), "auto", 0, "replicas=auto need a CPU each, .* room for 0 "),
        (cluster((0.5, 0), (0.5, 0)), 1, 0, "has room for 0 "),  # they are on two nodes
        (cluster((64, 8), (64, 8)), 3, 8, "a CPU and 8 GPUs of one node each, .* room for 2 "),
        (cluster((64, 2), (64, 2)), 1, 4, r"room for 0 \(host0: 64 CPUs and 2 GPUs, host1"),
        (cluster((64, 2), (64, 2)), "auto", 4, "replicas=auto need .* room for 0 "),
        (cluster((0, 8), (4, 0)), "auto", 1, "has room for 0 "),
        (cluster((8, 0)), 1, 1, r"build for GPUs, and the cluster has none \(host0: 8 CPUs\)"),
        (cluster((8, 0.5)), 1, 1, r"has room for 0 \(host0: 8 CPUs and 0.5 GPUs\)"),
        ([], "auto", 0, "has room for 0 "),
        ([], 1, 1, "the cluster has none "),
    ],
)
def test_where_there_is_none(nodes: list[Node], replicas: Any, gpus: int, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        laid_out(nodes, replicas, gpus)


def test_what_others_use_is_no_room() -> None:
    nodes = cluster((8, 2), (8, 2))
    with pytest.raises(ClusterError, match=r"4 replicas need 4 GPUs, and .* others use all but 3"):
        laid_out(nodes, "auto", 1, GPU=3)
    with pytest.raises(
        ClusterError, match=r"4 replicas need 4 CPUs, and .* others use all but 2.5"
    ):
        laid_out(nodes, 4, 1, CPU=2.5)
    with pytest.raises(ClusterError, match=r"2 replicas need 2 CPUs, and .* others use all but 1"):
        laid_out(nodes, "auto", 0, CPU=1)
    with pytest.raises(ClusterError, match=r"1 replicas need 1 CPUs, .* all but 0"):
        lay_out(nodes, 1, 0, {})  # Ray leaves out what there is none of
    assert laid_out(nodes, 3, 1, GPU=3, CPU=3) == Layout(3, 1, 1, 2)


def test_a_busy_cluster_gives_less_to_each() -> None:
    assert laid_out(cluster((8, 0)), 2, CPU=5) == Layout(2, 2, 0, 2)
    assert laid_out(cluster((8, 0), (8, 0)), "auto", CPU=9.5) == Layout(2, 4, 0, 2)


@pytest.mark.parametrize("replicas", [0, -1, True, False, 2.5, "four", "3", None])
def test_no_count(replicas: Any) -> None:
    with pytest.raises(ConfigError, match=f"replicas={replicas!r} is no count. Give 1 or more"):
        check_count(replicas)


@pytest.mark.parametrize("replicas", [1, 10**6, "auto"])
def test_a_count(replicas: Any) -> None:
    assert check_count(replicas) is None
