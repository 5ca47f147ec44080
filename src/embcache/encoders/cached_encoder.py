"""A cache in front of any mteb encoder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from embcache.encoders.experiment import experiment_meta
from embcache.encoders.inputs import read_items
from embcache.encoders.live_settings import changed_settings
from embcache.encoders.model_request import ModelRequest, text_parts
from embcache.encoders.new_space import say_what_differs
from embcache.encoders.registry import truncated_meta, warn_if_untrained
from embcache.encoders.upstreams import Place, find_upstreams, upstream_of
from embcache.encoders.wrapped_model import as_mteb_encoder, display_name
from embcache.engine.mteb_model import ModelCall, ModelEngine
from embcache.engine.pools import call_pool
from embcache.errors import ConfigError
from embcache.identity.home import home_needed
from embcache.identity.identity import LOCAL, Identity, canonical
from embcache.identity.live_model import (
    LiveModel,
    base_identity,
    hugging_face_config,
    sentence_transformer,
)
from embcache.identity.prompt_rules import Call, find_rule
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.policies import OnMiss, OnWriteError, check_policies
from embcache.pipeline.result import Truncation
from embcache.pipeline.stats import EncodeStats
from embcache.store import Database
from embcache.store.forks import ForkLock

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import EncoderProtocol, ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import Array, BatchedInput, PromptType
    from sentence_transformers import SentenceTransformer
    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

# Encode kwargs that change no vector.
_SPEED_KWARGS = frozenset(
    {"batch_size", "chunk_size", "convert_to_numpy", "convert_to_tensor", "device", "num_proc"}
    | {"pool", "show_progress_bar"}
)
# Where encoders whose rule is known have their prompts, which stand in each key as applied.
_PROMPT_NAMES = frozenset(
    {"model_prompts", "prompts_dict", "prompts", "default_prompt_name", "use_instructions"}
    | {"instruction_template", "apply_instruction_to_passages"}
)


class CachedEncoder:
    """Any mteb encoder, with a cache in front of it.

    The encoder may be of Sentence Transformers, an endpoint, or a class of your own: each text is
    sent to it once. A text is a hit where all of these are the same: the model's name, revision and
    experiment settings (its ModelMeta), its weights and everything else that can be reached from it
    in memory (buffers, adapters, tokenizer, hooks, attributes), the encode kwargs, `identity`, and
    the prompt as the model applies it. If that is not known, task, subset, split and prompt type
    stand in for it. What cannot be looked into, an endpoint, say, is compared by canaries.

    Args:
        model: An mteb encoder, or a SentenceTransformer.
        cache_path: Directory or URL of the cache; None for no cache.
        storage_options: What the store of a URL needs to be opened (keys, region, endpoint), by
            name, as Lance's `storage_options`; None for the environment's and the machine's usual
            credentials. Upstreams get them, too. They are noted nowhere, and in no identity.
        identity: What else decides the vectors, as plain values by name:
            `{"server": "vllm 0.32, float16"}`, say.
        applied_prompt: For encoders whose prompts embcache does not know: a function of task
            metadata and prompt type that returns the prompt which the encoder applies. Texts are
            then shared between tasks with the same prompt.
        on_miss: "encode" sends texts that are not cached to the model; "raise" never calls the
            model and raises MissingTextsError instead.
        read_only: Whether to use the cache and write nothing to it.
        on_write_error: What happens where the cache cannot be written (disk full, quota, a folder
            that is gone or made read-only): "warn" goes on without writing, says so once, and tries
            again in the next call; "raise" raises CacheWriteError.
        store_text: Whether a new space keeps text and prompt beside each vector.
        canaries: Whether to encode a few texts of embcache's own in each run, and to raise
            ChangedModelError where the space has other vectors for them: the model is then not
            the one that filled it. They are compared before the first hit.
        compact_automatically: Whether to merge small files and remove old ones in the background,
            after commits, when it pays; readers and other writers are not disturbed.
        upstream: A cache, or several, in which is looked for what `cache_path` has not, before the
            model is called: a team's. What is found is checked and kept in `cache_path`, unless
            `read_only`. None is what EMBCACHE_UPSTREAM names, several separated by commas; [] is
            none. One that is out of reach or damaged is warned of, and the run goes on without.
        upstream_write: Whether what is encoded is written to the first upstream too, if it may be.
        truncate_dim: Return only the first so many components of each vector (Matryoshka), see
            `VllmEncoderWrapper`; None for all.

    Attributes:
        mteb_model_meta: The ModelMeta of the model, under which mteb keeps results of other
            settings apart.
        stats: Counts of the last `encode`, an `EncodeStats`.
        total: The sum of all `stats` of this object.

    Raises:
        ConfigError: The model is no encoder, its vectors cannot be cached by text, it has neither
            name nor revision nor `identity`, or another argument cannot work.
        CacheError: The cache path is a file or cannot be written.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """

    def __init__(
        self,
        model: EncoderProtocol | AbsEncoder | SentenceTransformer,
        cache_path: str | os.PathLike[str] | None = "cache",
        *,
        storage_options: Mapping[str, str] | None = None,
        identity: Mapping[str, Any] | None = None,
        applied_prompt: Callable[[TaskMetadata, PromptType | None], str] | None = None,
        on_miss: OnMiss = "encode",
        read_only: bool = False,
        on_write_error: OnWriteError = "warn",
        store_text: bool = True,
        canaries: bool = True,
        compact_automatically: bool = True,
        upstream: Place | Sequence[Place] | None = None,
        upstream_write: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        with home_needed():
            from mteb.models import ModelMeta

        check_policies(on_miss, on_write_error)
        if isinstance(model, CachedEncoder):
            raise ConfigError("CachedEncoder has a cache already. Use it as it is.")
        self._model = as_mteb_encoder(model)
        self._truncation = None if truncate_dim is None else Truncation(truncate_dim)
        self._on_miss: OnMiss = on_miss
        self._on_write_error: OnWriteError = on_write_error
        self._store_text = store_text
        self._canaries = canaries
        self._compact_automatically = compact_automatically
        meta = getattr(self._model, "mteb_model_meta", None) or ModelMeta.create_empty()
        self._meta: ModelMeta = meta
        self._extra: dict[str, Any] = {"identity": dict(identity)} if identity else {}
        if applied_prompt is not None:
            self._extra["applied_prompt"] = applied_prompt
        self._rule = find_rule(self._model, applied_prompt)
        self._live = LiveModel(self._model, _PROMPT_NAMES if self._rule.known else frozenset())
        self._base = base_identity(self._model, meta, self._live, self._rule, identity)
        self._name = display_name(self._model, meta)
        writable = not read_only and on_miss == "encode"
        self._database = (
            None if cache_path is None else Database(cache_path, storage_options, writable=writable)
        )
        self._upstreams = find_upstreams(
            upstream,
            write=upstream_write and not read_only,
            database=self._database,
            storage_options=storage_options,
        )
        self._write = writable or bool(self._upstreams and not read_only)
        self._pipelines: dict[str, Pipeline] = {}
        self._lock = ForkLock()  # two threads make one pipeline, and count in turn
        self._model_lock = ForkLock()  # all pipelines call one model
        self._warned = False
        self._seen: dict[str, Any] | None = None
        self.stats = EncodeStats()
        self.total = EncodeStats()
        if truncate_dim is not None:
            warn_if_untrained(truncate_dim, meta, hugging_face_config(self._model))

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb records about the model, and files its results under.

        Its `experiment_kwargs` are the model's own and what they do not say: `identity`,
        `applied_prompt`, `truncate_dim`, and what was changed of the model since it was loaded.
        Around a model as mteb loads it, results are filed as those of the model itself.
        """
        # The revision of a directory is its content, as with the vLLM wrappers.
        revision = self._base.revision if self._base.model == LOCAL else None
        changed = changed_settings(
            self._model, self._live, self._look(), self._meta, self._base.revision
        )
        meta = experiment_meta(self._meta, {**changed, **self._extra}, revision)
        return meta if self._truncation is None else truncated_meta(meta, self._truncation.dim)

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: ModelMeta) -> None:
        self._meta = meta

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Vectors of the inputs' texts, from the cache where it has them.

        Inputs with images, audio or video go to the model as they are, uncached. What the model
        itself raises is passed on, if it fails on other texts too; what it cannot encode by itself
        is refused, once all others are cached. With Sentence Transformers and several devices
        (`device=["cuda:0", "cuda:1"]`) one pool of processes is started for the call, if anything
        is missing.

        Args:
            inputs: DataLoader whose batches have a `text` list.
            task_metadata: Passed on to the model; its name is noted beside new rows.
            hf_split: Split of the task; passed on to the model.
            hf_subset: Subset of the task; passed on to the model.
            prompt_type: Query, document or None; passed on to the model.
            **kwargs: mteb's encode kwargs, passed on to the model. All but those that only change
                speed (`batch_size`, `show_progress_bar`, ...) are part of the identity.

        Returns:
            `(n, dim) float32`, row i = i-th text of the inputs; `dim` is `truncate_dim`, if given.
            With Sentence Transformers and a `precision`, these vectors quantised to it.

        Raises:
            InputError: The inputs are no DataLoader with texts, or a text has no UTF-8 form.
            ConfigError: An encode kwarg has no canonical form, or `truncate_dim` is larger than
                the model's vectors.
            MissingTextsError: Texts are not cached, and `on_miss="raise"`.
            CacheError: The cache cannot be read or written.
            EngineError: The model's memory does not suffice for a single text, or it fails again
                and again.
            WrongOutputError: The model did not return one vector for each text.
            RefusedTextsError: The model fails on single texts, or makes NaN or infinity of them.
            NonFiniteError: The model returned NaN or infinity for at least half of a chunk.
            ChangedModelError: The model is not the one that filled the space.
        """
        began = time.perf_counter()
        call = Call(task_metadata, prompt_type, hf_subset, hf_split)
        circumstances = {
            "task_metadata": task_metadata,
            "hf_split": hf_split,
            "hf_subset": hf_subset,
            "prompt_type": prompt_type,
        }
        items = read_items(inputs)
        if items is None:
            return self._pass_through(inputs, circumstances | kwargs)
        precision = self._own_precision(kwargs)
        arguments = {**circumstances, **kwargs, "show_progress_bar": False}
        pool = call_pool(sentence_transformer(self._model), kwargs)
        request = ModelRequest(
            texts=items.texts,
            prompt_type=None if prompt_type is None else str(getattr(prompt_type, "value", "")),
            task=task_metadata.name,
            show_progress=bool(kwargs.get("show_progress_bar", True)),
            began=began,
            applied=self._rule.apply(call),
            parts=None if self._rule.known else text_parts(items),
            call=ModelCall(items.dataset, items.collate_fn, arguments, pool),
            pads=sentence_transformer(self._model) is not None,
        )
        with pool or nullcontext():
            vectors, stats = self._pipeline(kwargs).encode(request)
        with self._lock:
            self.stats = stats
            self.total += stats
        return vectors if precision is None else _quantize(vectors, precision)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Similarities of all pairs, computed by the wrapped model.

        Args:
            embeddings1: `(n, dim)` vectors.
            embeddings2: `(m, dim)` vectors.

        Returns:
            `(n, m)` similarities.
        """
        return self._model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Similarities of row i with row i, computed by the wrapped model.

        Args:
            embeddings1: `(n, dim)` vectors.
            embeddings2: `(n, dim)` vectors.

        Returns:
            `(n,)` similarities.
        """
        return self._model.similarity_pairwise(embeddings1, embeddings2)

    @property
    def identity(self) -> Identity:
        """The identity of the vectors that a call without further encode kwargs would return."""
        return self._identity({})

    def _identity(self, kwargs: Mapping[str, Any]) -> Identity:
        changing = {
            name: canonical(value, name)
            for name, value in kwargs.items()
            if name not in _SPEED_KWARGS and value is not None
        }
        if changing.get("precision") == "float32":
            del changing["precision"]
        arguments = {**self._base.arguments, **self._look()}
        if changing:
            arguments["encode_kwargs"] = changing
        return self._base.with_arguments(arguments).with_dtype(self._live.dtype())

    def _look(self) -> dict[str, Any]:
        """What the model is like, for its identity; as it was, while another thread calls it."""
        if self._model_lock.acquire(blocking=self._seen is None):
            try:
                found = self._live.look()
                if self._seen is None and self._live.closed:
                    self._ask_about(self._live.closed)
                self._seen = found
            finally:
                self._model_lock.release()
        assert self._seen is not None
        return self._seen

    def _ask_about(self, closed: Mapping[str, str]) -> None:
        """Say what could not be looked into; without canaries, the user has to say what it is."""
        listed = ", ".join(f"{path} ({kind})" for path, kind in [*closed.items()][:5])
        if not self._canaries and "identity" not in self._extra:
            raise ConfigError(
                f"{self._name} holds what embcache cannot look into, {listed}, and canaries=False: "
                "a change there would not be noticed. Say what decides its vectors, and change "
                'that when it changes: identity={"server": "v1"}; or leave canaries on.'
            )
        logger.info(
            "%s holds what embcache cannot look into: %s. %s",
            self._name,
            listed,
            "Canaries tell whether its vectors change."
            if self._canaries
            else "What identity= says stands for it.",
        )

    def _pipeline(self, kwargs: Mapping[str, Any]) -> Pipeline:
        with self._lock:
            identity = self._identity(kwargs)
            key = identity.to_json()
            if key not in self._pipelines:
                self._pipelines[key] = self._make_pipeline(identity)
            return self._pipelines[key]

    def _make_pipeline(self, identity: Identity) -> Pipeline:
        engine = ModelEngine(self._model, identity.dtype, self._live.settle)
        open_space = partial(
            Database.space,
            identity=identity,
            model=self._name,
            engine_version=engine.version,
            store_text=self._store_text,
        )
        space = None
        if self._database is not None:
            compact = self._compact_automatically
            space = open_space(self._database, compact_automatically=compact)
            say_what_differs(self._database, space)
        return Pipeline(
            engine,
            identity,
            space,
            on_miss=self._on_miss,
            write=self._write,
            truncation=self._truncation,
            on_write_error=self._on_write_error,
            engine_lock=self._model_lock,
            canaries="before hits" if self._canaries else "never",
            upstream=upstream_of(
                self._upstreams, open_space, compact_automatically=self._compact_automatically
            ),
        )

    def _own_precision(self, kwargs: dict[str, Any]) -> str | None:
        """Take `precision` out of the kwargs where it is better applied here.

        Sentence Transformers quantises all vectors of a call together: int8 values depend on the
        other texts. So the float vectors are cached, and quantised in the same way at the end.
        """
        if not self._rule.known or sentence_transformer(self._model) is None:
            return None
        precision = kwargs.pop("precision", None)
        return None if precision in (None, "float32") else str(precision)

    def _pass_through(self, inputs: Any, arguments: dict[str, Any]) -> Array:
        if not self._warned:
            self._warned = True
            logger.warning(
                "Task %s has inputs that are not text alone (images, audio, video): they go to %s "
                "uncached, here and in the rest of this run.",
                arguments["task_metadata"].name,
                self._name,
            )
        with self._model_lock:
            try:
                return self._model.encode(inputs, **arguments)
            finally:
                self._live.settle()


def _quantize(vectors: Any, precision: str) -> Any:
    from sentence_transformers.util import quantize_embeddings

    return quantize_embeddings(vectors, precision=precision) if len(vectors) else vectors
