"""A trial of `cluster_kills.py`: a cluster, jobs on it, and who kills what."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _kills_check import Found, look
from _kills_driver import FAILED, Order, write_texts
from _kills_engine import noted, text_of
from _kills_processes import Brood, ancestors, wait_until_none
from _known import make_model

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster
    from tests.object_store import ObjectStore

MOST_WORK = 1.2
"""How often a text is embedded, on average, below which a trial of one job must stay."""

_NODE_BYTES = 100 * 2**20  # of objects in memory
_STUCK_SECONDS = 400.0
_END_SECONDS = 100.0  # agents of a Ray that was killed try for a minute to tell its head of it
_EARLY, _LATE = 0.15, 0.75  # of the texts: between them is the middle of a run


class TrialError(Exception):
    """A trial could not do what it is for."""


@dataclass
class Trial:
    """One trial, which fills a new cache.

    Attributes:
        kind: A key of `KINDS`.
        folder: Of its files; new.
        cache: Directory of its cache, or its URL.
        texts: How many texts.
        seconds_a_text: What the engine takes for one.
        seed: Decides who is killed and when.
        brood: All processes.
        store: What holds the cache; None on disk.
        kills: What was killed, and how often.
        faults: What went wrong.
        found: What was found in the cache.
        work: How often a text was embedded, on average.
        seconds: How long the jobs took, their clusters' start and end included.
    """

    kind: str
    folder: Path
    cache: str
    texts: int
    seconds_a_text: float
    seed: int
    brood: Brood
    store: ObjectStore | None = None
    kills: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    found: Found = field(default_factory=Found)
    work: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.kind}/{self.seed}")
        self._order = Order(
            "1", str(self.folder), self.cache, None, 2, self.texts, self.seconds_a_text
        )

    def run(self) -> None:
        """Warm and kill, then look at what is left."""
        self.folder.mkdir()
        make_model(self.folder)
        write_texts(self.folder, self.texts)
        self._run()
        texts = [text_of(number) for number in range(self.texts)]
        self._judge(texts)

    def _judge(self, texts: Sequence[str]) -> None:
        self.found = look(self.folder / "model", self.cache, texts, self.store)
        self.faults += self.found.faults
        work = noted(self._order.log)
        if unknown := set(work) - set(texts):
            self.faults.append(f"embedded, and asked for by nobody: {sorted(unknown)[:3]}")
        self.work = len(work) / self.texts
        if self.kind != "two" and self.work >= MOST_WORK:
            self.faults.append(f"{self.work:.3f} times the work")

    def _run(self) -> None:
        began = time.monotonic()
        before = {one.pid for one in self.brood.alive()}
        try:
            KINDS[self.kind](self)
        except TrialError as error:
            self.faults.append(str(error))
        if left := wait_until_none(lambda: self.brood.others(before), _END_SECONDS):
            self.faults.append(f"processes are left: {left}")
            for pid, _ in left:  # else they would be in the way of the next trial
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.seconds = time.monotonic() - began

    def replicas(self, kills: int = 3) -> None:
        """Kill replicas of one job."""
        with self._cluster() as cluster:
            job = self._start(self._on(cluster))
            for part in self._moments(kills):
                self._wait_for(part, job)
                self._kill_replica(job)
            self._expect_success(job)
            self._expect_idle()

    def driver(self) -> None:
        """Kill the driver, and give the same command again."""
        with self._cluster() as cluster:
            job = self._start(self._on(cluster))
            self._wait_for(self.rng.uniform(0.3, 0.7), job)
            self._kill("driver", job.process.pid)
            job.process.wait()
            self._expect_success(self._start(self._on(cluster, "again")))
            self._expect_idle()

    def alone(self) -> None:
        """Kill a driver that has a Ray of its own, which must end too, and begin again."""
        before = {one.pid for one in self.brood.alive()}
        job = self._start(self._order)
        self._wait_for(self.rng.uniform(0.3, 0.7), job)
        self._kill("driver", job.process.pid)
        job.process.wait()
        if left := wait_until_none(lambda: self.brood.others(before), _END_SECONDS):
            self.faults.append(f"a killed driver's own Ray goes on: {left}")
        self._expect_success(self._start(replace(self._order, name="again")))

    def node(self, replicas: int = 2) -> None:
        """Kill a node, with all that runs on it, of which one is a replica at least."""
        with self._cluster() as cluster:
            job = self._start(replace(self._on(cluster), replicas=replicas))
            self._wait_for(self.rng.uniform(0.3, 0.6), job)
            above = {one for pid in job.replicas() for one in ancestors(pid)}
            nodes = [one for one in cluster.worker_nodes if _raylet(one) in above]
            if not nodes:
                raise TrialError("no node beside the head has a replica")
            cluster.remove_node(self.rng.choice(nodes), allow_graceful=False)
            self.kills["node"] = 1
            self._expect_success(job)
            self._expect_idle()

    def full(self) -> None:
        """Kill a node of a cluster without room for its replica elsewhere."""
        self.node(replicas=3)

    def desk(self) -> None:
        """Kill the desk: that job ends, and the same command goes on."""
        with self._cluster() as cluster:
            job = self._start(self._on(cluster))
            self._wait_for(self.rng.uniform(0.3, 0.7), job)
            desks = self.brood.titled("ray::Desk")
            if len(desks) != 1:
                raise TrialError(f"{len(desks)} desks")
            self._kill("desk", desks[0].pid)
            self._expect_end(job)
            if job.process.returncode != FAILED or job.said().get("error") != "ClusterError":
                self.faults.append(f"without its desk, a job ended so: {job}")
            self._expect_success(self._start(self._on(cluster, "again")))
            self._expect_idle()

    def two(self, kills: int = 2) -> None:
        """Two jobs over the same texts, each with a Ray of its own, and kills in both."""
        jobs = [self._start(replace(self._order, name=name)) for name in ("1", "2")]
        for part in self._moments(kills):
            self._wait_for(part, *jobs)
            for job in jobs:
                self._kill_replica(job)
        for job in jobs:
            self._expect_success(job)

    @contextmanager
    def _cluster(self) -> Iterator[Cluster]:
        """A head and two nodes, a CPU each: room for two replicas, and for one of them again."""
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": _NODE_BYTES,
                "include_dashboard": False,
            },
            shutdown_at_exit=False,
        )
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=_NODE_BYTES)
            yield cluster
        finally:
            cluster.shutdown()

    def _on(self, cluster: Cluster, name: str = "1") -> Order:
        return replace(self._order, name=name, address=cluster.address)

    def _start(self, order: Order) -> _Job:
        script = str(Path(__file__).with_name("_kills_driver.py"))
        command = [sys.executable, script, json.dumps(asdict(order))]
        output = str(self.folder / f"output-{order.name}")
        return _Job(order, self.brood.start(command, output, dict(os.environ)))

    def _moments(self, count: int) -> list[float]:
        """When to kill, as parts of the texts."""
        step = (_LATE - _EARLY) / count
        return [_EARLY + step * (one + self.rng.uniform(0, 0.8)) for one in range(count)]

    def _wait_for(self, part: float, *jobs: _Job) -> None:
        """Wait until so much is embedded and all jobs have replicas that embed."""
        until = time.monotonic() + _STUCK_SECONDS
        while len(noted(self._order.log)) < part * self.texts or not all(
            job.replicas() for job in jobs
        ):
            if any(job.process.poll() is not None for job in jobs):
                raise TrialError(f"ended before there was a kill: {', '.join(map(str, jobs))}")
            if time.monotonic() > until:
                raise TrialError(f"no progress: {', '.join(map(str, jobs))}")
            time.sleep(0.1)

    def _kill_replica(self, job: _Job) -> None:
        """Kill one of a job; waits for one that lives."""
        until = time.monotonic() + _END_SECONDS
        while not (living := [pid for pid in job.replicas() if _is_replica(pid)]):
            if time.monotonic() > until or job.process.poll() is not None:
                raise TrialError(f"no replica lives that could be killed: {job}")
            time.sleep(0.1)
        self._kill("replica", self.rng.choice(living))

    def _kill(self, what: str, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[what] = self.kills.get(what, 0) + 1

    def _expect_success(self, job: _Job) -> None:
        self._expect_end(job)
        if job.process.returncode:
            self.faults.append(f"{job}")

    def _expect_end(self, job: _Job) -> None:
        try:
            job.process.wait(_STUCK_SECONDS)
        except subprocess.TimeoutExpired:
            self.faults.append(f"does not end: {job}")
            job.process.kill()
            job.process.wait()

    def _expect_idle(self) -> None:
        """The cluster goes on, and must be free again: another job could have all of it."""
        if left := wait_until_none(self.brood.at_work, _END_SECONDS):
            self.faults.append(f"work for a job that is over: {left}")


class _Job:
    """A driver that runs, or has ended."""

    def __init__(self, order: Order, process: subprocess.Popen[bytes]) -> None:
        self.order = order
        self.process = process

    def said(self) -> dict[str, Any]:
        """What it said last; nothing before it has begun."""
        if not self.order.status.exists():
            return {}
        said: dict[str, Any] = json.loads(self.order.status.read_text(encoding="utf-8"))
        return said

    def replicas(self) -> Sequence[int]:
        """Ids of the processes of its replicas, as it knows them."""
        stats = self.said().get("stats", {})
        return [one["pid"] for one in stats.get("replicas", ()) if one["encoded"] or one["blocks"]]

    def __str__(self) -> str:
        said = self.said()
        status = self.process.returncode
        output = Path(self.order.folder, f"output-{self.order.name}").read_text(errors="replace")
        return (
            f"driver {self.order.name}, exit status {status}, said {said}, wrote {output[-1500:]}"
        )


def _is_replica(pid: int) -> bool:
    try:
        return b"Replica" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


KINDS: dict[str, Callable[[Trial], None]] = {
    "replicas": Trial.replicas,
    "driver": Trial.driver,
    "alone": Trial.alone,
    "node": Trial.node,
    "full": Trial.full,
    "desk": Trial.desk,
    "two": Trial.two,
}
"""How a trial goes, by its kind."""
