"""Where a cache is used: forked workers, event loops, few file handles, places that are read-only.

Each in a process of its own, with a fake engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_python

HEAD = """
import os, sys
from embcache.pipeline.pipeline import Pipeline
from embcache.pipeline.request import TextRequest
from embcache.store import Database
from embcache.tools.check import check_space
from embcache.tools.compact import compact_space
from tests.crash.writer import IDENTITY
from tests.fakes import FakeEngine, fake_vector
import numpy as np

def pipeline(place):
    space = Database(place, writable=True).space(IDENTITY, "m", "fake 1.0")
    return Pipeline(FakeEngine(batch_size=50), IDENTITY, space)

def encode(pipeline, numbers):
    texts = [f"text {i}" for i in numbers]
    vectors, stats = pipeline.encode(TextRequest(texts=texts, show_progress=False))
    assert (vectors == np.stack([fake_vector(text) for text in texts])).all()
    return stats

def all_is_well(place, rows):
    space = pipeline(place).space
    report = check_space(space)
    assert report.ok and report.rows - report.duplicates == rows, report
    print("well", compact_space(space).fragments_after)
"""


def run(code: str, place: Path, **environment: str) -> None:
    head = f"PLACE = {str(place)!r}\n"
    out = run_python(head + HEAD + textwrap.dedent(code), **environment)
    assert "well" in out, out


def test_forks_of_a_process_that_has_used_the_cache(tmp_path: Path) -> None:
    """None hangs or crashes: each is told why not; also beside a thread that is in Lance."""
    run(
        """
        import signal, threading
        from embcache import ForkedProcessError
        used, stop = pipeline(PLACE), threading.Event()
        encode(used, range(50))
        def busy():
            first = 100
            while not stop.is_set():
                encode(used, range(first, first + 20))
                first += 20
        def forked(make, numbers):
            if (child := os.fork()) == 0:
                signal.alarm(60)
                try:
                    encode(make(), numbers)
                except ForkedProcessError as error:
                    os._exit(0 if "'spawn'" in str(error) else 3)
                os._exit(4)
            assert os.waitpid(child, 0)[1] == 0
        def fork_all():
            for number in range(4):
                forked(lambda: used, range(50))
                forked(lambda: used, range(10_000, 10_010))
                forked(lambda: pipeline(PLACE), range(50))
        fork_all()
        thread = threading.Thread(target=busy)
        thread.start()
        try:
            fork_all()
        finally:
            stop.set()
            thread.join()
        assert encode(used, range(50)).hits == 50
        assert check_space(used.space).ok
        print("well")
        """,
        tmp_path,
    )


def test_forks_before_the_first_use(tmp_path: Path) -> None:
    """Workers that use the cache, all of it imported: four write the same and read it."""
    run(
        """
        import multiprocessing, lancedb, lance
        def work(number):
            made = pipeline(PLACE)
            for first in range(0, 100, 20):
                encode(made, range(first, first + 30))
            return encode(made, range(130)).texts
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(4) as pool:
                assert pool.map(work, range(8), chunksize=2) == [130] * 8
            all_is_well(PLACE, 130)
        """,
        tmp_path,
    )


def test_workers_of_a_data_loader_beside_a_used_encoder(tmp_path: Path) -> None:
    """They fork and leave the cache alone, as mteb's do: nobody is disturbed."""
    run(
        """
        from torch.utils.data import DataLoader
        used = pipeline(PLACE)
        encode(used, range(50))
        for turn in range(5):
            loader = DataLoader(
                range(turn * 20, 100), batch_size=10, num_workers=2, multiprocessing_context="fork"
            )
            for batch in loader:
                encode(used, batch.tolist())
        all_is_well(PLACE, 100)
        """,
        tmp_path,
    )


def test_spawned_workers(tmp_path: Path) -> None:
    """What the error advises; spawn runs a file."""
    script = tmp_path / "script.py"
    body = """
        import multiprocessing
        def work(number):
            return encode(pipeline(PLACE), range(100 + number)).texts
        if __name__ == "__main__":
            encode(pipeline(PLACE), range(100))
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                assert pool.map(work, [1, 2]) == [101, 102]
            all_is_well(PLACE, 102)
        """
    place = f"PLACE = {str(tmp_path / 'cache')!r}\n"
    script.write_text(place + HEAD + textwrap.dedent(body))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    code = f"import subprocess; subprocess.run([sys.executable, {str(script)!r}], check=True)"
    assert "well" in run_python(code, PYTHONPATH=path)


def test_inside_a_running_event_loop(tmp_path: Path) -> None:
    """A cell of a notebook runs in one."""
    run(
        """
        import asyncio
        async def cell():
            encode(pipeline(PLACE), range(100))
            assert encode(pipeline(PLACE), range(150)).hits == 100
            all_is_well(PLACE, 150)
        asyncio.run(cell())
        """,
        tmp_path,
    )


def test_few_file_handles(tmp_path: Path) -> None:
    """`ulimit -n 64`, and more files than that."""
    run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        used = pipeline(PLACE)
        for first in range(0, 210, 3):
            encode(used, range(first, first + 3))
        assert encode(pipeline(PLACE), range(210)).hits == 210
        assert encode(pipeline(PLACE), range(0, 210, 7)).hits == 30
        all_is_well(PLACE, 210)
        """,
        tmp_path,
    )


def test_only_the_cache_can_be_written(tmp_path: Path) -> None:
    """The root is read-only, HOME and TMPDIR too, as in a hardened container.

    The working directory is the cache: where there is no temporary directory at all, mteb cannot
    be imported (dill, which datasets needs, asks for one).
    """
    cache = tmp_path / "cache"
    cache.mkdir()
    code = f"PLACE = {str(cache)!r}\n" + HEAD + textwrap.dedent(
        """
        import errno
        for place in (os.environ["HOME"], os.environ["TMPDIR"], "/"):
            try:
                open(os.path.join(place, "written"), "w")
            except OSError as error:
                assert error.errno == errno.EROFS
            else:
                raise AssertionError(place)
        from embcache import VllmEncoderWrapper
        encoder = VllmEncoderWrapper(
            sys.argv[1], dtype="float32", cache_path=PLACE, make_engine=lambda *_: FakeEngine()
        )
        from tests.conftest import encode as encode_as_users_do
        encode_as_users_do(encoder, ["a", "b"])
        encode(pipeline(PLACE), range(100))
        encode(pipeline(PLACE), range(150))
        all_is_well(PLACE, 150)
        """
    )  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    script = (
        f'mount --bind "{cache}" "{cache}" && mount -o remount,bind,ro / && '
        f'{{ mountpoint -q /tmp && mount -o remount,bind,ro /tmp; cd "{cache}"; exec "$@"; }}'
    )
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "HF_HUB_OFFLINE": "1"}
    environment |= {"MTEB_CACHE": str(cache / "mteb"), "HF_HOME": str(cache / "hf")}  # as they ask
    environment.pop("EMBCACHE_HOME", None)
    paths = (str(ROOT), str(ROOT / "src"), environment.get("PYTHONPATH"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    mounted = ["unshare", "-m", "bash", "-c", script, "-"]
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    result = subprocess.run(
        [*mounted, sys.executable, "-c", code, str(model)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0 and "well" in result.stdout, result.stdout + result.stderr
