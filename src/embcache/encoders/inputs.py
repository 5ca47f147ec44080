"""From mteb's DataLoader to texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embcache.errors import InputError, shown
from embcache.identity.arrow_texts import ArrowTexts

if TYPE_CHECKING:
    from datasets import Dataset

OTHER_MODALITIES = ("image", "audio", "video")


class ListedRows:
    """Rows in lists, as a Dataset has them, and without a copy of their texts in Arrow's memory.

    Args:
        columns: `n` values each, by name.
    """

    def __init__(self, columns: Mapping[str, list[Any]]) -> None:
        self._columns = columns
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), []))

    def __getitem__(self, which: int | str) -> Any:
        if isinstance(which, str):
            return self._columns[which]
        return {name: column[which] for name, column in self._columns.items()}

    def select(self, rows: Sequence[int]) -> Dataset:
        """Some rows as a Dataset, for a model to read."""
        from datasets import Dataset

        return Dataset.from_dict(
            {name: [column[row] for row in rows] for name, column in self._columns.items()}
        )


@dataclass(frozen=True, eq=False)
class Items:
    """All of a DataLoader, for a model that may read more than its texts.

    Attributes:
        texts: `n` texts, row i = i-th text of the DataLoader.
        dataset: All columns, row i belongs to `texts[i]`.
        collate_fn: Makes a batch of rows, as the DataLoader does; without a DataLoader, a dict of
            lists.
    """

    texts: Sequence[str]
    dataset: Dataset | ListedRows
    collate_fn: Callable[[list[Any]], Any]


def read_items(inputs: Any) -> Items | None:
    """Collect texts and other columns of a DataLoader, in its order.

    Args:
        inputs: DataLoader, or another iterable of batches, each a mapping of lists.

    Returns:
        The items; None if a batch has images, audio or video, or no `text` column.

    Raises:
        InputError: The inputs are no iterable of batches, or a text is None.
    """
    from datasets import Dataset

    _check_iterable(inputs)
    dataset: Any = getattr(inputs, "dataset", None)
    if isinstance(dataset, Dataset) and _walks_in_order(inputs):
        if not _text_only(dataset.column_names):
            return None
        texts = _read_column(inputs)
        return Items(_read_batches(inputs) if texts is None else texts, dataset, inputs.collate_fn)
    if hasattr(dataset, "column_names") and not _text_only(dataset.column_names):
        return None
    batches = list(inputs)
    if not all(isinstance(batch, Mapping) and _text_only(batch) for batch in batches):
        return None
    columns = list(dict.fromkeys(name for batch in batches for name in batch))
    rows = {name: [row for batch in batches for row in batch[name]] for name in columns}
    return Items(_read_batches(batches), ListedRows(rows or {"text": []}), _collate)


def read_texts(inputs: Any) -> Sequence[str]:
    """Collect the texts of a DataLoader, in its order.

    Where the DataLoader walks an Arrow-backed Dataset from front to back, they stay in Arrow's
    memory until one is asked for, which is faster. Anything else is iterated.

    Args:
        inputs: Iterable of batches, each a mapping with a list of strings under `text`.

    Returns:
        The texts, row i = i-th text of the DataLoader.

    Raises:
        InputError: The inputs are no iterable of batches, a text is None, or a batch has no `text`
            list, or images, audio or video beside it.
    """
    _check_iterable(inputs)
    texts = _read_column(inputs)
    return _read_batches(inputs) if texts is None else texts


def canary_dataset(like: Dataset | ListedRows, texts: Sequence[str]) -> Dataset:
    """Texts in the columns that another dataset has.

    Args:
        like: With a column `text`. Its other columns of strings are filled with what mteb's
            loaders put there, or with the text's number; those of other types with its first row's
            values.
        texts: The texts.

    Returns:
        `len(texts)` rows.
    """
    from datasets import Dataset

    columns: dict[str, Any] = {}
    first: dict[str, Any] = like[0] if len(like) else {}
    for name in like.column_names:
        sample = first.get(name)
        if name in ("text", "body", "query"):
            columns[name] = list(texts)
        elif name in ("title", "instruction"):
            columns[name] = [""] * len(texts)
        elif name == "conversation":
            columns[name] = [[{"role": "user", "content": text}] for text in texts]
        elif isinstance(sample, str):
            columns[name] = [f"canary {row}" for row in range(len(texts))]
        else:
            columns[name] = [sample] * len(texts)
    return Dataset.from_dict(columns)


def _collate(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Make a batch of lists from rows, whatever values they have."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _check_iterable(inputs: Any) -> None:
    if isinstance(inputs, (str, bytes)) or not hasattr(inputs, "__iter__"):
        raise InputError(
            f"inputs must be a DataLoader whose batches have a 'text' list, not "
            f"{type(inputs).__name__}. mteb makes one; by hand: "
            "DataLoader(datasets.Dataset.from_dict({'text': texts}), batch_size=32)."
        )


def _text_only(columns: Any) -> bool:
    names = list(columns)
    return "text" in names and not any(name in names for name in OTHER_MODALITIES)


def _read_column(inputs: Any) -> ArrowTexts | None:
    """The whole column, or None where that might not be what iterating gives."""
    dataset: Any = getattr(inputs, "dataset", None)
    if not _is_plain_dataset(dataset) or not _walks_in_order(inputs):
        return None
    _check_columns(dataset.column_names)
    column = dataset.select_columns("text").with_format("arrow")[:].column("text")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise InputError(f"row {row} has no text (None). Drop or fill it.")
    return ArrowTexts(column)


def _read_batches(inputs: Any) -> list[str]:
    texts: list[str] = []
    for batch in inputs:
        if not isinstance(batch, Mapping):
            raise InputError(
                f"inputs must give batches that are mappings with a 'text' list, not "
                f"{type(batch).__name__} ({shown(batch)}). By hand: "
                "DataLoader(datasets.Dataset.from_dict({'text': texts}), batch_size=32)."
            )
        _check_columns(batch)
        column = batch["text"]
        if isinstance(column, str) or not hasattr(column, "__iter__"):
            raise InputError(
                f"'text' of a batch must be a list of strings, not {type(column).__name__} "
                f"({shown(column)})."
            )
        texts.extend(column)
    return texts


def _check_columns(columns: Any) -> None:
    names = list(columns)
    other = [name for name in OTHER_MODALITIES if name in names]
    if other:
        raise InputError(
            f"inputs hold {', '.join(other)} beside or instead of text (columns: "
            f"{', '.join(names)}). A text encoder would leave that out and the key would not cover "
            "it: use a model that encodes it; CachedEncoder hands it such inputs uncached."
        )
    if "text" not in names:
        raise InputError(
            f"inputs have no 'text' column, only {', '.join(map(repr, names)) or 'none at all'}. "
            "Rename the column that holds the texts to 'text'."
        )


def _is_plain_dataset(dataset: Any) -> bool:
    """An in-memory or memory-mapped Dataset with strings and no transform on them."""
    from datasets import Dataset, Value

    if not isinstance(dataset, Dataset):
        return False
    if dataset.format["type"] is not None or "text" not in dataset.column_names:
        return False
    feature = dataset.features["text"]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _walks_in_order(inputs: Any) -> bool:
    """Whether the DataLoader yields every row once, in order, as mteb's loaders do."""
    from mteb import _create_dataloaders
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, default_collate

    if type(inputs) is not DataLoader or type(inputs.batch_sampler) is not BatchSampler:
        return False
    # Not inputs.sampler: that is a SequentialSampler too where a batch_sampler was given.
    batches = inputs.batch_sampler
    if batches.drop_last or type(batches.sampler) is not SequentialSampler:
        return False
    if len(batches.sampler) != len(inputs.dataset):
        return False
    known = (default_collate, getattr(_create_dataloaders, "_custom_collate_fn", None))
    return inputs.collate_fn in known
