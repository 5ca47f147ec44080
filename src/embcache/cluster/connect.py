"""Into a Ray cluster, or a Ray of one's own on this machine, and out of it again."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from embcache.cluster.blocks import BLOCK_BYTES
from embcache.cluster.layout import Node
from embcache.errors import ClusterError, ConfigError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5
_JOIN_SECONDS = 20
_ADDRESS = "RAY_ADDRESS"  # Ray's own variable; `ray job submit` sets it
_STORE_BYTES = 2**28


@contextmanager
def connected(address: str | None, replicas: int | Literal["auto"]) -> Iterator[str | None]:
    """Be a driver of a Ray cluster.

    Where this process is one already, that cluster is used, and stays connected.

    Args:
        address: `host:port` of a cluster, or "auto" for the one that runs on this machine. None
            for what RAY_ADDRESS names, or else for a Ray of one's own on this machine.
        replicas: How many CPUs a Ray of one's own counts at least.

    Yields:
        URL of Ray's dashboard; None where there is none.

    Raises:
        ConfigError: Ray is not installed, or the address is none.
        ClusterError: There is no cluster at the address, or it is of another version.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "Ray is not installed. Install it with `pip install 'ray[data]'` (embcache's extra "
            "'ray'), on this machine and on every node of the cluster."
        )
    _quiet()
    import ray

    if ray.is_initialized():
        if address is not None:
            logger.warning(
                "address=%r is not used: this process is in a Ray cluster already, and that one "
                "is used. `ray.shutdown()` before leaves it.",
                address,
            )
        yield None
        return
    where = address or os.environ.get(_ADDRESS) or "local"
    _check(where, f"address={where!r}" if address else f"{_ADDRESS}={where!r}")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if where == "local":
        count = 1 if replicas == "auto" else replicas
        options["num_cpus"] = max(len(os.sched_getaffinity(0)), count)
        options["object_store_memory"] = _STORE_BYTES + 4 * BLOCK_BYTES * count
    try:
        with _signals_kept(), _silence():
            context = ray.init(address=where, **options)
    except Exception as error:  # of many kinds: none there, another version, no room for its files
        raise ClusterError(
            f"Ray cannot be {'started here' if where == 'local' else f'reached at {where}'}: "
            f"{type(error).__name__}: {str(error).strip()}"
        ) from error
    _redirect_messages()
    try:
        yield _dashboard(context)
    finally:
        _start_no_other()
        ray.shutdown()


def nodes() -> list[Node]:
    """The nodes of the cluster that are alive."""
    import ray

    return [
        Node(
            one["NodeID"],
            one["NodeManagerHostname"],
            one["Resources"].get("CPU", 0.0),
            one["Resources"].get("GPU", 0.0),
        )
        for one in ray.nodes()
        if one["Alive"]
    ]


def on_node(node: str) -> Any:
    """Ray's scheduling strategy for what is to run on one node, and nowhere else.

    Args:
        node: Ray's id of it.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray would have SIGTERM end the process at once; whoever asks to stop wants a last commit."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep from the terminal what Ray's native code writes at its start: that it obeys `_quiet`."""
    with warnings.catch_warnings(), open(os.devnull, "wb") as nowhere:
        # It forks, and what is forked starts another program at once.
        warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
        kept = {number: os.dup(number) for number in (1, 2)}
        for number in kept:
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


# Joins a cluster and leaves it again.
_TRIAL = """
import logging, sys
import ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def _check(where: str, shown: str) -> None:
    """Refuse an address at which no cluster answers, in seconds; messages call it `shown`."""
    if where == "local":
        return
    if where.startswith("ray://"):
        raise ConfigError(
            f"{shown} is one of Ray Client, through which Ray Data does not stream. Give "
            "host:port of the cluster's head (6379 is the usual port), on a machine in the same "
            "network; or submit the command with `ray job submit`."
        )
    if where != "auto":
        _check_port(where, shown)
    _try_joining(where, shown)


def _check_port(where: str, shown: str) -> None:
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{shown} is none: give host:port, 10.0.0.1:6379, say, or auto.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS):
            pass
    except (OSError, ValueError, OverflowError) as error:  # no name of a host, no port
        raise ClusterError(
            f"There is no Ray cluster at {shown}: {error}. `ray status` on a node of it "
            "says its address."
        ) from error


def _try_joining(where: str, shown: str) -> None:
    """Join in another process first, which can be given up: `ray.init` tries for minutes.

    To wait for it in a thread was rejected: it goes on trying in this process, and nothing ends it.
    """
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRIAL, where],
            capture_output=True,
            text=True,
            timeout=_JOIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"At {shown} no Ray cluster answers within {_JOIN_SECONDS} seconds. Does "
            "`ray status` on a node of it say that it runs, and does it ask for a token "
            "(RAY_AUTH_MODE=token in this environment, too)?"
        ) from error
    if tried.returncode:
        said = tried.stderr.strip().splitlines() or ["no message"]
        raise ClusterError(f"Ray cannot be reached at {shown}: {said[-1]}")


def _quiet() -> None:
    """What Ray would write on the terminal while it starts; each can be set by the user."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


def _redirect_messages() -> None:
    """Have Ray log what it prints on standard output of tasks that it tries again.

    There is no setting for that; where a version of Ray has another inside, it goes on printing.
    """
    from ray._private import worker

    def log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        logger.info("Ray: %s", " ".join(map(str, data.get("lines", ()))).strip())

    with suppress(AttributeError):
        worker.print_to_stdstream  # noqa: B018
        worker.print_to_stdstream = log


def _start_no_other() -> None:
    """Have Ray wait for a `ray.init`, from now on, instead of starting at the first call.

    A thread of Ray Data's that a failed job leaves, or one that waits for a pipe, would start
    another one after the end, with all its processes. The variable that Ray has for it is read when
    Ray is imported, which the user may have done.
    """
    with suppress(ImportError, AttributeError):  # where a version of Ray has another inside
        from ray._private import auto_init_hook

        auto_init_hook.enable_auto_connect  # noqa: B018
        auto_init_hook.enable_auto_connect = False


def _dashboard(context: Any) -> str | None:
    url = getattr(context, "dashboard_url", None)
    return f"http://{url}" if url else None
