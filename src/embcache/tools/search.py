"""Looking into a space by text: the row of one, its neighbours, and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embcache.errors import CacheError, ConfigError, MissingTextsError, shown
from embcache.identity import keys as key_bytes
from embcache.identity.keys import Keys, pair_keys, text_keys
from embcache.pipeline.cosine import cosines
from embcache.store import VECTORS, Space
from embcache.store.lance_errors import READ_FIX, lance_errors
from embcache.store.verify import batch_keys, key_fits

_PROMPTS_NAMED = 5
_CASES = (str.lower, str.capitalize, str.upper)


@dataclass(frozen=True)
class CachedText:
    """A row, verified.

    Attributes:
        texts: The text; for a score, query and document.
        prompts: What is put in front of each.
        n_tokens: Tokens that the model saw; None where that is not known.
        value: `(dim,) float32`; for a score, `(1,)`.
        key: `(1, 2) uint64`.
    """

    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    n_tokens: int | None
    value: npt.NDArray[np.float32]
    key: Keys


@dataclass(frozen=True)
class Match:
    """A cached text that a search found; `score` is the cosine, or BM25 for words."""

    text: str | None
    prompt: str | None
    score: float


def find_text(space: Space, texts: Sequence[str], prompts: Sequence[str] = ()) -> CachedText:
    """A cached text, or pair of texts, found by its key.

    Args:
        space: The space.
        texts: One text; query and document for a space of scores.
        prompts: What is put in front of each; none is "".

    Raises:
        ConfigError: There are too many, or too few, texts or prompts for this space.
        InputError: A text has no UTF-8 form.
        MissingTextsError: It is not there; names the prompts under which it is.
        CacheError: Its row is damaged, or the table cannot be read.
    """
    snapshot = space.refresh()
    width = 1 if space.layout is VECTORS else 2
    prompts = tuple(prompts) or ("",) * width
    if len(texts) != width or len(prompts) != width:
        holds = "vectors: give one text" if width == 1 else "scores: give a query and a document"
        raise ConfigError(f"{space.location} holds {holds}, and as many prompts, or none.")
    identity = space.identity.to_bytes()
    if width == 1:
        key = text_keys(identity, prompts[0], [texts[0]])
    else:
        key = pair_keys(identity, (prompts[0], prompts[1]), [texts[0]], [texts[1]])
    position = snapshot.find(key)
    if position[0] < 0:
        raise MissingTextsError(_missing(space, texts, prompts), 1)
    value, damaged = snapshot.read_all(position, key)
    if damaged[0]:
        raise CacheError(
            f"{space.location} has a row for {shown(texts[0])}, but it fails its checksum. The "
            "next run that needs it drops it and encodes it again."
        )
    n_tokens = snapshot.take(position, ["n_tokens"]).column("n_tokens")[0].as_py()
    return CachedText(tuple(texts), prompts, n_tokens, value[0], key)


def find_or_embed(
    space: Space, text: str, prompt: str | None, *, may_embed: bool
) -> CachedText | None:
    """A cached text, or the decision that it is to be embedded.

    Args:
        space: A space of vectors.
        text: The text.
        prompt: What is put in front of it; None for nothing, unless it is cached with some prompt
            and not without: which one is meant is then for the caller to say.
        may_embed: Whether a text that is not cached may be embedded.

    Returns:
        The text's row; None where it is to be embedded.

    Raises:
        MissingTextsError: It is not cached and may not be embedded, or it is cached with other
            prompts and none was given.
        ConfigError: The space holds scores.
        CacheError: The row is damaged, or the table cannot be read.
    """
    try:
        return find_text(space, [text], [prompt or ""])
    except MissingTextsError:
        if not may_embed or (prompt is None and prompts_of(space, [text])):
            raise
        return None


def prompts_of(space: Space, texts: Sequence[str]) -> list[tuple[str | None, ...]] | None:
    """The prompts under which a text, or a pair of texts, is cached; some, where they are many.

    Args:
        space: The space.
        texts: One text; query and document for a space of scores.

    Returns:
        A tuple for each, None for a prompt that is not known; or None where no texts are stored.

    Raises:
        CacheError: The table cannot be read.
    """
    snapshot = space.refresh()
    names = space.layout.texts
    if not set(names) <= set(snapshot.columns):
        return None
    wanted, prompt_names = names[: len(texts)], names[len(texts) :]
    found: dict[tuple[str | None, ...], None] = {}
    for batch in snapshot.scan(names):
        same = pa.array(np.ones(batch.num_rows, bool))
        for name, text in zip(wanted, texts, strict=True):
            same = pc.and_kleene(same, pc.equal(batch.column(name), text))
        for row in batch.select(list(prompt_names)).filter(same).to_pylist():
            found[tuple(row.values())] = None
        if len(found) > _PROMPTS_NAMED:
            break
    return [*found]


def nearest(
    space: Space,
    vector: npt.NDArray[np.float32],
    count: int,
    besides: Keys | None = None,
) -> list[Match]:
    """The cached texts whose vectors have the largest cosine with a vector.

    The candidates are LanceDB's; each cosine is computed from a row that passed its checksum.

    Args:
        space: A space of vectors.
        vector: `(dim,) float32`.
        count: How many, at most.
        besides: `(1, 2) uint64`, the key of a row to leave out.

    Raises:
        CacheError: Lance cannot read the table.
    """
    with lance_errors("Searching", space.location, READ_FIX):
        table = space.table()
        columns = ["key", *_stored(table.schema, VECTORS.texts)]
        # More than asked for: the text itself, duplicates and damaged rows are left out.
        query: Any = table.search(vector, vector_column_name="vector")
        found = query.distance_type("cosine").limit(2 * count + 1)
        rows = _fitting(found.select([*columns, "_distance"]).to_arrow(), space)
    rows = _distinct(rows, b"" if besides is None else key_bytes.to_bytes(besides))
    if not rows:
        return []
    snapshot = space.refresh()
    keys = key_bytes.from_bytes(b"".join(row["key"] for row in rows))
    positions = snapshot.find(keys)
    there = np.flatnonzero(positions >= 0)  # all, but for rows deleted in the meantime
    vectors, damaged = snapshot.read_all(positions[there], keys[there])
    angles = cosines(vectors, vector[None])
    best = [
        Match(rows[i].get("text"), rows[i].get("prompt"), float(angle))
        for i, angle, bad in zip(there, angles, damaged, strict=True)
        if not bad
    ]
    return sorted(best, key=lambda match: -match.score)[:count]


def search_words(space: Space, words: str, count: int, prompt: str | None = None) -> list[Match]:
    """The cached texts that fit some words best, by BM25; nothing is written to the table.

    Without an index, LanceDB compares words as they are spelt: no stemming, and of upper and lower
    case the usual forms are tried.

    Args:
        space: A space of vectors.
        words: To look for in the texts; the prompts are not searched.
        count: How many, at most.
        prompt: Only texts with this prompt.

    Raises:
        ConfigError: The space holds scores, or no texts.
        CacheError: Lance cannot read the table.
    """
    with lance_errors("Searching", space.location, READ_FIX):
        table = space.table()
        columns = _stored(table.schema, VECTORS.texts)
        if "text" not in columns:
            raise ConfigError(
                f"{space.location} has no column of texts, so no words can be searched."
            )
        forms = {f(w): None for w in words.split() for f in (str, *_CASES)}
        query = table.search(" ".join(forms), query_type="fts", fts_columns="text").limit(2 * count)
        if prompt is not None:
            quoted = prompt.replace("'", "''")
            query = query.where(f"prompt = '{quoted}'", prefilter=True)
        rows = _fitting(query.select(["key", *columns, "_score"]).to_arrow(), space)
    return [Match(r["text"], r.get("prompt"), r["_score"]) for r in _distinct(rows)][:count]


def _missing(space: Space, texts: Sequence[str], prompts: Sequence[str]) -> str:
    """Why a text is not found, and what would find it."""
    tried = " and ".join(map(repr, prompts))
    found = prompts_of(space, texts)
    if found is None:
        return (
            f"{shown(texts[0])} is not in {space.location} with prompt {tried}; the space has no "
            "texts, so other prompts cannot be looked for."
        )
    where = " and ".join(shown(text) for text in texts)
    if not found:
        return (
            f"{where} is not in {space.location}, with whatever prompt. Is it the text as mteb has "
            "it?"
        )
    if tuple(prompts) in found:
        return (
            f"{space.location} has {where} with prompt {tried}, but its key is another text's: the "
            "row is damaged, and not used. `check_space` with fix=True deletes it."
        )
    others = "; ".join(" and ".join(map(_prompt, one)) for one in found[:_PROMPTS_NAMED])
    return f"{where} is not in {space.location} with prompt {tried}, but with: {others}."


def _prompt(prompt: str | None) -> str:
    return "one that embcache does not know" if prompt is None else repr(prompt)


def _fitting(rows: pa.Table, space: Space) -> list[dict[str, Any]]:
    """The rows whose text, where it is stored, is that of their key: others are damaged."""
    fits = key_fits(rows, batch_keys(rows), VECTORS, space.identity)
    kept: list[dict[str, Any]] = rows.filter(pa.array(fits != 0)).to_pylist()
    return kept


def _stored(schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name in schema.names]


def _distinct(rows: list[dict[str, Any]], besides: bytes = b"") -> list[dict[str, Any]]:
    """The first row of each key: two processes may have written the same text."""
    first = {row["key"]: row for row in reversed(rows) if row["key"] != besides}
    return [row for row in rows if first.get(row["key"]) is row]
