"""Many processes create one table at once, and are killed: what was acknowledged stays."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from embcache.store import Database, Space
from embcache.store.location import Location
from tests.crash.creator import identity_of
from tests.object_store import ObjectStore
from tests.spaces import IDENTITY, make_rows, read_all

SEED = 20_261_129


class Writer:
    """One process, started again where it was killed.

    Args:
        number: Which.
        job: What it does, see `creator`.
    """

    def __init__(self, number: int, job: dict[str, object]) -> None:
        self.job = {**job, "writer": f"writer {number}", "first": 0}
        self.acknowledged: list[tuple[int, str]] = []
        self.process: subprocess.Popen[str] | None = None
        self.thread = threading.Thread(target=self._run)
        self.failed = ""

    def kill(self) -> None:
        process = self.process
        if process is not None:
            process.kill()

    def _run(self) -> None:
        while True:
            process = self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.creator"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stdin and process.stdout and process.stderr
            process.stdin.write(json.dumps(self.job))
            process.stdin.close()
            for line in process.stdout:
                if line.endswith("\n"):
                    round_, text = line.rstrip("\n").split("\t")
                    self.acknowledged.append((int(round_), text))
            said = process.stderr.read()
            status = process.wait()
            if status != -9:
                self.failed = said if status else ""
                return
            self.job["first"] = self.acknowledged[-1][0] + 1 if self.acknowledged else 0


def storm(location: Location, writers: int, rounds: int, seconds: float) -> list[tuple[int, str]]:
    """What was acknowledged."""
    job = {
        "uri": location.uri,
        "options": dict(location.storage_options),
        "rounds": rounds,
        "seconds": seconds,
        "begin": time.time() + 5,
    }
    found = [Writer(number, job) for number in range(writers)]
    draw = random.Random(SEED)
    for writer in found:
        writer.thread.start()
    time.sleep(5)
    while any(writer.thread.is_alive() for writer in found):
        time.sleep(draw.uniform(0.5, 2))
        if draw.random() < 0.7:
            draw.choice(found).kill()
    assert [writer.failed for writer in found] == [""] * writers
    return [one for writer in found for one in writer.acknowledged]


def check(location: Location, acknowledged: list[tuple[int, str]], rounds: int) -> None:
    database = Database(location, writable=False)
    for round_ in range(rounds):
        identity = identity_of(round_)
        texts = [text for number, text in acknowledged if number == round_]
        rows = make_rows([*texts], seed=round_, identity=identity)
        space = database.space(identity, identity.model, "vllm 1.0")
        snapshot = space.refresh()
        assert (snapshot.find(rows.keys) >= 0).all(), f"round {round_}: {texts}"
        assert snapshot.reader is not None and snapshot.reader.dataset.has_stable_row_ids
        for text in texts:
            one = make_rows([text], seed=round_, identity=identity)
            assert (read_all(space, one)[0] == one.values).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eight_writers_on_disk(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "cache")
    acknowledged = storm(location, writers=8, rounds=60, seconds=0.1)
    assert len(acknowledged) > 300
    check(location, acknowledged, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_writers_in_a_store(object_store: ObjectStore) -> None:
    """Four: who loses in SeaweedFS waits in steps of a second."""
    location = Location.of(object_store.url(), object_store.options)
    acknowledged = storm(location, writers=4, rounds=15, seconds=0.5)
    assert len(acknowledged) > 40
    check(location, acknowledged, 15)


def test_what_the_loser_of_a_creation_gets(tmp_path: Path) -> None:
    """What creation rests on: a table that is there is not begun again, whatever Lance says."""
    import lance

    space = Database(tmp_path, writable=True).space(IDENTITY, "name", "vllm 1.0")
    rows = make_rows(["a"])
    space.add(rows)
    with pytest.raises(OSError, match=r"not found|already exists"):
        lance.LanceDataset.commit(
            space.location.uri,
            lance.LanceOperation.Overwrite(lance.dataset(space.location.uri).schema, []),
            enable_stable_row_ids=True,
            max_retries=0,
        )
    again = Space(space.location, space.metadata)
    again._create(8)
    assert (read_all(again, rows)[0] == rows.values).all()
