from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embcache import EngineError, ModelNotFoundError
from embcache.identity.identity import vector_arguments
from embcache.identity.machine_memo import Memo
from embcache.identity.pinned_arguments import PinnedArguments
from embcache.identity.weights import resolve_model
from tests.hub import FIRST, MODEL, SECOND, THIRD, Hub
from tests.identity.test_model_files import write

TOKENIZER = {"tokenizer_config.json": "{}", "tokenizer.json": "{}"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model", {"config.json": "{}", "model.safetensors": "weights"})


def pinned(model: str | Path, **arguments: Any) -> PinnedArguments:
    arguments = {"trust_remote_code": True, **arguments}
    source = resolve_model(str(model), None, Memo())
    changing = {k: v for k, v in arguments.items() if k != "lora_request"}
    return PinnedArguments(arguments, vector_arguments(changing), source, Memo())


def test_what_names_nothing_stays_as_it_is(model: Path) -> None:
    arguments = {"max_model_len": 128, "hf_overrides": {"a": "b"}, "trust_remote_code": True}
    found = pinned(model, **arguments)
    assert found.identity == {"max_model_len": 128, "hf_overrides": {"a": "b"}}
    assert found.engine == arguments and found.adapter is None


@pytest.mark.parametrize("name", ["tokenizer", "hf_config_path", "generation_config", "unheard_of"])
def test_a_directory_counts_by_its_content(model: Path, tmp_path: Path, name: str) -> None:
    one = write(tmp_path / "one", {"config.json": '{"num_hidden_layers": 1}'})
    two = write(tmp_path / "two", {"config.json": '{"num_hidden_layers": 1}'})
    before = pinned(model, **{name: str(one)}).identity
    assert pinned(model, **{name: two}).identity == before and str(one) not in str(before)
    write(one, {"config.json": '{"num_hidden_layers": 2}'})
    assert pinned(model, **{name: str(one)}).identity != before


def test_a_file_counts_by_its_content(model: Path, tmp_path: Path) -> None:
    write(tmp_path, {"scales.json": "1"})
    arguments = {"model_loader_extra_config": {"adapter": str(tmp_path / "scales.json")}}
    before = pinned(model, **arguments)
    assert before.engine["model_loader_extra_config"] == arguments["model_loader_extra_config"]
    write(tmp_path, {"scales.json": "2"})
    assert pinned(model, **arguments).identity != before.identity


def test_the_engine_may_start_elsewhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "tok", TOKENIZER)
    write(tmp_path, {"scales.json": "1"})
    monkeypatch.chdir(tmp_path)
    found = pinned("model", tokenizer="tok", quantization_param_path="scales.json").engine
    assert found["tokenizer"] == str(tmp_path / "tok")
    assert found["quantization_param_path"] == str(tmp_path / "scales.json")
    assert resolve_model("model").load_from == (str(model), None)


class TestTokenizer:
    def test_a_branch_is_pinned_and_the_engine_is_told(self, model: Path, hub: Hub) -> None:
        hub.go_online()
        hub.branches = {("org/tok", "main"): FIRST, ("org/tok", "v2"): SECOND}
        found = pinned(model, tokenizer="org/tok")
        assert found.identity == {"tokenizer": "org/tok", "tokenizer_revision": FIRST}
        assert found.engine == {"trust_remote_code": True} | found.identity
        hub.branches["org/tok", "main"] = THIRD
        assert pinned(model, tokenizer="org/tok").identity["tokenizer_revision"] == THIRD
        branch = pinned(model, tokenizer="org/tok", tokenizer_revision="v2")
        assert branch.engine["tokenizer_revision"] == SECOND

    def test_a_commit_stays_what_it_was(self, model: Path, hub: Hub) -> None:
        given = {"tokenizer": "org/tok", "tokenizer_revision": FIRST}
        found = pinned(model, **given)
        assert found.identity == given and hub.asked == []

    def test_of_the_model_itself(self, hub: Hub) -> None:
        hub.add("org/name", {**MODEL, **TOKENIZER})
        assert pinned("org/name", tokenizer="org/name").identity == {"tokenizer": "org/name"}
        hub.add("org/name", {**MODEL, "tokenizer.json": "[]"}, SECOND, "new")
        found = pinned("org/name", tokenizer_revision="new")
        assert found.identity == {"tokenizer_revision": SECOND}
        assert SECOND in found.engine["tokenizer"] and not found.engine["tokenizer_revision"]

    def test_offline_out_of_the_hub_cache_and_as_a_directory(self, model: Path, hub: Hub) -> None:
        snapshot = hub.add("org/tok", TOKENIZER)
        found = pinned(model, tokenizer="org/tok")
        assert found.engine["tokenizer"] == str(snapshot)
        assert found.engine["tokenizer_revision"] is None
        assert pinned(model, tokenizer=str(snapshot)).identity == found.identity

    def test_neither_here_nor_there(self, model: Path, hub: Hub) -> None:
        with pytest.raises(ModelNotFoundError, match="tokenizer='org/none', revision='main'"):
            pinned(model, tokenizer="org/none")


class TestConfiguration:
    def test_of_another_repository(
        self, model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """vLLM has no revision for it, and takes the model's: hence a directory."""
        hub.go_online()
        hub.branches["org/config", "main"] = FIRST
        asked: list[Any] = []

        def download(repo: str, **options: Any) -> str:
            asked.append((repo, options["revision"]))
            return str(hub.add("org/config", {"config.json": "{}"}))

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        found = pinned(model, hf_config_path="org/config")
        assert found.identity == {"hf_config_path": f"org/config@{FIRST}"}
        assert asked == [("org/config", FIRST)]
        assert Path(found.engine["hf_config_path"], "config.json").is_file()
        offline = pinned(model, hf_config_path=found.engine["hf_config_path"])
        assert offline.identity == found.identity

    def test_that_cannot_be_downloaded(
        self, model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def download(*_: Any, **__: Any) -> None:
            raise ConnectionError("broken pipe")

        hub.go_online()
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        hub.branches["org/config", "main"] = FIRST
        with pytest.raises(ModelNotFoundError, match="hf_config_path='org/config' cannot be down"):
            pinned(model, hf_config_path="org/config")

    def test_the_models_own(self, hub: Hub) -> None:
        hub.add("org/name", MODEL)
        found = pinned("org/name", hf_config_path="org/name")
        assert found.identity == {"hf_config_path": "org/name"}
        assert "hf_config_path" not in found.engine


def test_draft_models(model: Path, hub: Hub) -> None:
    hub.add("org/draft", MODEL)
    found = pinned(model, speculative_config={"model": "org/draft", "n": 1})
    expected = {"speculative_config": {"model": "org/draft", "n": 1, "revision": FIRST}}
    assert found.identity == expected
    assert found.engine["speculative_config"] == expected["speculative_config"]
    assert pinned(model, spec_model="org/draft").identity == {"spec_model": f"org/draft@{FIRST}"}


def auto_map(*references: str) -> str:
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    return json.dumps({"auto_map": dict(zip(names, references, strict=False))})


class TestCode:
    @pytest.fixture
    def code(self, hub: Hub) -> Hub:
        hub.add("org/code", {"modeling.py": "x"})
        return hub

    @pytest.mark.parametrize("at", ["config.json", "hf_overrides", "hf_config_path"])
    def test_in_another_repository(self, model: Path, code: Hub, tmp_path: Path, at: str) -> None:
        named = auto_map("org/code--modeling.Config", "org/code--modeling.Model")
        arguments: dict[str, Any] = {}
        if at == "hf_overrides":
            arguments[at] = json.loads(named)
        elif at == "hf_config_path":
            arguments[at] = str(write(tmp_path / "config", {"config.json": named}))
        else:
            write(model, {at: named})
        found = pinned(model, **arguments)
        assert found.identity["code_revision"] == found.engine["code_revision"] == FIRST
        code.add("org/code", {"modeling.py": "y"}, SECOND)
        assert pinned(model, **arguments).identity["code_revision"] == SECOND
        assert pinned(model, **arguments, trust_remote_code=False).engine.get("code_revision") is (
            None
        )

    def test_of_a_model_on_the_hub(self, code: Hub) -> None:
        code.add("org/name", {**MODEL, "config.json": auto_map("org/code--modeling.Config")})
        assert pinned("org/name").identity == {"code_revision": FIRST}

    def test_said_aloud_it_is_the_same(self, model: Path, code: Hub) -> None:
        write(model, {"config.json": auto_map("org/code--modeling.Config")})
        code.add("org/code", {"modeling.py": "x"}, FIRST, "v1")
        silent = pinned(model).identity
        assert pinned(model, code_revision=FIRST).identity == silent
        assert pinned(model, code_revision="v1").identity == silent

    def test_a_branch_of_the_models_own(self, code: Hub) -> None:
        code.add("org/name", {**MODEL, "config.json": auto_map("modeling.Config")})
        assert pinned("org/name").identity == {}
        code.add("org/name", MODEL, SECOND, "dev")
        found = pinned("org/name", code_revision="dev")
        assert found.identity["code_revision"] == found.engine["code_revision"] == SECOND

    def test_own_by_the_models_name(self, code: Hub) -> None:
        """Loaded from its snapshot, transformers would take its own repository's main branch."""
        files = {**MODEL, "config.json": auto_map("org/name--modeling.Config")}
        code.add("org/name", files)
        found = pinned("org/name")
        assert found.identity == {} and found.engine["code_revision"] == FIRST

    def test_two_repositories_are_watched(self, model: Path, code: Hub) -> None:
        """One code_revision cannot name two commits."""
        code.add("org/more", {"extra.py": "x"}, SECOND)
        write(model, {"config.json": auto_map("org/code--modeling.C", "org/more--extra.M")})
        found = pinned(model)
        assert found.identity["code_revision"] == {"org/code": FIRST, "org/more": SECOND}
        assert "code_revision" not in found.engine
        found.check()
        code.add("org/more", {"extra.py": "y"}, THIRD)
        with pytest.raises(EngineError, match=r"start of its engine: org/more\. What"):
            found.check()

    def test_of_a_tokenizer_is_watched(self, model: Path, code: Hub) -> None:
        """vLLM hands no code_revision to a tokenizer."""
        code.add("org/tok", {"tok.py": "x"}, SECOND)
        names = {"AutoTokenizer": ["org/tok--tok.Slow", None]}
        write(model, {"tokenizer_config.json": json.dumps({"auto_map": names})})
        found = pinned(model, code_revision=FIRST)
        assert found.identity == {"code_revision": FIRST, "tokenizer_code": {"org/tok": SECOND}}
        code.add("org/tok", {"tok.py": "y"}, THIRD)
        with pytest.raises(EngineError, match="org/tok"):
            found.check()

    def test_that_is_nowhere(self, model: Path, hub: Hub) -> None:
        write(model, {"config.json": auto_map("org/none--modeling.Config")})
        with pytest.raises(ModelNotFoundError, match=r"code='org/none'.*code_revision='<40"):
            pinned(model)

    def test_in_a_directory_here(self, model: Path, tmp_path: Path) -> None:
        write(tmp_path / "lib", {"modeling.py": "x"})
        write(model, {"config.json": auto_map(f"{tmp_path / 'lib'}--modeling.Config")})
        before = pinned(model).identity
        write(tmp_path / "lib", {"modeling.py": "y"})
        assert pinned(model).identity != before

    def test_that_is_seen_only_when_the_engine_has_loaded_it(self, code: Hub) -> None:
        source = resolve_model("org/name", FIRST, Memo())
        found = PinnedArguments({"trust_remote_code": True}, {}, source, Memo())
        code.add("org/name", MODEL)
        found.check()
        code.add("org/name", {"config.json": auto_map("org/code--modeling.Config")})
        with pytest.raises(EngineError, match="code that the model's configuration names"):
            found.check()

    def test_a_laptop_without_the_model(self, hub: Hub) -> None:
        """With a full commit nothing is asked, so that cached vectors are found without a hub."""
        source = resolve_model("org/name", FIRST, Memo())
        assert PinnedArguments({"trust_remote_code": True}, {}, source, Memo()).identity == {}


@pytest.mark.parametrize("what", ["model", "tokenizer", "adapter", "removed"])
def test_files_that_change_before_the_engine_has_started(
    model: Path, tmp_path: Path, what: str
) -> None:
    folders = {
        "model": model,
        "tokenizer": write(tmp_path / "tok", TOKENIZER),
        "adapter": write(tmp_path / "lora", {"adapter_config.json": "{}"}),
    }
    found = pinned(model, tokenizer=str(folders["tokenizer"]), lora_request=str(folders["adapter"]))
    assert found.adapter == str(folders["adapter"])
    found.check()
    if what == "removed":
        folders["tokenizer"].rename(tmp_path / "elsewhere")
    else:
        write(folders[what], {"more.json": "{}"})
    with pytest.raises(EngineError, match=r"Changed between .*Make the encoder again"):
        found.check()


@pytest.mark.parametrize(
    "arguments", [{"hf_token": "s3cret"}, {"x": {"y": [{"api_key": "s3cret"}]}}]
)
def test_secrets_are_in_no_identity(model: Path, arguments: dict[str, Any]) -> None:
    found = pinned(model, **arguments)
    assert "s3cret" not in str(found.identity) and "s3cret" in str(found.engine)


def test_an_edited_tokenizer_under_the_hubs_name(model: Path, hub: Hub) -> None:
    snapshot = hub.add("org/tok", TOKENIZER)
    (snapshot / "tokenizer.json").write_text("[]")
    found = pinned(model, tokenizer="org/tok")
    assert found.identity["tokenizer"].startswith("local ")
    assert found.engine["tokenizer"] == str(snapshot)
    config = hub.add("org/config", {"config.json": "{}"})
    (config / "config.json").write_text('{"a": 1}')
    assert pinned(model, hf_config_path="org/config").identity != found.identity
    assert pinned(model, hf_config_path="org/config").identity["hf_config_path"][:6] == "local "


def test_code_of_a_snapshot_in_another_cache(
    hub: Hub, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/code", {"tok.py": "x", "modeling.py": "x"})
    other = Hub(tmp_path / "other", monkeypatch)
    named = {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": "org/code--tok.T"}}'}
    snapshot = other.add("org/tok", named, SECOND)
    hub.use()
    found = pinned(model, tokenizer=str(snapshot))
    assert found.identity["tokenizer_code"] == {"org/code": FIRST}
