from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from embcache.cli import progress
from embcache.cli.progress import TransferDisplay, WarmDisplay
from embcache.cluster import ClusterStats
from embcache.tools.transfer import TransferProgress
from embcache.warm import WarmStats

STATS = WarmStats(
    texts=900, hits=500, encoded=400, committed=300, tokens=8000,
    seconds=110.0, start_seconds=10.0,
)  # fmt: skip


@dataclass
class Clock:
    """Speeds by the real one would be those of this machine and its load."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "_Bar", partial(progress._Bar, get_time=clock))
    return clock


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns gets."""
    written = io.StringIO()
    kwargs: dict[str, Any] = {"file": written, "force_terminal": True, "width": 80}
    kwargs["color_system"] = None
    monkeypatch.setattr(
        progress, "Console", lambda **more: Console(**{**more, "stderr": False, **kwargs})
    )
    return written


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], always: None
) -> None:
    """Rates are about the time without the engine's start."""
    with WarmDisplay() as display:
        display.update(STATS)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "warming: texts 900, hits 500, committed 300, texts/s 9, tokens/s 80, time 0:01:50\n"
    )


def test_a_line_every_few_seconds_only(capsys: pytest.CaptureFixture[str]) -> None:
    with WarmDisplay() as display:
        for _ in range(100):
            display.update(STATS)
    assert capsys.readouterr().err == ""


def test_the_start_of_the_engine_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with WarmDisplay() as display:
        display.update(replace(STATS, starting=True))
    assert capsys.readouterr().err.startswith("starting the engine: texts 900")


def test_time_left_follows_the_speed_of_late(
    capsys: pytest.CaptureFixture[str], always: None, clock: Clock
) -> None:
    with WarmDisplay(total=10_000) as display:
        for texts in (0, 100, 200):
            display.update(replace(STATS, texts=texts))
            clock.seconds += 0.05
    lines = capsys.readouterr().err.splitlines()
    assert "left" not in lines[0]
    assert lines[-1].endswith("left about 0:00:05")  # 9,800 at 100 in 0.05 s


def test_the_start_of_the_engine_says_nothing_of_speed(
    capsys: pytest.CaptureFixture[str], always: None, clock: Clock
) -> None:
    with WarmDisplay(total=1000) as display:
        display.update(replace(STATS, texts=10))
        display.update(replace(STATS, texts=10, starting=True))
        clock.seconds += 0.5
        for texts in (20, 30, 40):
            display.update(replace(STATS, texts=texts))
            clock.seconds += 0.02
    lines = capsys.readouterr().err.splitlines()
    assert "left" not in lines[1]
    assert lines[-1].endswith("left about 0:00:02")  # 960 at 10 in 0.02 s; with the start, 18 s


def test_rows_that_are_left_out_are_no_work_left(
    capsys: pytest.CaptureFixture[str], always: None, clock: Clock
) -> None:
    with WarmDisplay(total=1000, left_out=lambda: 100) as display:
        display.update(replace(STATS, texts=10))
        clock.seconds += 0.01
        display.update(STATS)
    assert capsys.readouterr().err.splitlines()[-1].endswith("left about 0:00:00")


def test_replicas_and_the_dashboard(capsys: pytest.CaptureFixture[str], always: None) -> None:
    """The dashboard is named once; a local run has neither."""
    stats = ClusterStats(**vars(STATS), alive=12, dashboard="http://10.0.0.1:8265")
    with WarmDisplay() as display:
        display.update(replace(stats, dashboard=None))
        display.update(stats)
        display.update(stats)
    said = capsys.readouterr().err
    assert said.count("Ray's dashboard: http://10.0.0.1:8265") == 1
    assert said.count("replicas 12") == 3
    with WarmDisplay() as display:
        display.update(STATS)
    said = capsys.readouterr().err
    assert "texts 900" in said and "replicas" not in said and "dashboard" not in said


def test_on_a_terminal(terminal: io.StringIO) -> None:
    with WarmDisplay(total=1800) as display:
        display.update(replace(STATS, texts=10))
        display.update(STATS)
        display._progress.refresh()
    text = terminal.getvalue()
    assert "50%" in text and "warming" in text
    assert "left" in text and "texts 900, hits 500" in text and "time 0:01:50" in text


def test_a_transfer_by_plain_lines(capsys: pytest.CaptureFixture[str], always: None) -> None:
    with TransferDisplay() as display:
        display.update(TransferProgress("a space", 4096, 10_000, 6_300_000))
    assert capsys.readouterr() == ("", "copying a space: 4,096 of 10,000 rows, 6.3 MB\n")


def test_a_transfer_on_a_terminal(terminal: io.StringIO) -> None:
    """Its name is anybody's; the bar of the next space begins anew."""
    with TransferDisplay() as display:
        display.update(TransferProgress("first", 10, 10, 0))
        display.update(TransferProgress("\x1b[2Jsecond", 500, 1000, 2_000))
        display._progress.refresh()
    text = terminal.getvalue()
    assert "50%" in text and "copying" in text and "500 of 1,000 rows, 2.0 kB" in text
    assert "second: 500" in text and "\x1b[2Jsecond" not in text
