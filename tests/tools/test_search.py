from __future__ import annotations

from collections.abc import Callable

import lancedb
import numpy as np
import pytest

from embcache import CacheError, ConfigError, InputError, MissingTextsError
from embcache.store import Space
from embcache.tools.describe import describe
from embcache.tools.search import (
    CachedText,
    Match,
    find_text,
    nearest,
    prompts_of,
    search_words,
)
from tests.spaces import folder, make_rows, vectors_of
from tests.store.test_damage import data_files, flip_bit

DIM = 8


def near(space: Space, text: CachedText, count: int) -> list[Match]:
    return nearest(space, text.value, count, text.key)


def test_without_texts(open_space: Callable[..., Space]) -> None:
    space = open_space(store_text=False)
    space.add(make_rows(["a", "b"]))
    assert "prompt" not in describe(space).counts
    text = find_text(space, ["a"], ["p: "])
    (match,) = near(space, text, 5)
    assert match.text is None
    with pytest.raises(MissingTextsError, match="has no texts, so other prompts cannot"):
        find_text(space, ["a"])
    with pytest.raises(ConfigError, match="has no column of texts"):
        search_words(space, "a", 5)


def test_find_a_text(open_space: Callable[..., Space]) -> None:
    space, rows = open_space(), make_rows(["a", "b"])
    space.add(rows)
    found = find_text(space, ["b"], ["p: "])
    assert np.array_equal(found.value, rows.values[1]) and found.n_tokens == 1


def test_a_text_under_other_prompts(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["it's"]))
    space.add(vectors_of(["it's"], np.ones((1, DIM)), prompt=None))
    with pytest.raises(MissingTextsError, match="with: 'p: '; one that embcache does not know"):
        find_text(space, ["it's"])
    with pytest.raises(MissingTextsError, match="with whatever prompt") as caught:
        find_text(space, ["it"])
    assert caught.value.missing == 1


def test_find_a_pair(scores: Space) -> None:
    assert find_text(scores, ["a", "c"], ["q: ", ""]).value == [0.25]
    with pytest.raises(MissingTextsError, match="but with: 'q: ' and ''"):
        find_text(scores, ["a", "c"])
    with pytest.raises(MissingTextsError, match="with whatever prompt"):
        find_text(scores, ["b", "a"])  # the order counts
    with pytest.raises(ConfigError, match="holds scores: give a query and a document"):
        find_text(scores, ["a"])


def test_inputs_that_cannot_be_found(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    with pytest.raises(ConfigError, match="holds vectors: give one text"):
        find_text(space, ["a", "b"])
    with pytest.raises(InputError, match="lone surrogate"):
        find_text(space, ["\ud800"])


def test_a_damaged_row_is_not_shown(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a", "b", "c"]))
    table = lancedb.connect(str(folder(space).parent)).open_table(space.name)
    table.update(where="text = 'b'", values={"checksum": 1})
    with pytest.raises(CacheError, match="fails its checksum"):
        find_text(space, ["b"], ["p: "])
    matches = near(space, find_text(space, ["a"], ["p: "]), 5)
    assert [match.text for match in matches] == ["c"]


def test_nearest_against_numpy(open_space: Callable[..., Space]) -> None:
    space, texts = open_space(), [f"text {i}" for i in range(200)]
    rows = make_rows(texts)
    space.add(rows)
    space.add(rows)  # as two processes do
    found = near(space, find_text(space, ["text 7"], ["p: "]), 10)
    unit = rows.values / np.linalg.norm(rows.values, axis=1, keepdims=True)
    cosines = unit @ unit[7]
    order = [i for i in np.argsort(-cosines) if i != 7][:10]
    assert [match.text for match in found] == [texts[i] for i in order]
    assert np.allclose([match.score for match in found], cosines[order], atol=1e-6)


def test_nearest_of_a_lonely_text(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    assert near(space, find_text(space, ["a"], ["p: "]), 3) == []


def test_words_are_found_and_nothing_is_written(open_space: Callable[..., Space]) -> None:
    space = open_space()
    for seed, texts in enumerate((["the quick fox", "a lazy dog"], ["Quick, QUICK!", "it's"])):
        space.add(make_rows(texts, seed=seed))
    before = sorted(folder(space).rglob("*"))
    found = search_words(space, "quick", 10)
    assert {match.text for match in found} == {"the quick fox", "Quick, QUICK!"}
    assert found[0].score >= found[1].score and found[0].prompt == "p: "
    assert search_words(space, "nothing", 10) == []
    assert len(search_words(space, "quick", 1)) == 1
    assert sorted(folder(space).rglob("*")) == before


def test_words_in_a_space_of_scores(scores: Space) -> None:
    with pytest.raises(ConfigError, match="has no column of texts"):
        search_words(scores, "a", 10)


def test_nearest_to_a_vector_leaves_nothing_out(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a", "b"]))
    own = find_text(space, ["a"], ["p: "])
    first, second = nearest(space, own.value, 5)
    assert (first.text, first.score) == ("a", 1.0) and second.text == "b"


def test_a_text_that_became_another_is_not_said_to_be_there(
    open_space: Callable[..., Space],
) -> None:
    space = open_space()
    space.add(make_rows(["elephant"]))
    (path,) = data_files(space)
    flip_bit(path, path.read_bytes().index(b"elephant") + 2, bit=1)
    with pytest.raises(MissingTextsError, match="its key is another text's: the row is damaged"):
        find_text(space, ["elgphant"], ["p: "])
    assert search_words(space, "elgphant", 5) == []
    assert nearest(space, np.ones(DIM, np.float32), 5) == []


def test_words_with_a_prompt(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a fox", "a dog"]))
    space.add(vectors_of(["a quick fox"], np.ones((1, DIM), np.float32), "it's: "))
    assert [m.text for m in search_words(space, "fox", 5, "it's: ")] == ["a quick fox"]
    assert [m.text for m in search_words(space, "fox", 5, "p: ")] == ["a fox"]
    assert search_words(space, "fox", 5, "nope") == []


def test_prompts_of(open_space: Callable[..., Space]) -> None:
    space = open_space()
    space.add(make_rows(["a"]))
    assert prompts_of(space, ["a"]) == [("p: ",)]
    assert prompts_of(space, ["b"]) == []
