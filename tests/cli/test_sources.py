from __future__ import annotations

import sys
from pathlib import Path

import pytest

from embcache import ConfigError
from embcache.cli.sources import mteb_tasks, own_task

pytestmark = pytest.mark.filterwarnings("ignore")


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
