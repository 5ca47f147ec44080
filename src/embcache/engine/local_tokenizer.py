"""Counts tokens with the model's own tokenizer where it lies on this machine: no engine, no hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embcache.engine.runs import runs, text_sizes
from embcache.engine.vllm_tokens import TOKENIZED_BYTES, one_by_one
from embcache.errors import ConfigError
from embcache.identity.hub import local_json

logger = logging.getLogger(__name__)

_NO_LIMIT = 10**9  # where a tokenizer knows no limit, transformers says 10**30


class LocalTokenizer:
    """A model's tokenizer, which counts as the engine would, or nearly.

    Which class of tokenizer vLLM takes, and where it cuts, is vLLM's decision; this one asks
    transformers, and takes the lowest limit that the model's files name.

    Args:
        model: Hub name or directory.
        revision: Commit of the hub snapshot; None for a directory.
        arguments: Arguments of `vllm.EngineArgs`, of which those that name another tokenizer, or
            another limit, count.

    Attributes:
        limit: Tokens after which a text is cut; None where none is known.

    Raises:
        ConfigError: There is no tokenizer here that transformers can load; says why.
    """

    def __init__(self, model: str, revision: str | None, arguments: Mapping[str, Any]) -> None:
        from transformers import AutoTokenizer

        own = arguments.get("tokenizer")
        where = {
            "revision": arguments.get("tokenizer_revision") if own else revision,
            "local_files_only": True,
            "trust_remote_code": bool(arguments.get("trust_remote_code")),
        }
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(own or model, **where)
        except Exception as error:  # of many kinds, from many libraries; all mean the same here
            said = str(error).strip().split("\n")[0].rstrip(".")
            raise ConfigError(
                f"The tokenizer of {own or model} cannot be loaded here: {type(error).__name__}: "
                f"{said}."
            ) from error
        # Without its files, transformers makes some classes with no vocabulary but special tokens.
        if len(self._tokenizer) <= len(set(self._tokenizer.all_special_ids)):
            raise ConfigError(f"{own or model} has no vocabulary of a tokenizer here.")
        given = arguments.get("max_model_len")
        self.limit = given or _lowest_limit(model, where | {"revision": revision}, self._tokenizer)

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Count tokens.

        Args:
            texts: `n` texts, prompts included.

        Returns:
            `(n,) int64`, special tokens included, after truncation; 0 for a text that the tokenizer
            refuses.
        """
        cut = {"truncation": True, "max_length": self.limit} if self.limit else {}
        counts = np.zeros(len(texts), np.int64)
        for run in runs(text_sizes(texts), TOKENIZED_BYTES):
            some = list(texts[run])
            try:
                ids = self._tokenizer(some, **cut)["input_ids"]
            except Exception:  # one text fails the call for all
                ids, _ = one_by_one(some, lambda text: self._tokenizer(text, **cut)["input_ids"])
            counts[run] = [len(each) for each in ids]
        return counts


def _lowest_limit(model: str, where: Mapping[str, Any], tokenizer: Any) -> int | None:
    """Of the limits that configuration, Sentence Transformers' file and tokenizer name."""
    from transformers import AutoConfig

    limits = [tokenizer.model_max_length]
    try:
        config = AutoConfig.from_pretrained(model, **where).get_text_config()
        limits.append(getattr(config, "max_position_embeddings", None))
    except Exception as error:  # a model of a new kind; the other limits have to do
        logger.info("The configuration of %s cannot be read here: %s", model, error)
    # What Sentence Transformers cuts at, which vLLM keeps to.
    sentence_bert = local_json(model, "sentence_bert_config.json", where["revision"])
    limits.append(sentence_bert.get("max_seq_length"))
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _NO_LIMIT]
    return min(known, default=None)
