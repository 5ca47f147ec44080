from __future__ import annotations

import pytest

from embcache.cli import progress
from embcache.cli.progress import WarmDisplay
from embcache.warm import WarmStats

STATS = WarmStats(texts=1000, unique=900, hits=500, encoded=400, tokens=8000, seconds=100.0)


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    with WarmDisplay(total=1800) as display:
        display.update(STATS)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "texts 900, hits 500, encoded 400, texts/s 9, tokens/s 80, time 0:01:40, "
        "left, about 0:01:40\n"
    )


def test_a_line_every_few_seconds_only(capsys: pytest.CaptureFixture[str]) -> None:
    with WarmDisplay() as display:
        for _ in range(100):
            display.update(STATS)
    assert capsys.readouterr().err == ""


def test_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    with WarmDisplay(quiet=True) as display:
        display.update(STATS)
    assert capsys.readouterr().err == ""


def test_nothing_done_yet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    with WarmDisplay(total=10) as display:
        display.update(WarmStats())
    assert "left" not in capsys.readouterr().err
