"""From a row to the text that mteb would have encoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from embcache.errors import ConfigError, shown

Role = Literal["document", "query", "other"]

Values = tuple[Any, Any, Any]
"""Of one row: what is in the columns of texts, titles and instructions; None for no value."""

_MISSING = object()
_NO_OUTER = object()  # null, where a nested column would be: as good as null, and no proof of it


@dataclass(frozen=True)
class Columns:
    """Where a row's text is, and what mteb makes of it.

    A name with dots is a path into nested columns, `doc.text`, unless a column has that very name.

    Attributes:
        text: Column of the text.
        title: Column of a title, which mteb puts in front of a document; None for none.
        title_is_optional: Whether a source may have no column of titles at all.
        instruction: Column of an instruction, which mteb puts behind a query; None for none.
        role: What the rows are in mteb. Of "document", blanks around title and text are left off;
            "query" is a query, whose text may be a conversation; "other", the texts of
            classification, clustering or STS, say. The last two keep their blanks.

    Raises:
        ConfigError: There are titles, and the rows are no documents; or instructions, and the rows
            are no queries.
    """

    text: str = "text"
    title: str | None = None
    title_is_optional: bool = False
    instruction: str | None = None
    role: Role = "document"

    def __post_init__(self) -> None:
        if self.title is not None and self.role != "document":
            raise ConfigError(
                f"column {self.title!r} of titles: mteb puts titles in front of documents only, and"
                f" these are {'queries' if self.role == 'query' else 'other texts'}."
            )
        if self.instruction is not None and self.role != "query":
            raise ConfigError(
                f"column {self.instruction!r} of instructions: mteb puts instructions behind "
                "queries only, and these are none."
            )

    @property
    def names(self) -> tuple[str | None, str | None, str | None]:
        """The columns of texts, titles and instructions; None for those that are not wanted."""
        return self.text, self.title, self.instruction

    @property
    def required(self) -> list[str]:
        """The columns that a source must have."""
        title = None if self.title_is_optional else self.title
        return [name for name in (self.text, title, self.instruction) if name is not None]

    def read(self, row: Mapping[str, Any]) -> Values:
        """What is wanted of a row.

        Args:
            row: Values by column; of nested columns, mappings.

        Returns:
            What the columns hold. A column of texts that is not there holds a complaint, which
            `make` raises.
        """
        text = row.get(self.text, _MISSING)
        if text is _MISSING and (text := _found(row, self.text, _MISSING)) is _MISSING:
            text = ValueError(f"no column {self.text!r} (columns: {_listed(row) or 'none'})")
        if self.title is None and self.instruction is None:
            return text, None, None
        title = None if self.title is None else _found(row, self.title, None)
        instruction = None if self.instruction is None else _found(row, self.instruction, None)
        return text, title, instruction

    def make(self, values: Values) -> str:
        """The text that mteb would have encoded.

        Args:
            values: What `read` returns. Bytes are UTF-8. Null and NaN are no title and no
                instruction.

        Returns:
            Of a document, title, space and text, stripped; of a query, text, space and
            instruction; else the text.

        Raises:
            ValueError: The row has no text, or a text, title or instruction is no string or has no
                UTF-8 form.
        """
        text, title, instruction = values
        if self.role == "query" and isinstance(text, list):
            made = _conversation(text, self.text)
            extra = self._extra(instruction, self.instruction)
            return made if extra is None else f"{extra} {made}"
        made = _string(text, self.text)
        if self.role == "document":
            # mteb takes an empty title for none.
            extra = self._extra(title, self.title)
            return f"{extra} {made}".strip() if extra else made.strip()
        extra = self._extra(instruction, self.instruction)
        return made if extra is None else f"{made} {extra}"

    def join(self, row: Mapping[str, Any]) -> str:
        """The text that mteb would have encoded, of a row as a mapping: `make(read(row))`.

        Args:
            row: Values by column.

        Raises:
            ValueError: See `make`.
        """
        return self.make(self.read(row))

    def check(self, names: Collection[str], where: str, hint: str = "") -> None:
        """Refuse a source that lacks a column, or has it twice.

        Args:
            names: The columns that the source has, nested ones with their path.
            where: The source's name, for the message.
            hint: Is said where a column is missing.

        Raises:
            ConfigError: The source lacks a column that it must have, or has two of that name.
        """
        counted = list(names)
        for name in self.required:
            if name not in counted:
                listed = f"only {_listed(counted)}" if counted else "and no others: empty?"
                raise ConfigError(
                    f"{where} has no column {name!r}, {listed}. Name those of the texts and "
                    f"titles in Columns(text=..., title=...).{hint}"
                )
        for wanted in self.names:
            if counted.count(wanted or "") > 1 and wanted is not None:
                raise ConfigError(
                    f"{where} has {counted.count(wanted)} columns named {wanted!r}, and which is "
                    "meant cannot be told. Rename them."
                )

    def _extra(self, value: Any, column: str | None) -> str | None:
        """A title or an instruction; NaN is what pandas writes for none."""
        if value is None or column is None or value != value:
            return None
        return _string(value, column)


def names_in(row: Mapping[str, Any], wanted: Collection[str]) -> list[str]:
    """The names of a row's columns, and those of `wanted` that are paths into nested ones.

    Args:
        row: Values by column.
        wanted: Names that may be paths.
    """
    none = (_MISSING, _NO_OUTER)
    return [*row, *(name for name in wanted if name not in row and _value(row, name) not in none)]


def _found(row: Mapping[str, Any], name: str, missing: Any) -> Any:
    if name in row:
        return row[name]
    value = _value(row, name)
    return missing if value is _MISSING else None if value is _NO_OUTER else value


def _value(row: Mapping[str, Any], name: str) -> Any:
    """A column's value, or that of a nested one; a name is tried as a whole before its parts."""
    if name in row:
        return row[name]
    at = name.find(".")
    while at >= 0:
        outer = row.get(name[:at], _MISSING)
        if outer is None:
            return _NO_OUTER
        if isinstance(outer, Mapping):
            inner = _value(outer, name[at + 1 :])
            if inner is not _MISSING:
                return inner
        at = name.find(".", at + 1)
    return _MISSING


def _string(value: Any, column: str) -> str:
    if isinstance(value, ValueError):
        raise value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"column {column!r} is no UTF-8 text (byte {value[error.start]:#04x} at "
                f"{error.start})"
            ) from error
    if not isinstance(value, str):
        what = "null" if value is None else f"{type(value).__name__} {shown(value)}"
        raise ValueError(f"column {column!r} is {what}, not a string")
    try:
        value.encode()  # what is no UTF-8 in a file arrives here as lone surrogates
    except UnicodeEncodeError as error:
        found = f"{value[error.start]!r} at character {error.start}"
        raise ValueError(f"column {column!r} is no UTF-8 text ({found})") from error
    return value


def _conversation(turns: list[Any], column: str) -> str:
    """A conversation as mteb writes it: `hello; bye`, or `user: hello; assistant: bye`."""
    if not turns:
        raise ValueError(f"column {column!r} is a conversation without turns")
    if isinstance(turns[0], str):
        return "; ".join(_string(turn, column) for turn in turns)
    for turn in turns:
        if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
            raise ValueError(
                f"column {column!r} is a list with {shown(turn)}, and neither strings nor turns "
                "with role and content"
            )
    return "; ".join(
        f"{_string(turn['role'], column)}: {_string(turn['content'], column)}" for turn in turns
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(shown, names))  # without a header, names are texts
