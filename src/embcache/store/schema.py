"""The bytes on disk: columns of a space's table, and what its schema metadata says.

A change here that older embcache versions would misread needs a higher `FORMAT_VERSION`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import pyarrow as pa

from embcache.errors import CacheFormatError, NewerFormatError, shown
from embcache.identity.identity import Identity
from embcache.identity.keys import KEY_BYTES

FORMAT_VERSION = 1

_FORMAT = b"embcache:format_version"
_IDENTITY = b"embcache:identity"
_WRITER = b"embcache:version"
_ENGINE = b"embcache:engine_version"
_MODEL = b"embcache:model"

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # of a format
_MOST_BYTES = 2**15  # a path has at most 4096, and each may be written in four


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


def check_columns(
    schema: pa.Schema,
    metadata: SpaceMetadata,
    where: str,
    fix: str = "Move the table away; its texts are encoded again.",
) -> None:
    """Refuse a table whose columns are not those of a space: no row of it could be believed.

    Args:
        schema: The table's schema.
        metadata: What it says about itself.
        where: Names the table in errors.
        fix: What to do, in errors.

    Raises:
        CacheFormatError: A column that every space has is missing, or one has another type.
    """
    if problem := _column_problem(schema, metadata):
        raise CacheFormatError(
            f"{where} says that it is a space of embcache, and its {problem}. {fix}"
        )


def _column_problem(schema: pa.Schema, metadata: SpaceMetadata) -> str | None:
    layout = schema_layout(schema)
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        return f"column {twice[0]} is there twice"
    if missing := {"key", "checksum", layout.value} - set(schema.names):
        return f"columns are missing: {', '.join(sorted(missing))}"
    kind = schema.field(layout.value).type
    if layout is VECTORS and not (pa.types.is_fixed_size_list(kind) and kind.list_size > 0):
        return f"column vector is {kind}, not fixed_size_list<float>"
    expected = space_schema(layout, value_dim(schema), metadata, store_text=True)
    for field in schema:
        if field.name in expected.names and field.type != expected.field(field.name).type:
            return f"column {field.name} is {field.type}, not {expected.field(field.name).type}"
    return None


def is_space(schema: pa.Schema) -> bool:
    """Whether the table calls itself a space of embcache, of whatever format version."""
    return _FORMAT in (schema.metadata or {})


def format_version(schema: pa.Schema) -> int:
    """The format of a space's table; its schema's metadata says it."""
    return int(schema.metadata[_FORMAT])


def format_is_newer(schema: pa.Schema) -> bool:
    """Whether the table says that a newer embcache wrote it."""
    return _is_newer((schema.metadata or {}).get(_FORMAT, b"").decode("ascii", "replace"))


def _is_newer(found: str) -> bool:
    return _NUMBER.fullmatch(found) is not None and int(found) > FORMAT_VERSION


def read_metadata(schema: pa.Schema, where: str) -> SpaceMetadata:
    """What a table says about itself.

    Args:
        schema: The table's schema.
        where: Names the table in errors.

    Raises:
        NewerFormatError: The table is of a newer format.
        CacheFormatError: It is no space of embcache, or what it says cannot be read.
    """
    raw = schema.metadata or {}
    if _FORMAT not in raw:
        raise CacheFormatError(
            f"{where} is a Lance table but not one that embcache wrote: its schema metadata has no "
            f"{_FORMAT.decode()}. Use another cache_path, or move the table away."
        )
    found = raw[_FORMAT].decode("utf-8", "backslashreplace")
    if _is_newer(found):
        raise NewerFormatError(
            f"{where} has format version {found}; this embcache ({embcache_version()}) reads up to "
            f"{FORMAT_VERSION}. Upgrade with `pip install -U embcache`, or use another cache_path."
        )
    try:
        if not _NUMBER.fullmatch(found):
            raise ValueError("that is no version")
        return SpaceMetadata(
            identity=Identity.from_json(raw[_IDENTITY].decode()),
            model=_text(raw, _MODEL),
            engine_version=_text(raw, _ENGINE),
            embcache_version=_text(raw, _WRITER),
        )
    except CacheFormatError as error:
        raise type(error)(
            f"{where} has format version {found} but unreadable schema metadata. {error}"
        ) from error
    except (KeyError, ValueError) as error:
        raise CacheFormatError(
            f"{where} has format version {shown(found)} but unreadable schema metadata "
            f"({type(error).__name__}: {error}). Move the table away; its texts are encoded again."
        ) from error


def _text(raw: Mapping[bytes, bytes], name: bytes) -> str:
    """An entry that people read; in a message, in a table's name, on a terminal."""
    if len(raw[name]) > _MOST_BYTES:
        raise CacheFormatError(
            f"The schema metadata {name.decode()} is {len(raw[name]):,} bytes long, and at most "
            f"{_MOST_BYTES:,} are read. embcache did not write this. Move the table away; its "
            "texts are encoded again."
        )
    return raw[name].decode()
