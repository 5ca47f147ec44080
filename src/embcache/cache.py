"""A cache as one object: its spaces, and what can be done with each of them.

What the commands of `embcache` do, from Python. Writing vectors is not here: encoders do that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from embcache.identity.identity import Identity, short_name
from embcache.identity.keys import Keys
from embcache.store import VECTORS, Database, Location, Space
from embcache.tools.check import CheckReport, check_space
from embcache.tools.compact import CompactReport, compact_space
from embcache.tools.compare import SpaceComparison, compare_spaces
from embcache.tools.describe import SpaceDescription, describe
from embcache.tools.export import ExportDtype, ExportReport, export_space
from embcache.tools.find import find_space
from embcache.tools.import_ import ImportReport, import_file, import_numpy_cache
from embcache.tools.merge import merge_caches
from embcache.tools.search import (
    CachedText,
    Match,
    find_or_embed,
    find_text,
    nearest,
    search_words,
)
from embcache.tools.transfer import Progress, TransferReport, transfer

if TYPE_CHECKING:
    from embcache.maps.color import Color
    from embcache.maps.project import Method, SpaceMap


class Cache:
    """A cache of embeddings, to look into and to look after.

    Args:
        path: Directory or URL of the cache.
        storage_options: What the store of a URL needs to be opened (keys, region, endpoint), by
            name; None for the environment's and the machine's usual credentials.

    Raises:
        ConfigError: The path is empty, or a URL of no store; or a storage option is no string.
        CacheError: It is a file.
        UnreachableError: The store of a URL does not answer, or refuses; found out in seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "cache",
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self._database = Database(path, storage_options, writable=False)

    @property
    def location(self) -> Location:
        """Where it is."""
        return self._database.location

    def spaces(self) -> list[CachedSpace]:
        """All spaces of the cache, by name.

        Raises:
            CacheError: There is no such cache, or a table cannot be opened.
        """
        self._database.check_exists()
        return [CachedSpace(space) for space in self._database.spaces()]

    def __iter__(self) -> Iterator[CachedSpace]:
        return iter(self.spaces())

    def __len__(self) -> int:
        """Number of spaces."""
        return len(self.spaces())

    def space(self, name: str | None = None) -> CachedSpace:
        """One space.

        Args:
            name: Its name, or a part of it or of its model's name that no other space has; None
                where the cache holds only one.

        Raises:
            ConfigError: No space fits, or several do; names those that there are.
            CacheError: There is no such cache, or the space cannot be opened.
        """
        wanted = str(self.location) if name is None else name
        return CachedSpace(find_space(wanted, self.location))

    __getitem__ = space

    def merge(
        self,
        other: str | os.PathLike[str] | Location | Cache,
        storage_options: Mapping[str, str] | None = None,
    ) -> TransferReport:
        """Add to this cache what another one has and it has not, see `merge_caches`.

        Args:
            other: Directory or URL of the other cache, or a Cache.
            storage_options: What the store of the other one's URL needs to be opened; a Cache has
                its own.

        Raises:
            ConfigError: Both are one, or the other holds a table of `LanceCache`.
            CacheError: There is no other cache, or this one cannot be written.
        """
        return merge_caches(_location(other, storage_options, "other"), self.location)

    def push(
        self,
        target: str | os.PathLike[str] | Location | Cache,
        spaces: str | Iterable[str] | None = None,
        *,
        prompt: str | None = None,
        contains: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Copy rows into another cache, those that it lacks; see `transfer`.

        Args:
            target: Directory or URL of the other cache, or a Cache; made if need be.
            spaces: Names of spaces, or parts of them; None for all.
            prompt: Only rows with this prompt.
            contains: Only rows with this in their text.
            storage_options: What the store of the target's URL needs to be opened; a Cache has its
                own.
            progress: Called after each batch of rows.

        Raises:
            ConfigError: Both are one, a name or a filter fits no space, or a space is a table of
                `LanceCache`.
            CacheError: This cache cannot be read, or the target not be written.
        """
        return transfer(
            self.location,
            _location(target, storage_options, "target"),
            spaces,
            prompt=prompt,
            contains=contains,
            progress=progress,
        )

    def pull(
        self,
        source: str | os.PathLike[str] | Location | Cache,
        spaces: str | Iterable[str] | None = None,
        *,
        prompt: str | None = None,
        contains: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Copy rows of another cache into this one, those that it lacks; see `transfer`.

        Args:
            source: Directory or URL of the other cache, or a Cache.
            spaces: Names of its spaces, or parts of them; None for all.
            prompt: Only rows with this prompt.
            contains: Only rows with this in their text.
            storage_options: What the store of the source's URL needs to be opened; a Cache has its
                own.
            progress: Called after each batch of rows.

        Raises:
            ConfigError: Both are one, a name or a filter fits no space, or a space is a table of
                `LanceCache`.
            CacheError: The source cannot be read, or this cache not be written.
        """
        return transfer(
            _location(source, storage_options, "source"),
            self.location,
            spaces,
            prompt=prompt,
            contains=contains,
            progress=progress,
        )

    def import_file(self, file: str | os.PathLike[str]) -> ImportReport:
        """Add the rows of a `.parquet` or `.arrow` file that `CachedSpace.export` wrote.

        Raises:
            ConfigError: The ending is unknown, the file is float16, or of `LanceCache`.
            CacheFormatError: Its schema metadata is not a space's.
            CacheError: It cannot be read, or the cache not be written.
        """
        return import_file(file, self.location)

    def import_numpy_cache(
        self,
        folder: str | os.PathLike[str],
        identity: Identity,
        texts: Iterable[str],
        *,
        prompt: str = "",
    ) -> ImportReport:
        """Add vectors of mteb's `NumpyCache`, see `tools.import_.import_numpy_cache`.

        Args:
            folder: With `vectors.npy`, `index.json` and `dimension`.
            identity: What computed the vectors; only the caller can know.
            texts: What to look for; read once.
            prompt: What was put in front of each text.

        Raises:
            ConfigError: It is no such folder.
            CacheError: The cache cannot be written.
        """
        return import_numpy_cache(folder, self.location, identity, texts, prompt=prompt)

    def __repr__(self) -> str:
        if not self.location.exists():
            return f"<Cache {self.location}: no such directory>"
        tables = self.location.tables()
        lines = [f"<Cache {self.location}: {len(tables)} table{'s' * (len(tables) != 1)}>"]
        return "\n  ".join([*lines, *(table.name for table in tables)])


def _location(
    cache: str | os.PathLike[str] | Location | Cache,
    storage_options: Mapping[str, str] | None,
    argument: str,
) -> Location:
    """Where another cache is."""
    if isinstance(cache, Cache):
        return cache.location
    return Location.of(cache, storage_options, argument=argument)


class CachedSpace:
    """One space of a cache: the vectors, or scores, of one model under one set of arguments.

    Made by `Cache`.

    Args:
        space: The table.
    """

    def __init__(self, space: Space) -> None:
        self._space = space

    @property
    def name(self) -> str:
        """The table's name, `<model>--<dtype>--<fingerprint>`."""
        return self._space.name

    @property
    def location(self) -> Location:
        """Where the table is, for any Lance tool: `lance.dataset(str(space.location))`.

        In a store, with `storage_options=space.location.lance_options`.
        """
        return self._space.location

    @property
    def model(self) -> str:
        """The model as its first writer named it."""
        return self._space.metadata.model

    @property
    def identity(self) -> Identity:
        """What decides the bytes of all its vectors, apart from prompt and text."""
        return self._space.identity

    @property
    def kind(self) -> Literal["vectors", "scores"]:
        """What it holds."""
        return "vectors" if self._space.layout is VECTORS else "scores"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._space.open())

    def describe(self) -> SpaceDescription:
        """Count what it holds: rows, bytes, prompts, tasks, lengths in tokens.

        Raises:
            CacheError: Lance cannot read the table.
        """
        return describe(self._space)

    def get(self, text: str, prompt: str = "") -> CachedText:
        """The row of a text; its `value` is `(dim,) float32`.

        Raises:
            ConfigError: The space holds scores.
            MissingTextsError: It is not there; names the prompts under which it is.
            CacheError: Its row is damaged, or the table cannot be read.
        """
        return find_text(self._space, [text], [prompt])

    def get_pair(
        self, query: str, document: str, query_prefix: str = "", document_prefix: str = ""
    ) -> CachedText:
        """The row of a pair; its `value` is the score, `(1,) float32`.

        Raises:
            ConfigError: The space holds vectors.
            MissingTextsError: It is not there; names the prefixes under which it is.
            CacheError: Its row is damaged, or the table cannot be read.
        """
        return find_text(self._space, [query, document], [query_prefix, document_prefix])

    def search(
        self,
        text: str | npt.NDArray[np.float32],
        prompt: str | None = None,
        count: int = 10,
        *,
        on_miss: Literal["encode", "raise"] = "encode",
        model: str | None = None,
        **engine: Any,
    ) -> list[Match]:
        """The cached texts whose vectors have the largest cosine with that of a text.

        A text that is not cached is embedded first, by vLLM, as the space's own were; nothing is
        written.

        Args:
            text: The text, which is not among the answers; or a vector, `(dim,) float32`.
            prompt: What is put in front of the text; None for nothing, unless it is cached with
                some prompt and not without.
            count: How many answers, at most.
            on_miss: "raise" never starts an engine.
            model: Where the model is now, if not where the space notes it.
            **engine: Arguments for vLLM's engine that change no vector, `tensor_parallel_size`,
                say; where a LoRA adapter (`lora_request`) or a `tokenizer` is now.

        Raises:
            MissingTextsError: The text is not cached, and may not be embedded; or it is cached with
                other prompts, and none was given.
            ConfigError: The space was not filled by vLLM, so the text cannot be embedded.
            EngineError: vLLM does not start, or fails.
            CacheError: The table cannot be read.
        """
        if isinstance(text, np.ndarray):
            return nearest(self._space, text, count)
        vector, own = self._embedded(text, prompt, on_miss, model, engine)
        return nearest(self._space, vector, count, own)

    def search_words(self, words: str, count: int = 10, prompt: str | None = None) -> list[Match]:
        """The cached texts that fit some words best, by BM25; no engine is needed.

        Args:
            words: To look for in the texts, as they are spelt.
            count: How many answers, at most.
            prompt: Only texts with this prompt.

        Raises:
            ConfigError: The space holds scores, or no texts.
            CacheError: Lance cannot read the table.
        """
        return search_words(self._space, words, count, prompt)

    def compare(self, other: CachedSpace, *, most_moved: int = 10) -> SpaceComparison:
        """How far two spaces agree on the texts that both hold, see `compare_spaces`.

        Raises:
            ConfigError: A space holds scores, or the vectors have different sizes.
            CacheError: A space has no texts, or cannot be read.
        """
        return compare_spaces(self._space, other._space, most_moved=most_moved)

    def check(self, *, fix: bool = False) -> CheckReport:
        """Read every row and file, and say what is damaged, see `check_space`.

        Args:
            fix: Whether to delete damaged rows, misfits and duplicates.

        Raises:
            CacheError: Deleting failed.
        """
        return check_space(self._space, fix=fix)

    def compact(self, *, older_than: timedelta = timedelta(hours=1)) -> CompactReport:
        """Remove duplicates, merge small files, and free the disk, see `compact_space`.

        Args:
            older_than: Versions that other processes may have open since then are kept.

        Raises:
            CacheError: Lance cannot read or write the table.
        """
        return compact_space(self._space, older_than=older_than)

    def export(
        self,
        target: str | os.PathLike[str],
        *,
        prompt: str | None = None,
        contains: str | None = None,
        dtype: ExportDtype = "float32",
        overwrite: bool = False,
    ) -> ExportReport:
        """Write its rows, each checked, to a `.parquet`, `.arrow` or `.npy` file.

        See `export_space` for the arguments, and for what is raised.
        """
        return export_space(
            self._space,
            target,
            prompt=prompt,
            contains=contains,
            dtype=dtype,
            overwrite=overwrite,
        )

    def map(
        self,
        target: str | os.PathLike[str] | None = None,
        *,
        method: Method = "pca",
        color: Color | None = None,
        prompt: str | None = None,
        contains: str | None = None,
        limit: int = 10_000,
        seed: int = 0,
        overwrite: bool = False,
    ) -> SpaceMap:
        """Draw its vectors in two dimensions; needs the extra `map`.

        Args:
            target: A `.html`, `.png` or `.parquet` file to write; None for none.
            method: "pca", or "umap", which keeps neighbours together and takes longer.
            color: What to colour by; None for the first of prompt, task and prompt_type that has
                several values.
            prompt: Only rows with this prompt.
            contains: Only rows with this in their text.
            limit: How many rows at most, drawn at random.
            seed: The same one gives the same map.
            overwrite: Whether to replace a file.

        Raises:
            ConfigError: The space holds scores, or too few rows that fit; the target cannot be
                written as asked; a library is missing.
            CacheError: The space cannot be read, or the file not be written.
        """
        from embcache.maps.draw import check_target, save_map
        from embcache.maps.project import map_space

        if target is not None:
            check_target(target, color=color, overwrite=overwrite)
        drawn = map_space(
            self._space, method=method, prompt=prompt, contains=contains, limit=limit, seed=seed
        )
        if target is not None:
            save_map(drawn, target, color=color, overwrite=overwrite)
        return drawn

    def remove(self) -> None:
        """Delete the space with all its rows.

        Raises:
            CacheError: Its folder is a link, or the file system refuses.
        """
        self._space.location.remove()

    def __repr__(self) -> str:
        model = short_name(self.model)
        return f"<CachedSpace {self.name}: {len(self):,} {self.kind} of {model}>"

    def _embedded(
        self,
        text: str,
        prompt: str | None,
        on_miss: str,
        model: str | None,
        engine: dict[str, Any],
    ) -> tuple[npt.NDArray[np.float32], Keys | None]:
        """The vector of a text, and its key if it is cached."""
        found = find_or_embed(self._space, text, prompt, may_embed=on_miss == "encode")
        if found is not None:
            return found.value, found.key
        from embcache.encoders.space_encoder import embed_as  # and mteb, which takes seconds

        return embed_as(self._space, text, prompt or "", model, **engine), None
