"""Where replicas find room: what a job needs, beside what the cluster has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from embcache.errors import ClusterError, ConfigError

_ROOM_SECONDS = 15


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's.
        host: Name of its host.
        cpus: CPUs that Ray counts on it.
        gpus: GPUs that Ray counts on it.
    """

    id: str
    host: str
    cpus: float
    gpus: float

    def room(self, cpus: float, gpus: int) -> int:
        """How many replicas fit, each of which takes so many CPUs and GPUs."""
        by_cpus = int(self.cpus // cpus)
        return by_cpus if not gpus else min(by_cpus, int(self.gpus // gpus))


@dataclass(frozen=True)
class Layout:
    """What is asked of Ray.

    Attributes:
        replicas: How many replicas there are.
        cpus: CPUs that Ray reserves for each.
        gpus: GPUs of each.
        on_a_host: How many of them one host may have.
    """

    replicas: int
    cpus: int
    gpus: int
    on_a_host: int


def check_count(replicas: int | Literal["auto"]) -> None:
    """Refuse what is no number of replicas, before Ray is started for it.

    Args:
        replicas: What the user gave.

    Raises:
        ConfigError: It is neither a number from 1 on nor "auto".
    """
    if replicas == "auto":
        return
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 1:
        raise ConfigError(f"replicas={replicas!r} is no count. Give 1 or more, or 'auto'.")


def lay_out(
    nodes: Sequence[Node],
    replicas: int | Literal["auto"],
    gpus: int,
    free: Mapping[str, float],
) -> Layout:
    """Find room for replicas, or refuse: Ray itself would wait for it, without a word and for ever.

    Reading asks for no CPU: one reader feeds a hundred replicas, and could wait for a CPU that the
    replicas hold.

    Args:
        nodes: The cluster's nodes that are alive.
        replicas: How many are wanted. "auto" is one for each `gpus` GPUs; where the engine computes
            on CPUs, one for each node.
        gpus: GPUs of a replica; 0 where the engine computes on CPUs. It then gets an equal share
            of them.
        free: What nobody else uses at the moment, as `ray.available_resources` says it.

    Raises:
        ClusterError: There is no room.
    """
    if gpus and not any(node.gpus for node in nodes):
        raise ClusterError(
            f"The engine is a build for GPUs, and the cluster has none ({_listed(nodes)}). Give "
            "the address of a cluster that has, or install the build for CPUs."
        )
    wanted = _most(nodes, gpus) if replicas == "auto" else replicas
    cpus = 1 if gpus else _share(nodes, wanted)
    room = sum(node.room(max(cpus, 1), gpus) for node in nodes)
    if not wanted or not cpus or room < wanted:
        one = f"a CPU and {gpus} GPUs of one node" if gpus else "a CPU"
        raise ClusterError(
            f"replicas={replicas} need {one} each, and the cluster has room for "
            f"{room if cpus else _room(nodes)} ({_listed(nodes)}). Give fewer replicas, or add "
            "nodes first: those that a cluster would add by itself do not count before they are "
            "there."
        )
    _check_free(wanted, cpus, gpus, free, nodes)
    if not gpus:
        cpus = min(cpus, int(free.get("CPU", 0) // wanted))
    on_a_host = max(node.room(cpus, gpus) for node in nodes)
    return Layout(wanted, cpus, gpus, min(wanted, on_a_host))


def try_room(layout: Layout, nodes: Sequence[Node]) -> None:
    """Have Ray reserve the room, and give it back: it knows what others use on which node.

    Args:
        layout: What is needed.
        nodes: The cluster's nodes, for the message.

    Raises:
        ClusterError: Ray has not found it within seconds.
    """
    from ray.util import placement_group, remove_placement_group

    one: dict[str, float] = {"CPU": layout.cpus, "GPU": layout.gpus}
    one = {name: count for name, count in one.items() if count}
    group = placement_group([one] * layout.replicas, strategy="PACK")
    try:
        if not group.wait(_ROOM_SECONDS):
            needed = " and ".join(f"{count:g} {name}s" for name, count in one.items())
            raise ClusterError(
                f"Ray finds no room for {layout.replicas} replicas of {needed} each, all on one "
                f"node, within {_ROOM_SECONDS} seconds: others use some of {_listed(nodes)}. Give "
                "fewer replicas, or wait for them."
            )
    finally:
        remove_placement_group(group)


def _check_free(
    replicas: int, cpus: int, gpus: int, free: Mapping[str, float], nodes: Sequence[Node]
) -> None:
    needed = {"GPU": replicas * gpus, "CPU": replicas if not gpus else replicas * cpus}
    for name, count in needed.items():
        if free.get(name, 0) < count:
            raise ClusterError(
                f"{replicas} replicas need {count} {name}s, and of the cluster's "
                f"({_listed(nodes)}) others use all but {free.get(name, 0):g}. Give fewer "
                "replicas, or wait for them."
            )


def _room(nodes: Sequence[Node]) -> int:
    return sum(node.room(1, 0) for node in nodes)


def _most(nodes: Sequence[Node], gpus: int) -> int:
    if gpus:
        return sum(node.room(1, gpus) for node in nodes)
    return sum(node.cpus >= 1 for node in nodes)


def _share(nodes: Sequence[Node], replicas: int) -> int:
    """The most CPUs that each replica can have; 0 where there is not one for each."""
    most = int(max((node.cpus for node in nodes), default=0))
    fitting = (c for c in range(most, 0, -1) if sum(n.room(c, 0) for n in nodes) >= replicas)
    return next(fitting, 0)


def _listed(nodes: Sequence[Node]) -> str:
    return ", ".join(
        f"{node.host}: {node.cpus:g} CPUs" + f" and {node.gpus:g} GPUs" * bool(node.gpus)
        for node in nodes
    )
