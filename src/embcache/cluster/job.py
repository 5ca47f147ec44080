"""What runs on the cluster, seen from the driver: desk, replicas, and Ray Data's execution."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from embcache import errors
from embcache.cluster.blocks import Sizes, first_block, shuffled, sized
from embcache.cluster.committer import Committer
from embcache.cluster.connect import nodes, on_node
from embcache.cluster.desk import Desk
from embcache.cluster.layout import Layout, Node, lay_out, try_room
from embcache.cluster.preflight import preflight
from embcache.cluster.reading import Read, datasource, feed_reader, part_reader
from embcache.cluster.replica import Orders, Replica
from embcache.cluster.reports import State
from embcache.engine.vllm import VllmEngine
from embcache.errors import ClusterError, EmbcacheError
from embcache.store import Location
from embcache.warm.batches import TextBatch

if TYPE_CHECKING:
    from embcache.encoders.vllm_encoder import VllmEncoderWrapper
    from embcache.warm.parts import Part, Selected

_IN_FLIGHT = 2  # blocks of a replica: one that it works on, and one that is there when it is done
_READERS = 2  # one waits for its disk or store while the other one makes texts
_REPLICAS_A_READER = 16  # more of them, each of which encodes a few thousand texts a second at most
_JOIN_SECONDS = 5.0
_FREED_SECONDS = 5.0
_ROW = 1  # byte: a block of Ray's is one row of ours, however small


class Job:
    """A job that has begun; what it needs was looked at before.

    Args:
        encoder: The user's.
        replicas: How many, or "auto".
        parts: What is read on the cluster.
        batches: What is read here; None for nothing.
        total: How many texts there are, about; None if that is not known.

    Attributes:
        committer: Commits what the replicas write.

    Raises:
        EmbcacheError: See `ClusterWarmer.run`.
    """

    def __init__(
        self,
        encoder: VllmEncoderWrapper,
        replicas: int | Literal["auto"],
        parts: Sequence[Part | Selected],
        batches: Iterable[TextBatch] | None,
        total: int | None,
    ) -> None:
        import ray

        self._ray = ray
        given = encoder.recipe().keywords
        location = Location.of(given["cache_path"], given.get("storage_options"))
        uses_vllm = given["make_engine"] is None
        found = nodes()
        candidates = with_gpus(found)
        version = preflight(candidates, location, engine=uses_vllm)
        if is_for_cpus(version) and len(candidates) < len(found):
            preflight(found, location, engine=uses_vllm)  # replicas may be on any of them
        on_gpus = uses_vllm and not is_for_cpus(version)
        layout = lay_out(found, replicas, gpus(given) if on_gpus else 0, _free())
        try_room(layout, found)
        own = self._settled(encoder, layout)
        space = own.open_pipeline().space
        assert space is not None
        space.location.try_committing()
        self.committer = Committer(space, compact=given.get("compact_automatically", True))
        here = on_node(ray.get_runtime_context().get_node_id())
        desk = ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here)
        self._desk = desk.remote(_IN_FLIGHT * layout.replicas + _IN_FLIGHT)
        engine = (
            {}
            if on_gpus or not uses_vllm
            else {"make_engine": partial(VllmEngine, neighbours=layout.on_a_host)}
        )
        orders = Orders(
            self._desk,
            ray.put(own.recipe(**engine)),
            own.identity,
            layout.on_a_host,
            pinned=bool(engine),
        )
        sizes = Sizes(layout.replicas, total)
        self._over, self._closing = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._source_error: BaseException | None = None
        dataset = self._dataset(parts, batches is not None, sizes, layout, orders)
        self._threads = [self._start(self._execute, dataset)]
        if batches is not None:
            texts = shuffled(sized(batches, sizes), random.getrandbits(32))
            self._start(self._feed, texts, first_block(len(parts)))

    @property
    def over(self) -> bool:
        """Whether Ray has nothing more to do."""
        return self._over.is_set()

    def state(self) -> State:
        """What the desk knows; what is new is handed out once.

        Raises:
            ClusterError: The desk is gone.
        """
        try:
            state: State = self._ray.get(self._desk.state.remote())
        except self._ray.exceptions.RayError as error:
            raise ClusterError(
                f"The desk of this job, an actor on this host, is gone ({type(error).__name__}), "
                "and with it what replicas have written since the last commit. The same command "
                "goes on from there."
            ) from error
        return state

    def last_words(self) -> State | None:
        """What was not fetched yet; None where the desk is gone."""
        try:
            return self.state()
        except ClusterError:
            return None

    def raise_error(self) -> None:
        """Raise what ended the job, if anything did."""
        if self._source_error is not None:
            raise self._source_error
        # Ray's frames are held by no error that a caller may keep: they hold the replicas.
        error, self._error = self._error, None
        if error is not None:
            said = str(error).strip().splitlines() or [""]
            raise ClusterError(
                f"Ray ended the job: {type(error).__name__}: {said[-1]}. The same command "
                "goes on from what is committed."
            ) from None

    def stop(self) -> None:
        """Have the replicas end after their chunks; what they are handed then, they pass on."""
        self._ray.get(self._desk.stop.remote())

    def close(self) -> None:
        """End what still runs."""
        self._closing.set()
        with suppress(self._ray.exceptions.RayError):  # the desk may be gone
            self._ray.get(self._desk.stop.remote())
            for thread in self._threads:
                thread.join(_JOIN_SECONDS)
        self._error = None
        gc.collect()  # Ray's errors are in cycles with what holds the replicas, and GPUs

    def _settled(self, encoder: VllmEncoderWrapper, layout: Layout) -> VllmEncoderWrapper:
        """The encoder with its dtype settled, by a node that has what the replicas have."""
        dtype = encoder.identity.dtype
        if dtype == "auto":
            options = {"num_cpus": 1, "num_gpus": layout.gpus} if layout.gpus else {"num_cpus": 1}
            ask = self._ray.remote(**options)(_ask_for_dtype)
            kind, answer = self._ray.get(ask.remote(encoder.recipe(read_only=True)))
            if kind is not None:
                raise error_of(kind, answer)
            dtype = answer
        changed = {"dtype": dtype, "compact_automatically": False, "on_write_error": "raise"}
        return encoder.recipe(**changed)()

    def _dataset(
        self,
        parts: Sequence[Part | Selected],
        feed: bool,
        sizes: Sizes,
        layout: Layout,
        orders: Orders,
    ) -> Any:
        from ray.data import ActorPoolStrategy

        here: list[Read] = []
        anywhere: list[Read] = []
        for number, part in random.sample([*enumerate(parts)], len(parts)):  # see `shuffled`
            reads = anywhere if part.is_remote else here
            seed = random.getrandbits(32)
            reads.append(part_reader(number, part, sizes, seed, self._desk))
        if feed:
            here.append(feed_reader(len(parts), self._desk))
        readers = _READERS + layout.replicas // _REPLICAS_A_READER
        node = {"ray.io/node-id": self._ray.get_runtime_context().get_node_id()}
        with _data_context():
            both = ((here, node), (anywhere, None))
            read = [self._read(reads, readers, where) for reads, where in both if reads]
            dataset = read[0] if len(read) == 1 else read[0].union(*read[1:])
            return dataset.map_batches(
                Replica,
                fn_constructor_args=[orders],
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=layout.cpus,
                num_gpus=layout.gpus or None,
                compute=ActorPoolStrategy(
                    size=layout.replicas, max_tasks_in_flight_per_actor=_IN_FLIGHT
                ),
            )

    def _read(self, reads: list[Read], readers: int, where: dict[str, str] | None) -> Any:
        # No CPU: the replicas may hold all there are, and Ray would wait for one without a word.
        return self._ray.data.read_datasource(
            datasource(reads),
            override_num_blocks=len(reads),
            concurrency=min(readers, len(reads)),
            num_cpus=0,
            label_selector=where,
        )

    def _start(self, work: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, name="embcache-job", daemon=True)
        thread.start()
        return thread

    def _execute(self, dataset: Any) -> None:
        try:
            for _ in dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                if self._closing.is_set():  # not at a stop: to leave ends what replicas work on
                    break
        except BaseException as error:  # raised by whoever watches the job
            self._error = self._error or error
        finally:
            self._over.set()

    def _feed(self, batches: Iterator[TextBatch], first: int) -> None:
        try:
            for batch in batches:
                if not self._ray.get(self._desk.put.remote(batch, first)):
                    return
            self._ray.get(self._desk.end.remote(first))
        except self._ray.exceptions.RayError:  # the desk is gone, which is found out elsewhere
            return
        # Of a source; whoever watches the job raises it. A panic in Rust, or an exit, is no
        # Exception, and nobody else would tell the readers that there is nothing more.
        except BaseException as error:
            self._source_error = error
            self._over.set()


def with_gpus(found: Sequence[Node]) -> Sequence[Node]:
    """The nodes that engines on GPUs can be on; where there is no GPU, all of them."""
    return [node for node in found if node.gpus] or found


def _free() -> dict[str, float]:
    """What nobody uses; what a job before this one has left is free a moment later."""
    import ray

    every, until = ray.cluster_resources(), time.monotonic() + _FREED_SECONDS
    while True:
        free: dict[str, float] = ray.available_resources()
        unused = all(free.get(name, 0) >= every.get(name, 0) for name in ("CPU", "GPU"))
        if unused or time.monotonic() > until:
            return free
        time.sleep(0.1)


def gpus(given: dict[str, Any]) -> int:
    """GPUs of one engine, of the arguments of an encoder."""
    return int(given.get("tensor_parallel_size", 1)) * int(given.get("pipeline_parallel_size", 1))


def is_for_cpus(version: str | None) -> bool:
    """Whether a vllm of this package and version is a build for CPUs."""
    return version is not None and "cpu" in version


def error_of(kind: str, message: str) -> EmbcacheError:
    """An error of embcache that was raised on another node.

    Args:
        kind: Name of its class.
        message: Its text.
    """
    try:
        found: EmbcacheError = getattr(errors, kind)(message)
    except (AttributeError, TypeError):  # none of embcache's, or one that says more than a text
        return ClusterError(message)
    return found


def _ask_for_dtype(recipe: Callable[[], VllmEncoderWrapper]) -> tuple[str | None, str]:
    try:
        return None, recipe().settled_dtype()
    except EmbcacheError as error:
        return type(error).__name__, str(error)


@contextmanager
def _data_context() -> Iterator[None]:
    """Ray Data's settings while a data set is made, which keeps them."""
    from ray.data import DataContext

    wanted = {
        "target_max_block_size": _ROW,
        "max_errored_blocks": 0,  # else texts would be left out without a word
        "enable_progress_bars": False,
        "enable_operator_progress_bars": False,
    }
    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in wanted}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, and shown once
    # A short source has fewer parts than there are replicas; its blocks are shared out.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
