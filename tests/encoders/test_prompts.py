from __future__ import annotations

import logging
from typing import Any

import mteb
import pytest

from embcache import ConfigError
from embcache.encoders.registry import registered_prompts, resolve_prompts

E5 = {"query": "query: ", "document": "passage: "}


def test_the_registry_knows_e5() -> None:
    assert registered_prompts(mteb.get_model_meta("intfloat/e5-small")) == E5
    assert registered_prompts(None) is None


def test_registered() -> None:
    assert resolve_prompts("registered", E5, "m") == E5
    with pytest.raises(ConfigError, match="registry holds no prompts for 'm'"):
        resolve_prompts("registered", None, "m")


def test_registered_but_not_given_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolve_prompts(None, E5, "m") is None
    assert [r.message.count('prompt_dict="registered"') for r in caplog.records] == [1]
    caplog.clear()
    assert resolve_prompts({}, E5, "m") == {} and resolve_prompts(None, None, "m") is None
    assert not caplog.records


@pytest.mark.parametrize("bad", ["query: ", {"query": None}, {"query": {"a": "b"}}])
def test_bad_prompts(bad: Any) -> None:
    with pytest.raises(ConfigError, match="prompt_dict"):
        resolve_prompts(bad, None, "m")


def test_names_that_mteb_does_not_know_are_said(caplog: pytest.LogCaptureFixture) -> None:
    known = {**E5, "STS12": "a", "STS12-query": "b", "Retrieval": "c", "Retrieval-document": "d"}
    with caplog.at_level(logging.WARNING):
        assert resolve_prompts(known, None, "m") == known
        assert not caplog.records
        assert resolve_prompts({"qery": "q: ", **E5}, None, "m") == {"qery": "q: ", **E5}
    assert "prompt_dict has 'qery': no prompt type" in caplog.text
