"""The texts and pairs that every space keeps the values of, see `pipeline.canaries`.

They differ in what tokenizers and models treat differently: case, accents, scripts, digits, code,
blanks, and length. No special tokens: models that count them (BART's) refuse such texts. A text
that is changed here makes the canaries of existing spaces go unused until the next write.
"""

from __future__ import annotations

_SUBJECTS = ("The harbour", "A letter from Łódź", "Our café", "Line 14", "The third engine")
_VERBS = ("carried", "never reached", "counted", "was older than", "followed", "returned", "kept")
_OBJECTS = (
    "the ferries from Zürich",
    "1,024 pages of notes",
    "an answer",
    "every OTHER model in the catalogue",
    "its own shadow",
    "the price of 3.50 €",
    "a garden without walls",
    "what the committee had written",
    "snow",
    "seven languages",
    "the last train",
)


def _long_text() -> str:
    """Some 700 words: longer than what many models read, and no two sentences alike.

    Which end is cut, and where, changes its vector.
    """
    sentences = (
        f"{_SUBJECTS[i % 5]} {_VERBS[i % 7]} {_OBJECTS[i % 11]}, and so it was in {1900 + i}."
        for i in range(52)
    )
    return " ".join(sentences)


LONG = _long_text()

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "Naïve CAFÉ in Zürich: 3,141.59 m² for €27, open 09:30-18:45",
    "東京の天気は晴れ。Привет, мир! ¿Qué tal? مرحبا 🙂",
    "def area(r):\n    return 3.14159 * r ** 2  # see https://example.org/?q=circle&n=2",
    LONG,
)

PAIRS = (
    ("what is the capital of france", "Paris is the capital and largest city of France."),
    ("what is the capital of france", "Bananas are rich in potassium; 100 g hold 358 mg."),
    ("what is the capital of france", "Lyon was the capital of Gaul in Roman times."),
    ("how long do bananas keep", "Bananas are rich in potassium; 100 g hold 358 mg."),
    ("Zürich CAFÉ opening hours?", TEXTS[1]),
    ("which engine followed the last train", LONG),
)
"""Queries and documents."""
