from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from embcache.store import Database
from embcache.store.panics import each_off_screen, off_screen, on_screen
from tests.spaces import IDENTITY, folder, make_rows

PANIC = (
    b"\nthread '<unnamed>' (460) panicked at rust/lance-core/src/datatypes/field.rs:193:42:\n"
    b"called `Result::unwrap()` on an `Err` value: Unsupported logical type\n"
    b"stack backtrace:\n   0: rust_begin_unwind\nnote: Some details are omitted.\n"
)


@pytest.fixture(autouse=True)
def _nobody_else_reads() -> None:
    """Nobody compacts for an earlier test: capfd would take the descriptor that is led away then,
    and have its own one replaced when that ends.
    """
    for thread in threading.enumerate():
        if thread.name == "embcache-compactor":
            thread.join(30)


@pytest.mark.parametrize("before", [b"", b"another library's line\n"])
def test_a_panic_is_in_the_debug_log_and_all_else_on_the_screen(
    before: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "embcache"), off_screen():
        os.write(2, before + PANIC)
    assert capfd.readouterr().err == before.decode()
    assert "Unsupported logical type" in caplog.text and "rust_begin_unwind" in caplog.text


def test_what_others_print_is_only_later(capfd: pytest.CaptureFixture[str]) -> None:
    with off_screen():
        os.write(2, b"a line about a thread that panicked\n")
        assert capfd.readouterr().err == ""
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "a line about a thread that panicked\nafter\n"


def test_blocks_within_blocks_and_beside_each_other(capfd: pytest.CaptureFixture[str]) -> None:
    def work(number: int) -> None:
        for _ in range(50):
            with off_screen(), off_screen():
                os.write(2, b"%d\n" % number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().err.split()
    assert sorted(lines) == sorted(str(number) for number in range(4) for _ in range(50))


def test_an_error_ends_the_block(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="of Lance"), off_screen():
        raise ValueError("of Lance")
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"


def test_a_forked_process_has_its_screen(capfd: pytest.CaptureFixture[str]) -> None:
    """DataLoader workers, say."""
    with off_screen():
        child = os.fork()
        if not child:
            os.write(2, b"the child's\n")
            with off_screen():
                os.write(2, PANIC)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert capfd.readouterr().err == "the child's\n"


def test_while_an_engine_works_all_is_on_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    with on_screen(), on_screen(), off_screen():
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'child ')"], check=True)
        assert capfd.readouterr().err == "child "
    with off_screen():
        os.write(2, PANIC)
    assert capfd.readouterr().err == ""


def test_an_engine_waits_until_the_screen_is_back() -> None:
    order: list[str] = []
    reading, go = threading.Event(), threading.Event()

    def read() -> None:
        with off_screen():
            reading.set()
            go.wait(30)
            order.append("read")

    def start() -> None:
        with on_screen():
            order.append("start")

    threads = [threading.Thread(target=read), threading.Thread(target=start)]
    threads[0].start()
    assert reading.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert order == []
    go.set()
    for thread in threads:
        thread.join(30)
    assert order == ["read", "start"]


def test_items_are_made_off_screen_and_used_on_it(capfd: pytest.CaptureFixture[str]) -> None:
    def items() -> object:
        for number in range(2):
            os.write(2, PANIC)
            yield number

    for number in each_off_screen(iter(items())):  # type: ignore[call-overload]
        os.write(2, b"%d\n" % number)
    assert capfd.readouterr().err == "0\n1\n"


def test_a_command_over_a_manifest_with_a_flip_in_its_schema(tmp_path: Path) -> None:
    """A whole process: its screen has the clear error and nothing of Rust."""
    space = Database(tmp_path, writable=True).space(IDENTITY, IDENTITY.model, "vllm 1.0")
    space.add(make_rows(["a", "b"]))
    for path in (folder(space) / "_versions").glob("*.manifest"):
        path.write_bytes(path.read_bytes().replace(b"uint64", b"uhnt64"))
    for command in ("ls", "check --cache", "show name --cache"):
        done = subprocess.run(
            [sys.executable, "-m", "embcache", *command.split(), str(tmp_path)],
            capture_output=True,
            text=True,
            env={**os.environ, "RUST_BACKTRACE": "1"},
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 1 and "Lance panicked: " in said and "uhnt64" in said
        assert "Traceback" not in said and "stack backtrace" not in said and "thread '" not in said


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed(tmp_path: Path, closed: str) -> None:
    """Descriptor 2 would be one of Lance's own, and the process hang, or a file of the table."""
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "from embcache.store import Database\n"
        "from tests.spaces import IDENTITY, make_rows\n"
        "assert [os.readlink(f'/proc/self/fd/{n}') for n in (2,)] == [os.devnull]\n"
        "space = Database(sys.argv[1], writable=True).space(IDENTITY, 'm', 'v')\n"
        "for n in range(3):\n"
        "    space.add(make_rows([f'{n}']))\n"
        "assert len(space.refresh()) == 3\n"
        "open(os.path.join(sys.argv[1], 'well'), 'w').close()\n"
    )
    command = f'"{sys.executable}" "{tmp_path}/script.py" "{tmp_path}/cache" {closed}'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["bash", "-c", command], check=True, timeout=120, env=environment)
    assert (tmp_path / "cache" / "well").exists()
