from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embcache import ConfigError
from embcache.cli.sources import Sources, mteb_tasks, own_task
from embcache.warm import Columns, Dialect

pytestmark = pytest.mark.filterwarnings("ignore")


def sources(**given: Any) -> Sources:
    """Those of a command without options, but for some."""
    fields: dict[str, Any] = {
        "tasks": [], "benchmarks": [], "files": {}, "beir": [], "dataset": None, "config": None,
        "dataset_split": "train", "columns": Columns(), "dialect": Dialect(),
        "parts": ("corpus", "queries"), "splits": [], "subsets": [], "prompt": None,
        "prompt_type": None, "strict": False,
    }  # fmt: skip
    return Sources(**{**fields, **given})


def test_which_parts_files_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embcache.warm.parts.PART_BYTES", 1)
    table = pa.table({"text": [str(i) for i in range(30)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    given: dict[str, Any] = {
        "files": {"parquet": [str(tmp_path / "x.parquet")], "txt": ["-"]},
        "beir": [str(tmp_path)],
    }
    plain = sources(**given)
    whole, divided = plain.file_parts(), plain.file_parts(split=True)
    assert [(part.path.name, part.pieces, part.prompt_type) for part in whole] == [
        ("x.parquet", None, None),
        ("-", None, None),
        ("corpus.jsonl", None, "document"),
        ("queries.jsonl", None, "query"),
    ]
    assert [part.pieces for part in divided[:3]] == [range(i, i + 1) for i in range(3)]
    assert divided[3:] == whole[1:] and not divided[3].can_be_shipped
    for typed, expected in (("query", 4 * ["query"]), ("none", [None, None, "document", "query"])):
        found = sources(**given, prompt="p: ", prompt_type=typed).file_parts()
        assert [part.prompt_type for part in found] == expected
        assert {part.prompt for part in found} == {"p: "}


def test_tasks_by_name_with_splits_and_subsets() -> None:
    [task] = mteb_tasks(["STS22"], [], ["train"], ["de", "en"])
    assert task.metadata.name == "STS22" and sorted(task.hf_subsets) == ["de", "en"]
    assert task.eval_splits == ["train"]
    with pytest.raises(ConfigError, match="SciFact has none of the subsets de, en: it has default"):
        mteb_tasks(["SciFact"], [], None, ["de", "en"])


def test_a_benchmark_takes_splits_too() -> None:
    tasks = mteb_tasks([], ["NanoBEIR"], ["test"])
    assert len(tasks) == 13 and all(task.eval_splits == ["test"] for task in tasks)


def test_what_mteb_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r"no such task or benchmark: .*Did you mean: 'SciFact'"):
        mteb_tasks(["SciFakt"], [])
    with pytest.raises(ConfigError, match="no such task or benchmark"):
        mteb_tasks([], ["Nothing"])


def test_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_own_tasks.py").write_text(
        "from mteb.mocks.mock_tasks import MockSTSTask\n"
        "class Mine(MockSTSTask): pass\n"
        "made = Mine()\n"
        "number = 1\n"
    )
    [task] = mteb_tasks(["my_own_tasks:Mine"], [])
    assert type(task).__name__ == "Mine" and own_task("my_own_tasks:made").metadata == task.metadata
    with pytest.raises(ConfigError, match=r"'my_own_tasks:number' is 1, and no task of mteb's"):
        own_task("my_own_tasks:number")
    with pytest.raises(ConfigError, match=r"cannot be imported: .*Yours.*Give module:Class"):
        own_task("my_own_tasks:Yours")
    with pytest.raises(ConfigError, match=r"cannot be imported: No module named 'not_there'.*"):
        own_task("not_there:Task")
