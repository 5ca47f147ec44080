from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from embcache.identity.live_model import LiveModel, hugging_face_config, sentence_transformer


def holder(**attributes: Any) -> Any:
    return SimpleNamespace(**attributes)


def linear(seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(40, 30)


def test_equal_weights_have_equal_hashes() -> None:
    first = LiveModel(holder(model=linear())).weights()
    assert first is not None and len(first) == 32
    assert LiveModel(holder(other_name=linear())).weights() == first
    assert LiveModel(linear()).weights() == first
    assert LiveModel(holder(model=linear(1))).weights() != first


def test_no_weights_to_be_seen() -> None:
    live = LiveModel(holder(model="intfloat/e5-small"))
    assert live.weights() is None and live.dtype() == "unknown" and live.settings() == {}


def step(model: torch.nn.Linear) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()


def one_number_in_place(model: torch.nn.Linear) -> None:
    with torch.no_grad():
        model.weight[17, 3] += 1


def load_others(model: torch.nn.Linear) -> None:
    model.load_state_dict(linear(1).state_dict())


def behind_autograds_back(model: torch.nn.Linear) -> None:
    model.weight.data.mul_(1.01)


def replace_data(model: torch.nn.Linear) -> None:
    model.weight.data = linear(1).weight.data


def another_parameter(model: torch.nn.Linear) -> None:
    model.bias = None


@pytest.mark.parametrize(
    "change",
    [
        step,
        one_number_in_place,
        load_others,
        behind_autograds_back,
        replace_data,
        another_parameter,
    ],
)
def test_any_change_of_weights_is_seen(change: Any) -> None:
    model = linear()
    live = LiveModel(holder(model=model))
    before = live.weights()
    assert live.weights() == before
    change(model)
    assert live.weights() != before


def test_hashing_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveModel(linear())
    expected = live.weights()
    monkeypatch.setattr(live, "_hash_weights", lambda: pytest.fail("hashed again"))
    assert live.weights() == expected


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")],
)
def test_dtype_is_that_of_the_weights(dtype: torch.dtype, name: str) -> None:
    model = linear().to(dtype)
    assert LiveModel(model).dtype() == name
    assert LiveModel(model).weights() is not None


def test_odd_weights() -> None:
    with torch.inference_mode():
        frozen = linear()
    parts = {
        "inference": frozen,
        "meta": torch.nn.Linear(3, 3, device="meta"),
        "empty": torch.nn.Linear(0, 0),
        "scalar": torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(1.0))]),
    }
    live = LiveModel(holder(**parts))
    assert live.weights() is not None and live.weights() == LiveModel(holder(**parts)).weights()


def test_settings_of_endpoints_and_of_mtebs_vllm_wrapper() -> None:
    endpoint = holder(max_length=512, use_chat_template=False, api_key="secret", timeout=3)
    assert LiveModel(endpoint).settings() == {"max_length": 512, "use_chat_template": False}
    config = holder(dtype="torch.float16", max_model_len=256, quantization=None)
    wrapper = holder(llm=holder(llm_engine=holder(model_config=config)))
    assert LiveModel(wrapper).dtype() == "float16"
    assert LiveModel(wrapper).settings()["max_model_len"] == 256


def test_settings_of_sentence_transformers(model_path: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_path, device="cpu")
    wrapper = holder(model=model)
    live = LiveModel(wrapper)
    assert sentence_transformer(wrapper) is model
    assert hugging_face_config(wrapper)["hidden_size"] == 384
    before = live.settings()
    assert before["max_seq_length"] == 256 and len(before["modules"]) == 3
    model.set_pooling_include_prompt(include_prompt=False)
    assert live.settings() != before


def test_what_is_no_sentence_transformer() -> None:
    assert sentence_transformer(holder(model=linear())) is None
    assert hugging_face_config(holder()) == {}
