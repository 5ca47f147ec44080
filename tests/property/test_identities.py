"""Two different models, revisions, dtypes, settings or prompts never share a row."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from embcache import CachedEncoder
from embcache.identity.identity import Identity, vector_arguments
from embcache.identity.keys import pair_keys, text_keys, to_bytes
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.store import Database
from tests.conftest import encode
from tests.fakes import FakeEngine, FakeModel

# Few letters: neighbours that run into each other are what a careless key would confuse.
word = st.text(alphabet='ab:-_ \0{}",', max_size=4)
plain = st.one_of(st.none(), st.booleans(), st.integers(0, 3), word)
arguments = st.dictionaries(word, st.one_of(plain, st.lists(plain, max_size=2)), max_size=2)
identities = st.builds(
    Identity,
    model=word,
    revision=word,
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    arguments=arguments,
    engine=st.sampled_from(["vllm", "mteb A", "mteb B"]),
    prompt_handling=word,
    truncation=word,
)
texts = st.lists(word, min_size=1, max_size=4, unique=True)


@given(st.lists(st.tuples(identities, word, word), min_size=2, max_size=20))
def test_keys_differ_where_anything_differs(asked: list[tuple[Identity, str, str]]) -> None:
    keys = {
        to_bytes(text_keys(identity.to_bytes(), prompt, [text])): (identity.to_json(), prompt, text)
        for identity, prompt, text in asked
    }
    assert len(keys) == len({(i.to_json(), prompt, text) for i, prompt, text in asked})


@given(st.lists(st.tuples(identities, word, word, word, word), min_size=2, max_size=20))
def test_keys_of_pairs_differ_where_anything_differs(asked: list[Any]) -> None:
    keys = {
        to_bytes(pair_keys(identity.to_bytes(), (p, q), [a], [b])) for identity, p, q, a, b in asked
    }
    assert len(keys) == len({(identity.to_json(), *rest) for identity, *rest in asked})


@given(identities)
def test_identities_survive_the_disk(identity: Identity) -> None:
    assert Identity.from_json(identity.to_json()).to_bytes() == identity.to_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(identities, word, texts), min_size=2, max_size=5))
def test_in_one_cache_nobody_gets_anothers_vector(
    runs: list[tuple[Identity, str, list[str]]],
) -> None:
    """Every identity's engine has vectors of its own; a shared row would show."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for _ in range(2):  # cold, then warm
            for identity, prompt, wanted in runs:
                space = Database(folder, writable=True).space(identity, identity.model, "v")
                engine = _EngineOf(identity)
                vectors, _ = Pipeline(engine, identity, space).encode(
                    TextRequest(texts=wanted, prompt=prompt, show_progress=False)
                )
                expected = _EngineOf(identity).embed([prompt + text for text in wanted]).vectors
                assert vectors.tobytes() == expected.tobytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["org/a", "org/b", None]),
            st.sampled_from(["1", "2", None]),
            st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 1), max_size=2),
            st.sampled_from([None, "int8", "binary"]),
            st.dictionaries(st.sampled_from(["model", "x"]), st.integers(0, 1), min_size=1),
        ),
        min_size=2,
        max_size=5,
        # Not by repr: a mapping in another order is the same one, and may well hit.
        unique_by=lambda one: json.dumps(one, sort_keys=True),
    )
)
def test_wrapped_encoders_never_share_a_row(asked: list[Any]) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, revision, experiment, precision, extra in asked:
            model = FakeModel(name, revision, experiment_kwargs=experiment)
            encoder = CachedEncoder(model, Path(folder), identity=extra)
            encode(encoder, ["a"], precision=precision)
            assert encoder.stats.hits == 0, "another's row"
            encode(encoder, ["a"], precision=precision)
            assert encoder.stats.hits == 1


@example({"x": True}, {"x": 1})  # which Python calls equal
@given(arguments, arguments)
def test_equal_engine_arguments_and_only_those_are_one_identity(one: Any, other: Any) -> None:
    same = written(vector_arguments(one)) == written(vector_arguments(other))
    identity = [Identity("m", "r", "float32", vector_arguments(a)).to_json() for a in (one, other)]
    assert (identity[0] == identity[1]) == same


def written(arguments: dict[str, Any]) -> list[str]:
    return sorted(map(repr, arguments.items()))


class _EngineOf(FakeEngine):
    """Vectors of one identity."""

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self._identity = identity.to_json()

    def embed(self, prompts: Any) -> Any:
        return super().embed([f"{self._identity}{prompt}" for prompt in prompts])
