"""The bytes on disk: columns of a space's table, and what its schema metadata says.

A change here that older embcache versions would misread needs a higher `FORMAT_VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import pyarrow as pa

from embcache.errors import CacheFormatError
from embcache.identity.identity import Identity
from embcache.identity.keys import KEY_BYTES

FORMAT_VERSION = 1

_FORMAT = b"embcache:format_version"
_IDENTITY = b"embcache:identity"
_WRITER = b"embcache:version"
_ENGINE = b"embcache:engine_version"
_MODEL = b"embcache:model"


@dataclass(frozen=True)
class Layout:
    """Which columns a space has, beside key, checksum, n_tokens and created_at.

    Attributes:
        value: Column of what the engine computed.
        texts: Columns of what it was computed from; `store_text=False` leaves them out.
        notes: What else is recorded of a row's first write; not part of the key.
    """

    value: Literal["vector", "score"]
    texts: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Those of `texts` that stand in front of the others."""
        return self.texts[len(self.texts) // 2 :]


VECTORS = Layout("vector", ("text", "prompt"), ("prompt_type", "task"))
SCORES = Layout("score", ("query", "document", "query_prefix", "document_prefix"), ("task",))


@dataclass(frozen=True)
class SpaceMetadata:
    """What a table says about itself.

    Attributes:
        identity: What all its vectors have in common.
        model: The model as the first writer named it; for a directory, its path.
        engine_version: Engine package and version of the first writer.
        embcache_version: embcache version of the first writer.
    """

    identity: Identity
    model: str
    engine_version: str
    embcache_version: str

    def to_arrow(self) -> dict[bytes, bytes]:
        """As Arrow schema metadata."""
        return {
            _FORMAT: str(FORMAT_VERSION).encode(),
            _IDENTITY: self.identity.to_json().encode(),
            _MODEL: self.model.encode("utf-8", "backslashreplace"),
            _WRITER: self.embcache_version.encode(),
            _ENGINE: self.engine_version.encode(),
        }


def embcache_version() -> str:
    """Version of the running embcache."""
    try:
        return version("embcache")
    except PackageNotFoundError:
        return "unknown"


def space_schema(
    layout: Layout, dim: int, metadata: SpaceMetadata, *, store_text: bool
) -> pa.Schema:
    """Columns of a space with vectors of `dim` float32 components, or with scores."""
    value = pa.float32() if layout.value == "score" else pa.list_(pa.float32(), dim)
    strings = (layout.texts if store_text else ()) + layout.notes
    fields = [
        pa.field("key", pa.binary(KEY_BYTES), nullable=False),
        pa.field(layout.value, value, nullable=False),
        pa.field("checksum", pa.uint64(), nullable=False),
        *(pa.field(name, pa.string()) for name in strings),
        pa.field("n_tokens", pa.int32()),
        pa.field("created_at", pa.timestamp("us", tz="UTC")),
    ]
    return pa.schema(fields, metadata=metadata.to_arrow())


def schema_layout(schema: pa.Schema) -> Layout:
    """Whether a space holds vectors or scores."""
    return SCORES if SCORES.value in schema.names else VECTORS


def value_dim(schema: pa.Schema) -> int:
    """Number of components of the schema's vectors; 1 for scores."""
    layout = schema_layout(schema)
    return 1 if layout is SCORES else int(schema.field(layout.value).type.list_size)


def is_space(schema: pa.Schema) -> bool:
    """Whether the table calls itself a space of embcache, of whatever format version."""
    return _FORMAT in (schema.metadata or {})


def format_version(schema: pa.Schema) -> int:
    """The format of a space's table; its schema's metadata says it."""
    return int(schema.metadata[_FORMAT])


def format_is_newer(schema: pa.Schema) -> bool:
    """Whether the table says that a newer embcache wrote it."""
    found = (schema.metadata or {}).get(_FORMAT, b"")
    return found.isdigit() and int(found) > FORMAT_VERSION


def column_problems(schema: pa.Schema, metadata: SpaceMetadata) -> Iterator[str]:
    """What is wrong with a table's columns, so that its rows cannot be read.

    Args:
        schema: The table's.
        metadata: What it says about itself.
    """
    layout = schema_layout(schema)
    wanted = {"key", "checksum", layout.value}
    if missing := wanted - set(schema.names):
        yield f"columns are missing: {', '.join(sorted(missing))}"
        return
    kind = schema.field(layout.value).type
    if layout.value == "vector" and not pa.types.is_fixed_size_list(kind):
        yield f"column vector is {kind}, not fixed_size_list<float>"
        return
    expected = space_schema(layout, value_dim(schema), metadata, store_text=True)
    for name in schema.names:
        if name in expected.names and schema.field(name).type != expected.field(name).type:
            yield f"column {name} is {schema.field(name).type}, not {expected.field(name).type}"


def read_metadata(schema: pa.Schema, where: str) -> SpaceMetadata:
    """What a table says about itself.

    Args:
        schema: The table's schema.
        where: Names the table in errors.

    Raises:
        CacheFormatError: The table is of a newer format, or no space of embcache.
    """
    raw = schema.metadata or {}
    if _FORMAT not in raw:
        raise CacheFormatError(
            f"{where} is a Lance table but not one that embcache wrote: its schema metadata has no "
            f"{_FORMAT.decode()}. Use another cache_path, or move the table away."
        )
    found = raw[_FORMAT].decode()
    if not found.isdecimal() or int(found) > FORMAT_VERSION:
        raise CacheFormatError(
            f"{where} has format version {found}; this embcache ({embcache_version()}) reads up to "
            f"{FORMAT_VERSION}. Upgrade with `pip install -U embcache`, or use another cache_path."
        )
    try:
        return SpaceMetadata(
            identity=Identity.from_json(raw[_IDENTITY].decode()),
            model=raw[_MODEL].decode(),
            engine_version=raw[_ENGINE].decode(),
            embcache_version=raw[_WRITER].decode(),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CacheFormatError(
            f"{where} has format version {found} but unreadable schema metadata "
            f"({type(error).__name__}: {error}). Move the table away; its texts are encoded again."
        ) from error
