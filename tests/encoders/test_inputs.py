from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from mteb._create_dataloaders import _custom_collate_fn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, SubsetRandomSampler

from embcache import InputError
from embcache.encoders.inputs import read_texts
from tests.conftest import loader

TEXTS = [f"text {i}" for i in range(100)]


def iterated(data: DataLoader[Any]) -> list[str]:
    return [text for batch in data for text in batch["text"]]


def dataset() -> Dataset:
    return Dataset.from_dict({"id": TEXTS[::-1], "text": TEXTS})


@pytest.mark.parametrize(
    ("data", "fast"),
    [
        (DataLoader(dataset(), batch_size=7), True),
        (DataLoader(dataset(), batch_size=7, collate_fn=_custom_collate_fn), True),
        (DataLoader(dataset(), batch_size=7, drop_last=True), False),
        (DataLoader(dataset(), batch_size=7, sampler=SubsetRandomSampler([5, 3, 5])), False),
        (DataLoader(dataset(), batch_sampler=BatchSampler(range(0, 9, 2), 2, False)), False),
        (
            DataLoader(
                dataset(), batch_sampler=BatchSampler(SequentialSampler(TEXTS[:9]), 2, False)
            ),
            False,
        ),
        (
            DataLoader(dataset(), batch_sampler=BatchSampler(SequentialSampler(TEXTS), 8, True)),
            False,
        ),
        (DataLoader(dataset().select([4, 2, 2]), batch_size=2), True),
        (DataLoader(dataset().shuffle(seed=1), batch_size=9), True),
        (DataLoader(dataset().with_format("numpy"), batch_size=9), False),
        (
            DataLoader(
                dataset().with_transform(lambda b: {"text": [t.upper() for t in b["text"]]}),
                batch_size=9,
            ),
            False,
        ),
        (
            DataLoader(
                dataset(), batch_size=5, collate_fn=lambda b: {"text": [r["text"][1:] for r in b]}
            ),
            False,
        ),
        (DataLoader([{"text": t} for t in TEXTS], batch_size=6), False),
    ],
    ids=lambda value: "" if isinstance(value, DataLoader) else str(value),
)
def test_the_same_as_iterating(
    data: DataLoader[Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, walks, walk = iterated(data), [], DataLoader.__iter__
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: walks.append(self) or walk(self))
    texts = read_texts(data)
    assert walks == ([] if fast else [data])
    if isinstance(data.sampler, SubsetRandomSampler):
        texts, expected = sorted(texts), sorted(expected)
    assert list(texts) == expected


def test_shuffling_is_respected() -> None:
    texts = read_texts(DataLoader(dataset(), batch_size=7, shuffle=True))
    assert texts != TEXTS and sorted(texts) == sorted(TEXTS)


def test_no_texts_at_all() -> None:
    assert list(read_texts(loader([]))) == [] == list(read_texts(iter([])))


def test_no_text_column() -> None:
    data = DataLoader(Dataset.from_dict({"sentence": ["a"], "id": ["1"]}))
    with pytest.raises(InputError, match="no 'text' column, only 'sentence', 'id'"):
        read_texts(data)


@pytest.mark.parametrize("name", ["image", "audio", "video"])
@pytest.mark.parametrize("beside", [{"text": ["a"]}, {}])
def test_other_modalities_are_refused(name: str, beside: dict[str, list[str]]) -> None:
    data = DataLoader(Dataset.from_dict({**beside, name: ["pixels"]}))
    with pytest.raises(InputError, match=f"inputs hold {name} beside or instead of text"):
        read_texts(data)


def test_none_in_a_column_names_the_row() -> None:
    with pytest.raises(InputError, match=r"row 1 has no text \(None\)"):
        read_texts(loader(["a", None]))  # type: ignore[list-item]


@pytest.mark.parametrize("bad", ["a string", 3, None, b"raw"])
def test_what_is_no_loader(bad: Any) -> None:
    with pytest.raises(InputError, match=f"must be a DataLoader .*{type(bad).__name__}"):
        read_texts(bad)


def test_a_list_of_strings_says_how_to_make_a_loader() -> None:
    with pytest.raises(InputError, match=r"not str \('a'\).*Dataset\.from_dict"):
        read_texts(["a", "b"])


def test_text_that_is_one_string() -> None:
    with pytest.raises(InputError, match="must be a list of strings, not str"):
        read_texts([{"text": "abc"}])
