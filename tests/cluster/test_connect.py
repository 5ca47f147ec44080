"""Into a cluster and out again, as far as it needs none: what is refused, what stays as it was."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from embcache.cluster import connect
from embcache.cluster.connect import connected, nodes
from embcache.cluster.layout import Node
from embcache.errors import ClusterError, ConfigError


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, which is asked to start and does not."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect, "_redirect_messages", lambda: None)
    monkeypatch.setattr(connect, "_TRIAL", "")
    ray.asked = []

    def init(**options: Any) -> Any:
        ray.asked.append(options)
        return SimpleNamespace(dashboard_url="10.0.0.1:8265")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ray.asked.append("shutdown"))
    yield ray
    del ray.asked


@pytest.fixture
def listening() -> Iterator[int]:
    """A port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_what_is_left_of_a_job_starts_no_other_ray(ray: Any, monkeypatch: Any) -> None:
    from ray._private import auto_init_hook

    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)
    with connected(None, 1):
        assert auto_init_hook.enable_auto_connect
    auto_init_hook.auto_init_ray()
    assert [asked for asked in ray.asked if asked != "shutdown"] == ray.asked[:1]


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=r"Ray is not installed.*'ray\[data\]'.*every node"),
        connected(None, 1),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("ray://10.0.0.1:10001", ConfigError, r"address='ray://10.* Ray Client.*ray job submit"),
        ("10.0.0.1", ConfigError, "address='10.0.0.1' is none: give host:port"),
        ("10.0.0.1:", ConfigError, "'10.0.0.1:' is none"),
        (":6379", ConfigError, "':6379' is none"),
        ("head:port", ConfigError, "'head:port' is none"),
        ("head:-1", ConfigError, "'head:-1' is none"),
        ("head:6379 ", ConfigError, "'head:6379 ' is none"),
        ("here", ConfigError, "'here' is none"),
        ("127.0.0.1:1", ClusterError, "no Ray cluster at address='127.0.0.1:1': .*`ray status`"),
        ("[::1]:1", ClusterError, r"no Ray cluster at address='\[::1\]:1': "),
        ("127.0.0.1:99999", ClusterError, "no Ray cluster at address='127.0.0.1:99999': "),
        ("a..b:6379", ClusterError, "no Ray cluster at address='a..b:6379': "),
        ("a\0b:6379", ClusterError, "no Ray cluster at address="),
    ],
)
def test_addresses_that_are_none(ray: Any, address: str, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message), connected(address, 1):
        pass
    assert not ray.asked


def test_an_address_of_ipv6(ray: Any) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server, connected(f"[::1]:{server.getsockname()[1]}", 1) as dashboard:
        assert dashboard == "http://10.0.0.1:8265"
    assert ray.asked[-1] == "shutdown"


def test_an_address_of_the_environment(
    ray: Any, monkeypatch: pytest.MonkeyPatch, listening: int
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening}")
    with connected(None, 3):
        pass
    [options, _] = ray.asked
    assert options["address"] == f"127.0.0.1:{listening}"
    assert "num_cpus" not in options  # which Ray refuses for a cluster that runs
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS=.* one of Ray Client"), connected(None, 1):
        pass
    with connected("auto", 1):  # what is given counts
        pass
    assert ray.asked[2]["address"] == "auto"


@pytest.mark.parametrize(("replicas", "least"), [("auto", 1), (1, 1), (500, 500)])
def test_a_ray_of_ones_own_counts_a_cpu_for_each_replica(
    ray: Any, replicas: Any, least: int
) -> None:
    with connected(None, replicas):
        pass
    [options, _] = ray.asked
    assert options["address"] == "local"
    assert options["num_cpus"] == max(len(os.sched_getaffinity(0)), least)
    assert options["object_store_memory"] >= 2**28 + least * 2**22


def test_a_ray_that_runs_stays(
    ray: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with connected(None, 1) as dashboard:
        assert dashboard is None
    assert not ray.asked and not caplog.messages
    with connected("nobody:1", 1):
        pass
    assert not ray.asked
    assert ["address='nobody:1' is not used" in message for message in caplog.messages] == [True]


def test_somebody_who_is_no_ray(monkeypatch: pytest.MonkeyPatch, listening: int) -> None:
    """Whom `ray.init` would ask for minutes."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect, "_JOIN_SECONDS", 4)
    address = f"127.0.0.1:{listening}"
    with (
        pytest.raises(ClusterError, match=f"'{address}' no Ray cluster answers within 4"),
        connected(address, 1),
    ):
        pass


def test_what_joining_fails_with(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_TRIAL", "import sys; sys.exit('noise\\nError: of this version')")
    with (
        pytest.raises(ClusterError, match="reached at address='auto': Error: of this version"),
        connected("auto", 1),
    ):
        pass
    assert not ray.asked


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "Ray cannot be started here: RuntimeError: no room"),
        ("auto", "Ray cannot be reached at auto: RuntimeError: no room"),
    ],
)
def test_what_ray_says(
    ray: Any, monkeypatch: pytest.MonkeyPatch, address: str | None, message: str
) -> None:
    def fail(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("noise")
        raise RuntimeError(" no room\n")

    monkeypatch.setattr(ray, "init", fail)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ClusterError, match=message), connected(address, 1):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    assert not ray.asked  # nothing to shut down


def test_signals_and_the_terminal_stay_as_they_were(
    ray: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> object:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"noise")
        os.write(2, b"noise")
        return object()

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with connected(None, 1) as dashboard:
        assert signal.getsignal(signal.SIGTERM) is before and dashboard is None
    os.write(2, b"heard")
    assert capfd.readouterr() == ("", "heard")


def test_a_job_that_fails_leaves_the_cluster(ray: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="zero"), connected(None, 1):
        print(1 // 0)
    assert ray.asked[-1] == "shutdown"


def test_settings_of_the_user_stay(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "debug")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with connected(None, 1):
        pass
    assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "debug"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_nodes_that_are_alive(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [
        {"NodeID": "1", "NodeManagerHostname": "a", "Alive": True, "Resources": {"CPU": 4.0}},
        {"NodeID": "2", "NodeManagerHostname": "b", "Alive": False, "Resources": {"CPU": 4.0}},
        {"NodeID": "3", "NodeManagerHostname": "c", "Alive": True, "Resources": {"GPU": 2.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: known)
    assert nodes() == [Node("1", "a", 4.0, 0.0), Node("3", "c", 0.0, 2.0)]


def test_what_ray_prints_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = pytest.importorskip("ray._private.worker", reason="Ray is not installed")
    monkeypatch.setattr(worker, "print_to_stdstream", print)
    connect._redirect_messages()
    with caplog.at_level(logging.INFO, "embcache.cluster.connect"):
        worker.print_to_stdstream({"lines": ["Task failed.", "Again."]}, False)
    assert caplog.messages == ["Ray: Task failed. Again."]
