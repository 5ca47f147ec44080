"""What embcache's two vLLM wrappers share: one model, its identity, its cache, its engine."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tqdm.auto import tqdm

from embcache.encoders.arguments import CacheArguments, EngineArguments
from embcache.encoders.experiment import experiment_meta
from embcache.encoders.new_space import say_what_differs
from embcache.encoders.registry import find_model_meta
from embcache.encoders.upstreams import find_upstreams, upstream_of
from embcache.engine.base import Engine
from embcache.engine.local_tokenizer import LocalTokenizer
from embcache.errors import DtypeMismatchError
from embcache.identity.dtype import AutoDtype
from embcache.identity.identity import (
    PROMPT_AND_TEXT,
    Identity,
    PromptHandling,
    normalize_dtype,
    vector_arguments,
)
from embcache.identity.machine_memo import Memo
from embcache.identity.pinned_arguments import PinnedArguments
from embcache.identity.weights import resolve_model
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.policies import check_policies
from embcache.pipeline.request import Request
from embcache.pipeline.result import Truncation
from embcache.pipeline.stats import EncodeStats
from embcache.store import VECTORS, Database, Layout
from embcache.store.forks import ForkLock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mteb.models import ModelMeta

logger = logging.getLogger(__name__)

MakeEngine = Callable[[str, str | None, dict[str, Any], str | None], Engine]
"""Makes an engine, without starting it. Its arguments are the model (hub name or directory), the
commit (None for a directory), the engine's arguments by name (dtype included), and the directory of
a LoRA adapter (None for none)."""


class VllmWrapperBase:
    """One model behind a cache: the base of the wrappers.

    Args:
        model: Hub name, model directory, or mteb's ModelMeta, whose revision then counts.
        revision: Branch, tag or commit; None for `main`. Without meaning for a directory.
        engine: Arguments that the engine is started with; those that change vectors are part of
            the identity.
        cache: Where results are kept, and what is done with them.
        make_engine: Makes the engine, which is started at the first miss.
        truncation: Cuts vectors on their way to the caller; None to return them whole.
        beside: What is part of the identity beside the engine's arguments, by name.

    Attributes:
        convert: What vLLM makes of the model: "embed", or "classify" for cross-encoders.
        mteb_model_meta: What mteb records about the model.
        stats: Counts of the last call, an `EncodeStats`.
        total: The sum of all `stats` of this object.

    Raises:
        ConfigError: An argument has a value that cannot work.
        ModelNotFoundError: There is no such model here, on the hub, or in the local hub cache.
        CacheError: The cache path is a file or cannot be written.
    """

    convert: ClassVar[Literal["embed", "classify"]]
    _layout: ClassVar[Layout] = VECTORS
    _model_type: ClassVar[str] = "dense"
    _prompt_handling: ClassVar[PromptHandling] = PROMPT_AND_TEXT

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelMeta,
        revision: str | None,
        engine: EngineArguments,
        cache: CacheArguments,
        make_engine: MakeEngine,
        truncation: Truncation | None = None,
        beside: Mapping[str, str] | None = None,
    ) -> None:
        check_policies(cache.on_miss, cache.on_write_error)
        settled = normalize_dtype(engine.dtype)
        arguments = engine.for_vllm()
        changing = vector_arguments({k: v for k, v in arguments.items() if k != "lora_request"})
        changing |= dict(beside or {})
        if self.convert != "embed":  # the default: identities of encoders do not name it
            changing["convert"] = self.convert
        writable = not cache.read_only and cache.on_miss == "encode"
        self._database = (
            None
            if cache.cache_path is None
            else Database(cache.cache_path, cache.storage_options, writable=writable)
        )
        self._upstreams = find_upstreams(
            cache.upstream,
            write=cache.upstream_write and not cache.read_only,
            database=self._database,
            storage_options=cache.storage_options,
        )
        self._write = writable or bool(self._upstreams and not cache.read_only)
        memo = Memo()
        if isinstance(model, (str, os.PathLike)):
            name = model = os.fspath(model)
        else:
            name, revision = str(model.name), model.revision
        self._source = resolve_model(name, revision, memo, arguments.get("hf_token"))
        self._pinned = PinnedArguments(arguments, changing, self._source, memo)
        self._meta: ModelMeta | None = find_model_meta(model, self._source, self._model_type)
        self.stats = EncodeStats()
        self.total = EncodeStats()
        self._cache = cache
        self._truncation = truncation
        self._identity = Identity(
            self._source.identity_name,
            self._source.revision,
            settled,
            self._pinned.identity,
            prompt_handling=self._prompt_handling.name,
        )
        self._requested = self._identity
        self._auto = AutoDtype(
            self._identity, self._source, self._pinned.engine, memo, self.convert
        )
        self._engine = make_engine(
            *self._source.load_from,
            {**self._pinned.engine, "dtype": settled},
            self._pinned.adapter,
        )
        self._checked = False  # whether what the engine loaded is what was pinned
        self._pipeline: Pipeline | None = None
        self._lock = ForkLock()  # two threads make one pipeline, and count in turn
        # At exit, or when nobody holds this object any more; atexit alone would hold it forever.
        weakref.finalize(self, self._engine.close)

    @property
    def mteb_model_meta(self) -> ModelMeta | None:
        """What mteb records about the model, and files its results under.

        Its `experiment_kwargs` say all that was set here and changes vectors or scores, as it is
        at the moment; with defaults they are None, as mteb's own wrapper has them.
        """
        if self._meta is None:
            return None
        return experiment_meta(self._meta, self._settings(), self._source.revision)

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta | None) -> None:
        self._meta = meta  # `ModelMeta.load_model` sets it

    def _settings(self) -> dict[str, Any]:
        """What the user set and what changes vectors or scores, by name."""
        settings = {k: v for k, v in self._requested.arguments.items() if k != "convert"}
        if self._requested.dtype != "auto":
            settings["dtype"] = self._requested.dtype
        return settings

    def cleanup(self) -> None:
        """Free the engine if it was started; the next miss starts it again."""
        self._engine.close()

    @property
    def identity(self) -> Identity:
        """The identity of this encoder's space; until the first call, its dtype may be "auto"."""
        return self._identity

    @property
    def engine_version(self) -> str:
        """Package and version of the engine, `vllm 0.32.0`, say."""
        return self._engine.version

    def local_tokenizer(self) -> LocalTokenizer:
        """The model's tokenizer, which counts tokens without an engine.

        Raises:
            ConfigError: It is not on this machine, or transformers cannot load it.
        """
        return LocalTokenizer(*self._source.load_from, self._pinned.engine)

    def _run(self, request: Request) -> npt.NDArray[np.float32]:
        """Values of a request, `(n, dim) float32`, row i = item i; updates `stats` and `total`."""
        values, stats = self.open_pipeline(show_progress=request.show_progress).encode(request)
        with self._lock:
            self.stats = stats
            self.total += stats
        return values

    def open_pipeline(self, *, show_progress: bool = False) -> Pipeline:
        """The pipeline of this model, with its identity settled and its space found.

        With dtype "auto", the first call may ask vLLM, which takes a while, or start the engine.

        Args:
            show_progress: Whether to say on the terminal that the engine is starting.

        Returns:
            The pipeline, the same one for every call.

        Raises:
            ConfigError: dtype is "auto", vllm is not installed, and the cache holds several dtypes.
            CacheError: The space cannot be read, or was written by a newer embcache.
            EngineError: dtype is "auto", and vLLM cannot say what that means, cannot be started,
                or is not installed while the cache holds nothing for this model.
        """
        with self._lock:
            self._checked = self._checked and self._engine.started
            if self._pipeline is None:
                self._pipeline = self._make_pipeline(show_progress)
            return self._pipeline

    def _make_pipeline(self, show_progress: bool) -> Pipeline:
        """Settle the identity and open its space; at the first call, since "auto" takes a while."""
        if self._identity.dtype == "auto" and (self._database is not None or self._upstreams):
            cached = self._cached_dtypes()
            dtype = self._settle_dtype(cached, show_progress)
            _say_if_other(dtype, cached)
            self._identity = self._identity.with_dtype(dtype)
        open_space = partial(
            Database.space,
            identity=self._identity,
            model=self._source.name,
            engine_version=self._engine.version,
            layout=self._layout,
            store_text=self._cache.store_text,
        )
        space = None
        if self._database is not None:
            compact = self._cache.compact_automatically
            space = open_space(self._database, compact_automatically=compact)
            say_what_differs(self._database, space)
        return Pipeline(
            self._engine,
            self._identity,
            space,
            on_miss=self._cache.on_miss,
            write=self._write,
            check_engine=self._check_engine,
            truncation=self._truncation,
            on_write_error=self._cache.on_write_error,
            canaries="at start" if self._cache.canaries else "never",
            upstream=upstream_of(
                self._upstreams, open_space, compact_automatically=self._cache.compact_automatically
            ),
        )

    def settled_dtype(self) -> str:
        """What this encoder's dtype is, "auto" settled without starting an engine.

        Raises:
            ConfigError: dtype is "auto", vllm cannot be asked, and the cache holds several.
            EngineError: dtype is "auto", and vLLM cannot say what that means, finds no device, or
                is not installed while the cache holds nothing for this model.
        """
        if self._identity.dtype != "auto":
            return self._identity.dtype
        cached = self._cached_dtypes()
        dtype = self._auto.settle(cached) or self._auto.ask()
        _say_if_other(dtype, cached)
        return dtype

    def _cached_dtypes(self) -> list[str]:
        """Dtypes in which the cache holds the model; where it holds none, those of an upstream."""
        own = [] if self._database is None else self._database.cached_dtypes(self._identity)
        upstream = (one.cached_dtypes(self._identity) for one in self._upstreams)
        return own or next(filter(None, upstream), [])

    def _settle_dtype(self, cached: list[str], show_progress: bool) -> str:
        if self._cache.on_miss == "raise" and not cached:
            return "auto"  # everything is missing, whatever it means
        dtype = self._auto.settle(cached)
        if dtype is None:
            # Everything is a miss, so the engine is needed anyway, and knows.
            if self._write and self._database is not None and self._cache.on_write_error == "raise":
                self._database.try_creating()
            with tqdm(
                desc="starting engine",
                bar_format="{desc}",
                leave=False,
                disable=not show_progress,
            ):
                self._engine.start()
            dtype = self._engine.dtype
            self._auto.remember(dtype)
        return dtype

    def _check_engine(self) -> None:
        if not self._checked:
            self._pinned.check()
            self._checked = True
        expected, actual = self._identity.dtype, self._engine.dtype
        if expected in ("auto", actual):
            return
        # What was remembered of "auto" is no longer so; the next call knows better.
        self._auto.remember(actual)
        self._pipeline, self._identity = None, self._requested
        raise DtypeMismatchError(
            f"The engine runs in {actual}, and dtype={self._requested.dtype!r} was taken for "
            f"{expected}: nothing was written to that space. Run again, or name the dtype."
        )


def _say_if_other(dtype: str, cached: list[str]) -> None:
    """Warn where the cache holds the model, but in other dtypes."""
    if cached and dtype not in cached:
        logger.warning(
            "dtype='auto' means %s here, and the cache holds this model in %s: nothing of it is "
            "used. Name that dtype to use it.",
            dtype,
            ", ".join(cached),
        )
