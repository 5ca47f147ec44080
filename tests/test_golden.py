"""What must never change: the bytes of format 1, and the keys of identities, prompts and texts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from embcache import CachedEncoder, LanceCache, VllmCrossEncoderWrapper, VllmEncoderWrapper
from embcache.identity.identity import Identity
from embcache.identity.keys import pair_keys, text_keys, to_bytes
from embcache.store import Database
from embcache.tools.check import check_space
from tests.conftest import encode, predict
from tests.data import make_golden_cache as golden

FOLDER = Path(__file__).parent / "data" / "golden-v1"
VECTORS = np.stack([golden.vector(text) for text in golden.TEXTS])


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A copy: some file systems change what is only read."""
    shutil.copytree(FOLDER, tmp_path / "golden")
    return tmp_path / "golden" / "cache"


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in golden.MODEL_FILES.items():
        (folder / name).write_bytes(content)
    return str(folder)


def test_vectors(cache: Path, model: str) -> None:
    encoder = VllmEncoderWrapper(
        model, dtype="float32", cache_path=cache, on_miss="raise", prompt_dict={"STS": "query: "}
    )
    assert encoder.identity == golden.ENCODER
    assert encode(encoder, golden.TEXTS).tobytes() == VECTORS.tobytes()
    assert (encoder.stats.hits, encoder.stats.encoded) == (7, 0)


def test_vectors_without_texts_under_other_arguments(cache: Path, model: str) -> None:
    encoder = VllmEncoderWrapper(
        model,
        dtype="bfloat16",
        max_model_len=128,
        cache_path=cache,
        on_miss="raise",
        prompt_dict={"STS": "query: "},
    )
    assert encode(encoder, golden.TEXTS).tobytes() == VECTORS.tobytes()


def test_scores(cache: Path, model: str) -> None:
    reranker = VllmCrossEncoderWrapper(
        model, None, *golden.PREFIXES, dtype="float32", cache_path=cache, on_miss="raise"
    )
    queries, documents = map(list, zip(*golden.PAIRS, strict=True))
    scores = predict(reranker, queries, documents)
    assert scores.tolist() == [golden.score(pair) for pair in golden.PAIRS]


def test_vectors_of_a_wrapped_encoder(cache: Path) -> None:
    encoder = CachedEncoder(golden.GoldenModel(), cache, on_miss="raise")
    assert np.asarray(encode(encoder, golden.TEXTS)).tobytes() == VECTORS.tobytes()


def test_items_of_mtebs_own_wrapper(cache: Path) -> None:
    items = LanceCache(cache.parent / "items")
    assert len(items) == 7
    found = [items.get_vector({"text": text}) for text in golden.TEXTS]
    assert np.stack([vector for vector in found if vector is not None]).tobytes() == (
        VECTORS.tobytes()
    )


def test_every_space_is_checked_and_clean(cache: Path) -> None:
    found = {
        f"{report.location.name}.lance": (report.rows, report.unverified, report.ok)
        for root in (cache, cache.parent / "items")
        for report in map(check_space, Database(root, writable=False).spaces())
    }
    assert found == {
        "golden--bfloat16--02c9f048d0.lance": (7, 7, True),
        "golden--float32--30a051470f.lance": (7, 0, True),
        "golden--float32--c32b764806.lance": (3, 0, True),
        "golden--model--unknown--22b9d6dee6.lance": (7, 7, True),
        "items--unknown--4fa7638372.lance": (7, 0, True),
    }


def test_the_script_still_makes_the_like(tmp_path: Path, cache: Path) -> None:
    golden.write(tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again" / "cache").glob("*.lance")) == sorted(
        path.name for path in cache.glob("*.lance")
    )


NAMED = Identity("intfloat/e5-small", "0" * 40, "float16")
IDENTITIES = {
    "a hub name": NAMED,
    "a directory": golden.ENCODER,
    "arguments": NAMED.with_arguments(
        {"max_model_len": 512, "pooler_config": {"pooling_type": "CLS"}, "seed": None}
    ),
    "a reranker": golden.RERANKER,
    "a wrapped encoder": Identity(
        "org/ä",
        "",
        "unknown",
        {"weights": "0" * 32, "identity": {"server": "vllm"}},
        engine="mteb OpenAIAPIEncodeWrapper",
        prompt_handling="prefix",
        truncation="the model's own",
    ),
}


def test_fingerprints() -> None:
    assert {name: identity.fingerprint() for name, identity in IDENTITIES.items()} == {
        "a hub name": "f1590cc5b4",
        "a directory": "30a051470f",
        "arguments": "94d8522496",
        "a reranker": "c32b764806",
        "a wrapped encoder": "4817b10849",
    }


def test_keys_of_texts() -> None:
    found = {
        (name, prompt, text): to_bytes(text_keys(identity.to_bytes(), prompt, [text])).hex()
        for name, identity in IDENTITIES.items()
        for prompt, text in (("", ""), ("query: ", "Grüße, 東京\n"), ("", "query: Grüße, 東京\n"))
    }
    assert found == {
        ("a hub name", "", ""): "633904c7424de7afdc8c1944567aba2e",
        ("a hub name", "query: ", "Grüße, 東京\n"): "79a81b7c2ad827e7e9e31f87dc571ca6",
        ("a hub name", "", "query: Grüße, 東京\n"): "c410d5dbd45fff53c25c1b669cb71c5f",
        ("a directory", "", ""): "72ec1b307e2b650bf50d957756e3ea9d",
        ("a directory", "query: ", "Grüße, 東京\n"): "cf466029a74a2a3f39324641865da0a0",
        ("a directory", "", "query: Grüße, 東京\n"): "1c4e75f1f3b5816f342ada158a7ef1a5",
        ("arguments", "", ""): "8c0e02e76b91a44aea82ebadb6fc543c",
        ("arguments", "query: ", "Grüße, 東京\n"): "b9ca5c6ea019eb24da67d7785c902f77",
        ("arguments", "", "query: Grüße, 東京\n"): "09a19c53a5a8ead7137b76dea20fb161",
        ("a reranker", "", ""): "9100d2194443700e6ae20f7e6f8654ec",
        ("a reranker", "query: ", "Grüße, 東京\n"): "3ab4f90f3d6dbc55616d7b4a11a7baa0",
        ("a reranker", "", "query: Grüße, 東京\n"): "c3d733f2b9df2295d678290b0e442c40",
        ("a wrapped encoder", "", ""): "aa542f18816373a8fbec59576277af2a",
        ("a wrapped encoder", "query: ", "Grüße, 東京\n"): "f3f84cf2e7bff1e2306f985ac4be063c",
        ("a wrapped encoder", "", "query: Grüße, 東京\n"): "397371e1f550bd2a3e6d51ac9b539574",
    }


def test_keys_of_pairs() -> None:
    found = {
        (*prefixes, *pair): to_bytes(
            pair_keys(golden.RERANKER.to_bytes(), prefixes, [pair[0]], [pair[1]])
        ).hex()
        for prefixes in (("", ""), ("q: ", "d: "))
        for pair in (("", ""), ("ä", "a document"), ("a document", "ä"))
    }
    assert found == {
        ("", "", "", ""): "b36e36fda183af6d0959acf2411cf5a5",
        ("", "", "ä", "a document"): "4210684498e2f860760e538326caeb62",
        ("", "", "a document", "ä"): "1cf11f4f5731f28de360a3c745a29fd8",
        ("q: ", "d: ", "", ""): "ab8613cc6df28dd17b132b8485bdf179",
        ("q: ", "d: ", "ä", "a document"): "c4b9db2ba68eac62d38279ad0deb74c9",
        ("q: ", "d: ", "a document", "ä"): "6dd603c17d391cd030d4bfb0c1164b01",
    }
