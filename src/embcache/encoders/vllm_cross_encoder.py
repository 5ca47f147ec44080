"""A drop-in for mteb's vLLM cross-encoder."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embcache.encoders.arguments import CacheArguments, EngineArguments, PairArguments, takes
from embcache.encoders.inputs import read_texts
from embcache.encoders.vllm_base import MakeEngine, VllmWrapperBase
from embcache.engine.vllm import VllmScoringEngine
from embcache.errors import ConfigError, shown
from embcache.identity.home import working_directory
from embcache.identity.identity import PREFIXED_PAIR
from embcache.pipeline.request import PairRequest
from embcache.store import SCORES

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import BatchedInput, PromptType
    from torch.utils.data import DataLoader


class VllmCrossEncoderWrapper(VllmWrapperBase):
    """mteb's `VllmCrossEncoderWrapper`, with a cache in front of the engine.

    A pair of texts is scored once: reranking the same candidates again sends nothing to vLLM, and
    needs neither vllm nor a GPU.

    Args:
        model: Hub name, model directory, or mteb's ModelMeta: a sequence classification model with
            one label.
        revision: As for `VllmEncoderWrapper`, like every argument that is not listed here.
        query_prefix: Put in front of every query (`inputs1`).
        document_prefix: Put in front of every document (`inputs2`).
        query_suffix: Put behind every query.
        document_suffix: Put behind every document.
        chat_template: The Jinja template by which `LLM.score` makes one text of a pair, whose
            messages have the roles `query` and `document`; or a file that holds it, of which the
            content counts. None lets vLLM join them as it does for the model.
        cache_path: Directory or URL of the cache; None for no cache. It may be the one of an
            encoder.
        storage_options: What the store of a URL needs to be opened, as for `VllmEncoderWrapper`.
        on_miss: "encode" sends pairs that are not cached to the engine; "raise" never starts an
            engine and raises MissingTextsError instead.
        read_only: Whether to use the cache and write nothing to it.
        on_write_error: What happens where the cache cannot be written (disk full, quota, a folder
            that is gone or made read-only): "warn" goes on without writing, says so once, and tries
            again in the next call; "raise" raises CacheWriteError.
        store_text: Whether a new space keeps both texts and prefixes beside each score.
        canaries: Whether to encode a few pairs of embcache's own whenever the engine has started,
            and to raise ChangedModelError where the space has other scores for them: the engine is
            then not the one that filled it. They are compared before anything is written.
        compact_automatically: Whether to merge small files and remove old ones in the background,
            after commits, when it pays; readers and other writers are not disturbed.
        upstream: A cache, or several, in which is looked for what `cache_path` has not, before an
            engine is started: a team's. What is found is checked and kept in `cache_path`, unless
            `read_only`. None is what EMBCACHE_UPSTREAM names, several separated by commas; [] is
            none. One that is out of reach or damaged is warned of, and the run goes on without.
        upstream_write: Whether what is encoded is written to the first upstream too, if it may be.
        make_engine: Makes another engine than vLLM's, as for `VllmEncoderWrapper`.
        **kwargs: Any further argument of `vllm.EngineArgs`, as for `VllmEncoderWrapper`.

    Attributes:
        mteb_model_meta: What mteb records about the model.
        stats: Counts of the last `predict`, in pairs, an `EncodeStats`.
        total: The sum of all `stats` of this object.

    Raises:
        ConfigError: An argument has a value that cannot work. It is a ValueError too, as in mteb.
        ModelNotFoundError: There is no such model here, on the hub, or in the local hub cache.
        CacheError: The cache path is a file or cannot be written.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """

    convert = "classify"
    _layout = SCORES
    _model_type = "cross-encoder"
    _prompt_handling = PREFIXED_PAIR

    @takes(EngineArguments, PairArguments, CacheArguments)
    def __init__(
        self,
        model: str | os.PathLike[str] | ModelMeta,
        revision: str | None = None,
        query_prefix: str = "",
        document_prefix: str = "",
        *,
        make_engine: MakeEngine | None = None,
        **kwargs: Any,
    ) -> None:
        self.query_prefix = query_prefix
        self.document_prefix = document_prefix
        pair = PairArguments.taken_from(kwargs)
        cache = CacheArguments.taken_from(kwargs)
        engine = EngineArguments.taken_from(kwargs, for_vllm=make_engine is None)
        make_engine = VllmScoringEngine if make_engine is None else make_engine
        if pair.chat_template is not None:
            template = _read_template(pair.chat_template)
            engine = dataclasses.replace(engine, other={**engine.other, "chat_template": template})
        names = ("query_suffix", "document_suffix")
        suffixes = {name: text for name in names if (text := getattr(pair, name))}
        self._suffixes = (pair.query_suffix, pair.document_suffix)
        super().__init__(model, revision, engine, cache, make_engine, beside=suffixes)

    def predict(
        self,
        inputs1: DataLoader[BatchedInput],
        inputs2: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> npt.NDArray[np.float32]:
        """Scores of pairs, from the cache where it has them.

        Args:
            inputs1: DataLoader whose batches have a `text` list, `n` queries in all.
            inputs2: DataLoader like it, of `n` documents; the i-th belongs to the i-th query.
            task_metadata: Metadata of the task, whose name is noted beside new rows.
            hf_split: Split of the task; changes nothing.
            hf_subset: Subset of the task; changes nothing.
            prompt_type: Changes nothing, as in mteb.
            **kwargs: mteb's encode kwargs. `show_progress_bar=False` silences the progress bar;
                `batch_size` has no meaning here, the engine batches by tokens.

        Returns:
            `(n,) float32`, row i = score of the i-th pair, as `LLM.score` gives it.

        Raises:
            InputError: The inputs are no DataLoaders with texts alone; there are not as many
                queries as documents; or a text has no UTF-8 form.
            ConfigError: dtype is "auto", vllm is not installed, and the cache holds several dtypes.
            MissingTextsError: Pairs are not cached, and `on_miss="raise"`.
            CacheError: The cache cannot be read or written.
            EngineError: vLLM does not start, or fails.
            NonFiniteError: vLLM returned NaN or infinity.
        """
        request = PairRequest(
            began=time.perf_counter(),
            queries=read_texts(inputs1),
            documents=read_texts(inputs2),
            prefixes=(self.query_prefix, self.document_prefix),
            suffixes=self._suffixes,
            task=task_metadata.name,
            show_progress=bool(kwargs.get("show_progress_bar", True)),
        )
        return self._run(request).reshape(-1)

    def _settings(self) -> dict[str, Any]:
        prefixes = {"query_prefix": self.query_prefix, "document_prefix": self.document_prefix}
        return super()._settings() | {name: text for name, text in prefixes.items() if text}


def _read_template(template: str | os.PathLike[str]) -> str:
    """The text of a chat template: as vLLM's `--chat-template`, a file or the template itself.

    Raises:
        ConfigError: It is neither, or is no Jinja template.
    """
    import jinja2  # comes with torch

    given = os.fspath(template)
    is_text = isinstance(template, str) and any(character in given for character in "{}\n")
    if is_text:
        text = given
    elif Path(given).is_file():
        text = Path(given).read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"chat_template={given!r} is neither a file here (working directory: "
            f"{working_directory()}) nor a Jinja template: it has no braces. Give one of the two."
        )
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"chat_template={shown(given)} is no Jinja template: line {error.lineno}: "
            f"{error.message}. Mend it: vLLM would fail on every pair."
        ) from error
    return text
